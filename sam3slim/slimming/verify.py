"""Do the sliced tensors hold what the plan says?"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sam3slim.slimming.axes import STACKS, axes_of, source_key
from sam3slim.slimming.plan import Plan
from sam3slim.slimming.roi import ROI_WEIGHT, merge_bins


def check_plan(source: Mapping[str, Tensor], target: Mapping[str, Tensor], plan: Plan) -> None:
    """Compare every tensor of ``target`` with ``source`` indexed by the plan's own numbers, bit for bit.

    Only the plan is read, not how the cut was made, so a plan that passes repeats the cut.

    Raises:
        AssertionError: a tensor differs; the key is named.
    """
    kept = {entry.axis: entry for entry in plan.kept}
    layers = {stack: kept[f"{stack}.blocks"].indices for stack in STACKS}
    for key, found in target.items():
        expected = source[source_key(key, layers)]
        if key == ROI_WEIGHT:
            expected = merge_bins(expected, len(kept["geometry.roi"].indices))
        for dim, axis in axes_of(key).items():
            entry = kept[axis]
            # A unit is a stretch of equal length: a head, or one entry.
            units = expected.unflatten(dim, (entry.total, -1))
            if not entry.everything:
                units = units.index_select(dim, torch.tensor(entry.indices, device=units.device))
            expected = units.flatten(dim, dim + 1)
        same = expected.shape == found.shape and torch.equal(expected.to(found), found)
        if not same:
            raise AssertionError(f"{key} does not hold what the plan keeps")
