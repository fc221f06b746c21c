"""Detections, COCO mAP, latency and memory of a model."""

from sam3slim.evaluation.drop import Drop, paired_bootstrap
from sam3slim.evaluation.evaluate import Calibration, EvalResult, evaluate, first_images, ground_truths
from sam3slim.evaluation.inference import Segmenter, TextCache, predict_batch
from sam3slim.evaluation.latency import measure_latency, peak_memory_bytes, reset_peak_memory
from sam3slim.evaluation.matches import Matches, match
from sam3slim.evaluation.mean_ap import ConceptMeanAP
from sam3slim.evaluation.postprocess import Detections, PromptScores

__all__ = [
    "Calibration",
    "ConceptMeanAP",
    "Detections",
    "Drop",
    "EvalResult",
    "Matches",
    "PromptScores",
    "Segmenter",
    "TextCache",
    "evaluate",
    "first_images",
    "ground_truths",
    "match",
    "measure_latency",
    "paired_bootstrap",
    "peak_memory_bytes",
    "predict_batch",
    "reset_peak_memory",
]
