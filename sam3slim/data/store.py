"""Pictures and masks of a set at the model's square size, read from disk or kept in memory."""

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
from sam3slim.data.transforms import squash


class ImageStore:
    """Reads the images of ``folder`` at [S, S]; with ``keep``, each one only once per process.

    Kept images are the squashed uint8 ones, so memory is 3·S² bytes per image and crops enlarge them.
    """

    def __init__(self, folder: Path, image_size: int, keep: bool) -> None:
        self.folder, self.image_size, self.keep = folder, image_size, keep
        self._squash = squash(image_size)
        self._images: dict[int, Tensor] = {}
        self._rles: dict[int, list[dict[str, Any]]] = {}

    def image(self, record: ImageRecord) -> Tensor:
        """The picture, uint8 [3, S, S].

        Raises:
            UnreadableImage: the file is missing, broken, or of another size than annotated.
        """
        if record.id in self._images:
            return self._images[record.id]
        pixels = read_image(self.folder / record.file_name, record.height, record.width)
        image = torch.from_numpy(pixels).permute(2, 0, 1)
        if image.shape[-2:] != (self.image_size, self.image_size):
            image = self._squash(image)
        image = image.contiguous()
        if self.keep:
            self._images[record.id] = image
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

    def masks(self, record: ImageRecord, positions: list[int]) -> tv_tensors.Mask:
        """uint8 [N, S, S]: the annotations at ``positions`` of the record."""
        side = self.image_size
        if not positions:
            return tv_tensors.Mask(torch.zeros(0, side, side, dtype=torch.uint8))
        rles = self.rles(record)
        decoded = mask_utils.decode([rles[position] for position in positions])
        masks = tv_tensors.Mask(torch.from_numpy(np.ascontiguousarray(decoded.transpose(2, 0, 1))))
        return masks if masks.shape[-2:] == (side, side) else self._squash(masks)
