"""A search that can be killed: Optuna counts trials per start, a user counts them in all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from sam3slim.errors import UserError
from sam3slim.files import read_json, write_json
from sam3slim.launch.journal import Outcome
from sam3slim.results.latency_limit import this_machine

OBJECTIVES = "objectives"  # attribute of a study: what its trials' values are


@dataclass(frozen=True)
class Search:
    """A study of Optuna's in a database.

    Attributes:
        storage: URL of the database.
        study: its name there.
        trials: wanted in all, over all starts.
        directions: ``maximize`` or ``minimize``, of each value.
        metric, cost: what the values are, as in ``TrainSpec``.
    """

    storage: str
    study: str
    trials: int
    directions: tuple[str, ...]
    metric: str | None = None
    cost: str = "bytes"

    @classmethod
    def of(cls, sweeper: Mapping[str, Any], metric: str | None, cost: str | None) -> Search | None:
        """The search that ``hydra.sweeper`` asks for; None: of a sweeper that keeps no database."""
        if not all(sweeper.get(key) for key in ("storage", "study_name", "n_trials")):
            return None
        given = sweeper.get("direction") or "minimize"  # Optuna's own default
        directions = tuple(getattr(one, "name", one) for one in (given if isinstance(given, list) else [given]))
        return cls(
            str(sweeper["storage"]), str(sweeper["study_name"]), int(sweeper["n_trials"]), directions, metric,
            cost or "bytes",
        )  # fmt: skip

    def go_on(self) -> int:
        """How many trials are still to run; those that a killed start left unfinished are the next to be asked for.

        Failed trials count: the same parameters would fail again.

        Raises:
            UserError: the study has values of other objectives.
        """
        import optuna
        from optuna.trial import TrialState

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            study = optuna.load_study(study_name=self.study, storage=self.storage)
        except KeyError:  # the first start
            study = optuna.create_study(study_name=self.study, storage=self.storage, directions=list(self.directions))
        self._check_objectives(study)
        for trial in study.get_trials(states=(TrialState.RUNNING,)):
            # Cut short, as Optuna calls it: neither a result nor a failure.
            study.tell(trial.number, state=TrialState.PRUNED)
            study.enqueue_trial(trial.params)
        return max(self.trials - len(study.get_trials(states=(TrialState.COMPLETE, TrialState.FAIL))), 0)

    def _check_objectives(self, study: Any) -> None:
        ours = {"metric": self.metric, "cost": self.cost, "direction": list(self.directions)}
        if not study.get_trials():
            study.set_user_attr(OBJECTIVES, ours)
            return
        # A study from before they were noted: its values are a metric and bytes.
        directions = [direction.name.lower() for direction in study.directions]
        known = {
            "metric": self.metric,
            "cost": "bytes",
            **study.user_attrs.get(OBJECTIVES, {}),
            "direction": directions,
        }
        if len(directions) == 1 == len(self.directions):
            known["cost"] = self.cost  # which is no value of either
        if known != ours:
            was, now = (
                " ".join(f"{key}={_shown(of[key])}" for key in ours if known[key] != ours[key]) for of in (known, ours)
            )
            raise UserError(
                f"search {self.study} has trials of {was}, and this is {now}: values of different objectives do not "
                "compare; go on with what it has, or start another search with hydra.sweeper.study_name=NAME"
            )


def _shown(value: Any) -> str:
    return "null" if value is None else f"[{','.join(value)}]" if isinstance(value, list) else str(value)


@dataclass(frozen=True)
class LatencyAxis:
    """The machine whose latencies the trials of a search are compared by: that of the first one measured.

    Attributes:
        folder: of the sweep.
    """

    folder: str | Path

    @property
    def file(self) -> Path:
        return Path(self.folder) / "latency_axis.json"

    def machine(self) -> str | None:
        """Device, threads, batch and prompts, as ``results.collect.machine`` tells them; None: none measured yet."""
        if not self.file.is_file():
            return None
        return str(read_json(self.file, "start another search with hydra.sweep.dir=DIR")["machine"])

    def refuse_other_machine(self) -> None:
        """Tell before anything is computed here that it could not be compared.

        Raises:
            UserError: the latencies so far are of another machine, or of another number of threads.
        """
        taken = self.machine()
        if taken is None:
            return
        here = [this_machine("cpu"), this_machine("cuda")]
        if not any(taken.startswith(f"{device}, ") for device in here):
            raise UserError(
                f"{self.folder}: the latencies of this search were measured on {taken}, and this is "
                f"{here[0]}{'' if 'without' in here[1] else f', {here[1]}'}: latencies of different machines do not "
                "compare; go on there, or start another search with hydra.sweep.dir=DIR"
            )

    def joined(self, outcome: Outcome) -> Outcome:
        """``outcome``, which sets the axis if it is the first; a failure if it was measured elsewhere than that."""
        if outcome.values is None or outcome.machine is None:
            return outcome
        with FileLock(self.file.with_name(f".{self.file.name}.lock")):
            taken = self.machine()
            if taken is None:
                write_json(self.file, {"machine": outcome.machine})
        if taken in (None, outcome.machine):
            return outcome
        error = (
            f"its latency was measured on {outcome.machine}, and those of this search on {taken}: it is recorded, but "
            "not compared"
        )
        return replace(outcome, status="failed", error=error, values=None)
