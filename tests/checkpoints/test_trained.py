"""What a model was trained on is told by its artifact, and by all that are made of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sam3slim.artifacts import extract, write_artifact
from sam3slim.artifacts.trained import (
    SENTENCES,
    TEXT,
    TEXT_AND_BOXES,
    inherited_prompts,
    told_prompts,
    trained_prompts,
)
from tests.tiny import tiny_model

ROOT = Path(__file__).parent.parent.parent


def metadata_of(folder: Path) -> dict[str, Any]:
    metadata: dict[str, Any] = json.loads((folder / "sam3slim.json").read_text())
    return metadata


@pytest.mark.parametrize("kind", [TEXT, TEXT_AND_BOXES])
def test_artifact__tells_and_passes_it_on(tmp_path: Path, kind: str) -> None:
    write_artifact(tiny_model(), tmp_path / "first", trained_prompts=kind)
    assert SENTENCES[kind] in (tmp_path / "first" / "README.md").read_text()
    write_artifact(tiny_model(), tmp_path / "second", parent=str(tmp_path / "first"))
    extract(tmp_path / "second", tmp_path / "third", dtype="fp16")
    for name in ("second", "third"):
        assert metadata_of(tmp_path / name)["trained_prompts"] == kind
        assert SENTENCES[kind] in (tmp_path / name / "README.md").read_text()


def test_artifact__of_an_unknown_parent_says_so(tmp_path: Path) -> None:
    torch.save({"model": tiny_model().state_dict()}, tmp_path / "foreign.pt")
    for number, parent in enumerate((None, tmp_path / "foreign.pt", "facebook/sam3", tmp_path / "gone")):
        write_artifact(tiny_model(), tmp_path / f"{number}", parent=None if parent is None else str(parent))
        assert metadata_of(tmp_path / f"{number}")["trained_prompts"] is None
        text = (tmp_path / f"{number}" / "README.md").read_text()
        assert "not known" in text
        assert "text and box prompts" not in text


def test_told_prompts__older_artifacts() -> None:
    assert told_prompts(metadata_of(ROOT / "assets/nano")) == TEXT  # trained from scratch before there were boxes
    assert told_prompts({"parent": "sam3.pt", "extra": {"training_seconds": 5}}) is None
    assert told_prompts({"parent": None, "extra": {}}) is None
    assert told_prompts({"trained_prompts": "something newer"}) is None


@pytest.mark.parametrize(("share", "parent", "told"), [
    (0.5, None, TEXT_AND_BOXES), (0.0, None, TEXT), (0.0, "boxes", TEXT_AND_BOXES), (0.0, "gone", None),
    (0.5, "gone", TEXT_AND_BOXES),
])  # fmt: skip
def test_training_checkpoint__tells_by_its_configuration(
    tmp_path: Path, share: float, parent: str | None, told: str | None
) -> None:
    write_artifact(tiny_model(), tmp_path / "boxes", trained_prompts=TEXT_AND_BOXES)
    start = None if parent is None else str(tmp_path / parent)
    assert trained_prompts(start, boxes=bool(share)) == told
    config = {"data": {"boxes": {"share": share}}, "init": {"checkpoint": start}}
    model = tiny_model()
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    hyper = {"model": model.spec.to_dict(), "config": config}
    torch.save({"state_dict": state, "hyper_parameters": hyper}, tmp_path / "last.ckpt")
    assert inherited_prompts(tmp_path / "last.ckpt") == told
