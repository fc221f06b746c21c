"""Slimmer architectures that start from the full model's own weights."""

from sam3slim.slimming.check import check_slimmer
from sam3slim.slimming.collect import DATA_IMPORTANCES, DataScores, collect_scores
from sam3slim.slimming.depth import Depth
from sam3slim.slimming.fitting import check_enough, fit_model
from sam3slim.slimming.greedy import greedy_blocks
from sam3slim.slimming.inheritance import check_rule, inherit
from sam3slim.slimming.plan import Fit, Greedy, Kept, Plan
from sam3slim.slimming.select import Importance
from sam3slim.slimming.verify import check_plan
from sam3slim.slimming.vision import VisionFit, adopt_vision, check_vision

__all__ = [
    "DATA_IMPORTANCES",
    "DataScores",
    "Depth",
    "Fit",
    "Greedy",
    "Importance",
    "Kept",
    "Plan",
    "VisionFit",
    "adopt_vision",
    "check_enough",
    "check_plan",
    "check_rule",
    "check_slimmer",
    "check_vision",
    "collect_scores",
    "fit_model",
    "greedy_blocks",
    "inherit",
]
