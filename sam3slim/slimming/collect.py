"""Importance that needs data: what a few batches do to a unit, or a unit to their loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sam3slim.data.batch import Batch, Targets
from sam3slim.errors import UserError
from sam3slim.evaluation.inference import eval_mode
from sam3slim.models import Sam3, Sam3Output
from sam3slim.slimming.axes import Member, members
from sam3slim.slimming.check import unit_size
from sam3slim.slimming.hooks import Activations, BlockInfluence

DataImportance = Literal["activation", "taylor"]
DATA_IMPORTANCES = ("activation", "taylor")
Loss = Callable[[Sam3Output, Targets], Tensor]


@dataclass(frozen=True)
class DataScores:
    """Scores of the full model's units and blocks, all >= 0, float64 on the CPU.

    Attributes:
        importance: what ``units`` hold.
        batches: how many batches they are the mean of.
        units: axis of the full model → [units]; axes that no output depends on are zero or absent.
        blocks: stack → block influence [depth], see ``BlockInfluence``.
    """

    importance: DataImportance
    batches: int
    units: dict[str, Tensor]
    blocks: dict[str, Tensor]


def collect_scores(
    model: Sam3, batches: Iterable[Batch], importance: DataImportance, loss: Loss | None = None
) -> DataScores:
    """Run ``batches`` through ``model`` in eval mode, where it is, and score every axis.

    ``activation``: mean squared activation of the unit where it is read, real tokens only; see ``Activations``.

    ``taylor``: first-order change of the loss when the unit is removed, squared: (Σ g·w)² over the unit's
    entries in every tensor that reads it, mean over batches (Molchanov et al., arXiv:1906.10771, the joint
    form for a group of weights). It equals (Σ activation · gradient)² of a gate on the unit. The one-to-many
    branch is left out: inference does not run it.

    Args:
        model: its weights, modes and gradients' flags are left as they were; gradients are dropped.
        batches: those without prompts are skipped.
        loss: scalar to differentiate; ``taylor`` only.

    Raises:
        UserError: no batch with a prompt; activations or gradients that are not finite.
        ValueError: ``taylor`` without a loss.
    """
    if importance == "taylor" and loss is None:
        raise ValueError("taylor needs a loss")
    readers = _readers(model)
    flags = {parameter: parameter.requires_grad for parameter in model.parameters()}
    device = next(model.parameters()).device
    taylor: dict[str, Tensor] = {}
    count = 0
    try:
        model.requires_grad_(importance == "taylor")
        with (
            eval_mode(model),
            Activations(model, readers, importance == "activation") as seen,
            BlockInfluence(model) as influence,
        ):
            for batch in batches:
                if not len(batch.input_ids):
                    continue
                count += 1
                _one_batch(model, batch.to(device), loss if importance == "taylor" else None)
                if importance == "taylor":
                    _add_gradients(model, readers, taylor)
    finally:
        model.zero_grad(set_to_none=True)
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)
    if not count:
        raise UserError(
            f"init.importance={importance} needs training data, and there is no image with a prompt; "
            "check data.root and data.limit, or use init.importance=magnitude"
        )
    units = seen.scores() if importance == "activation" else {axis: total / count for axis, total in taylor.items()}
    found = DataScores(importance, count, units, influence.scores())
    _check_finite(found)
    return found


def _readers(model: Sam3) -> dict[str, tuple[list[Member], int]]:
    """Axis → the tensors that read it, and the entries per unit."""
    on_axis = members(model.state_dict().keys())
    found = {
        axis: ([m for m in found if m.reads], unit_size(model.spec, axis))
        for axis, found in on_axis.items()
    }  # fmt: skip
    return {axis: entry for axis, entry in found.items() if entry[0]}


def _one_batch(model: Sam3, batch: Batch, loss: Loss | None) -> None:
    with torch.set_grad_enabled(loss is not None):
        output = model(**batch.inputs(), with_masks=loss is not None)
        if loss is not None:
            model.zero_grad(set_to_none=True)
            loss(output, batch.targets).backward()


def _add_gradients(model: Sam3, readers: dict[str, tuple[list[Member], int]], totals: dict[str, Tensor]) -> None:
    """Add one batch's (Σ g·w)² per unit."""
    parameters = dict(model.named_parameters())
    for axis, (reading, unit) in readers.items():
        change: Tensor | None = None
        for member in reading:
            weight = parameters[member.key]
            if weight.grad is None:
                continue  # no output depends on it
            others = [d for d in range(weight.ndim) if d != member.dim]
            part = (weight.grad * weight.detach()).sum(others, dtype=torch.float64)
            change = part if change is None else change + part
        if change is not None:
            squared = change.reshape(-1, unit).sum(1).square().cpu()
            totals[axis] = totals.get(axis, torch.zeros_like(squared)) + squared


def _check_finite(found: DataScores) -> None:
    for name, scores in (*found.units.items(), *found.blocks.items()):
        if not scores.isfinite().all():
            raise UserError(
                f"init.importance={found.importance}: {name} is not finite on the training data; "
                "check the checkpoint, or use init.importance=magnitude"
            )
