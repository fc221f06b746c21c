"""The start and the end of a sweep: which folder, which jobs, and what became of them."""

from __future__ import annotations

import os
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from sam3slim.errors import EXIT_BAD_INPUT, UserError
from sam3slim.launch import messages
from sam3slim.launch.compose import (
    CONFIG_DIR,
    as_user_error,
    compose,
    explain,
    own_hydra,
    run_of,
    to_plain,
    without_hydra,
)
from sam3slim.launch.journal import Journal, Outcome, summary
from sam3slim.launch.quoting import quoted
from sam3slim.launch.run import Run, RunCommand
from sam3slim.launch.search import LatencyAxis, Search
from sam3slim.launch.trial import run_trial, trial_name
from sam3slim.results.costs import measures_latency

# Environment variables of a sweep's jobs, on whatever machine: which start of the sweep they belong to, and which
# overrides of the command vary (those of hydra.sweeper.params do anyway).
SWEEP_START, SWEEP_KEYS = "SAM3SLIM_SWEEP", "SAM3SLIM_SWEEP_KEYS"
# Words in the names of launchers: those whose trials run on this machine, and those that run several at a time on it.
ON_THIS_MACHINE = ("basiclauncher", "joblib", "submitit_launcher.locallauncher")
SIDE_BY_SIDE = ON_THIS_MACHINE[1:]
# What Hydra raises for it, if no trial has started.
BAD_INPUT = (HydraException, OmegaConfBaseException, YAMLError)


@dataclass(frozen=True)
class Sweep:
    """A sweep about to start.

    Attributes:
        directory: absolute, the same for every job even where jobs would name it otherwise.
        start: of this start of the sweep alone.
        varying: keys of the command's overrides that have several values.
        search: of a sweeper that keeps its trials in a database.
        axis: of a search for low latency.
        here: whether trials run on this machine.
    """

    directory: str
    start: str
    varying: tuple[str, ...] = ()
    search: Search | None = None
    axis: LatencyAxis | None = None
    here: bool = True

    def run(self, command: RunCommand, overrides: Sequence[str], program: str) -> None:
        """All trials, then one line; exits with status 2 if one failed.

        Raises:
            UserError: bad input, before any trial started.
        """
        if self.axis is not None and self.here:
            self.axis.refuse_other_machine()
        make_folder(self.directory, "hydra.sweep.dir")
        added = self._overrides()
        journal, problem = Journal(self.directory, self.start), None
        try:
            with own_hydra(command.name) as ours:
                ours.multirun(command.name, lambda cfg: _trial(command, program, cfg), [*overrides, *added])
        except Exception as error:
            problem = error
        finally:
            outcomes = journal.read()
            journal.remove()
        if problem is not None and not outcomes:
            if isinstance(problem, BAD_INPUT):
                raise UserError(explain(problem, command.name, overrides)) from problem
            raise problem
        for outcome in outcomes:
            if outcome.status in ("failed", "interrupted", "running"):
                print(f"failed: {_short(outcome.folder)}: {outcome.error or 'its process died'}", file=sys.stderr)
        if problem is not None:
            why = f"{type(problem).__name__}: {messages.one_line(str(problem))}"
            print(f"error: the sweep stopped before its end ({why})", file=sys.stderr)
        options = "" if self.axis is None else " --cost latency"
        print(summary(outcomes, _short(self.directory), options), flush=True)
        if problem is not None or any(outcome.status not in ("finished", "skipped") for outcome in outcomes):
            sys.exit(EXIT_BAD_INPUT)

    def _overrides(self) -> list[str]:
        """What Hydra must tell every job."""
        variables = {SWEEP_START: self.start, SWEEP_KEYS: " ".join(self.varying)}
        if own := os.environ.get(CONFIG_DIR):
            variables[CONFIG_DIR] = own
        found = ["hydra.mode=MULTIRUN", f"hydra.sweep.dir={quoted(self.directory)}"]
        found += [f"+hydra.job.env_set.{name}={quoted(value)}" for name, value in variables.items()]
        if self.search is not None:
            left = self.search.go_on()
            found.append(f"hydra.sweeper.n_trials={left}")
            told = f"{left} of {self.search.trials} trials to go (hydra.sweeper.n_trials)"
            print(f"search {self.search.study}: {told}", flush=True)
        return found


def make_folder(folder: str, key: str) -> None:
    """Make an output folder and prove that it can be written to.

    Args:
        key: what chooses another.

    Raises:
        UserError: it cannot.
    """
    probe = Path(folder) / f".write-test-{uuid.uuid4().hex[:8]}"
    try:
        probe.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"cannot write to output folder {folder}: {error.strerror or error}; choose another with {key}=DIR"
        ) from error


def _short(folder: str) -> str:
    path = Path(folder)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else folder


def sweep_of(config_name: str, overrides: Sequence[str], multirun: bool) -> Sweep | DictConfig:
    """The sweep that is asked for, by flag or by a file of the sweep group; for a plain run its configuration.

    Raises:
        UserError: bad input; a trainer of several processes.
    """
    varying = [text for text in overrides if _varies(text)]
    fixed = [text for text in overrides if text not in varying]
    with as_user_error(config_name, overrides):
        cfg = compose(config_name, fixed)
        if not multirun and cfg.hydra.mode is not RunMode.MULTIRUN:
            return compose(config_name, overrides) if varying else cfg  # which Hydra refuses
        directory = os.path.abspath(os.path.expanduser(str(cfg.hydra.sweep.dir)))
        cfg.hydra.sweep.dir = directory
        sweeper: Any = OmegaConf.to_container(cfg.hydra.sweeper, resolve=True)
        launcher: Any = OmegaConf.to_container(cfg.hydra.launcher, resolve=True)
    refuse_devices(OmegaConf.to_container(cfg.get("trainer") or OmegaConf.create()))
    start = f"{time.strftime('%Y%m%dT%H%M%S')}-{uuid.uuid4().hex[:8]}"
    train = config_name == "train"
    if measures_latency(cfg.cost, cfg.latency, eval_at_end=cfg.eval_at_end) if train else cfg.latency:
        refuse_side_by_side(launcher, sweeper, "latency=false cost=bytes" if train else "latency=false")
    return Sweep(
        directory, start, tuple(map(_key, varying)), Search.of(sweeper, cfg.get("metric"), cfg.get("cost")),
        LatencyAxis(directory) if _minimises_latency(cfg, sweeper) else None,
        any(word in str(launcher["_target_"]).lower() for word in ON_THIS_MACHINE),
    )  # fmt: skip


