"""A table is written whole or not at all."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from sam3slim.files import Kept, scratch_folder, write_csv

HOLDING = """
from sam3slim.files import scratch_folder
with scratch_folder() as folder:
    (folder / "graphs").mkdir()
    (folder / "graphs/weights").write_text("large")
    print(folder, flush=True)
    input()
"""


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


def test_scratch_folder__of_a_killed_process_goes_with_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "others").mkdir()
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDING], env={**os.environ, "TMPDIR": str(tmp_path)}, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert holder.stdout is not None
    held = Path(holder.stdout.readline().strip())
    with scratch_folder() as mine:
        assert mine.is_dir()
        assert (held / "graphs/weights").is_file()  # in use
    assert not mine.exists()
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    assert held.is_dir()
    with scratch_folder():
        assert not held.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["others"]


def test_kept__results_of_the_same_work_alone(tmp_path: Path) -> None:
    file, asked = tmp_path / "kept.json", []

    def work() -> int:
        asked.append(1)
        return len(asked)

    assert [Kept(file, "a")("x", work), Kept(file, "a")("x", work), Kept(file, "a")("y", work)] == [1, 1, 2]
    assert Kept(file, "b")("x", work) == 3
    assert Kept(file, "a")("x", work) == 4
