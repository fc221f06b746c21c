"""Lightning training: module, optimiser groups, callbacks."""

from sam3slim.training.autocast import check_precision, precision_of, precision_plugins
from sam3slim.training.average import WeightAverage
from sam3slim.training.callbacks import FinalValidation, GracefulStop, RandomState, TrainingClock
from sam3slim.training.lora import LoraSpec, add_lora
from sam3slim.training.module import ConceptSegmentation
from sam3slim.training.optim import OptimSpec, ScheduleSpec, build_optimizer, param_groups
from sam3slim.training.progress import StepProgress
from sam3slim.training.recompute import recompute_activations
from sam3slim.training.saving import StreamedCheckpoints
from sam3slim.training.settings import check_trainer
from sam3slim.training.sharded import FullySharded

__all__ = [
    "ConceptSegmentation",
    "FinalValidation",
    "FullySharded",
    "GracefulStop",
    "LoraSpec",
    "OptimSpec",
    "RandomState",
    "ScheduleSpec",
    "StepProgress",
    "StreamedCheckpoints",
    "TrainingClock",
    "WeightAverage",
    "add_lora",
    "build_optimizer",
    "check_precision",
    "check_trainer",
    "param_groups",
    "precision_of",
    "precision_plugins",
    "recompute_activations",
]
