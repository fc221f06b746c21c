"""The study on photographs: every row is a command that can be composed, and what has not been run is left out."""

from __future__ import annotations

from pathlib import Path

import pytest

from sam3slim.results.recording import config_hash
from scripts import photographs
from scripts.photographs import HEADS, all_rows, tables


def test_all_rows__each_is_a_command_of_its_own(tmp_path: Path) -> None:
    rows = list(all_rows(tmp_path / "photos", tmp_path / "photo", tmp_path / "out"))
    assert len({row.step.name for row in rows}) == len(rows)
    assert {row.table: len(row.cells) for row in rows} == {table: len(cells) for table, cells in HEADS.items()}
    hashes = {config_hash(row.step.composed(tmp_path / "out").config) for row in rows}
    assert len(hashes) == len(rows)


def test_tables__rows_that_were_not_run_are_left_out(tmp_path: Path) -> None:
    rows = list(all_rows(tmp_path / "photos", tmp_path / "photo", tmp_path / "out"))
    pages, lines = tables(rows, tmp_path / "out")
    assert lines == []
    assert all(len(page.splitlines()) == 2 for page in pages.values())


def test_main__a_row_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["photographs", "--photos", str(tmp_path), "--only", "depht", "--out", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", asked)
    with pytest.raises(SystemExit) as stopped:
        photographs.main()
    assert "--only depht: no row's folder contains it" in str(stopped.value) + capsys.readouterr().err
