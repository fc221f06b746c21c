"""The table of slim models is made of evaluations against the full one."""

import json
from pathlib import Path
from typing import Any

import pytest

from sam3slim.errors import UserError
from sam3slim.results.record import Artifact, Data, Drop, Metrics, ModelSummary, RunRecord
from scripts.study.headline import headline_markdown, training_seconds

DATA: dict[str, Any] = {"name": "shapes", "split": "test", "images": 300}


def artifact(folder: Path, **metadata: object) -> Path:
    folder.mkdir(parents=True)
    (folder / "sam3slim.json").write_text(json.dumps(metadata))
    return folder


def evaluation(folder: Path, made: Path, value: float, points: float | None, data: dict[str, Any] = DATA) -> Path:
    RunRecord(
        "evaluate", "", model=ModelSummary(params=500_000), data=Data(**data),
        metrics=Metrics({"segm": {"map": value}}), artifact=Artifact(str(made), 9_000_000),
        drop={} if points is None else {"segm": Drop(points, (points - 0.5, points + 0.5))},
    ).write(folder)  # fmt: skip
    return folder


FULL = RunRecord(
    "evaluate", "", model=ModelSummary(params=1_000_000), data=Data(**DATA), metrics=Metrics({"segm": {"map": 0.8}})
)


def test_headline__a_row_per_evaluation_with_the_time_of_its_training(tmp_path: Path) -> None:
    artifact(tmp_path / "run/artifact", bytes=2_500_000, extra={"training_seconds": 1170}, parent="assets/nano")
    bank = artifact(tmp_path / "bank", bytes=2_500_000, parent=str(tmp_path / "run"))
    # The artifact's size, not that of the training checkpoint that was evaluated.
    checkpoint = tmp_path / "run/checkpoints/best.ckpt"
    rows = [evaluation(tmp_path / "a/half", checkpoint, 0.78, 2.0), evaluation(tmp_path / "a/banked", bank, 0.78, 2.0)]
    text = headline_markdown(FULL, rows)
    values = "500,000 | 50.0 % | 2.50 MB | 78.0 | 97.5 % | 2.0 (1.5 to 2.5) | 20 min |"
    assert text.splitlines()[2:] == [f"| half | {values}", f"| banked | {values}"]


def test_headline__only_what_was_measured_in_the_same_way(tmp_path: Path) -> None:
    made = artifact(tmp_path / "made", bytes=1, extra={"training_seconds": 60})
    with pytest.raises(UserError, match="expected a finished evaluation with a drop"):
        headline_markdown(FULL, [evaluation(tmp_path / "a", made, 0.7, None)])
    with pytest.raises(UserError, match="other data"):
        headline_markdown(FULL, [evaluation(tmp_path / "b", made, 0.7, 1.0, {**DATA, "images": 10})])
    with pytest.raises(UserError, match="says how long"):
        training_seconds(artifact(tmp_path / "silent"))
