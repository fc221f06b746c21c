"""Artifacts: weights, what is known of them, and a model card in one folder, written whole or not at all."""

from sam3slim.artifacts.extraction import Extracted, extract
from sam3slim.artifacts.metadata import ArtifactInfo
from sam3slim.artifacts.write import write_artifact

__all__ = ["ArtifactInfo", "Extracted", "extract", "write_artifact"]
