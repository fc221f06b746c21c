"""Weights as people keep them: under any key, with any wrapper in their names, beside any object."""

from __future__ import annotations

import argparse
import collections
import copy
import json
import pathlib
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import Sam3Model

from sam3slim.artifacts import extract
from sam3slim.artifacts.reference_file import reference_tensors
from sam3slim.checkpoints import CheckpointError, LoadReport, inspect, load, locate
from sam3slim.checkpoints.readers import read
from sam3slim.cli import main
from sam3slim.models import Sam3
from sam3slim.models.build import state_shapes
from sam3slim.specs import ModelSpec
from tests.small import assert_same_outputs, small_model

HEADS = {"text.num_heads": 2}
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def model(spec: ModelSpec) -> Sam3:
    return small_model(spec)


@pytest.fixture(scope="module")
def state(model: Sam3) -> State:
    """The model under the reference's names."""
    return reference_tensors(model.spec, model.state_dict())


def assert_loads(content: Any, model: Sam3, path: Path, **options: Any) -> LoadReport:
    torch.save(content, path)
    found, report = load(path, overrides={**HEADS, **options})
    assert_weights(found, model)
    return report


def assert_weights(found: Sam3, model: Sam3) -> None:
    for key, value in model.state_dict().items():
        assert torch.equal(found.state_dict()[key], value), key


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(path, overrides={**HEADS, **options})
    message = str(caught.value)
    assert "\n" not in message
    assert "\x1b" not in message
    return message


