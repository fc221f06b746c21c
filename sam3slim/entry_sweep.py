"""The start and the end of a sweep: which folder, which jobs, and what became of them."""

from __future__ import annotations

import copy
import os
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from sam3slim import config_messages as messages
from sam3slim.config import compose, to_plain, told
from sam3slim.errors import EXIT_BAD_INPUT, UserError

# Environment variables of a sweep's jobs, on whatever machine: which start of the sweep they belong to, and which
# overrides of the command vary (those of hydra.sweeper.params do anyway).
SWEEP_START, SWEEP_KEYS = "SAM3SLIM_SWEEP", "SAM3SLIM_SWEEP_KEYS"


def overrides_given() -> list[str]:
    """Of this command."""
    return [argument for argument in sys.argv[1:] if not argument.startswith("-")]


def flags_given() -> list[str]:
    """Of this command."""
    return [argument for argument in sys.argv[1:] if argument.startswith("-")]


@dataclass(frozen=True)
class Sweep:
    """A sweep about to start.

    Attributes:
        directory: absolute, the same for every job even where jobs would name it otherwise.
        start: of this start of the sweep alone.
        varying: keys of the command's overrides that have several values.
        search: of a sweeper that keeps its trials in a database.
    """

    directory: str
    start: str
    varying: tuple[str, ...] = ()
    search: Mapping[str, Any] | None = None

    def run(self, hand_to_hydra: Callable[[], None]) -> None:
        """All trials, then one line; exits with status 2 if one failed.

        Args:
            hand_to_hydra: reads ``sys.argv`` and runs what it asks for.

        Raises:
            HydraException, UserError, …: bad input, before any trial started.
        """
        from sam3slim.sweep import Journal, summary

        self._make_folder()
        journal, argv, problem = Journal(self.directory, self.start), sys.argv, None
        sys.argv = self._argv()
        try:
            hand_to_hydra()
        except Exception as error:
            problem = error
        finally:
            sys.argv = argv
            outcomes = journal.read()
            journal.remove()
        if problem is not None and not outcomes:
            raise problem
        for outcome in outcomes:
            if outcome.status in ("failed", "interrupted", "running"):
                print(f"failed: {_short(outcome.folder)}: {outcome.error or 'its process died'}", file=sys.stderr)
        if problem is not None:
            told_by = f"{type(problem).__name__}: {messages.one_line(str(problem))}"
            print(f"error: the sweep stopped before its end ({told_by})", file=sys.stderr)
        print(summary(outcomes, _short(self.directory)), flush=True)
        if problem is not None or any(outcome.status not in ("finished", "skipped") for outcome in outcomes):
            sys.exit(EXIT_BAD_INPUT)

    def _argv(self) -> list[str]:
        """Of this process, with what Hydra must tell every job."""
        ours = [
            f"hydra.sweep.dir={_quoted(self.directory)}",
            f"+hydra.job.env_set.{SWEEP_START}={_quoted(self.start)}",
            f"+hydra.job.env_set.{SWEEP_KEYS}={_quoted(' '.join(self.varying))}",
        ]
        if self.search is not None:
            ours.append(f"hydra.sweeper.n_trials={self._trials_left(self.search)}")
        # Overrides must stay together: Hydra reads no others after a flag.
        given, last = overrides_given(), len(sys.argv) - 1
        place = max((place for place, text in enumerate(sys.argv) if text in given), default=last) + 1
        return [*sys.argv[:place], *ours, *sys.argv[place:]]

    def _trials_left(self, sweeper: Mapping[str, Any]) -> int:
        from sam3slim.sweep import Search

        search = Search(str(sweeper["storage"]), str(sweeper["study_name"]), int(sweeper["n_trials"]))
        left = search.go_on()
        print(f"search {search.study}: {left} of {search.trials} trials to go (hydra.sweeper.n_trials)", flush=True)
        return left

    def _make_folder(self) -> None:
        """Before any trial, and before a database is put there."""
        probe = Path(self.directory) / f".write-test-{self.start}"
        try:
            probe.parent.mkdir(parents=True, exist_ok=True)
            probe.touch()
            probe.unlink()
        except OSError as error:
            reason = OSError(error.errno, error.strerror, self.directory)
            raise UserError(messages.unwritable(reason, "choose another with hydra.sweep.dir=DIR")) from error


def _short(folder: str) -> str:
    path = Path(folder)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else folder


