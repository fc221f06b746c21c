"""SAM 3's modules (from transformers), a forward fit for training, and counts.

Names are imported when they are asked for: counting parameters or looking into a checkpoint needs no module, and
transformers takes seconds to import.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sam3slim.models.build import build_model
    from sam3slim.models.configuration import to_sam3_config
    from sam3slim.models.count import bytes_by_part, count_params, params_by_part, part_of
    from sam3slim.models.init import fresh_box_labels, init_for_training
    from sam3slim.models.outputs import Sam3Output, Sam3Prediction
    from sam3slim.models.regularise import set_regularisation
    from sam3slim.models.sam3 import Sam3
    from sam3slim.models.shapes import state_shapes

__all__ = [
    "Sam3",
    "Sam3Output",
    "Sam3Prediction",
    "build_model",
    "bytes_by_part",
    "count_params",
    "fresh_box_labels",
    "init_for_training",
    "params_by_part",
    "part_of",
    "set_regularisation",
    "state_shapes",
    "to_sam3_config",
]
_HOMES = {
    "Sam3": "sam3",
    "Sam3Output": "outputs",
    "Sam3Prediction": "outputs",
    "build_model": "build",
    "bytes_by_part": "count",
    "count_params": "count",
    "fresh_box_labels": "init",
    "init_for_training": "init",
    "params_by_part": "count",
    "part_of": "count",
    "set_regularisation": "regularise",
    "state_shapes": "shapes",
    "to_sam3_config": "configuration",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
