"""A search that can be killed: Optuna counts trials per start, a user counts them in all."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Search:
    """A study of Optuna's in a database.

    Attributes:
        storage: URL of the database.
        study: its name there.
        trials: wanted in all, over all starts.
    """

    storage: str
    study: str
    trials: int

    def go_on(self) -> int:
        """How many trials are still to run; those that a killed start left unfinished are the next to be asked for.

        Failed trials count: the same parameters would fail again.
        """
        import optuna
        from optuna.trial import TrialState

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            study = optuna.load_study(study_name=self.study, storage=self.storage)
        except KeyError:  # the first start
            return self.trials
        for trial in study.get_trials(states=(TrialState.RUNNING,)):
            # Cut short, as Optuna calls it: neither a result nor a failure.
            study.tell(trial.number, state=TrialState.PRUNED)
            study.enqueue_trial(trial.params)
        return max(self.trials - len(study.get_trials(states=(TrialState.COMPLETE, TrialState.FAIL))), 0)
