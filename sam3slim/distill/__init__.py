"""What a slim model learns from the full one."""

from sam3slim.distill.fill import TeacherCacheBuilder, cache_metadata, views_of
from sam3slim.distill.losses import feature_loss, pyramid_loss
from sam3slim.distill.spec import DistillSpec, teacher_overrides
from sam3slim.distill.store import StoresOfSets, TeacherStore
from sam3slim.distill.teacher import CachedTeacher, FrozenTeacher, check_teacher, soft_targets
from sam3slim.distill.total import Totals, distillation_losses, image_losses, match_detections, prompt_losses

__all__ = [
    "CachedTeacher",
    "DistillSpec",
    "FrozenTeacher",
    "StoresOfSets",
    "TeacherCacheBuilder",
    "TeacherStore",
    "Totals",
    "cache_metadata",
    "check_teacher",
    "distillation_losses",
    "feature_loss",
    "image_losses",
    "match_detections",
    "prompt_losses",
    "pyramid_loss",
    "soft_targets",
    "teacher_overrides",
    "views_of",
]
