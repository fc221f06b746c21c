"""Image, box and mask transforms through torchvision v2, to the model's square input.

SAM 3 squashes every image to a square (no letterbox), in training and evaluation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.ops import masks_to_boxes
from torchvision.transforms import v2

from sam3slim.errors import UserError

# Keys "image" (uint8), "boxes" (XYXY), "masks" (unless boxes only), all tv_tensors; "labels" [N] int64;
# "mirrored": True once that has happened.
Fields = dict[str, Any]
Transform = Callable[[Fields], Fields]
# Smallest side, in pixels of the model's input, of what is left of an object after cropping.
MIN_SIDE = 2.0


@dataclass(frozen=True)
class AugmentSpec:
    """Training augmentation.

    Attributes:
        flip: probability of a left-right mirror (never when a prompt says "left" or "right").
        scale: range of the large-scale jitter (Ghiasi et al. 2021, "Simple copy-paste"): the squashed
            image is scaled by a factor from it, then cropped or padded back to size; (1, 1) is off.
        photometric: probability of brightness, contrast, saturation and hue changes; leave it at 0
            where phrases name colours.
    """

    flip: float = 0.5
    scale: tuple[float, float] = (1.0, 1.0)
    photometric: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", tuple(self.scale))
        for name in ("flip", "photometric"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"data.augment.{name}={getattr(self, name)}: expected a probability in 0..1")
        if len(self.scale) != 2 or not 0.05 <= self.scale[0] <= self.scale[1] <= 10:
            raise UserError(
                f"data.augment.scale={list(self.scale)}: expected [low, high] with 0.05 <= low <= high <= 10"
            )

    @property
    def crops(self) -> bool:
        """Whether pictures are scaled, then cropped or padded."""
        return self.scale != (1.0, 1.0)

    @property
    def views(self) -> tuple[bool, ...] | None:
        """The pictures an image can become, by whether they are mirrored; None: endlessly many."""
        if self.photometric or self.crops:
            return None
        return (False, True) if self.flip else (False,)


@lru_cache(maxsize=32)
def squash(image_size: int) -> v2.Transform:
    """Resize to [S, S], bilinear with antialiasing (masks: nearest)."""
    return v2.Resize((image_size, image_size), antialias=True)


class Mirror:
    """torchvision's ``RandomHorizontalFlip`` (the same draw, the same result) that leaves word of it in the fields."""

    def __init__(self, probability: float) -> None:
        self.probability = probability

    def __call__(self, fields: Fields) -> Fields:
        if torch.rand(1) >= self.probability:
            return fields
        flipped = {key: mirror(value) for key, value in fields.items() if isinstance(value, tv_tensors.TVTensor)}
        return fields | flipped | {"mirrored": True}


def mirror(value: Any) -> Any:
    """A picture [3, H, W], boxes or masks, left and right exchanged."""
    return v2.functional.horizontal_flip(value)


@lru_cache(maxsize=32)
def transform(image_size: int, spec: AugmentSpec | None, flip: bool = True) -> Transform | None:
    """Transform of fields already squashed to [S, S]; None when there is nothing to do."""
    if spec is None:
        return None
    steps: list[Any] = []
    if spec.photometric:
        steps.append(v2.RandomApply([v2.ColorJitter(0.3, 0.3, 0.3, 0.05)], spec.photometric))
    if spec.flip and flip:
        steps.append(Mirror(spec.flip))
    if spec.crops:
        size = (image_size, image_size)
        steps.append(v2.ScaleJitter(size, spec.scale, antialias=True))
        steps.append(v2.RandomCrop(size, pad_if_needed=True, fill={tv_tensors.Image: 128, "others": 0}))
        steps += [v2.ClampBoundingBoxes(), v2.SanitizeBoundingBoxes(min_size=MIN_SIDE), _tighten]
    return v2.Compose(steps) if steps else None


def augmented(fields: Fields, step: Transform | None, seed: int) -> Fields:
    """``step`` of the fields with random draws of their own; torch's random state stays as it was."""
    if step is None:
        return fields
    # torchvision draws from torch's global generator; borrowing it keeps samples independent of one
    # another. (torch.manual_seed would reseed the GPUs too, and takes longer than the transform.)
    before = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        return step(fields)
    finally:
        torch.set_rng_state(before)


def normalise(image: Tensor) -> Tensor:
    """uint8 [3, S, S] → float32 in -1..1 (mean 0.5, std 0.5)."""
    return v2.functional.normalize(v2.functional.to_dtype(image, torch.float32, scale=True), [0.5] * 3, [0.5] * 3)


def _tighten(fields: Fields) -> Fields:
    """Boxes round what the crop left of each mask; objects whose mask is gone are dropped."""
    masks = fields.get("masks")
    if masks is None or not len(masks):
        return fields
    keep = masks.as_subclass(Tensor).flatten(1).bool().any(dim=1)
    masks = masks[keep]
    boxes = masks_to_boxes(masks) + torch.tensor([0.0, 0.0, 1.0, 1.0])
    size = tuple(masks.shape[-2:])
    wrapped = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size)  # type: ignore[call-overload]
    return fields | {"boxes": wrapped, "masks": tv_tensors.Mask(masks), "labels": fields["labels"][keep]}
