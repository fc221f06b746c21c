"""The optional packages, imported when a graph is made or run."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from sam3slim.errors import UserError

TITLES = {"onnx": "ONNX", "openvino": "OpenVINO"}


def require(name: str, extra: str = "onnx") -> Any:
    """The module ``name``, of this project's ``extra``. Raises UserError that says how to install it."""
    try:
        return import_module(name)
    except ImportError as error:
        raise UserError(
            f"{TITLES[extra]} needs {name.partition('.')[0]}, which is not installed; pip install 'sam3slim[{extra}]'"
        ) from error
