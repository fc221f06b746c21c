"""SAM 3's modules (from transformers), a forward fit for training, and counts."""

from sam3slim.models.build import build_model, empty_model, state_shapes
from sam3slim.models.configuration import to_sam3_config
from sam3slim.models.count import bytes_by_part, count_params, params_by_part, part_of
from sam3slim.models.init import fresh_box_labels, init_for_training
from sam3slim.models.outputs import Sam3Output, Sam3Prediction
from sam3slim.models.regularise import set_regularisation
from sam3slim.models.sam3 import Sam3

__all__ = [
    "Sam3",
    "Sam3Output",
    "Sam3Prediction",
    "build_model",
    "bytes_by_part",
    "count_params",
    "empty_model",
    "fresh_box_labels",
    "init_for_training",
    "params_by_part",
    "part_of",
    "set_regularisation",
    "state_shapes",
    "to_sam3_config",
]
