"""The small model as ONNX, in FP32 and in INT8.

Tracing takes most of the time, so it is done once: what traces the same weights again gets copies of the same graphs.
Everything after it (the comparison with PyTorch, quantisation, writing) runs each time.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from sam3slim.compression import Int8Rules
from sam3slim.compression.int8_weight import quantised_names
from sam3slim.graphs import OnnxSam3, export_onnx, load_onnx
from sam3slim.graphs import onnx as export
from sam3slim.models import Sam3
from tests.small import small_model
from tests.tiny import SPEC


@dataclass(frozen=True)
class Exported:
    """Not to be changed: the session shares it."""

    model: Sam3
    folder: Path
    runner: OnnxSam3


def copy_graphs(source: Path, target: Path) -> None:
    for path in source.glob("*.onnx"):
        shutil.copy(path, target)


@pytest.fixture(scope="session", autouse=True)
def traced_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    trace_graphs, kept = export.trace_graphs, tmp_path_factory.mktemp("traced")
    first: dict[str, torch.Tensor] = {}

    def remembered(model: Sam3, folder: Path, **options: Any) -> None:
        if options.get("fixed") is not None:
            trace_graphs(model, folder, **options)
            return
        state = model.state_dict()
        if not first:
            # In one file each, whoever asks first: what is copied must be whole.
            trace_graphs(model, kept)
            first.update({key: tensor.clone() for key, tensor in state.items()})
        if state.keys() == first.keys() and all(torch.equal(tensor, first[key]) for key, tensor in state.items()):
            copy_graphs(kept, folder)
        else:
            trace_graphs(model, folder, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "trace_graphs", remembered)
        yield


@pytest.fixture(scope="session")
def floats(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    model = small_model(SPEC)
    info = export_onnx(model, tmp_path_factory.mktemp("onnx") / "fp32", parent="full")
    return Exported(model, info.path, load_onnx(info.path)[0])


@pytest.fixture(scope="session")
def int8(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """With the weights in files of their own, as a large model has them."""
    model = small_model(SPEC)
    folder = tmp_path_factory.mktemp("onnx") / "int8"
    names = quantised_names(model, Int8Rules(also=()))
    info = export_onnx(model, folder, precision="int8_onnx", int8=names, external_data=True)
    return Exported(model, info.path, load_onnx(info.path)[0])
