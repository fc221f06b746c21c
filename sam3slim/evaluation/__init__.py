"""Detections, metrics, latency and memory of a model."""

from sam3slim.evaluation.evaluating import (
    ConceptMetrics,
    EvalResult,
    ScoreCalibration,
    agreed,
    counted_detections,
    evaluate,
    first_images,
    ground_truths,
)
from sam3slim.evaluation.inference import Segmenter, TextCache, predict_batch
from sam3slim.evaluation.latency import measure_latency, peak_memory_bytes, reset_peak_memory, timed

__all__ = [
    "ConceptMetrics",
    "EvalResult",
    "ScoreCalibration",
    "Segmenter",
    "TextCache",
    "agreed",
    "counted_detections",
    "evaluate",
    "first_images",
    "ground_truths",
    "measure_latency",
    "peak_memory_bytes",
    "predict_batch",
    "reset_peak_memory",
    "timed",
]
