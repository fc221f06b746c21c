"""At which sizes a training batch shows its images: one is drawn for every batch, and a teacher may have its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

SIZE_STREAM = 3  # of random numbers, beside those of ``data.coco``


class View(NamedTuple):
    """What a sampler asks a data set for, in place of an index.

    Attributes:
        place: of the image in the data set.
        side: of the square picture, in pixels; None: the data set's own.
        teacher_side: of a second picture of the same, for a teacher; None: no second one.
    """

    place: int
    side: int | None = None
    teacher_side: int | None = None


@dataclass(frozen=True)
class Views:
    """The sizes of a training.

    Attributes:
        sides: to draw from, each as often as the others.
        teacher_side: of the teacher's pictures; None: it sees the student's.
        seed: of the draws, together with the epoch: every process draws the same.
    """

    sides: Sequence[int]
    teacher_side: int | None = None
    seed: int = 0

    def of(self, order: Sequence[int], epoch: int, batch_size: int) -> list[View]:
        """The images of an epoch in their ``order``, ``batch_size`` in a row at one size."""
        rng = np.random.default_rng((self.seed, epoch, 0, SIZE_STREAM))
        drawn = rng.integers(len(self.sides), size=-(-len(order) // batch_size))
        sides = [self.sides[drawn[number // batch_size]] for number in range(len(order))]
        return [
            View(place, side, None if self.teacher_side == side else self.teacher_side)
            for place, side in zip(order, sides, strict=True)
        ]
