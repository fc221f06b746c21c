"""Which model, device and type."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from sam3slim.checkpoints.load_report import CheckpointError
from sam3slim.environment import choose_device
from sam3slim.errors import UserError
from sam3slim.predict.opening import choose_dtype, device_for, identity


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpu", r"^device gpu is not a device; use auto, cpu or cuda$"),
        ("meta", r"^device meta is not supported; use auto, cpu or cuda$"),
        ("cuda:99", r"^device cuda:99: no such CUDA device here; use auto or cpu$"),
    ],
)
def test_choose_device__not_here(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        choose_device(name)


def test_choose_device__cpu(artifact: Path) -> None:
    assert device_for(artifact, "cpu") == torch.device("cpu")
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(CheckpointError, match="does not exist"):
        device_for(artifact.parent / "nowhere", "cpu")


def test_choose_dtype__by_device() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert [choose_dtype("auto", cpu), choose_dtype("auto", gpu), choose_dtype("fp32", gpu)] == ["fp32", "fp16", "fp32"]
    with pytest.raises(UserError, match=r"^dtype fp8: expected auto, fp32, "):
        choose_dtype("fp8", gpu)
    with pytest.raises(UserError, match=r"^dtype fp16 is .* slower than fp32 on a CPU; use auto or fp32$"):
        choose_dtype("fp16", cpu)


def test_identity__follows_the_weights_not_the_place(artifact: Path, tmp_path: Path) -> None:
    metadata = json.loads((artifact / "sam3slim.json").read_text())
    assert identity(artifact) == f"sha256:{metadata['sha256']}"
    shutil.copytree(artifact, tmp_path / "moved")
    assert identity(tmp_path / "moved") == identity(artifact)
    (tmp_path / "moved/sam3slim.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"cannot read .*moved/sam3slim.json as JSON"):
        identity(tmp_path / "moved")


def test_identity__of_other_files_is_path_size_and_time(artifact: Path, tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    shutil.copy(artifact / "model.safetensors", weights)
    first = identity(weights)
    assert first == identity(str(weights))
    assert json.loads(first.removeprefix("files:")) == [
        [str(weights.resolve()), weights.stat().st_size, weights.stat().st_mtime_ns]
    ]
    weights.write_bytes(weights.read_bytes() + b"x")
    assert identity(weights) != first