def sweep_of(config_name: str) -> Sweep | None:
    """The sweep that ``sys.argv`` asks for, by flag or by a file of the sweep group; None for a plain run.

    Raises:
        UserError: bad input; a trainer of several processes.
    """
    asked = {"-m", "--multirun"} & set(flags_given())
    if flags_given() and not asked:
        return None  # --help, --cfg and the like
    varying = [text for text in overrides_given() if _varies(text)]
    fixed = [text for text in overrides_given() if text not in varying]
    with told(config_name, fixed):
        cfg = compose(config_name, fixed, with_hydra=True)
        if not asked and cfg.hydra.mode is not RunMode.MULTIRUN:
            return None
        directory = os.path.abspath(str(cfg.hydra.sweep.dir))
        cfg.hydra.sweep.dir = directory
        sweeper: Any = OmegaConf.to_container(cfg.hydra.sweeper, resolve=True)
    refuse_devices(OmegaConf.to_container(cfg.get("trainer") or OmegaConf.create()))
    start = f"{time.strftime('%Y%m%dT%H%M%S')}-{uuid.uuid4().hex[:8]}"
    assert isinstance(sweeper, dict)
    stored = all(sweeper.get(key) for key in ("storage", "study_name", "n_trials"))
    return Sweep(directory, start, tuple(map(_key, varying)), sweeper if stored else None)


def _quoted(text: str) -> str:
    """As Hydra's grammar wants a text that may hold anything."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0].partition("@")[0]


def _varies(override: str) -> bool:
    """Whether an override has several values. What cannot be read is told elsewhere."""
    try:
        return bool(OverridesParser.create().parse_override(override).is_sweep_override())
    except HydraException:
        return False


def as_trial(plain: dict[str, Any]) -> dict[str, Any]:
    """A trial goes on from its own last checkpoint, unless it is told otherwise."""
    return {**plain, "resume": plain["resume"] or "auto"} if "resume" in plain else plain


def _trial_folder(*, _root_: DictConfig) -> str:
    """``${trial:}`` in conf/base.yaml: the folder of a job below the sweep's, decided by its configuration."""
    from sam3slim.sweep import trial_name

    context = _root_.hydra
    overrides = list(context.overrides.task)
    cfg = copy.deepcopy(_root_)
    with read_write(cfg), open_dict(cfg):
        del cfg["hydra"]
        cfg.output_dir = ""
    try:
        plain = as_trial(to_plain(cfg))
    except Exception:  # told when the job starts; until then it needs a place
        plain = {"overrides": overrides}
    varied = {*(context.job.env_set.get(SWEEP_KEYS) or "").split(), *(context.sweeper.get("params") or {})}
    values = {_key(text): text.partition("=")[2] for text in overrides if _key(text) in varied}
    return trial_name(plain, values, str(context.sweep.dir))


OmegaConf.register_new_resolver("trial", _trial_folder, replace=True)


def refuse_devices(trainer: Any) -> None:
    """A process that Lightning starts in a sweep would start the whole sweep again.

    Raises:
        UserError: the trainer has more than one device or node.
    """
    devices, nodes = trainer.get("devices", 1), trainer.get("num_nodes", 1)
    one = devices in (1, "1") or (isinstance(devices, list) and len(devices) == 1)
    if not one or nodes != 1:
        key = f"trainer.devices={devices}" if not one else f"trainer.num_nodes={nodes}"
        raise UserError(
            f"{key} in a sweep (-m): every process would start the sweep again; use one device per job "
            "(trainer=cpu or trainer=gpu), or start each run alone, without -m (torchrun, sbatch)"
        )


def refuse_ranks(sweep: bool) -> None:
    """torchrun and srun start this script once per device.

    Raises:
        UserError: each would run the whole sweep, or write into a folder of its own.
    """
    counted = "WORLD_SIZE" if "RANK" in os.environ else "SLURM_NTASKS" if "SLURM_PROCID" in os.environ else ""
    count = os.environ.get(counted, "1")
    if not count.isdigit() or int(count) < 2:
        return
    if sweep:
        raise UserError(
            f"a sweep started as {count} processes ({counted}): each would run all of it; start one process, "
            "or each run alone, without -m"
        )
    if not _name_their_folder(overrides_given()):
        raise UserError(f"this run is {count} processes ({counted}), which need one folder; add hydra.run.dir=DIR")


def _name_their_folder(overrides: Sequence[str]) -> bool:
    return any(text.lstrip("+").startswith("hydra.run.dir=") for text in overrides)
