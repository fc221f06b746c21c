"""How much mAP a model lost against another, with an interval over the choice of images."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sam3slim.errors import UserError
from sam3slim.evaluation.matches import Matches

POINTS = 100  # of mAP


@dataclass(frozen=True)
class Drop:
    """mAP(full) − mAP(other) in points, with its 95 % interval.

    Attributes:
        points: on the images as they are.
        ci95: 2.5th and 97.5th percentile over resampled images.
        repeats: resamples drawn.
    """

    points: float
    ci95: tuple[float, float]
    repeats: int

    def to_dict(self) -> dict[str, Any]:
        """As in ``record.json``."""
        return {**asdict(self), "ci95": list(self.ci95)}


def paired_bootstrap(full: Matches, other: Matches, *, repeats: int = 1000, seed: int = 0) -> Drop:
    """The drop and its percentile bootstrap interval (Efron & Tibshirani 1993, ch. 13).

    Images are drawn with replacement, the same ones for both models, and both mAPs are computed anew: the interval says
    how much of the drop the choice of images explains.

    Raises:
        UserError: the two were evaluated on different images or objects, or no image has an object.
    """
    if not np.array_equal(full.image_ids, other.image_ids):
        raise UserError(
            f"a drop needs the same images: {len(full.image_ids)} and {len(other.image_ids)} were evaluated; "
            "evaluate both on the same data and split"
        )
    if _objects(full) != _objects(other):
        raise UserError(
            "a drop needs the same objects: the two were evaluated on the same images with other annotations or "
            "categories; evaluate both on the same data and split"
        )
    left, right = full.map(), other.map()
    if left is None or right is None:
        raise UserError("a drop needs objects: none of the images has one")
    rng, images = np.random.default_rng(seed), len(full.image_ids)
    drawn = [np.bincount(rng.integers(images, size=images), minlength=images) for _ in range(repeats)]
    counts = np.stack(drawn, axis=1)
    differences = POINTS * (full.maps(counts) - other.maps(counts))
    differences = differences[~np.isnan(differences)]  # resamples without any object
    low, high = np.percentile(differences, [2.5, 97.5])
    return Drop(POINTS * (left - right), (float(low), float(high)), len(differences))


def _objects(matches: Matches) -> dict[int, bytes]:
    """Category → its objects by image, for the categories that have any: others are there where something was found."""
    rows = zip(matches.category_ids.tolist(), matches.positives, strict=True)
    return {category: row.tobytes() for category, row in rows if row.any()}
