"""Slimmer architectures that start from the full model's own weights."""

from sam3slim.slimming.check import check_slimmer
from sam3slim.slimming.inherit import inherit
from sam3slim.slimming.plan import Kept, Plan

__all__ = ["Kept", "Plan", "check_slimmer", "inherit"]
