"""A prompt bank through ``export``: every format but the reference's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sam3slim.artifacts import write_artifact
from sam3slim.artifacts.cut import cut_text
from sam3slim.data.shapes import ShapesSpec
from sam3slim.errors import UserError
from sam3slim.export.run import export
from sam3slim.graphs import load_runnable
from tests.tiny import tiny_model
from tests.tiny_runs import evaluate

PHRASES = [category["name"] for category in ShapesSpec().categories()]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bank")
    write_artifact(tiny_model(), root / "full")
    cut_text(root / "full", root / "bank", PHRASES, bank=True)
    evaluate(root / "bank", root, "eval")
    return root / "eval"


@pytest.mark.parametrize(
    "format", ["hf", *(pytest.param(graphs, marks=pytest.mark.slow) for graphs in ("onnx", "torch-export"))]
)
def test_export__a_bank(run: Path, tmp_path: Path, same_process: list[str], format: str) -> None:
    done = export([run], tmp_path / "out", format=format, best="map")
    model, report = load_runnable(tmp_path / "out")
    assert model.spec.text.bank is not None
    assert report.kind == ("artifact" if format == "hf" else format)
    assert done.verified.transformers is None
    assert json.loads((tmp_path / "out/sam3slim.json").read_text())["opens_in"][0] == "sam3slim"
    card = (tmp_path / "out/README.md").read_text()
    assert ("it has no text tower" in card) == (format == "hf")
    assert f"none: stored features of {len(PHRASES) + 1} phrases" in card
    assert max(done.verified.differences.values()) < 1e-4


def test_export__a_bank_is_not_for_the_reference(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="it has a prompt bank instead of the text tower that the reference needs"):
        export([run], tmp_path / "out", format="reference", best="map")
