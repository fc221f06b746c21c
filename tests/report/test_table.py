from __future__ import annotations

import csv
from pathlib import Path

import pytest

from sam3slim.files import size_text
from sam3slim.report.table import DEMO_COLUMNS, table_row, to_markdown, write_table
from sam3slim.results.record import Artifact, Metrics, ModelSummary, RunRecord


def record(name: str, size: int, segm: float | None, precision: str = "fp32") -> RunRecord:
    return RunRecord(
        kind="evaluate",
        command="c",
        model=ModelSummary(name, 2_200_000),
        artifact=Artifact(bytes=size, precision=precision),
        metrics=Metrics({"bbox": {"map": 0.6}, "segm": {"map": segm}}),
    )


FULL, SMALL = record("nano", 8_800_000, 0.62), record("nano_slim", 2_200_000, 0.598, "int8")


def test_table_row__drop_in_points_and_ratio_against_the_baseline() -> None:
    row = table_row(SMALL, FULL, retrained=True)
    assert tuple(row) == DEMO_COLUMNS
    assert row["segm_drop"] == pytest.approx(2.2)
    assert row["ratio"] == 4.0
    assert (row["name"], row["precision"], row["retrained"]) == ("nano_slim", "int8", True)


def test_table_row__what_is_unknown_is_none() -> None:
    row = table_row(RunRecord(kind="train", command="c"), FULL, retrained=False, name="x")
    assert row == dict.fromkeys(DEMO_COLUMNS) | {"name": "x", "retrained": False}


def test_write_table__csv_reads_back(tmp_path: Path) -> None:
    rows = [
        table_row(FULL, FULL, retrained=False),
        table_row(record("odd, name", 5, None), FULL, retrained=True),
    ]
    csv_path, md_path = write_table(rows, tmp_path / "demo")
    with csv_path.open(newline="") as file:
        read = list(csv.DictReader(file))
    assert tuple(read[0]) == DEMO_COLUMNS
    assert (read[0]["segm_map"], read[0]["segm_drop"], read[0]["retrained"]) == ("0.62", "0.0", "false")
    assert (read[1]["name"], read[1]["segm_map"], read[1]["retrained"]) == ("odd, name", "", "true")
    assert md_path.read_text() == to_markdown(rows)


def test_to_markdown__units_for_people() -> None:
    text = to_markdown([table_row(SMALL, FULL, retrained=True)])
    assert text.splitlines()[2] == "| nano_slim | int8 | 2.20 M | 2.2 MB | 4.0× | 60.0 | 59.8 | 2.20 | yes |"


def test_to_markdown__pipes_gaps_and_tiny_gains() -> None:
    row = {"name": "a|b", "segm_map": None, "segm_drop": -0.001}
    assert to_markdown([row], ["name", "segm_map", "segm_drop"]).splitlines()[2] == "| a\\|b | – | 0.00 |"


def test_write_table__missing_column_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="row 0 of the table lacks size"):
        write_table([{"name": "x"}], tmp_path, columns=["name", "size"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("size", "text"),
    [(3.36e9, "3.36 GB"), (8.12e6, "8.12 MB"), (840_000, "840 kB"), (12, "12 B"), (-150_707, "-151 kB")],
)
def test_size_text__units(size: float, text: str) -> None:
    assert size_text(size) == text
