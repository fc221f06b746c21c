"""The demo's stages, files and restart, on a model of milliseconds."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from sam3slim.artifacts import write_artifact
from sam3slim.errors import UserError
from scripts import demo, reference
from tests.tiny import OVERRIDES, tiny_model
from tests.tiny_runs import QUICK, SLIMMER, data

ROOT = Path(__file__).resolve().parents[2]
COLUMNS = "name,precision,params,bytes,ratio,bbox_map,segm_map,segm_drop,retrained"


def test_demo__table_plot_picture_and_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
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
        *(("nano", method, True) for method in ("weights_only", *demo.METHODS)),
    ]
    assert rows[0]["segm_drop"] == 0
    assert rows[3]["bytes"] > rows[4]["bytes"] > rows[5]["bytes"] > rows[6]["bytes"]
    lines = (tmp_path / "out/table.csv").read_text().splitlines()
    assert lines[0] == COLUMNS
    assert len(list(csv.DictReader(lines))) == len(rows)
    for name in ("map_vs_size.png", "predictions.png"):
        assert min(Image.open(tmp_path / "out" / name).size) > 100

    said = capfd.readouterr()
    lines = [line for line in said.out.splitlines() if not line.startswith("[")]  # logging set up by other tests
    assert len(lines) <= 25
    assert [line[:5] for line in lines if "/5  " in line] == [f"{number}/5  " for number in range(1, 6)]
    log = tmp_path / "out" / demo.LOG
    assert "== nano_slim: python train.py experiment=nano_slim" in log.read_text()
    log.unlink()
    assert demo.demo(tmp_path / "out", overrides) == rows
    assert "mAP" not in log.read_text()  # no stage ran again

    published = reference.publish(tmp_path / "out/nano_slim", tmp_path / "published")
    card = (published / "README.md").read_text()
    assert "python train.py" in card
    assert "mask mAP" in card


TALK = """
import os, sys, warnings, logging
from pathlib import Path
from sam3slim import progress
from sam3slim.progress import output_to
print("before")
with output_to(Path(sys.argv[1])):
    print("python"), os.system("echo child; echo error >&2"), warnings.warn("warning"), logging.warning("logged")
    progress.terminal.write("bar")
print("after")
print("told", file=sys.stderr)
"""


def test_output_to__everything_but_bars(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    done = subprocess.run([sys.executable, "-c", TALK, log], cwd=ROOT, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("before\nafter\n", "bartold\n")
    assert {word for word in ("python", "child", "error", "warning", "logged") if word in log.read_text()} == {
        "python", "child", "error", "warning", "logged"
    }  # fmt: skip


def test_demo__without_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "REFERENCE", tmp_path / "nothing")
    with pytest.raises(UserError, match="make reference"):
        demo.demo(tmp_path / "out")


def test_publish__unfinished_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no record"):
        reference.publish(tmp_path, tmp_path / "x")
