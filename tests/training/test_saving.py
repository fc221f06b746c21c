"""Checkpoints are written as they are serialised, and a full disk costs nothing."""

from __future__ import annotations

import errno
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch

from sam3slim.errors import UserError
from sam3slim.training import StreamedCheckpoints


def test_save__whole_and_without_a_second_copy_in_memory(tmp_path: Path) -> None:
    path, content = tmp_path / "new" / "last.ckpt", {"state_dict": {"a": torch.arange(5_000_000)}, "global_step": 3}
    tracemalloc.start()
    StreamedCheckpoints().save_checkpoint(content, path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size > 40_000_000
    assert peak < 4_000_000
    found = torch.load(path, weights_only=True)
    assert found["global_step"] == 3
    assert torch.equal(found["state_dict"]["a"], content["state_dict"]["a"])  # type: ignore[index]
    assert os.listdir(path.parent) == ["last.ckpt"]


def test_save__a_full_disk_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.ckpt"
    StreamedCheckpoints().save_checkpoint({"global_step": 1}, path)

    class Full:
        def __init__(self, file: Any) -> None:
            self.file = file

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def write(self, data: Any) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def flush(self) -> None: ...

    opened = Path.open
    monkeypatch.setattr(Path, "open", lambda self, *args, **options: Full(opened(self, *args, **options)))
    with pytest.raises(UserError, match=r"cannot write .*last.ckpt: No space left on device; free some space"):
        StreamedCheckpoints().save_checkpoint({"global_step": 2, "a": torch.ones(1000)}, path)
    monkeypatch.undo()
    assert torch.load(path, weights_only=True) == {"global_step": 1}
    assert os.listdir(tmp_path) == ["last.ckpt"]


def test_save__storage_options_are_for_other_places(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="storage_options"):
        StreamedCheckpoints().save_checkpoint({}, tmp_path / "a", storage_options={"key": 1})
