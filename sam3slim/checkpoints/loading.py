"""Any checkpoint this version knows → a model ready to run, or one line that says why not."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import torch
from torch import Tensor

from sam3slim.checkpoints import int8
from sam3slim.checkpoints.account import require_all
from sam3slim.checkpoints.load_report import CheckpointError, LoadReport
from sam3slim.checkpoints.locating import locate
from sam3slim.checkpoints.readers import Overrides, RawCheckpoint, read
from sam3slim.checkpoints.spec_of import spec_difference
from sam3slim.errors import UserError
from sam3slim.models import Sam3, build_model, empty_model, init_for_training
from sam3slim.models.count import check_parts
from sam3slim.specs import ModelSpec

SHOWN_DIFFERENCES = 3
NO_TOWER = (
    "has a prompt bank instead of a text tower, and nothing to train or cut there; start from the checkpoint it was "
    "made from, and make the bank again at the end"
)


def load(
    source: str | Path,
    *,
    overrides: Overrides | None = None,
    expect: ModelSpec | None = None,
    allow_fresh: Collection[str] = (),
    dequantize: bool = False,
    mapped: bool = False,
) -> tuple[Sam3, LoadReport]:
    """Load weights strictly: every key accounted for, or nothing at all.

    Args:
        source: what ``locate`` finds: an artifact or transformers folder (also of the video model), a hub id,
            a run folder (its best checkpoint), or a file: Lightning's, the released one, a trainer's, a bare
            ``state_dict``.
        overrides: fields of the architecture that the source does not tell or tells wrong, by dotted key:
            ``{"text.num_heads": 2}``.
        expect: the architecture the caller is about to use; another one in the file is refused.
        allow_fresh: parts (``vision``, ``text``, …) whose missing keys may start from fresh weights.
        dequantize: turn INT8 weights into FP32 tensors of the same values. By default they stay torchao
            tensors (a quarter of the memory, not trainable).
        mapped: let FP32 weights stay pages of the file instead of copying them (memory follows use; the file must
            not be changed meanwhile).

    Returns:
        The model in eval mode, FP32 on the CPU (stored FP16/BF16 weights are upcast), and the report.

    Raises:
        CheckpointError: unreadable, of another architecture, or keys that do not fit (``error.report``).
        UserError: ``allow_fresh`` names an unknown part, ``overrides`` an unknown field.
    """
    if isinstance(allow_fresh, str):
        raise UserError(f"allow_fresh={allow_fresh!r} must be a list of parts; use [{allow_fresh}]")
    check_parts("allow_fresh", allow_fresh)
    raw = read(locate(source), overrides)
    if expect is not None:
        check_architecture(raw, expect)
    tensors = int8.unflatten(raw.tensors, raw.path, dequantize=dequantize, dynamic=raw.dynamic)
    report = require_all(raw, tensors, allow_fresh)
    model = init_for_training(build_model(raw.spec)) if report.fresh else empty_model(raw.spec)
    _copy(model, tensors, mapped)
    return model.eval(), report


@torch.no_grad()
def _copy(model: Sam3, tensors: dict[str, Tensor], mapped: bool) -> None:
    targets = model.state_dict()
    parameters = {key for key, _ in model.named_parameters()}
    for key, tensor in tensors.items():
        if int8.is_quantised(tensor) or (mapped and key in parameters and tensor.dtype == torch.float32):
            int8.set_weight(model, key, tensor)
        else:
            targets[key].copy_(tensor)  # upcasts


def check_architecture(raw: RawCheckpoint, expect: ModelSpec) -> None:
    """Raise CheckpointError, naming what differs, unless ``raw`` is of the architecture ``expect``."""
    differences = spec_difference(raw.spec, expect)
    if not differences:
        return
    if raw.spec.text.bank is not None and expect.text.bank is None:
        raise CheckpointError(f"checkpoint {raw.path} {NO_TOWER}")
    key, found, wanted = differences[0]
    text = f"{key} is {found} in {raw.path}, {wanted} in model={expect.name}"
    more = [f"{key} {found}, {wanted}" for key, found, wanted in differences[1:SHOWN_DIFFERENCES]]
    if more:
        text += f" (also {'; '.join(more)}{'; …' if len(differences) > SHOWN_DIFFERENCES else ''})"
    raise CheckpointError(
        f"checkpoint of another architecture: {text}; choose the model it was trained as, or init=pruned to slim it"
    )
