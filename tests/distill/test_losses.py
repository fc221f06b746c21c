from __future__ import annotations

import pytest
import torch

from sam3slim.distill import feature_loss, pyramid_loss


def test_feature_loss__scale_free() -> None:
    teacher = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(0)) * 7 + 3
    assert feature_loss(teacher, teacher) == 0
    constant = torch.full_like(teacher, teacher.mean().item())
    torch.testing.assert_close(feature_loss(constant, teacher), torch.tensor(1.0), atol=1e-5, rtol=0)
    student = teacher + torch.randn_like(teacher)
    torch.testing.assert_close(feature_loss(student, teacher), feature_loss(student * 10, teacher * 10))


def test_feature_loss__gradient_reaches_the_student_only() -> None:
    student, teacher = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    feature_loss(student, teacher).backward()
    assert student.grad is not None
    assert teacher.grad is None


def test_losses__shapes_that_differ() -> None:
    with pytest.raises(ValueError, match="differ"):
        feature_loss(torch.zeros(2, 3), torch.zeros(3, 2))
    with pytest.raises(ValueError, match="1 feature maps, teacher 2"):
        pyramid_loss((torch.zeros(1),), (torch.zeros(1), torch.zeros(1)))
