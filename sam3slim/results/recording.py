"""The life of a record: written before a run and after it, whatever happens, and asked whether a run is finished."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sam3slim.environment import describe_device, git_state, library_versions
from sam3slim.errors import UserError
from sam3slim.results.record import FILE_NAME, Code, Kind, RunRecord, Status, plain, read_record, record_file

# Keys of a configuration that say where results go, or what is done with a finished run, not what is computed.
OUTPUT_KEYS = frozenset(
    {"hydra", "output", "output_dir", "run_dir", "log_dir", "save_dir", "dirpath", "default_root_dir"}
    | {"force", "compress_after"}
)


def forget_other(folder: Path, config: Mapping[str, Any]) -> None:
    """Remove a run's checkpoints if its record says that it was another configuration's: not to be gone on from.

    Raises:
        UserError: a record that cannot be read.
    """
    if (folder / FILE_NAME).is_file() and read_record(folder).config_hash != config_hash(config):
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def refuse_other_kind(folder: Path, kind: Kind) -> None:
    """Refuse a folder whose record another command has written: this one would replace it.

    Raises:
        UserError: such a record, unless its run failed.
    """
    try:
        found = read_record(folder)
    except UserError:  # there is none, or what reads it tells what is wrong with it
        return
    if found.kind != kind and found.status != "failed":
        raise UserError(
            f"{folder} holds the record of a run of {found.kind}, which {kind} would replace; choose another "
            "hydra.run.dir"
        )


def forget(folder: Path) -> None:
    """Remove a finished run's record and what it would be gone on from, so that it can be done again."""
    if is_finished(folder):
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        (folder / FILE_NAME).unlink()


def forget_made_from(folder: Path) -> None:
    """Remove the records in ``folder``/*: what was made from a path, once another model is about to lie there."""
    for path in folder.glob(f"*/{FILE_NAME}"):
        path.unlink()


@contextmanager
def recording(
    path: str | Path,
    *,
    kind: Kind,
    command: str,
    config: Mapping[str, Any] | None = None,
    choices: Mapping[str, Any] | None = None,
    parent: str | None = None,
    device: str | None = None,
) -> Iterator[RunRecord]:
    """A record that is written whatever the body does; the body fills in what it learns.

    An error makes it "failed", Ctrl-C or a termination signal "interrupted"; both go on to the caller.
    Already at the start the record is written as "interrupted", which is what remains of a run that is
    killed; but a finished run's record stays until ``begin``, or until this run has come as far as its model, so that
    a mistyped command costs nothing. With several processes only rank 0 writes.

    Args:
        path: the record's file, or its folder.
        kind, command, choices, parent: see ``RunRecord``.
        config: the composed plain configuration, for ``config_hash``.
        device: description; None describes what torch would use here.

    Raises:
        UserError: ``path`` cannot be written to.
    """
    record = RunRecord(
        kind=kind,
        command=command,
        config_hash=None if config is None else config_hash(config),
        git=Code.from_dict(git_state(Path(__file__).resolve().parents[1]) or {}),
        versions=library_versions(),
        device=device or describe_device(),
        choices=dict(choices or {}),
        parent=parent,
        started=datetime.now(UTC).astimezone().isoformat(timespec="seconds"),
    )
    clock = time.perf_counter()
    writes, kept = is_first_process(), is_finished(path)
    if not kept:
        begin(record, path)
    try:
        yield record
    except BaseException as error:
        record.status, record.error = outcome(error)
        record.seconds = time.perf_counter() - clock
        if writes and not (kept and not record.model):
            with suppress(OSError, UserError):  # a full disk must not hide why the run failed
                record.write(path)
        raise
    record.seconds = time.perf_counter() - clock
    if writes:
        record.write(path)


def begin(record: RunRecord, path: str | Path) -> None:
    """Replace whatever record is at ``path`` by "interrupted": from here on files of an earlier run are replaced.

    The record's ``model`` must be known: without one, an error leaves an earlier record as it is.
    """
    if is_first_process():
        replace(record, status="interrupted", error="the run did not end").write(path)


def is_finished(path: str | Path) -> bool:
    """Whether a record at ``path`` says that its run has come to its end; False also where none can be read."""
    with suppress(UserError):
        return read_record(path).status == "finished"
    return False


def outcome(error: BaseException) -> tuple[Status, str | None]:
    """Status and first line of what an exception says about a run."""
    if isinstance(error, SystemExit):
        if error.code in (None, 0) and type(error) is SystemExit:
            return "finished", None
        # Lightning turns Ctrl-C into exit(1) and SIGTERM into a subclass of SystemExit.
        if isinstance(error.__context__, KeyboardInterrupt) or type(error) is not SystemExit:
            return "interrupted", "stopped by the user or a signal"
        return "failed", str(error.code).strip().split("\n")[0]
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", "stopped by the user"
    line = str(error).strip().split("\n")[0]
    if isinstance(error, UserError):
        return "failed", line
    return "failed", f"{type(error).__name__}: {line}" if line else type(error).__name__


def config_hash(config: Mapping[str, Any], *, exclude: Collection[str] = OUTPUT_KEYS) -> str:
    """sha256 (hex) of the canonical JSON of ``config`` without the keys ``exclude``, at any depth.

    Two runs with the same hash compute the same thing; the order of keys does not matter. A key that is null counts as
    one that is not there, so that a new option which is off by default leaves finished runs finished.
    """

    def kept(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: kept(item) for key, item in value.items() if key not in exclude and item is not None}
        return [kept(item) for item in value] if isinstance(value, list) else value

    text = json.dumps(kept(plain(config)), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def record_of(folder: str | Path, config: Mapping[str, Any]) -> RunRecord | None:
    """The record in ``folder`` if there is one and it is of this configuration, whatever its status.

    Raises:
        UserError: a record that cannot be read.
    """
    if not record_file(folder).is_file():
        return None
    record = read_record(folder)
    return record if record.config_hash == config_hash(config) else None


def finished_record(folder: str | Path, config: Mapping[str, Any]) -> RunRecord | None:
    """The record in ``folder`` if it says that just this configuration has been run to its end.

    Raises:
        UserError: a record that cannot be read.
    """
    record = record_of(folder, config)
    return record if record is not None and record.status == "finished" else None


def is_first_process() -> bool:
    """False in all but one process of torchrun, Slurm or Lightning's own launcher, on all nodes together."""
    for variable in ("RANK", "SLURM_PROCID"):
        if variable in os.environ:
            return os.environ[variable] == "0"
    return all(os.environ.get(variable, "0") == "0" for variable in ("LOCAL_RANK", "NODE_RANK", "GROUP_RANK"))
