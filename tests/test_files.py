"""A table is written whole or not at all."""

from pathlib import Path

import pytest

from sam3slim.files import write_csv


def test_write_csv__columns_of_the_first_row_or_as_given(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    assert write_csv(path, [{"b": 1, "a": "x, y"}, {"b": 2, "a": None}]) == path
    assert path.read_text(encoding="utf-8").splitlines() == ["b,a", '1,"x, y"', "2,"]
    write_csv(path, [], ["a", "b"])
    assert path.read_text(encoding="utf-8").splitlines() == ["a,b"]


def test_write_csv__a_row_that_does_not_fit_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("old")
    with pytest.raises(ValueError, match="fields not in"):
        write_csv(path, [{"a": 1}, {"c": 2}])
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
