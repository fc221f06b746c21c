"""The shared small model; its fixtures are found here."""

import pytest

from sam3slim.artifacts.reference_file import reference_tensors
from sam3slim.models import Sam3
from tests.checkpoints.reading import State
from tests.small import inputs, model, spec

__all__ = ["inputs", "model", "spec"]


@pytest.fixture
def state(model: Sam3) -> State:
    """The model under the reference's names."""
    return reference_tensors(model.spec, model.state_dict())
