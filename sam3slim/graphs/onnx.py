"""Writing an ONNX artifact: three graphs, ``sam3slim.json``, processor files and a model card."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from sam3slim.artifacts import ArtifactInfo
from sam3slim.artifacts.metadata import Origin, check_target
from sam3slim.checkpoints.int4 import StoredInt4
from sam3slim.checkpoints.int8 import is_quantised, stored_type
from sam3slim.checkpoints.locating import ONNX
from sam3slim.errors import UserError
from sam3slim.evaluation.inference import eval_mode
from sam3slim.files import at_home, atomic_path
from sam3slim.graphs.calibration import CalibrationSet
from sam3slim.graphs.contents import shares
from sam3slim.graphs.folder import complete, info
from sam3slim.graphs.halves import HALF_TOLERANCE, halve
from sam3slim.graphs.modules import MODULES, Lengths, signatures, traceable
from sam3slim.graphs.packages import require
from sam3slim.graphs.quantise import Static, quantise
from sam3slim.graphs.runner import OnnxSam3
from sam3slim.graphs.trace import OPSET, trace
from sam3slim.graphs.verify import verify
from sam3slim.models import Sam3
from sam3slim.precisions import FP16
from sam3slim.specs import ModelSpec


def export_onnx(
    model: Sam3,
    folder: str | Path,
    *,
    precision: str = "fp32",
    int8: Collection[str] = (),
    int4: Mapping[str, StoredInt4] | None = None,
    external_data: bool | None = None,
    fixed: Lengths | None = None,
    calibration: CalibrationSet | None = None,
    **origin: Any,
) -> ArtifactInfo:
    """Write ``model`` to ``folder`` as ONNX, whole or not at all; an artifact already there is replaced.

    The FP32 graphs are compared with the model (``verify``) before anything is quantised.

    Args:
        model: in any float type, on any device, in any mode; left as it was.
        precision: its name in ``sam3slim.json``; ``fp16``: products in FP16, see ``halve``.
        int8: names of the Linear and embedding weights to store in INT8; empty: FP32.
        int4: names of the Linear weights to store in INT4 → those.
        external_data: weights beside each graph in ``<graph>.onnx.data``; None: only those above 1.5 GB.
        fixed: lengths of static graphs, for runtimes that want them (TensorRT); None: any length from call to call.
        calibration: fixes the scales of the activations that are multiplied in INT8; None: measured at each call.
        origin: fields of ``Origin``.

    Returns:
        ``bytes`` of all graphs and their weights.

    Raises:
        UserError: onnx, onnxscript or onnxruntime is missing; ``model`` is INT8 already; no graph holds a weight
            of ``int8`` or ``int4``; outputs differ from the model's; ``folder`` is not writable, or holds other files.
    """
    path = at_home(folder)
    check_target(path)
    for package in ("onnx", "onnxscript", "onnxruntime"):
        require(package)
    model = plain_model(model, "ONNX export")
    half = precision == FP16.name
    with atomic_path(path) as temporary:
        temporary.mkdir()
        more: dict[str, Any] = {}
        with tempfile.TemporaryDirectory(dir=temporary) as work:
            packed = bool(int8 or int4)
            floats = Path(work) if packed or half else temporary
            trace_graphs(model, floats, external_data=external_data, fixed=fixed)
            runner = _opened(floats, model.spec, fixed)
            differences = verify(model, runner)
            static = None if calibration is None else (calibration, runner)
            quantised = quantise_graphs(floats, temporary, int8, external_data, int4, static) if packed else set()
            if half:
                for name in MODULES:
                    halve(floats / f"{name}.onnx", temporary / f"{name}.onnx", external_data=external_data)
                found = verify(model, _opened(temporary, model.spec, fixed), HALF_TOLERANCE)
                more["max_difference_fp16"] = found
            if int4:
                more["int4_weights"] = len(quantised & set(int4))
        dtypes, parts = shares(temporary, model.spec)
        metadata = complete(
            temporary, model.spec, Origin(**origin), format=ONNX, precision=precision, dtypes=dtypes, parts=parts,
            fixed=fixed, opset=OPSET, max_difference_fp32=differences, int8_weights=len(quantised - set(int4 or ())),
            **more,
        )  # fmt: skip
    return info(path, metadata)


def _opened(folder: Path, spec: ModelSpec, fixed: Lengths | None) -> OnnxSam3:
    runner = OnnxSam3(folder, spec, lean=True)
    runner.fixed = fixed
    return runner


def trace_graphs(model: Sam3, folder: Path, *, external_data: bool | None = None, fixed: Lengths | None = None) -> None:
    """Write ``vision.onnx``, ``text.onnx`` and ``prompts.onnx`` of an FP32 model on the CPU."""
    limits = {"tokens": model.spec.text.context_length}
    with eval_mode(model), traceable(model):
        for name, signature in signatures(model.spec, fixed).items():
            trace(
                MODULES[name](model).eval(), signature.examples(), folder / f"{name}.onnx",
                inputs=list(signature.inputs), outputs=list(signature.outputs),
                dynamic_shapes=signature.dynamic_shapes(limits), external_data=external_data,
            )  # fmt: skip


def plain_model(model: Sam3, what: str) -> Sam3:
    """``model`` itself where it is FP32 on the CPU, or else such a copy. Raises UserError for an INT8 one."""
    for name, parameter in model.named_parameters():
        if is_quantised(parameter):
            kind = stored_type(parameter).upper()
            raise UserError(f"{what}: the model is already {kind} ({name}); start from its FP32 or FP16 parent")
    if all(p.dtype == torch.float32 and p.device.type == "cpu" for p in model.parameters()):
        return model
    return copy.deepcopy(model).cpu().float()


def quantise_graphs(
    source: Path,
    target: Path,
    weights: Collection[str],
    external_data: bool | None = None,
    int4: Mapping[str, StoredInt4] | None = None,
    static: Static | None = None,
) -> set[str]:
    """Write the graphs of ``source`` to ``target`` with ``weights`` in INT8, and those of ``int4`` in INT4.

    Returns:
        Those that were found; a model has some that no output depends on, and they are in no graph.

    Raises:
        UserError: none was found.
    """
    found: set[str] = set()
    for name in MODULES:
        file = f"{name}.onnx"
        found.update(
            quantise(source / file, target / file, weights, int4=int4, static=static, external_data=external_data)
        )
    if not found:
        raise UserError("ONNX export: none of the weights to quantise is in a graph; choose other parts")
    return found
