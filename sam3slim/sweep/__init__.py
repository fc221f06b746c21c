"""Sweeps that can be killed: one process per trial, one folder per configuration, one line at the end."""

from sam3slim.sweep.child import ChildDied, in_child
from sam3slim.sweep.journal import Journal, Outcome, summary
from sam3slim.sweep.search import Search
from sam3slim.sweep.trial import Done, Trial, run_trial, trial_name

__all__ = [
    "ChildDied",
    "Done",
    "Journal",
    "Outcome",
    "Search",
    "Trial",
    "in_child",
    "run_trial",
    "summary",
    "trial_name",
]
