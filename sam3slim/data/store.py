"""Pictures and masks of a set at square sizes, read from disk or kept in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask as mask_utils
from torch import Tensor
from torchvision import tv_tensors

from sam3slim.data.images import read_image
from sam3slim.data.records import ImageRecord
from sam3slim.data.rle import to_rle
from sam3slim.data.transforms import Fields, squash


class ImageStore:
    """Reads the images of ``folder`` at [S, S]; with ``keep``, each one only once per process and size.

    Kept images are the squashed uint8 ones, so memory is 3·S² bytes per image and crops enlarge them.
    """

    def __init__(self, folder: Path, keep: bool) -> None:
        self.folder, self.keep = folder, keep
        self._images: dict[tuple[int, int], Tensor] = {}
        self._rles: dict[int, list[dict[str, Any]]] = {}

    def image(self, record: ImageRecord, side: int) -> Tensor:
        """The picture, uint8 [3, S, S], of ``side`` S.

        Raises:
            UnreadableImage: the file is missing, broken, or of another size than annotated.
        """
        key = (record.id, side)
        if key in self._images:
            return self._images[key]
        pixels = read_image(self.folder / record.file_name, record.height, record.width)
        image = torch.from_numpy(pixels).permute(2, 0, 1)
        if image.shape[-2:] != (side, side):
            image = squash(side)(image)
        image = image.contiguous()
        if self.keep:
            self._images[key] = image
        return image

    def forget_rles(self) -> None:
        """The annotations are others now."""
        self._rles.clear()

    def rles(self, record: ImageRecord) -> list[dict[str, Any]]:
        """Compressed RLE of every annotation of ``record``, at the image's own size."""
        if record.id in self._rles:
            return self._rles[record.id]
        rles = [
            to_rle(annotation.segmentation, record.height, record.width)
            for annotation in record.annotations
            if annotation.segmentation is not None
        ]
        if self.keep:
            self._rles[record.id] = rles
        return rles

    def masks(self, record: ImageRecord, positions: list[int], side: int) -> tv_tensors.Mask:
        """uint8 [N, S, S], of ``side`` S: the annotations at ``positions`` of the record."""
        if not positions:
            return tv_tensors.Mask(torch.zeros(0, side, side, dtype=torch.uint8))
        rles = self.rles(record)
        decoded = mask_utils.decode([rles[position] for position in positions])
        masks = tv_tensors.Mask(torch.from_numpy(np.ascontiguousarray(decoded.transpose(2, 0, 1))))
        return masks if masks.shape[-2:] == (side, side) else squash(side)(masks)

    def fields(self, record: ImageRecord, positions: list[int], labels: list[int], side: int, *, masks: bool) -> Fields:
        """Image, boxes and masks (unless they are not wanted) of the annotations at ``positions``, all at [S, S].

        Args:
            labels: one for each.
            side: S.

        Raises:
            UnreadableImage: as ``image``.
        """
        boxes = torch.tensor([record.annotations[position].box for position in positions]).reshape(-1, 4)
        scale = torch.tensor([side / record.width, side / record.height])
        fields: Fields = {
            "image": tv_tensors.Image(self.image(record, side)),
            "boxes": tv_tensors.BoundingBoxes(  # type: ignore[call-overload]
                boxes * scale.repeat(2), format="XYXY", canvas_size=(side, side)
            ),
            "labels": torch.tensor(labels, dtype=torch.int64),
        }
        if masks:
            fields["masks"] = self.masks(record, positions, side)
        return fields
