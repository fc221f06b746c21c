"""Fewer cells for a box, the same answer where it can be the same."""

import torch

from sam3slim.slimming.roi import merge_bins


def test_merge_bins__same_answer_where_features_are_constant_on_the_larger_cells() -> None:
    weight = torch.randn(5, 4, 6, 6, dtype=torch.float64)
    coarse = torch.randn(2, 4, 3, 3, dtype=torch.float64)
    fine = coarse.repeat_interleave(2, -1).repeat_interleave(2, -2)
    expected = torch.einsum("ocij,bcij->bo", weight, fine)
    assert torch.allclose(torch.einsum("ocij,bcij->bo", merge_bins(weight, 3), coarse), expected)


def test_merge_bins__cells_that_straddle_are_shared_by_area() -> None:
    weight = torch.randn(5, 4, 7, 7, dtype=torch.float64)
    merged = merge_bins(weight, 3)
    assert merged.shape == (5, 4, 3, 3)
    assert torch.allclose(merged.sum((-1, -2)), weight.sum((-1, -2)))
    # The first of three cells covers 2 1/3 of seven.
    rows = torch.tensor([1, 1, 1 / 3], dtype=torch.float64)
    corner = torch.einsum("i,j,ocij->oc", rows, rows, weight[..., :3, :3])
    assert torch.allclose(merged[..., 0, 0], corner)


def test_merge_bins__nothing_to_do() -> None:
    weight = torch.randn(2, 2, 7, 7)
    assert merge_bins(weight, 7) is weight