class Config(dict[str, Any]):
    """As yacs, addict and ml_collections have them."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


class Names(list[str]):
    pass


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


OBJECTS: dict[str, Callable[[], Any]] = {
    "numpy scalar": lambda: np.float64(0.5),
    "numpy array": lambda: np.arange(3),
    "numpy random state": lambda: np.random.get_state(),
    "Namespace": lambda: argparse.Namespace(lr=0.1, deep=argparse.Namespace(x=1)),
    "Path": lambda: pathlib.Path("runs/1"),
    "OmegaConf": lambda: OmegaConf.create({"a": [1, {"b": 2}], "c": "${a}"}),
    "defaultdict": lambda: collections.defaultdict(list, {"a": [1]}),
    "deque": lambda: collections.deque([1, 2], maxlen=3),
    "dict of its own": lambda: Config(a=1, b=Config(c=2)),
    "list of its own": lambda: Names(["a", "b"]),
    "set and frozenset": lambda: {frozenset((1, 2)), "x"},
    "enum": lambda: argparse._ActionsContainer and re.IGNORECASE,
    "datetime": lambda: __import__("datetime").datetime(2026, 1, 1),
    "class": lambda: argparse.Action,
    "function": lambda: torch.nn.functional.relu,
    "partial": lambda: __import__("functools").partial(max, 1),
    "complex": lambda: 1 + 2j,
    "exception": lambda: ValueError("x"),
    "scheduler": lambda: torch.optim.lr_scheduler.StepLR(torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.1), 3),
}


@pytest.mark.parametrize("case", OBJECTS)
def test_pickle__harmless_objects_are_left_out(state: State, tmp_path: Path, case: str) -> None:
    for zipped in (True, False):
        content = {"model": state, "args": OBJECTS[case]()}
        torch.save(content, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
        raw = read(locate(tmp_path / "x.pt"), HEADS)
        assert not raw.unexpected
        assert raw.tensors.keys() == state_shapes(raw.spec).keys()


def test_pickle__what_was_left_out_is_named(state: State, tmp_path: Path) -> None:
    torch.save({"model": state, "args": argparse.Namespace(), "best": np.float64(1)}, tmp_path / "x.pt")
    report = load(tmp_path / "x.pt", overrides=HEADS)[1]
    assert "argparse.Namespace" in report.left_out
    assert inspect(tmp_path / "x.pt", HEADS).to_dict()["not_loaded"] == report.left_out


class Calls:
    """Runs ``function`` where it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("evil", "name"),
    [
        (Calls(__import__("os").system, "touch run"), "posix.system"),
        (Calls(eval, "open('run', 'w')"), "builtins.eval"),
        (Calls(exec, "open('run', 'w')"), "builtins.exec"),
        (Calls(open, "run", "w"), ".open"),
        (Calls(subprocess.Popen, ["touch", "run"]), ".Popen"),
        (Calls(__import__("runpy").run_path, "x.py"), "runpy.run_path"),
        (Calls(__import__("shutil").rmtree, "."), "shutil.rmtree"),
        (Calls(pytest.fail, "was run"), "_pytest"),
    ],
)
def test_pickle__code_is_named_and_not_run(
    state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, evil: Calls, name: str, zipped: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": state, "args": evil}, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    message = refusal(tmp_path / "x.pt")
    assert "never run" in message
    assert name in message
    assert [path.name for path in tmp_path.iterdir()] == ["x.pt"]


def test_pickle__sharded_tensors_are_named_with_advice_that_works(
    model: Sam3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import distribute_tensor

    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        layer = nn.Linear(2, 2)
        torch.save({"model": {"x.weight": distribute_tensor(layer.weight.detach(), mesh)}}, tmp_path / "x.pt")
        whole = get_model_state_dict(layer, options=StateDictOptions(full_state_dict=True))
    finally:
        torch.distributed.destroy_process_group()
    code = f"import sam3slim; sam3slim.load({str(tmp_path / 'x.pt')!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    message = done.stderr.strip().splitlines()[-1]
    assert "DTensor" in message
    assert "StateDictOptions(full_state_dict=True)" in message
    assert torch.equal(whole["weight"], layer.weight)


@pytest.fixture
def folder(model: Sam3, tmp_path: Path) -> Path:
    """A transformers folder without its weights."""
    model.config.save_pretrained(tmp_path / "folder")
    return tmp_path / "folder"


def shards(model: Sam3, folder: Path) -> None:
    parts = list(model.state_dict().items())
    names = {}
    for number, part in enumerate((parts[::2], parts[1::2])):
        torch.save(dict(part), folder / f"pytorch_model-{number}.bin")
        names |= {key: f"pytorch_model-{number}.bin" for key, _ in part}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": names}))


FOLDERS: dict[str, Callable[[Sam3, Path], object]] = {
    "pytorch_model.bin": lambda model, folder: torch.save(model.state_dict(), folder / "pytorch_model.bin"),
    "pytorch_model.bin of the trainer": lambda model, folder: (
        torch.save(model.state_dict(), folder / "pytorch_model.bin"),
        torch.save(argparse.Namespace(lr=1), folder / "training_args.bin"),
        torch.save({}, folder / "optimizer.pt"),
    ),
    "shards of pytorch_model.bin": shards,
    "a variant": lambda model, folder: save_file(model.state_dict(), folder / "model.fp32.safetensors"),
    "a file of another name": lambda model, folder: torch.save({"model": model.state_dict()}, folder / "weights.pth"),
    "reference names": lambda model, folder: torch.save(
        reference_tensors(model.spec, model.state_dict()), folder / "sam3.pt"
    ),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_folder__weights_of_any_name(model: Sam3, folder: Path, case: str) -> None:
    FOLDERS[case](model, folder)
    found, report = load(folder)
    assert_weights(found, model)
    assert report.kind == "transformers"
    extract(folder, folder.parent / "out")
    assert_weights(load(folder.parent / "out")[0], model)


def test_folder__several_files_of_weights(model: Sam3, folder: Path) -> None:
    state = reference_tensors(model.spec, model.state_dict())
    torch.save(state, folder / "a.pt")
    torch.save(state, folder / "b.pt")
    message = refusal(folder)
    assert "several files of weights (a.pt, b.pt)" in message
    advised = Path(message.rpartition("give one of them: ")[2])
    assert_weights(load(advised, overrides=HEADS)[0], model)


def test_folder__several_checkpoints_of_a_trainer(model: Sam3, tmp_path: Path) -> None:
    state = reference_tensors(model.spec, model.state_dict())
    for name in ("epoch=1.ckpt", "epoch=2.ckpt"):
        torch.save(state, tmp_path / name)
    message = refusal(tmp_path)
    assert "several files of weights (epoch=1.ckpt, epoch=2.ckpt)" in message
    assert_weights(load(message.rpartition("give one of them: ")[2], overrides=HEADS)[0], model)


def test_folder__weights_further_down(model: Sam3, tmp_path: Path) -> None:
    (tmp_path / "version_0/checkpoints").mkdir(parents=True)
    torch.save(reference_tensors(model.spec, model.state_dict()), tmp_path / "version_0/checkpoints/last.ckpt")
    message = refusal(tmp_path)
    assert_weights(load(message.rpartition("further down; give them: ")[2], overrides=HEADS)[0], model)


def test_folder__of_deepspeed(tmp_path: Path) -> None:
    (tmp_path / "zero_to_fp32.py").write_text("")
    (tmp_path / "global_step1").mkdir()
    torch.save({}, tmp_path / "global_step1/mp_rank_00_model_states.pt")
    assert f"is DeepSpeed's; make whole weights of it and give what this writes: python {tmp_path}" in refusal(tmp_path)


def test_folder__one_file_without_configuration(model: Sam3, state: State, tmp_path: Path) -> None:
    torch.save(state, tmp_path / "sam3.1_multiplex.pt")
    (tmp_path / "README.md").write_text("")
    assert_weights(load(tmp_path, overrides=HEADS)[0], model)


def test_folder__distributed_checkpoint_says_how_it_becomes_a_file(
    model: Sam3, state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch.distributed.checkpoint as dcp

    plain = {name: tensor for name, tensor in state.items() if not tensor.is_complex()}
    dcp.save({"model": {"freqs": 1, **plain}}, checkpoint_id=tmp_path / "dcp", no_dist=True)
    message = refusal(tmp_path / "dcp")
    advised = shlex.split(message.partition("make one file of it: ")[2])
    assert advised[:3] == ["python", "-m", "torch.distributed.checkpoint.format_utils"]
    monkeypatch.chdir(tmp_path)
    subprocess.run([sys.executable, *advised[1:]], check=True)
    told = {
        "vit.num_heads": 2, "vit.window_size": 2, "vit.image_size": 32,
        "vit.global_attention_blocks": model.spec.vit.global_blocks,
    }  # fmt: skip
    assert_weights(load(advised[-1], overrides={**HEADS, **told})[0], model)


def test_folder__gzip_is_named_with_advice_that_works(model: Sam3, state: State, tmp_path: Path) -> None:
    torch.save(state, tmp_path / "sam3.pt")
    subprocess.run(["gzip", str(tmp_path / "sam3.pt")], check=True)
    message = refusal(tmp_path / "sam3.pt.gz")
    assert "gunzip -k FILE" in message
    subprocess.run(["gunzip", "-k", str(tmp_path / "sam3.pt.gz")], check=True)
    assert_weights(load(tmp_path / "sam3.pt", overrides=HEADS)[0], model)


def test_file__a_layer_that_is_lost_is_no_shallower_model(state: State, tmp_path: Path) -> None:
    torch.save({name: tensor for name, tensor in state.items() if ".blocks.1." not in name}, tmp_path / "x.pt")
    assert "but none of backbone.vision_backbone.trunk.blocks.1" in refusal(tmp_path / "x.pt")
