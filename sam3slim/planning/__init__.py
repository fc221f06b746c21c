"""What a training step will hold in memory, counted without a GPU and without allocating it."""

from sam3slim.planning.plan import CARDS, MemoryPlan, make_plan, parse_cards
from sam3slim.planning.request import INSTANCES, Planned, plan_memory
from sam3slim.planning.tracing import Trace, trace

__all__ = ["CARDS", "INSTANCES", "MemoryPlan", "Planned", "Trace", "make_plan", "parse_cards", "plan_memory", "trace"]
