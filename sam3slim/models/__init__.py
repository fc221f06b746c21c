"""SAM 3's modules (from transformers), a forward fit for training, and counts."""

from sam3slim.models.build import build_model, to_sam3_config
from sam3slim.models.count import bytes_by_part, count_params, params_by_part, part_of
from sam3slim.models.init import init_for_training
from sam3slim.models.outputs import Sam3Output, Sam3Prediction
from sam3slim.models.sam3 import Sam3

__all__ = [
    "Sam3",
    "Sam3Output",
    "Sam3Prediction",
    "build_model",
    "bytes_by_part",
    "count_params",
    "init_for_training",
    "params_by_part",
    "part_of",
    "to_sam3_config",
]
