"""Weights as people keep them: under any key, with any wrapper in their names."""

from __future__ import annotations

import argparse
import collections
import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import Sam3Model

from sam3slim.artifacts import extract
from sam3slim.checkpoints import inspect, load
from sam3slim.cli import main
from sam3slim.models import Sam3
from tests.checkpoints.reading import HEADS, State, assert_loads, assert_weights, refusal
from tests.small import assert_same_outputs


class Holder(nn.Module):
    """Somebody's training code, pickled whole."""

    def __init__(self, state: State) -> None:
        super().__init__()
        tree: Any = self
        for name, tensor in state.items():
            *steps, last = name.split(".")
            tree = self
            for step in steps:
                if step not in tree._modules:
                    tree.add_module(step, nn.Module())
                tree = tree._modules[step]
            tree.register_parameter(last, nn.Parameter(tensor, requires_grad=False))


CONTAINERS: dict[str, Callable[[State], Any]] = {
    **{
        name: lambda state, name=name: {name: state, "epoch": 1}  # type: ignore[misc]
        for name in ("model", "state_dict", "model_state_dict", "module", "net", "network", "weights", "params", "ema",
                     "model_ema", "student", "generator", "sam3")
    },
    "in two dicts": lambda state: {"model": {"state_dict": state}},
    "in three dicts": lambda state: {"checkpoint": {"model": {"params": state, "step": torch.tensor(3)}}},
    "beside a tensor": lambda state: {"model": state, "step": torch.tensor(3)},
    "flat beside counters": lambda state: {**state, "epoch": torch.tensor(3), "step": 4},
    "with metadata": lambda state: nn.Module().state_dict() | collections.OrderedDict(state),
    "named optimizer state": lambda state: {
        "optimizer": {"state": {name: {"exp_avg": torch.zeros(2)} for name in state}}, "net": state
    },
    "moments by name": lambda state: {
        "exp_avg": {name: torch.zeros_like(tensor) for name, tensor in state.items()}, "model": state
    },
    "in an object": lambda state: argparse.Namespace(model=state, epoch=3),
    "a whole module": lambda state: Holder(state),
    "a module in a dict": lambda state: {"model": Holder(state), "ema": None, "date": "today"},
}  # fmt: skip


@pytest.mark.parametrize("case", CONTAINERS)
def test_container__any(model: Sam3, state: State, tmp_path: Path, case: str) -> None:
    assert_loads(CONTAINERS[case](state), model, tmp_path / "x.pt")


def test_container__old_format(model: Sam3, state: State, tmp_path: Path) -> None:
    torch.save({"net": state}, tmp_path / "x.pt", _use_new_zipfile_serialization=False)
    assert_weights(load(tmp_path / "x.pt", overrides=HEADS)[0], model)


def test_container__a_whole_module_in_the_old_format(model: Sam3, state: State, tmp_path: Path) -> None:
    whole = Holder(state)
    torch.save(whole, tmp_path / "x.pt", _use_new_zipfile_serialization=False)
    assert refusal(tmp_path / "x.pt").endswith("save only its state_dict: torch.save(model.state_dict(), PATH)")
    torch.save(whole.state_dict(), tmp_path / "x.pt")
    assert_weights(load(tmp_path / "x.pt", overrides=HEADS)[0], model)


