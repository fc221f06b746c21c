"""SAM 3 as three programs of ``torch.export``: what the ONNX graphs do, for PyTorch without this package."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sam3slim.artifacts import ArtifactInfo
from sam3slim.artifacts.metadata import Origin, check_target
from sam3slim.checkpoints.int8 import dtype_shares
from sam3slim.checkpoints.load_report import bytes_by_part
from sam3slim.checkpoints.locating import PROGRAMS
from sam3slim.environment import before_fake_tensors
from sam3slim.evaluation.inference import eval_mode
from sam3slim.files import at_home, atomic_path
from sam3slim.graphs.folder import complete, info
from sam3slim.graphs.modules import MODULES, signatures, torch_pool, traceable
from sam3slim.graphs.onnx import plain_model
from sam3slim.graphs.runner import GraphSam3, plain_inputs
from sam3slim.graphs.verify import verify
from sam3slim.models import Sam3
from sam3slim.specs import ModelSpec

# What a program computes with; a program stores every weight of the module that it is traced from.
NEEDED = {
    "vision": ("vision_encoder",),
    "text": ("text_encoder", "text_projection", "text_bank"),
    "prompts": ("geometry_encoder", "detr_encoder", "detr_decoder", "dot_product_scoring", "mask_decoder"),
}
# Of the nodes: where on this machine the code stood, and which of its modules and lines made them.
NOTES = ("stack_trace", "nn_module_stack", "source_fn_stack", "from_node")


class ProgramSam3(GraphSam3):
    """``vision.pt2``, ``text.pt2`` and ``prompts.pt2`` of a folder, run by PyTorch on the CPU."""

    what = "programs of torch.export, run by PyTorch"

    def __init__(self, folder: Path, spec: ModelSpec) -> None:
        super().__init__(spec)
        before_fake_tensors()
        # In a dict, so that nn.Module does not take them for its own: they have no eval().
        self.programs = {name: torch.export.load(folder / f"{name}.pt2").module() for name in self.signatures}
        self.eval()

    def _run(self, graph: str, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        signature = self.signatures[graph]
        given = plain_inputs(inputs, signature)
        outputs = self.programs[graph](*(given[name] for name in signature.inputs))
        outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
        return dict(zip(signature.outputs, outputs, strict=True))


def export_programs(model: Sam3, folder: str | Path, **origin: Any) -> ArtifactInfo:
    """Write ``model`` to ``folder`` as programs, whole or not at all; an artifact already there is replaced.

    They are loaded again and compared with the model (``verify``).

    Args:
        model: in any float type, on any device, in any mode; left as it was.
        origin: fields of ``Origin``.

    Raises:
        UserError: ``model`` is INT8; outputs differ from the model's; ``folder`` is not writable or holds other files.
    """
    path = at_home(folder)
    check_target(path)
    model = plain_model(model, "torch.export")
    with atomic_path(path) as temporary:
        temporary.mkdir()
        weights = _trace(model, temporary)
        differences = verify(model, ProgramSam3(temporary, model.spec))
        metadata = complete(
            temporary, model.spec, Origin(**origin), format=PROGRAMS, precision="fp32", dtypes=dtype_shares(weights),
            parts=bytes_by_part(weights), max_difference_fp32=differences,
        )  # fmt: skip
    return info(path, metadata)


def _trace(model: Sam3, folder: Path) -> dict[str, Tensor]:
    """Write the three programs; returns the weights they hold under the model's names."""
    limits = {"tokens": model.spec.text.context_length}
    weights: dict[str, Tensor] = {}
    before_fake_tensors()
    with torch.no_grad(), eval_mode(model), traceable(model, torch_pool):
        for name, signature in signatures(model.spec).items():
            module: Any = MODULES[name](model).eval()
            module.model = _only(model, NEEDED[name])
            program: Any = torch.export.export(
                module, signature.examples(), dynamic_shapes=signature.dynamic_shapes(limits)
            )
            program._example_inputs = None  # megabytes of zeros
            for node in program.graph.nodes:
                for note in NOTES:
                    node.meta.pop(note, None)
            torch.export.save(program, folder / f"{name}.pt2")
            weights |= {key.removeprefix("model."): tensor for key, tensor in module.state_dict().items()}
    return {key: tensor for key, tensor in weights.items() if not key.startswith("position_")}


def _only(model: Sam3, parts: tuple[str, ...]) -> Sam3:
    """``model`` with these of its modules alone; they are shared, not copied."""
    shell = copy.copy(model)
    shell.__dict__["_modules"] = {name: module for name, module in model._modules.items() if name in parts}
    return shell
