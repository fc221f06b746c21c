"""What losses are averaged over, so that processes and chunks of prompts add up to the loss of one big batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sam3slim.data.batch import Targets


@dataclass(frozen=True)
class Counts:
    """What the losses of a step are averaged over.

    With those of the whole step, the losses of chunks of its prompts sum up to the loss of all; with those per process
    (``per_process``), the mean of the processes' losses is the loss of one big batch.

    Attributes:
        boxes: [] float32, targets.
        prompts: [] float32.
        visible: [] float32, prompts whose targets have a pixel of mask.
    """

    boxes: Tensor
    prompts: Tensor
    visible: Tensor

    @classmethod
    def of(cls, targets: Targets, prompts: int) -> Counts:
        """Those of one process's share of the batch, on the targets' device; 0 where there is nothing."""
        index = targets.prompt_index
        seen = index if targets.masks is None else index[targets.masks.flatten(1).any(1)]
        numbers = (len(index), prompts, len(seen.unique()))
        return cls(*torch.tensor(numbers, dtype=torch.float32, device=index.device))

    def stacked(self) -> Tensor:
        """[3], to be summed over the processes."""
        return torch.stack([self.boxes, self.prompts, self.visible])

    @classmethod
    def per_process(cls, total: Tensor, processes: int) -> Counts:
        """Of the sum of all processes' ``stacked()``; a step without targets divides by one."""
        return cls(*(total.clamp(min=1) / processes))


@dataclass(frozen=True)
class Summed:
    """A loss before its division: what it is a mean of is said where it is computed, and nowhere else.

    Attributes:
        total: [L] or [1] float32, summed over this process's (or chunk's) items.
        per: the count that it is a mean over.
        times: values per counted item: the queries of a prompt, 1 elsewhere.
    """

    total: Tensor
    per: Literal["boxes", "prompts", "visible"]
    times: int = 1

    def mean(self, counts: Counts) -> Tensor:
        """[L] or [1]: the share in the mean over everything that was counted."""
        count: Tensor = getattr(counts, self.per)
        return self.total / (count * self.times)