def test_container__two_that_fit_are_told_and_may_be_chosen(model: Sam3, state: State, tmp_path: Path) -> None:
    average = {name: tensor * 0.5 if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    report = assert_loads({"ema": average, "model": state}, model, tmp_path / "x.pt")
    advice = re.search(r"the override (\S+) reads them", report.render())
    assert advice is not None
    key, _, value = advice[1].partition("=")
    other, report = load(tmp_path / "x.pt", overrides={**HEADS, key: value})
    assert torch.equal(other.text_projection.weight, model.text_projection.weight * 0.5)
    assert "ema" not in report.render()
    assert inspect(tmp_path / "x.pt", HEADS).other["ema"] > 0


def test_container__chosen_by_a_name_that_is_not_there(state: State, tmp_path: Path) -> None:
    torch.save({"model": state}, tmp_path / "x.pt")
    assert "weights=emma: " in refusal(tmp_path / "x.pt", weights="emma")
    assert "leave it out" in refusal(tmp_path / "x.pt", weights="emma")
    assert load(tmp_path / "x.pt", overrides=HEADS)[1].ok


def test_container__numpy_arrays_are_named(state: State, tmp_path: Path) -> None:
    torch.save({"model": {name: tensor.numpy() for name, tensor in state.items()}}, tmp_path / "x.pt")
    assert "numpy arrays, which torch.from_numpy makes tensors of" in refusal(tmp_path / "x.pt")


WORDS = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module", "_forward_module", "module")


def with_word(name: str, word: str) -> str:
    return re.sub(r"(blocks|layers|resblocks|encode)\.(\d+)\.", rf"\1.\2.{word}.", name)


@pytest.mark.parametrize(
    ("word", "start"),
    [
        *zip(WORDS, ["", "_orig_mod.", "detector._orig_mod.module.", "model.", "module."], strict=True),
        ("_fsdp_wrapped_module._checkpoint_wrapped_module", "_forward_module.detector."),
    ],
)
def test_names__wrapper_words_anywhere(model: Sam3, state: State, tmp_path: Path, word: str, start: str) -> None:
    wrapped = {start + with_word(name, word): tensor for name, tensor in state.items()}
    assert_loads(wrapped, model, tmp_path / "x.pt")
    save_file({name: tensor.contiguous() for name, tensor in wrapped.items()}, tmp_path / "x.safetensors")
    assert_weights(load(tmp_path / "x.safetensors", overrides=HEADS)[0], model)


def test_names__really_wrapped(model: Sam3, tmp_path: Path) -> None:
    """What PyTorch itself makes of the names."""
    model = copy.deepcopy(model)
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    spec, before = model.spec, {key: value.clone() for key, value in model.state_dict().items()}
    layers = model.vision_encoder.backbone.layers
    layers[0] = checkpoint_wrapper(layers[0])
    layers[1] = torch.compile(layers[1])
    torch.save(torch.compile(model).state_dict(), tmp_path / "x.pt")
    assert any("_orig_mod" in name for name in torch.load(tmp_path / "x.pt", weights_only=True))
    vit = spec.vit
    told = {
        "vit.num_heads": vit.num_heads, "vit.window_size": vit.window_size, "vit.image_size": vit.image_size,
        "vit.global_attention_blocks": vit.global_blocks,
    }  # fmt: skip
    found = load(tmp_path / "x.pt", overrides={**HEADS, **told})[0].state_dict()
    assert all(torch.equal(found[key], value) for key, value in before.items())


@pytest.mark.parametrize("starts", [("detector.", "model.detector."), ("", "module."), ("a.", "b.")])
def test_names__twice_and_equal(model: Sam3, state: State, tmp_path: Path, starts: tuple[str, str]) -> None:
    content = {start + name: tensor.clone() for start in starts for name, tensor in state.items()}
    report = assert_loads(content, model, tmp_path / "x.pt")
    assert report.ignored["copies"] == sum(tensor.nbytes for tensor in state.values())


@pytest.mark.parametrize("starts", [("detector.", "ema.detector."), ("module.", ""), ("model.", "ema_model.")])
def test_names__twice_and_different(model: Sam3, state: State, tmp_path: Path, starts: tuple[str, str]) -> None:
    first, second = starts
    other = {name: tensor * 0.5 if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    content = {**{first + k: v for k, v in state.items()}, **{second + k: v for k, v in other.items()}}
    torch.save(content, tmp_path / "x.pt")
    message = refusal(tmp_path / "x.pt")
    assert "several sets of weights that differ" in message
    advice = re.search(r"the override (\S+)=(\S+)$", message)
    assert advice is not None
    found, report = load(tmp_path / "x.pt", overrides={**HEADS, advice[1]: advice[2]})
    assert_weights(found, model)
    assert report.ignored["other weights"] > 0 or not second


def test_names__fsdp_flat_weights_are_named(tmp_path: Path) -> None:
    torch.save({"model": {"_fsdp_wrapped_module._flat_param": torch.zeros(9)}}, tmp_path / "x.pt")
    assert "FSDP's flattened weights of one process" in refusal(tmp_path / "x.pt")


def multiplex(state: State) -> State:
    """As sam3.1_multiplex.pt: a neck for propagation besides, a tracker, and three levels instead of four."""
    neck = "detector.backbone.vision_backbone"
    found = {f"detector.{name}": tensor for name, tensor in state.items() if ".convs.3." not in name}
    for head in ("propagation_convs", "interactive_convs"):
        found |= {name.replace(".convs.", f".{head}."): tensor for name, tensor in found.items() if ".convs." in name}
    assert f"{neck}.propagation_convs.0.conv_1x1.weight" in found
    return found | {"tracker.model.sam_mask_decoder.iou_token.weight": torch.ones(3)}


def test_multiplex__is_read_computes_the_same_and_goes_back(
    model: Sam3, state: State, inputs: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(multiplex(state), tmp_path / "sam3.1_multiplex.pt")
    found, report = load(tmp_path / "sam3.1_multiplex.pt", overrides=HEADS)
    assert report.absent == [key for key in model.state_dict() if key.startswith("vision_encoder.neck.fpn_layers.3.")]
    assert "as in SAM 3.1" in report.render()
    assert report.ignored["tracker"] > 1000
    assert_same_outputs(model, found, inputs)  # whose fourth level is not zero
    assert main(["inspect", str(tmp_path / "sam3.1_multiplex.pt"), "text.num_heads=2"]) == 0
    assert "complete  every tensor that is read is there" in capsys.readouterr().out
    detector = {name for name in multiplex(state) if re.search(r"_convs|tracker", name) is None}
    extract(tmp_path / "sam3.1_multiplex.pt", tmp_path / "hf", overrides=HEADS)
    for source, told in ((tmp_path / "sam3.1_multiplex.pt", HEADS), (tmp_path / "hf", {})):
        extract(source, tmp_path / "back.pt", format="reference", overrides=told, overwrite=True)
        back = torch.load(tmp_path / "back.pt", weights_only=True)
        assert back.keys() == detector
        assert all(torch.equal(back[name], multiplex(state)[name]) for name in detector if "points_" not in name
                   and "pos_embed" not in name)  # fmt: skip
    assert_same_outputs(model, Sam3Model.from_pretrained(tmp_path / "hf").eval(), inputs, atol=1e-6)


def test_multiplex__three_levels_of_another_part_are_no_excuse(state: State, tmp_path: Path) -> None:
    content = {name: tensor for name, tensor in multiplex(state).items() if ".convs.2." not in name}
    torch.save(content, tmp_path / "x.pt")
    assert "4 keys missing (vision 4" in refusal(tmp_path / "x.pt")


def test_names__real_rotary_tables(model: Sam3, state: State, tmp_path: Path) -> None:
    """Newer code keeps two real tables instead of a complex one."""
    tables = {name: tensor for name, tensor in state.items() if name.endswith("freqs_cis")}
    rest = {name: tensor for name, tensor in state.items() if name not in tables}
    for name, table in tables.items():
        rest |= {f"{name}_real": table.real.clone(), f"{name}_imag": table.imag.clone()}
    assert_loads(rest, model, tmp_path / "x.pt")
