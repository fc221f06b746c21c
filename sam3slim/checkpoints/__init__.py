"""Any checkpoint, read strictly and loudly."""

from sam3slim.checkpoints.infer import IMAGE_SIZE
from sam3slim.checkpoints.inspection import Inspection, inspect
from sam3slim.checkpoints.load_report import CheckpointError, LoadReport
from sam3slim.checkpoints.loading import load
from sam3slim.checkpoints.locating import ARTIFACT_FILE, Located, locate, weight_files
from sam3slim.checkpoints.spec_of import spec_difference, spec_from_config

__all__ = [
    "ARTIFACT_FILE",
    "IMAGE_SIZE",
    "CheckpointError",
    "Inspection",
    "LoadReport",
    "Located",
    "inspect",
    "load",
    "locate",
    "spec_difference",
    "spec_from_config",
    "weight_files",
]
