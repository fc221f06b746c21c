"""Weights in, strictly and loudly; artifacts out, atomically."""

from sam3slim.checkpoints.artifact import ARTIFACT_FILE, ArtifactInfo, write_artifact
from sam3slim.checkpoints.extract import Extracted, extract
from sam3slim.checkpoints.inspect import Inspection, inspect
from sam3slim.checkpoints.load import load
from sam3slim.checkpoints.locate import Located, locate, weight_files
from sam3slim.checkpoints.report import CheckpointError, LoadReport
from sam3slim.checkpoints.spec_of import spec_difference, spec_from_config

__all__ = [
    "ARTIFACT_FILE",
    "ArtifactInfo",
    "CheckpointError",
    "Extracted",
    "Inspection",
    "LoadReport",
    "Located",
    "extract",
    "inspect",
    "load",
    "locate",
    "spec_difference",
    "spec_from_config",
    "weight_files",
    "write_artifact",
]
