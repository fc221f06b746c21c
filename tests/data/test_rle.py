"""Run-length masks: all spellings agree, broken ones are found."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as mask_utils

from sam3slim.data.rle import is_whole_rle, to_rle

from .samples import crowd, square


def compressed(mask: np.ndarray) -> dict[str, Any]:
    rle = mask_utils.encode(np.asfortranarray(mask))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode()}


def test_to_rle__polygon_and_both_rle_forms_agree() -> None:
    mask = np.zeros((30, 40), dtype=np.uint8)
    mask[5:15, 8:18] = 1
    for form in (square(8, 5)["segmentation"], crowd(8, 5)["segmentation"], compressed(mask)):
        assert np.array_equal(mask_utils.decode(to_rle(form, 30, 40)), mask)


@given(st.integers(0, 2**32), st.integers(1, 300), st.integers(1, 300), st.floats(0.0, 1.0))
@settings(max_examples=60, deadline=None)
def test_is_whole_rle__any_mask_with_pixels(seed: int, height: int, width: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    # Blocks give long runs (several characters each), single pixels short ones.
    coarse = rng.uniform(size=(height // 7 + 1, width // 7 + 1)) < share
    mask = np.kron(coarse, np.ones((7, 7)))[:height, :width].astype(np.uint8)
    assert is_whole_rle(compressed(mask), height, width) == bool(mask.any())


@pytest.mark.parametrize(
    "counts",
    ["112233", "zzzzzzz", "0", "é", "", None, 7, [], [5, 5], [0, 1200.0], [-5, 1205], [1200], [True, 1199]],
)
def test_is_whole_rle__broken(counts: Any) -> None:
    assert not is_whole_rle({"size": [30, 40], "counts": counts}, 30, 40)


def test_is_whole_rle__cut_off_or_other_size() -> None:
    mask = np.zeros((30, 40), dtype=np.uint8)
    mask[5:15, 8:18] = 1
    rle = compressed(mask)
    assert is_whole_rle(rle, 30, 40)
    assert not is_whole_rle(rle, 40, 30)
    assert not is_whole_rle(rle | {"counts": rle["counts"][:-2]}, 30, 40)
