"""Folders of weights: any name, several files, formats that must be converted first."""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sam3slim.artifacts import extract
from sam3slim.artifacts.reference_file import reference_tensors
from sam3slim.checkpoints import load
from sam3slim.models import Sam3
from tests.checkpoints.reading import HEADS, State, assert_weights, refusal


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
    assert_weights(load(message.rpartition("give one, such as ")[2], overrides=HEADS)[0], model)


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
