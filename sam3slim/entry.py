"""How a script becomes a command: one run or a sweep of trials, and one line for every bad input."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from sam3slim.config import VERSION_BASE, compose_plain, conf_dir, explain, to_plain, told, validate_model
from sam3slim.entry_sweep import (
    SWEEP_START,
    as_trial,
    flags_given,
    overrides_given,
    refuse_devices,
    refuse_ranks,
    sweep_of,
)
from sam3slim.errors import EXIT_BAD_INPUT, EXIT_INTERRUPTED, UserError, exit_with

if TYPE_CHECKING:
    from sam3slim.records import Kind
    from sam3slim.sweep import Outcome

# What composition and making the output folder raise, if no job has started.
BAD_INPUT = (HydraException, OmegaConfBaseException, YAMLError, OSError)
# Set by a user who wants Hydra's and our tracebacks for bad input too.
FULL_ERROR = "HYDRA_FULL_ERROR"

# run(plain configuration, output folder, {group: option}, command line)
RunFn = Callable[[dict[str, Any], Path, dict[str, str], str], Any]
Check = Callable[[dict[str, Any]], Any]


def entry_point(config_name: str, run_fn: RunFn, check: Check | None = None) -> None:
    """Compose ``conf/<config_name>.yaml`` with ``sys.argv`` and call ``run_fn`` once per job.

    Bad input becomes one ``error: …`` line on stderr and exit status 2, in a plain run before any folder is
    made; Ctrl-C one line and status 130. Every other exception is a bug and keeps its traceback.

    A sweep (``-m``, or a file of the sweep group) runs every trial, in a process of its own, in a folder that its
    configuration decides; a trial that fails is told and recorded, the others go on, and the status is 2 at the end.

    Args:
        config_name: primary configuration, ``train`` for ``conf/train.yaml``.
        run_fn: called with the plain configuration, the output folder, {group: option} and the command.
        check: raises UserError for settings that cannot be; called before ``run_fn``, possibly twice, after
            the model group, where there is one, has been checked.
    """
    job = _Job(config_name, run_fn, check)
    full_error = os.environ.get(FULL_ERROR)
    # Hydra then raises where it would print a traceback and exit.
    os.environ[FULL_ERROR] = "1"
    sweep = None
    try:
        sweep = sweep_of(config_name)
        refuse_ranks(sweep is not None)
        if sweep is not None:
            sweep.run(job.hand_to_hydra)
            return
        if not flags_given():
            job.check(compose_plain(config_name, overrides_given()))
        job.hand_to_hydra()
        if job.failure is not None:
            raise job.failure
    except KeyboardInterrupt:
        again = "; the same command goes on with the rest" if sweep else ""
        exit_with(f"interrupted{again}", EXIT_INTERRUPTED)
    except Exception as error:
        if full_error == "1" or not (
            isinstance(error, UserError) or (not job.started and isinstance(error, BAD_INPUT))
        ):
            raise
        key = "hydra.sweep.dir" if sweep else "hydra.run.dir"
        exit_with(f"error: {explain(error, config_name, overrides_given(), key)}", EXIT_BAD_INPUT)
    finally:
        os.environ.pop(FULL_ERROR) if full_error is None else os.environ.update({FULL_ERROR: full_error})


class _Job:
    """The function Hydra calls, with what it learns on the way."""

    def __init__(self, config_name: str, run_fn: RunFn, extra_check: Check | None) -> None:
        self.config_name, self.run_fn, self.extra_check = config_name, run_fn, extra_check
        self.started = False
        self.failure: Exception | None = None

    def check(self, plain: dict[str, Any]) -> None:
        """Raises UserError for settings that cannot be; the cheap check first."""
        if "model" in plain:
            validate_model(plain)
        if self.extra_check is not None:
            self.extra_check(plain)

    def hand_to_hydra(self) -> None:
        """Let Hydra read ``sys.argv`` and call back, once per job."""

        def run(cfg: DictConfig) -> Any:  # a plain function, because Hydra asks for its module and code
            if HydraConfig.get().mode is RunMode.MULTIRUN:
                return self.trial(cfg)
            try:
                return self.once(cfg)
            except UserError as error:
                # Hydra announces an exception with a line of its own; keep it until Hydra is done.
                self.failure = error
                return None

        hydra.main(version_base=VERSION_BASE, config_path=str(conf_dir()), config_name=self.config_name)(run)()

    def once(self, cfg: DictConfig) -> Any:
        """The only job of a plain run."""
        plain = self._plain(cfg)
        self.check(plain)
        self.started = True
        return self.run_fn(plain, Path(HydraConfig.get().runtime.output_dir), *self._asked())

    def trial(self, cfg: DictConfig) -> tuple[float, ...] | float | None:
        """One job of a sweep: it fails for itself alone. Returns what a search compares, None after a failure."""
        from sam3slim.sweep import Journal, Outcome, Trial, run_trial

        self.started = True
        context = HydraConfig.get()
        number, folder = int(context.job.num), Path(context.runtime.output_dir)
        journal = Journal(context.sweep.dir, os.environ.get(SWEEP_START, "0"))
        journal.write(number, Outcome("running", str(folder)))
        plain: dict[str, Any] = {}
        problem: UserError | None = None
        try:
            plain = as_trial(self._plain(cfg))
            self.check(plain)
            refuse_devices(plain.get("trainer") or {})
        except UserError as error:
            problem = error
        choices, command = self._asked()

        def work() -> Any:
            if problem is not None:
                raise problem
            return self.run_fn(plain, folder, choices, command)

        # Ray gives every trial a process, and its processes must not fork.
        isolated = "ray" not in str(context.launcher.get("_target_")).lower()
        outcome = run_trial(
            Trial(cast("Kind", self.config_name), plain, folder, choices, command), work, isolated=isolated
        )
        journal.write(number, outcome)
        if outcome.error is not None:
            print(f"error: trial {number}, {folder.name}: {outcome.error}", file=sys.stderr, flush=True)
        return _objectives(outcome, context.sweeper.get("direction"))

    def _plain(self, cfg: DictConfig) -> dict[str, Any]:
        with told(self.config_name, list(HydraConfig.get().overrides.task)):
            return to_plain(cfg)

    def _asked(self) -> tuple[dict[str, str], str]:
        """{group: option} and the command of the running job."""
        context = HydraConfig.get()
        choices = {
            str(group): str(option)
            for group, option in context.runtime.choices.items()
            if option is not None and not str(group).startswith("hydra/")
        }
        return choices, shlex.join(["python", f"{self.config_name}.py", *context.overrides.task])


def _objectives(outcome: Outcome, direction: Any) -> tuple[float, ...] | float | None:
    """Mask mAP and bytes for a search with two directions, mask mAP for one with one."""
    if outcome.values is None:
        return None
    return outcome.values if isinstance(direction, ListConfig | list) and len(direction) > 1 else outcome.values[0]
