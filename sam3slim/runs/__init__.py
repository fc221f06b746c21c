"""The three commands: ``train``, ``evaluate``, ``compress``; each writes one record per result."""

from sam3slim.runs.compress import compress
from sam3slim.runs.evaluate import evaluate
from sam3slim.runs.machine import check_machine
from sam3slim.runs.progressive import train
from sam3slim.runs.specs import CompressSpec, EvaluateSpec, InitSpec, TrainSpec
from sam3slim.runs.train import training_seconds
from sam3slim.runs.trial import train_and_compress

__all__ = [
    "CompressSpec",
    "EvaluateSpec",
    "InitSpec",
    "TrainSpec",
    "check_machine",
    "compress",
    "evaluate",
    "train",
    "train_and_compress",
    "training_seconds",
]
