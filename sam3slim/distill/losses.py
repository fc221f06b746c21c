"""Distillation losses: small pure functions over the outputs of student and teacher."""

from __future__ import annotations

import torch
from torch import Tensor


def feature_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error relative to the teacher's variance, so that weights mean the same on every map.

    1 is what a constant student at the teacher's mean would score (FitNets, arXiv:1412.6550, normalised).

    Args:
        student, teacher: any equal shape, any float dtype; computed in float32.

    Raises:
        ValueError: the shapes differ.
    """
    if student.shape != teacher.shape:
        raise ValueError(f"student features {tuple(student.shape)} and teacher's {tuple(teacher.shape)} differ")
    target = teacher.detach().float()
    return (student.float() - target).square().mean() / target.var(correction=0).clamp(min=1e-6)


def pyramid_loss(student: tuple[Tensor, ...], teacher: tuple[Tensor, ...]) -> Tensor:
    """Mean ``feature_loss`` over the neck's maps [B, d_model, H, W], fine to coarse."""
    if len(student) != len(teacher):
        raise ValueError(f"student has {len(student)} feature maps, teacher {len(teacher)}")
    return torch.stack([feature_loss(s, t) for s, t in zip(student, teacher, strict=True)]).mean()
