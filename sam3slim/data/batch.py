"""What a training or evaluation step receives."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from sam3slim.data.boxes import BoxRow
from sam3slim.data.soft import SoftTargets


@dataclass
class Targets:
    """Instances of all prompts of a batch, packed one after another (T in all).

    Attributes:
        boxes: [T, 4] float32, (cx, cy, w, h) in 0..1 of the model's square input.
        masks: [T, S, S] bool at the model's input size, or None for a boxes-only set.
        prompt_index: [T] int64, non-decreasing: the prompt (row of ``input_ids``) it belongs to.
    """

    boxes: Tensor
    masks: Tensor | None
    prompt_index: Tensor

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Targets:
        """The same targets on ``device``."""
        masks = self.masks if self.masks is None else self.masks.to(device, non_blocking=non_blocking)
        boxes = self.boxes.to(device, non_blocking=non_blocking)
        return Targets(boxes, masks, self.prompt_index.to(device, non_blocking=non_blocking))

    def part(self, prompts: slice) -> Targets:
        """Those of some prompts in a row, which are counted from 0 again."""
        own = (self.prompt_index >= prompts.start) & (self.prompt_index < prompts.stop)
        masks = self.masks if self.masks is None else self.masks[own]
        return Targets(self.boxes[own], masks, self.prompt_index[own] - prompts.start)

    def pin_memory(self) -> Targets:
        """The same targets in page-locked memory."""
        masks = self.masks if self.masks is None else self.masks.pin_memory()
        return Targets(self.boxes.pin_memory(), masks, self.prompt_index.pin_memory())


@dataclass
class ImageInfo:
    """Where an image of the batch comes from and how big it was.

    ``ground_truth`` holds, in original pixels, what evaluation compares with (None in training). ``mirrored``:
    left and right are exchanged in the batch's picture. ``data_set``: its name among several, else empty.
    """

    image_id: int
    file_name: str
    height: int
    width: int
    ground_truth: GroundTruth | None = None
    mirrored: bool = False
    data_set: str = ""


@dataclass
class GroundTruth:
    """All annotations of one image in original pixels (N of them, crowd regions included).

    Attributes:
        boxes: [N, 4] float64, (x1, y1, x2, y2) in pixels; not rounded, so that an IoU is pycocotools' IoU.
        labels: [N] int64 COCO category ids.
        iscrowd: [N] int64, 1 for crowd regions.
        area: [N] float64, pixels squared, as annotated.
        rles: N compressed pycocotools RLE dicts ({"size": [h, w], "counts": bytes}), or None for boxes only.
        known: categories of which it is known whether they are in the image, in a federated set (LVIS); None: all.
        unclear: of these, categories whose annotations are not exhaustive.
        by_model: nobody has annotated it: it is what a model found, see ``data.agreement``.
    """

    boxes: Tensor
    labels: Tensor
    iscrowd: Tensor
    area: Tensor
    rles: list[dict] | None
    known: frozenset[int] | None = None
    unclear: frozenset[int] = frozenset()
    by_model: bool = False


@dataclass
class Batch:
    """B images and P prompts; prompt p asks its phrase of image ``image_index[p]``.

    Attributes:
        pixel_values: [B, 3, S, S] float32, normalised with mean 0.5 and std 0.5 (-1..1).
        input_ids: [P, L] int64, padded to the model's context length.
        attention_mask: [P, L] int64, 1 on real tokens.
        image_index: [P] int64, non-decreasing.
        category_ids: [P] int64 COCO category id of each prompt.
        targets: the instances.
        phrases: P strings.
        images: B entries.
        soft: what a cached teacher says of the prompts, if there is one.
        input_boxes: [P, N, 4] float32 (cx, cy, w, h) in 0..1, box prompts; None where no prompt has any.
        input_boxes_labels: [P, N] int64: 1 positive, 0 negative, -10 padding; None as ``input_boxes``.
        teacher_pixels: [B, 3, T, T], the same pictures at a teacher's size, normalised; None where it is the batch's.
    """

    _tensors: ClassVar = (
        "pixel_values", "input_ids", "attention_mask", "image_index", "category_ids",
        "input_boxes", "input_boxes_labels", "teacher_pixels",
    )  # fmt: skip
    _of_images: ClassVar = ("pixel_values", "teacher_pixels")

    pixel_values: Tensor
    input_ids: Tensor
    attention_mask: Tensor
    image_index: Tensor
    category_ids: Tensor
    targets: Targets
    phrases: list[str] = field(default_factory=list)
    images: list[ImageInfo] = field(default_factory=list)
    soft: SoftTargets | None = None
    input_boxes: Tensor | None = None
    input_boxes_labels: Tensor | None = None
    teacher_pixels: Tensor | None = None

    def inputs(self) -> dict[str, Tensor]:
        """The keyword arguments of ``Sam3.forward``; box prompts only where there are any."""
        return {name: value for name, value in self._there().items() if name not in ("category_ids", "teacher_pixels")}

    def _there(self) -> dict[str, Tensor]:
        """The tensors that are there, by name."""
        values = {name: getattr(self, name) for name in self._tensors}
        return {name: value for name, value in values.items() if value is not None}

    def part(self, prompts: slice) -> Batch:
        """The same images with some of the prompts (in a row); of what a teacher says, without maps of images."""
        rows: dict[str, Any] = {n: value[prompts] for n, value in self._there().items() if n not in self._of_images}
        return replace(
            self,
            **rows,
            targets=self.targets.part(prompts),
            phrases=self.phrases[prompts],
            soft=self.soft and self.soft.part(prompts),
        )

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The batch with its tensors on ``device``; ``images`` (with the ground truth) stay on the CPU."""
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=non_blocking) for name, value in self._there().items()
        }
        soft = self.soft and self.soft.to(device, non_blocking)
        return replace(self, targets=self.targets.to(device, non_blocking), soft=soft, **moved)

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory (called by the data loader)."""
        pinned: dict[str, Any] = {name: value.pin_memory() for name, value in self._there().items()}
        soft = self.soft and self.soft.pin_memory()
        return replace(self, targets=self.targets.pin_memory(), soft=soft, **pinned)


@dataclass
class Sample:
    """One image with its prompts: what a data set returns and ``collate`` packs.

    Attributes:
        image: [3, S, S] float32, normalised.
        category_ids: the P prompts.
        phrases: their P phrases.
        boxes: [T, 4] float32, (cx, cy, w, h) in 0..1.
        masks: [T, S, S] bool, or None for a boxes-only set.
        prompt_index: [T] int64, non-decreasing, 0..P-1.
        info: where the image comes from.
        box_prompts: P lists of boxes and their labels, or None without any.
        teacher_image: [3, T, T] float32, the same picture at a teacher's size; None where it sees ``image``.
    """

    image: Tensor
    category_ids: list[int]
    phrases: list[str]
    boxes: Tensor
    masks: Tensor | None
    prompt_index: Tensor
    info: ImageInfo
    box_prompts: list[list[BoxRow]] | None = None
    teacher_image: Tensor | None = None
