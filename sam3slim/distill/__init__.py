"""What a slim model learns from the full one."""

from sam3slim.distill.losses import feature_loss, pyramid_loss
from sam3slim.distill.teacher import DistillSpec, FrozenTeacher

__all__ = ["DistillSpec", "FrozenTeacher", "feature_loss", "pyramid_loss"]
