"""The shared small model; its fixtures are found here."""

from tests.small import inputs, model, spec

__all__ = ["inputs", "model", "spec"]
