"""The demo's stages, files and restart, on a model of milliseconds."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from PIL import Image

from sam3slim.artifacts import write_artifact
from sam3slim.errors import UserError
from scripts import demo, reference
from tests.test_runs import QUICK, SLIMMER, data
from tests.tiny import OVERRIDES, tiny_model

COLUMNS = "name,precision,params,bytes,ratio,bbox_map,segm_map,segm_drop,retrained"


def test_demo__table_plot_picture_and_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "REFERENCE", tmp_path / "reference")
    monkeypatch.setattr(demo, "PICTURES", 2)
    write_artifact(tiny_model(), tmp_path / "reference")
    overrides = [*OVERRIDES, *SLIMMER, *QUICK, "trainer=cpu", *data(tmp_path)]
    rows = demo.demo(tmp_path / "out", overrides)
    precisions = [(row["name"], row["precision"], row["retrained"]) for row in rows]
    assert precisions == [
        ("tiny", "fp32", False),
        *(("tiny", method, False) for method in demo.METHODS),
        ("nano", "training checkpoint", True),
        *(("nano", method, True) for method in demo.METHODS),
    ]
    assert rows[0]["segm_drop"] == 0
    assert rows[4]["bytes"] > rows[5]["bytes"] > rows[6]["bytes"] > rows[7]["bytes"]
    lines = (tmp_path / "out/table.csv").read_text().splitlines()
    assert lines[0] == COLUMNS
    assert len(list(csv.DictReader(lines))) == len(rows)
    for name in ("map_vs_size.png", "predictions.png"):
        assert min(Image.open(tmp_path / "out" / name).size) > 100

    capsys.readouterr()
    assert demo.demo(tmp_path / "out", overrides) == rows
    assert "==" not in capsys.readouterr().out  # no stage ran again

    published = reference.publish(tmp_path / "out/nano_slim", tmp_path / "published")
    card = (published / "README.md").read_text()
    assert "python train.py" in card
    assert "mask mAP" in card


def test_demo__without_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "REFERENCE", tmp_path / "nothing")
    with pytest.raises(UserError, match="make reference"):
        demo.demo(tmp_path / "out")


def test_publish__unfinished_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no record"):
        reference.publish(tmp_path, tmp_path / "x")
