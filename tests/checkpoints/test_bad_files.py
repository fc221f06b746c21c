"""Files that are not what they seem: one line each, and nothing in them is run."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sam3slim.checkpoints import CheckpointError, inspect, load
from sam3slim.cli import main


class _Evil:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return (pytest.fail, ("pickled code was run",))


def safetensors(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


ENTRY = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
NAME = "backbone.vision_backbone.trunk.ln_pre.bias"
FILES: dict[str, tuple[bytes, str]] = {
    "data cut short": (safetensors({NAME: ENTRY}, bytes(8)), "truncated or damaged"),
    "header longer than the file": (safetensors({NAME: ENTRY}, bytes(16), length=10_000), "truncated or damaged"),
    "shape lies": (safetensors({NAME: {**ENTRY, "shape": [9]}}, bytes(16)), "truncated or damaged"),
    "offsets overlap": (safetensors({NAME: ENTRY, "x": ENTRY}, bytes(16)), "truncated or damaged"),
    "no tensors": (safetensors({}), "it has no tensors"),
    "other tensors": (safetensors({"x": ENTRY}, bytes(16)), "not one tensor fits SAM 3"),
    "LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
    "HTML page": (b"<!DOCTYPE html><html>Sign in</html>", "HTML page"),
    "picture": (b"\x89PNG\r\n\x1a\n" + bytes(64), "neither safetensors nor a zip"),
    "empty": (b"", "is an empty file"),
    "old pickle with code": (pickle.dumps(_Evil(), protocol=2), "never run"),
    "plain pickle": (pickle.dumps({"a": 1}), "neither safetensors nor a zip"),
    "zip of something else": (b"PK\x03\x04" + bytes(60), "truncated or damaged"),
}


@pytest.mark.parametrize("case", FILES)
@pytest.mark.parametrize("look", [load, inspect])
def test_bad_file__one_line(tmp_path: Path, case: str, look: Callable[[Path], object]) -> None:
    content, reason = FILES[case]
    path = tmp_path / "sam3.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=reason) as caught:
        look(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_bad_file__command_ends_with_two(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sam3.pt").write_bytes(b"<html>")
    for command in (["inspect"], ["extract"]):
        target = [str(tmp_path / "out")] if command == ["extract"] else []
        assert main([*command, str(tmp_path / "sam3.pt"), *target]) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith("error: checkpoint ")
        assert captured.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_old_torch_format__is_read(tmp_path: Path) -> None:
    torch.save({NAME: torch.zeros(4)}, tmp_path / "x.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"does not tell"):
        load(tmp_path / "x.pt")


def test_hub_id__without_a_hub_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(CheckpointError, match=r"checkpoint no-one/nothing is neither a path here nor"):
        load("no-one/nothing")


def test_hub_id__not_where_the_folder_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A mistyped path must not be looked for on the hub."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs").mkdir()
    with pytest.raises(CheckpointError, match=r"checkpoint outputs/nano does not exist"):
        load("outputs/nano")


def test_hub_id__is_downloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: Any) -> None:
    from sam3slim.artifacts import write_artifact

    folder = write_artifact(model, tmp_path / "cached").path
    monkeypatch.chdir(tmp_path)
    asked = []

    def download(repository: str, allow_patterns: list[str]) -> str:
        asked.append((repository, allow_patterns))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert load("owner/name")[1].ok
    assert asked == [("owner/name", ["*.json", "*.safetensors", "*.txt"])]