def _trial(command: RunCommand, program: str, cfg: DictConfig) -> tuple[float, ...] | float | None:
    """One job of a sweep: it fails for itself alone. Returns what a search compares, None after a failure."""
    context = HydraConfig.get()
    number, folder = int(context.job.num), Path(context.runtime.output_dir)
    journal = Journal(context.sweep.dir, os.environ.get(SWEEP_START, "0"))
    journal.write(number, Outcome("running", str(folder)))
    with open_dict(cfg):
        cfg.hydra = context
    run = Run(command.name, folder, {})
    axis = LatencyAxis(context.sweep.dir) if _minimises_latency(cfg, context.sweeper) else None
    try:
        if axis is not None:
            axis.refuse_other_machine()
        with as_user_error(command.name, context.overrides.task):
            run = run_of(command.name, cfg, folder, program)
        run = replace(run, config=as_trial(run.config))
        work = command.prepare(run)
        refuse_devices(run.config.get("trainer") or {})
    except UserError as error:
        work = _raising(error)
    # Ray gives every trial a process, and its processes must not fork.
    isolated = "ray" not in str(context.launcher.get("_target_")).lower()
    outcome = run_trial(run, work, isolated=isolated)
    if axis is not None:
        outcome = axis.joined(outcome)
    journal.write(number, outcome)
    if outcome.error is not None:
        print(f"error: trial {number}, {folder.name}: {outcome.error}", file=sys.stderr, flush=True)
    return _objectives(outcome, context.sweeper.get("direction"))


def _raising(error: UserError) -> Callable[[], NoReturn]:
    def work() -> NoReturn:
        raise error

    return work


def _objectives(outcome: Outcome, direction: Any) -> tuple[float, ...] | float | None:
    """The metric and the cost for a search with two directions, the metric for one with one."""
    if outcome.values is None:
        return None
    return outcome.values if _is_pair(direction) else outcome.values[0]


def _is_pair(direction: Any) -> bool:
    return isinstance(direction, ListConfig | list) and len(direction) > 1


def _minimises_latency(cfg: DictConfig, sweeper: Any) -> bool:
    return cfg.get("cost") == "latency" and _is_pair(sweeper.get("direction"))


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0].partition("@")[0]


def _varies(override: str) -> bool:
    """Whether an override has several values. What cannot be read is told elsewhere."""
    try:
        return bool(OverridesParser.create().parse_override(override).is_sweep_override())
    except HydraException:
        return False


def as_trial(plain: Mapping[str, Any]) -> Mapping[str, Any]:
    """A trial goes on from its own last checkpoint, unless it is told otherwise."""
    return {**plain, "resume": plain["resume"] or "auto"} if "resume" in plain else plain


def _trial_folder(*, _root_: DictConfig) -> str:
    """``${trial:}`` in conf/base.yaml: the folder of a job below the sweep's, decided by its configuration."""
    context = _root_.hydra
    overrides = list(context.overrides.task)
    try:
        plain = as_trial(to_plain(without_hydra(_root_, "")))
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


def refuse_side_by_side(launcher: Mapping[str, Any], sweeper: Mapping[str, Any], without: str) -> None:
    """A latency that is measured while other trials compute on the same machine says nothing.

    Args:
        without: overrides that measure none.

    Raises:
        UserError: the launcher runs trials side by side on this machine.
    """
    target = str(launcher["_target_"])
    if not any(word in target.lower() for word in SIDE_BY_SIDE):
        return
    key = "hydra.sweeper.n_jobs" if "n_jobs" in sweeper else "hydra.launcher.n_jobs" if "n_jobs" in launcher else None
    jobs = None if key is None else (sweeper if "n_jobs" in sweeper else launcher)["n_jobs"]
    if jobs != 1:
        what = f"{target.rpartition('.')[2]}{'' if key is None else f' with {key}={jobs}'}"
        raise UserError(
            f"{what} runs trials side by side on this machine, where their latencies would mean nothing; set "
            f"{'hydra/launcher=basic' if key is None else f'{key}=1'}, or measure none ({without})"
        )


def refuse_ranks(asked: Sweep | DictConfig, overrides: Sequence[str]) -> None:
    """torchrun and srun start this script once per device.

    Raises:
        UserError: each would run the whole sweep, or write into a folder of its own.
    """
    counted = "WORLD_SIZE" if "RANK" in os.environ else "SLURM_NTASKS" if "SLURM_PROCID" in os.environ else ""
    count = os.environ.get(counted, "1")
    if not count.isdigit() or int(count) < 2:
        return
    if isinstance(asked, Sweep):
        raise UserError(
            f"a sweep started as {count} processes ({counted}): each would run all of it; start one process, "
            "or each run alone, without -m"
        )
    if not any(text.lstrip("+").startswith("hydra.run.dir=") for text in overrides):
        raise UserError(f"this run is {count} processes ({counted}), which need one folder; add hydra.run.dir=DIR")
