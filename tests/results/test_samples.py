"""mAP over resampled images, and the interval of a drop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sam3slim.errors import UserError
from sam3slim.results.coco import IouType, Matches, average_precision
from sam3slim.results.metrics import METRICS
from sam3slim.results.samples import paired_bootstrap

from .test_coco import random_set

KINDS: tuple[IouType, ...] = ("bbox", "segm")
BOX = METRICS["bbox"]


def match(*given: Any) -> Matches:
    return average_precision(*given)[1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(4))
def test_map__is_the_metrics(seed: int, kind: IouType) -> None:
    numbers, matches = average_precision(*random_set(seed), kind)
    assert matches.value() == pytest.approx(numbers["map"], abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_map__an_image_counted_twice_is_an_image_listed_twice(kind: IouType) -> None:
    detections, truths = random_set(5)
    counts = np.random.default_rng(0).integers(0, 4, len(detections))
    listed = [i for i, count in enumerate(counts) for _ in range(count)]
    copies = [replace(detections[i], image_id=n) for n, i in enumerate(listed)]
    numbers, _ = average_precision(copies, [truths[i] for i in listed], kind)
    assert match(detections, truths, kind).values(counts[:, None])[0] == pytest.approx(numbers["map"], abs=1e-6)


def test_map__nothing_found() -> None:
    detections, truths = random_set(1)
    keep = [
        replace(item, boxes=item.boxes[:0], scores=item.scores[:0], labels=item.labels[:0], rles=[])
        for item in detections
    ]
    assert match(keep, truths, "segm").value() == 0.0


def test_matches__file(tmp_path: Path) -> None:
    matches = match(*random_set(2), "bbox")
    again = Matches.load(matches.save(tmp_path / "matches.npz"))
    for name, value in matches.__dict__.items():
        assert np.array_equal(value, getattr(again, name)), name
    (tmp_path / "x.npz").write_bytes(b"no")
    with pytest.raises(UserError, match="does not hold matches"):
        Matches.load(tmp_path / "x.npz")


def test_bootstrap__equal_models_drop_nothing() -> None:
    matches = match(*random_set(3), "bbox")
    drop = paired_bootstrap(BOX, matches, matches, repeats=50)
    assert (drop.points, drop.ci95) == (0.0, (0.0, 0.0))


def test_bootstrap__a_worse_model_drops() -> None:
    detections, truths = random_set(3, images=40)
    worse = [replace(item, scores=item.scores * 0 + 0.5) if n % 2 else item for n, item in enumerate(detections)]
    full, other = match(detections, truths, "bbox"), match(worse, truths, "bbox")
    drop = paired_bootstrap(BOX, full, other, repeats=200)
    assert drop.points == pytest.approx(100 * (full.value() - other.value()))  # type: ignore[operator]
    assert drop.ci95[0] < drop.points < drop.ci95[1]
    assert paired_bootstrap(BOX, full, other, repeats=200) == drop  # the same seed, the same draw
    assert paired_bootstrap(BOX, other, full, repeats=200).points == -drop.points


def test_bootstrap__pairing_makes_it_narrower() -> None:
    """Both models see the same resample: the interval is that of the difference, not of two mAPs."""
    detections, truths = random_set(4, images=40)
    slightly = [replace(item, scores=item.scores * 0.99) if n == 0 else item for n, item in enumerate(detections)]
    full, other = match(detections, truths, "segm"), match(slightly, truths, "segm")
    low, high = paired_bootstrap(BOX, full, other, repeats=100).ci95
    values = [100 * value for value in _resampled(full, 100)]
    assert high - low < 0.2 * (np.percentile(values, 97.5) - np.percentile(values, 2.5))


def test_bootstrap__other_images_are_refused() -> None:
    full, other = match(*random_set(1), "bbox"), match(*random_set(1, images=5), "bbox")
    with pytest.raises(UserError, match="12 and 5 were evaluated"):
        paired_bootstrap(BOX, full, other)


def test_bootstrap__other_objects_are_refused_and_other_detections_are_not() -> None:
    detections, truths = random_set(1)
    full = match(detections, truths, "bbox")
    fewer = [replace(item, labels=item.labels[:0], boxes=item.boxes[:0], scores=item.scores[:0]) for item in detections]
    assert paired_bootstrap(BOX, full, match(fewer, truths, "bbox"), repeats=5).points > 0
    renamed = [replace(item, labels=item.labels + 1) for item in truths]
    with pytest.raises(UserError, match=r"the same objects: .* other annotations or categories"):
        paired_bootstrap(BOX, full, match(detections, renamed, "bbox"))


def _resampled(matches: Matches, repeats: int) -> list[float]:
    rng, images = np.random.default_rng(1), len(matches.image_ids)
    draws = [np.bincount(rng.integers(images, size=images), minlength=images) for _ in range(repeats)]
    return matches.values(np.stack(draws, axis=1)).tolist()
