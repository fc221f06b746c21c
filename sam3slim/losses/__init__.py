"""Matchers and losses of the SAM 3 image recipe: plain torch, one criterion that adds them up."""

from sam3slim.losses.boxes import box_l1, cxcywh_to_xyxy, iou_and_giou, xyxy_to_cxcywh
from sam3slim.losses.classification import (
    classification_f1,
    iou_aware_bce,
    match_quality,
    presence_accuracy,
    presence_bce,
)
from sam3slim.losses.counts import Counts, Summed
from sam3slim.losses.criterion import Criterion, LayerOutputs, Matches
from sam3slim.losses.masks import focal_and_dice, instance_mask_losses, semantic_losses
from sam3slim.losses.matcher import HungarianMatcher, Match, OneToManyMatcher
from sam3slim.losses.spec import LossSpec

__all__ = [
    "Counts",
    "Criterion",
    "HungarianMatcher",
    "LayerOutputs",
    "LossSpec",
    "Match",
    "Matches",
    "OneToManyMatcher",
    "Summed",
    "box_l1",
    "classification_f1",
    "cxcywh_to_xyxy",
    "focal_and_dice",
    "instance_mask_losses",
    "iou_and_giou",
    "iou_aware_bce",
    "match_quality",
    "presence_accuracy",
    "presence_bce",
    "semantic_losses",
    "xyxy_to_cxcywh",
]
