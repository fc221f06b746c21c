"""The score of every unit and block: from data where there are some, else from the weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sam3slim.slimming.axes import STACKS, members
from sam3slim.slimming.collect import DataScores
from sam3slim.slimming.importance import block_energy, hidden_scores, stream_scores
from sam3slim.slimming.select import Importance


class Ranking:
    """Scores by the full model's axes.

    Args:
        state: the full model's tensors.
        data: scores from data; needed for ``activation`` and ``taylor``.
        generator: draws the block scores of ``random``.
    """

    def __init__(
        self,
        state: Mapping[str, Tensor],
        importance: Importance,
        data: DataScores | None,
        generator: torch.Generator,
    ) -> None:
        self.importance, self.data = importance, data
        self._state, self._members, self._generator = state, members(state), generator

    def units(self, axis: str, unit: int = 1) -> tuple[Tensor, str]:
        """Scores [units] of ``unit`` consecutive entries each, and the rule that will choose.

        An axis no output depends on has no score from data, and falls back to its weights.
        """
        if self.data is not None:
            scores = self.data.units.get(axis)
            if scores is not None and float(scores.sum()) > 0:
                return scores, self.importance
        on_axis = self._members[axis]
        stream = axis.endswith((".channels", ".projection"))
        weights = stream_scores(self._state, on_axis) if stream else hidden_scores(self._state, on_axis, unit)
        return weights, self.importance if self.data is None else "magnitude"

    def blocks(self, stack: str) -> tuple[Tensor, str]:
        """Scores [depth] of a stack's blocks and their name: block influence with data, else weights."""
        if self.data is not None and float(self.data.blocks[stack].sum()) > 0:
            return self.data.blocks[stack], "block influence"
        energy = block_energy(self._state, STACKS[stack])
        if self.importance == "random":
            return torch.rand(len(energy), generator=self._generator, dtype=torch.float64), "random"
        return energy, "magnitude"
