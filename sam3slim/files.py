"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sam3slim.errors import UserError

Pairs = list[tuple[str, Any]]
# Names that ``atomic_path`` and ``ensure_writable_dir`` give, and that stay where a process is killed.
_LEFTOVER = re.compile(r"\.(.*\.[0-9a-f]{8}\.(tmp|old)(\.[^.]*)?|write-test-[0-9a-f]{8})", re.DOTALL)

_SCRATCH, _LOCK = ".sam3slim-scratch-", "in-use.lock"


def at_home(path: str | Path) -> Path:
    """``path`` with ``~`` and ``~user`` replaced, as a shell does it: a folder really named ``~x`` stays."""
    return Path(os.path.expanduser(path))


def is_leftover(name: str) -> bool:
    """Whether a file of this name was left by a process of ours that was killed while it wrote."""
    return _LEFTOVER.fullmatch(name) is not None


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary sibling of ``path`` (file or folder) that takes its name on success.

    The temporary name is removed when the body raises, so ``path`` is either the old content or the
    whole new one. The suffix is kept, because some writers choose their format by it.

    Raises:
        UserError: the parent folder cannot be created or written to, or the disk is full.
    """
    final = Path(path)
    temporary = final.with_name(f".{final.stem}.{uuid.uuid4().hex[:8]}.tmp{final.suffix}")
    ensure_writable_dir(final.parent)
    try:
        yield temporary
        if temporary.is_dir() and final.is_dir():
            # A folder cannot be renamed over a full one: step the old one aside first.
            retired = final.with_name(f".{final.name}.{uuid.uuid4().hex[:8]}.old")
            final.rename(retired)
            temporary.rename(final)
            shutil.rmtree(retired)
        else:
            os.replace(temporary, final)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(f"cannot write {final}: {error.strerror}; free some space or choose another folder") from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


@contextmanager
def scratch_folder(place: Path | None = None) -> Iterator[Path]:
    """Yield a folder in ``place`` (the machine's folder for temporary files), removed at the end.

    Before, those of processes that were killed are removed: nobody holds the lock in them any more.
    """
    from filelock import FileLock, Timeout  # a sixth of a help text's time

    for lock in Path(place or tempfile.gettempdir()).glob(f"{_SCRATCH}*/{_LOCK}"):
        with suppress(OSError, Timeout), FileLock(lock, timeout=0):
            shutil.rmtree(lock.parent, ignore_errors=True)
    with (
        tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=place) as folder,
        FileLock(Path(folder) / f".{_LOCK}") as held,
    ):
        Path(held.lock_file).rename(Path(folder) / _LOCK)  # to be found only now, as a lock that is held
        yield Path(folder)


def ensure_writable_dir(folder: str | Path) -> Path:
    """Create ``folder`` if needed and prove that a file can be written into it.

    Raises:
        UserError: it cannot be created or written to.
    """
    path = Path(folder)
    probe = path / f".write-test-{uuid.uuid4().hex[:8]}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UserError(
            f"cannot write to output folder {path}: {reason}; choose another folder or fix its permissions"
        ) from error
    return path


def require_space(folder: str | Path, size: int) -> None:
    """Refuse before the work starts what the disk cannot hold.

    Args:
        folder: an existing folder on the disk in question.
        size: bytes to be written.

    Raises:
        UserError: less than that is free.
    """
    free = shutil.disk_usage(folder).free
    if size > free:
        raise UserError(
            f"{folder} has {size_text(free)} free, and {size_text(size)} are to be written; "
            "free some space or choose another folder"
        )


def read_json(path: str | Path, fix: str, error: type[UserError] = UserError) -> dict[str, Any]:
    """The JSON object in a file, see ``read_json_value``."""
    value = read_json_value(path, fix, error)
    if not isinstance(value, dict):
        raise error(f"{path} must hold a JSON object, got {type(value).__name__}; {fix}")
    return value


def read_json_value(
    path: str | Path, fix: str, error: type[UserError] = UserError, *, hook: Callable[[Pairs], Any] | None = None
) -> Any:
    """What a JSON file holds.

    Args:
        fix: what a user can do about a file that is missing, not JSON, or not what is expected.
        hook: makes an object of its pairs.

    Raises:
        error: such a file.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"), object_pairs_hook=hook)
    except (OSError, ValueError, RecursionError) as reason:
        why = reason.strerror if isinstance(reason, OSError) and reason.strerror else reason
        raise error(f"cannot read {path} as JSON: {why}; {fix}") from reason


def write_json(path: str | Path, value: Any) -> Path:
    """Write ``value`` as indented JSON, atomically. NaN and infinity are refused (not JSON)."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return Path(path)


class Kept:
    """Results of a long work in one JSON file, so that the same work, once interrupted, goes on behind them.

    Args:
        file: written whenever there is a new result.
        key: what the results depend on; those of another one are forgotten.

    Raises:
        UserError: ``file`` is not JSON.
    """

    def __init__(self, file: Path, key: str) -> None:
        self.file, self.key = file, key
        found = read_json(file, "delete it to measure again") if file.is_file() else {}
        self.results: dict[str, Any] = found["results"] if found.get("key") == key else {}

    def __call__(self, name: str, work: Callable[[], Any]) -> Any:
        """The result called ``name``, plain values: kept, or now of ``work``."""
        if name not in self.results:
            self.results[name] = work()
            write_json(self.file, {"key": self.key, "results": self.results})
        return self.results[name]


def write_csv(path: str | Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> Path:
    """Write ``rows`` under a line of ``columns`` (those of the first row), atomically."""
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]) if columns is None else columns)
        writer.writeheader()
        writer.writerows(rows)
    return Path(path)


def file_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of the file. Raises OSError when it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_lines(path: Path) -> list[str]:
    """Lines of a UTF-8 text file without surrounding blanks. Raises UserError when it cannot be read."""
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; give a text file") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error


def size_text(size: float) -> str:
    """Bytes as text, in units of 1000: 840 kB, 8.1 MB, -3.36 GB."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(size) >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size:.0f} B"
