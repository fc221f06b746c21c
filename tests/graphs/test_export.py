"""What lies in an ONNX artifact, what refuses to be one, and who may read it."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from transformers import Sam3Processor

from sam3slim.artifacts import write_artifact
from sam3slim.checkpoints import CheckpointError, load, locate, weight_files
from sam3slim.compression import Int8Weight, compress
from sam3slim.errors import UserError
from sam3slim.graphs import export_onnx, load_onnx, load_runnable
from sam3slim.graphs import onnx as export
from sam3slim.graphs.modules import signatures, traceable
from sam3slim.models import Sam3
from tests.graphs.conftest import Exported, copy_graphs

TYPES = {"tensor(float)": "float32", "tensor(int64)": "int64"}


def metadata_of(exported: Exported) -> dict[str, Any]:
    metadata: dict[str, Any] = json.loads((exported.folder / "sam3slim.json").read_text())
    return metadata


@pytest.mark.parametrize("graph", ["vision", "text", "prompts"])
def test_facts__names_types_and_shapes_are_the_graphs_own(floats: Exported, int8: Exported, graph: str) -> None:
    for exported in (floats, int8):
        stated = metadata_of(exported)["onnx"]["graphs"][graph]
        session = onnxruntime.InferenceSession(str(exported.folder / f"{graph}.onnx"))
        for kind, values in (("inputs", session.get_inputs()), ("outputs", session.get_outputs())):
            found = {v.name: {"dtype": TYPES[v.type], "shape": v.shape} for v in values}
            assert found == stated[kind]


def test_facts__files_and_sizes(floats: Exported, int8: Exported) -> None:
    for exported, precision in ((floats, "fp32"), (int8, "int8_onnx")):
        metadata = metadata_of(exported)
        assert (metadata["format"], metadata["precision"]) == ("onnx", precision)
        files = [file for graph in metadata["onnx"]["graphs"].values() for file in graph["files"]]
        for file in files:
            content = (exported.folder / file["name"]).read_bytes()
            assert (len(content), hashlib.sha256(content).hexdigest()) == (file["bytes"], file["sha256"])
        assert {file["name"] for file in files} == {p.name for p in weight_files(locate(exported.folder))}
        assert metadata["bytes"] == sum(file["bytes"] for file in files)
        assert max(metadata["onnx"]["max_difference_fp32"].values()) < 1e-4
        assert metadata["params"] == sum(p.numel() for p in exported.model.parameters())
    assert set(metadata_of(int8)["dtypes"]) >= {"int8", "float32"}
    assert metadata_of(floats)["parent"] == "full"


def test_card__names_every_input(floats: Exported) -> None:
    card = (floats.folder / "README.md").read_text()
    for signature in signatures(floats.model.spec).values():
        assert all(f"`{name}`" in card for name in (*signature.inputs, *signature.outputs))
    Sam3Processor.from_pretrained(floats.folder)


def test_export__a_mismatch_writes_nothing(floats: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "trace_graphs", lambda model, folder, **_: copy_graphs(floats.folder, folder))
    other = copy.deepcopy(floats.model)
    with torch.no_grad():
        other.text_projection.bias += 0.1
    with pytest.raises(UserError, match=r"differ from PyTorch: .*text_features by 0\.\d+"):
        export_onnx(other, tmp_path / "a")
    assert not list(tmp_path.iterdir())
    assert export_onnx(floats.model, tmp_path / "a").path == tmp_path / "a"


def test_export__what_cannot_be_exported(floats: Exported, tmp_path: Path) -> None:
    int8 = load(compress(floats.model, Int8Weight()).write(floats.model, tmp_path / "int8").path)[0]
    with pytest.raises(UserError, match="already INT8"):
        export_onnx(int8, tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b/notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds files that are not an artifact"):
        export_onnx(floats.model, tmp_path / "b")


def test_export__half_precision_is_copied(floats: Exported) -> None:
    half = copy.deepcopy(floats.model).half()
    plain = export.plain_model(half, "ONNX export")
    assert {p.dtype for p in plain.parameters()} == {torch.float32}
    assert {p.dtype for p in half.parameters()} == {torch.float16}
    assert export.plain_model(floats.model, "ONNX export") is floats.model


def test_traceable__leaves_the_model_as_it_was(floats: Exported) -> None:
    geometry = floats.model.geometry_encoder
    with traceable(floats.model):
        assert "_encode_boxes" in vars(geometry)
    assert "_encode_boxes" not in vars(geometry)


def test_missing_package__says_what_to_install(
    floats: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    for call in (lambda: load_onnx(floats.folder), lambda: export_onnx(floats.model, tmp_path / "a")):
        with pytest.raises(UserError, match=r"needs onnxruntime.*pip install 'sam3slim\[onnx\]'"):
            call()


def test_load__weights_cannot_be_had_back(floats: Exported) -> None:
    with pytest.raises(CheckpointError, match=r"holds ONNX graphs.*the checkpoint it was made from \(full\)"):
        load(floats.folder)


def test_load_onnx__another_kind_of_artifact(floats: Exported, tmp_path: Path) -> None:
    write_artifact(floats.model, tmp_path / "hf")
    with pytest.raises(CheckpointError, match="is not an ONNX artifact"):
        load_onnx(tmp_path / "hf")
    assert isinstance(load_runnable(tmp_path / "hf")[0], Sam3)
    runner, report = load_runnable(floats.folder, expect=floats.model.spec)
    assert (type(runner).__name__, report.kind, report.precision) == ("OnnxSam3", "onnx", "fp32")


def test_load_onnx__another_architecture(floats: Exported) -> None:
    other = replace(floats.model.spec, ffn_dim=64)
    with pytest.raises(CheckpointError, match=r"ffn_dim is 32 in .*, not 64"):
        load_onnx(floats.folder, expect=other)


def test_load_onnx__damaged(floats: Exported, tmp_path: Path) -> None:
    folder = tmp_path / "a"
    shutil.copytree(floats.folder, folder)
    path, content = folder / "text.onnx", (folder / "text.onnx").read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(CheckpointError, match=rf"text.onnx has {len(content) - 1} bytes, {len(content)} were written"):
        load_onnx(folder)
    path.write_bytes(b"\xff" * len(content))
    with pytest.raises(CheckpointError, match="ONNX Runtime refuses it"):
        load_onnx(folder)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"has no text\.onnx; copy the whole folder"):
        load_onnx(folder)
    metadata = metadata_of(floats)
    del metadata["onnx"]
    (folder / "sam3slim.json").write_text(json.dumps(metadata))
    with pytest.raises(CheckpointError, match=r"lacks 'onnx\.graphs'"):
        load_onnx(folder)
