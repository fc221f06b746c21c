"""What a slim model learns from the full one."""

from sam3slim.distill.losses import feature_loss, pyramid_loss
from sam3slim.distill.spec import DistillSpec
from sam3slim.distill.teacher import FrozenTeacher, check_teacher, soft_targets
from sam3slim.distill.total import distillation_losses

__all__ = [
    "DistillSpec",
    "FrozenTeacher",
    "check_teacher",
    "distillation_losses",
    "feature_loss",
    "pyramid_loss",
    "soft_targets",
]
