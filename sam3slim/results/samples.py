"""What a metric keeps of every image, and how much it dropped with an interval over the choice of images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from sam3slim.errors import UserError
from sam3slim.files import atomic_path
from sam3slim.results.record import Drop

if TYPE_CHECKING:
    from sam3slim.results.metrics import Metric


@dataclass(frozen=True)
class Samples:
    """Enough to compute a metric's headline number again over any choice of images: arrays, and ``values``.

    Attributes:
        image_ids: [I] int64.
    """

    image_ids: NDArray[np.int64]

    def values(self, counts: NDArray[np.int64]) -> NDArray[np.float64]:
        """The number over R choices of images, [R]; ``counts`` [I, R]: how often each is taken; NaN where undefined."""
        raise NotImplementedError

    def value(self) -> float | None:
        """The number over the images as they are; None where it is not defined."""
        value = float(self.values(np.ones((len(self.image_ids), 1), dtype=np.int64))[0])
        return None if np.isnan(value) else value

    def objects(self) -> Any:
        """What must be equal where two models are compared, besides the images."""
        return None

    def save(self, path: str | Path) -> Path:
        """Write a compressed ``.npz``, atomically."""
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **self.__dict__)
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what ``save`` wrote. Raises UserError when it is something else."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return cls(**{name: arrays[name] for name in cls.__dataclass_fields__})
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{path} does not hold matches ({error}); evaluate the model again") from error


def paired_bootstrap(metric: Metric, full: Samples, other: Samples, *, repeats: int = 1000, seed: int = 0) -> Drop:
    """The drop from ``full`` to ``other`` and its percentile bootstrap interval (Efron & Tibshirani 1993, ch. 13).

    Images are drawn with replacement, the same ones for both models, and both numbers are computed anew: the interval
    says how much of the drop the choice of images explains.

    Raises:
        UserError: the two were evaluated on different images or objects, or no image has an object.
    """
    check_paired(full, other)
    before, after = full.value(), other.value()
    if before is None or after is None:
        raise UserError("a drop needs objects: none of the images has one")
    rng, images = np.random.default_rng(seed), len(full.image_ids)
    drawn = [np.bincount(rng.integers(images, size=images), minlength=images) for _ in range(repeats)]
    counts = np.stack(drawn, axis=1)
    differences = metric.points_lost(1.0, 0.0) * (full.values(counts) - other.values(counts))
    differences = differences[~np.isnan(differences)]  # resamples without any object
    low, high = np.percentile(differences, [2.5, 97.5])
    return Drop(metric.points_lost(before, after), (float(low), float(high)), len(differences))


def check_paired(full: Samples, other: Samples) -> None:
    """Raise UserError where the two were evaluated on different images or objects."""
    if not np.array_equal(full.image_ids, other.image_ids):
        raise UserError(
            f"a drop needs the same images: {len(full.image_ids)} and {len(other.image_ids)} were evaluated; "
            "evaluate both on the same data and split"
        )
    if full.objects() != other.objects():
        raise UserError(
            "a drop needs the same objects: the two were evaluated on the same images with other annotations or "
            "categories; evaluate both on the same data and split"
        )
