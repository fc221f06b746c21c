"""The optional packages, imported when a graph is made or run."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from sam3slim.errors import UserError


def require(name: str) -> Any:
    """The module ``name``. Raises UserError that says how to install it."""
    try:
        return import_module(name)
    except ImportError as error:
        raise UserError(
            f"ONNX needs {name.partition('.')[0]}, which is not installed; pip install 'sam3slim[onnx]'"
        ) from error
