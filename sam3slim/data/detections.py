"""What a model found in an image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Rle = dict[str, Any]
# From this score on a detection is one that a user sees: what cgF1 counts, however many there are.
CONFIDENT = 0.5
# Detections of an image that average precision takes: COCO's number, and LVIS' of federated sets.
MAX_DETECTIONS, LVIS_DETECTIONS = 100, 300


@dataclass
class PromptScores:
    """What the model thought of each of an image's prompts, for checks of calibration.

    Attributes:
        labels: [P] int64 category ids asked for.
        presence: [P] float32 probability that the concept is in the image.
        top_score: [P] float32 score of the best query.
    """

    labels: Tensor
    presence: Tensor
    top_score: Tensor


@dataclass
class Detections:
    """N detections of one image, best first, on the CPU.

    Attributes:
        image_id: of the data set.
        boxes: [N, 4] float32 (x1, y1, x2, y2) in original pixels, inside the image.
        scores: [N] float32 in 0..1.
        labels: [N] int64 category ids.
        rles: N compressed pycocotools RLE dicts ({"size": [h, w], "counts": bytes}); None without masks.
        prompts: scores of the prompts themselves.
        beyond: how many of the last ones are more than were asked for, and are kept for their score alone; average
            precision does without them.
    """

    image_id: int
    boxes: Tensor
    scores: Tensor
    labels: Tensor
    rles: list[Rle] | None
    prompts: PromptScores | None = None
    beyond: int = 0

    def __len__(self) -> int:
        return len(self.scores)


def xywh(boxes: Tensor) -> list[list[float]]:
    """Corners [N, 4] to corner and size, subtracted in the tensor's own precision.

    Sizes that come from a file as decimals, in float64, are those of the file again: 10.1 + 15 - 10.1 is 15.
    """
    sides = boxes.reshape(-1, 4).clone()
    sides[:, 2:] -= sides[:, :2]
    if sides.dtype == torch.float64:
        sides[:, 2:] = sides[:, 2:].round(decimals=9)
    rows: list[list[float]] = sides.tolist()
    return rows
