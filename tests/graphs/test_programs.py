"""Programs of torch.export answer what the model answers, in a process that knows PyTorch alone."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from sam3slim.artifacts import write_artifact
from sam3slim.checkpoints import CheckpointError, load, locate, weight_files
from sam3slim.compression import Int8Weight, compress
from sam3slim.errors import UserError
from sam3slim.graphs import ProgramSam3, export_programs, load_runnable
from sam3slim.graphs.modules import signatures
from sam3slim.graphs.programs import NOTES
from sam3slim.predict import Predictor
from tests.graphs.conftest import Exported
from tests.graphs.test_runner import ask, assert_close
from tests.small import OUTPUTS, small_model
from tests.tiny import SPEC


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    model = small_model(SPEC)
    info = export_programs(model, tmp_path_factory.mktemp("programs") / "a", parent="full")
    return Exported(model, info.path, load_runnable(info.path)[0])  # type: ignore[arg-type]


@pytest.mark.parametrize(("images", "prompts", "boxes"), [(1, 1, 0), (1, 5, 1), (2, 23, 3), (2, 2, 0)])
def test_call__any_number_of_everything(programs: Exported, images: int, prompts: int, boxes: int) -> None:
    assert_close(programs, ask(images, prompts, boxes))


def test_call__fewer_tokens_than_the_context(programs: Exported) -> None:
    assert_close(programs, ask(2, 3, 1, tokens=5))


def test_facts__files_and_parts(programs: Exported) -> None:
    metadata: dict[str, Any] = json.loads((programs.folder / "sam3slim.json").read_text())
    assert (metadata["format"], metadata["precision"], metadata["parent"]) == ("torch-export", "fp32", "full")
    files = [file for graph in metadata["torch_export"]["graphs"].values() for file in graph["files"]]
    assert {file["name"] for file in files} == {p.name for p in weight_files(locate(programs.folder))}
    assert metadata["bytes"] == sum((programs.folder / file["name"]).stat().st_size for file in files)
    # Every weight lies in exactly one program.
    parameters = sum(p.numel() for p in programs.model.parameters())
    assert sum(metadata["bytes_by_part"].values()) == metadata["dtypes"]["float32"]["bytes"] == 4 * parameters
    assert metadata["params"] == parameters
    assert metadata["dtypes"]["float32"]["params"] == parameters
    assert max(metadata["torch_export"]["max_difference_fp32"].values()) < 1e-4


def test_programs__do_not_tell_where_they_were_made(programs: Exported) -> None:
    program = torch.export.load(programs.folder / "text.pt2")
    assert not any(note in node.meta for node in program.graph.nodes for note in NOTES[:1])
    for path in programs.folder.glob("*.pt2"):
        assert str(Path.cwd()).encode() not in path.read_bytes()


PLAIN = """
import sys, torch, torchvision
from safetensors.torch import load_file, save_file
folder, inputs, target = sys.argv[1:]
vision, text, prompts = (torch.export.load(f"{folder}/{name}.pt2").module() for name in ("vision", "text", "prompts"))
given = load_file(inputs)
with torch.inference_mode():
    features = text(given["input_ids"], given["attention_mask"])
    answers = prompts(
        *vision(given["pixel_values"]), features, given["attention_mask"], given["image_index"],
        given["input_boxes"], given["input_boxes_labels"],
    )
assert "sam3slim" not in sys.modules and "transformers" not in sys.modules
save_file({str(i): answer.contiguous() for i, answer in enumerate(answers)}, target)
"""


def test_programs__run_without_this_package(programs: Exported, tmp_path: Path) -> None:
    inputs = ask(2, 3, 2)
    save_file(inputs, tmp_path / "inputs")
    command = [sys.executable, "-c", PLAIN, str(programs.folder), str(tmp_path / "inputs"), str(tmp_path / "answers")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    predictions = load_file(tmp_path / "answers")
    with torch.inference_mode():
        wanted = programs.model(**inputs)
    names = list(signatures(SPEC)["prompts"].outputs)
    assert set(names) == set(OUTPUTS)
    for i, name in enumerate(names):
        torch.testing.assert_close(predictions[str(i)], getattr(wanted, name), rtol=1e-4, atol=1e-4)


def test_load__weights_cannot_be_had_back(programs: Exported) -> None:
    with pytest.raises(CheckpointError, match=r"holds programs of torch\.export.*it was made from \(full\)"):
        load(programs.folder)


def test_load__damaged(programs: Exported, tmp_path: Path) -> None:
    folder = tmp_path / "a"
    shutil.copytree(programs.folder, folder)
    path, content = folder / "text.pt2", (folder / "text.pt2").read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(CheckpointError, match=rf"text.pt2 has {len(content) - 1} bytes"):
        load_runnable(folder)
    path.write_bytes(b"\xff" * len(content))
    with pytest.raises(CheckpointError, match="PyTorch refuses it"):
        load_runnable(folder)


def test_predict__runs_programs(programs: Exported, tmp_path: Path) -> None:
    picture = Image.effect_noise((40, 30), 80).convert("RGB")
    found = []
    for folder in (programs.folder, write_artifact(programs.model, tmp_path / "hf").path):
        found += Predictor(folder, device="auto")(picture, ["a", "b"], threshold=0.0, max_per_image=5)
    assert len(found[0]) == len(found[1]) == 5
    torch.testing.assert_close(found[0].scores, found[1].scores, rtol=0, atol=1e-4)
    torch.testing.assert_close(found[0].boxes, found[1].boxes, rtol=0, atol=1e-2)
    with pytest.raises(UserError, match="holds torch-export graphs, which run on the CPU; use auto or cpu"):
        Predictor(programs.folder, device="cuda")


def test_export__what_cannot_be_exported(programs: Exported, tmp_path: Path) -> None:
    int8 = load(compress(programs.model, Int8Weight()).write(programs.model, tmp_path / "int8").path)[0]
    with pytest.raises(UserError, match=r"torch\.export: the model is already INT8"):
        export_programs(int8, tmp_path / "a")
    assert isinstance(programs.runner, ProgramSam3)
    assert "_encode_boxes" not in vars(programs.model.geometry_encoder)
    assert {"vision_encoder", "detr_decoder"} <= set(programs.model._modules)
