"""The shared small model and small data sets; their fixtures are found here."""

from tests.data.conftest import write_coco
from tests.small import inputs, model, spec

__all__ = ["inputs", "model", "spec", "write_coco"]
