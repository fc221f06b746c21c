"""Mask logits at the model's resolution → run lengths at the picture's."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as mask_utils
from torch import Tensor
from torch.nn import functional as F

from sam3slim.data.detections import Rle

# Pixels of upsampled masks held at once while they are encoded (256 MB of FP32 logits).
MAX_UPSAMPLED_PIXELS = 64 * 2**20
Axis = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]


def encode_masks(logits: Tensor, height: int, width: int) -> list[Rle]:
    """Mask logits [N, h, w] → N RLE dicts at ``height`` × ``width`` (bilinear, then above 0).

    Upsampled in slices and encoded at once, so memory does not grow with N. On the CPU only the part of a picture that
    a mask can reach is upsampled, which is a tenth of the work for objects of usual size.
    """
    if not len(logits):
        return []
    upsample = _upsampled_around if logits.device.type == "cpu" else _upsampled
    rles: list[Rle] = []
    for part in logits.split(max(1, MAX_UPSAMPLED_PIXELS // (height * width))):
        # Column-major, because that is how pycocotools reads [h, w, n].
        rles.extend(mask_utils.encode(np.transpose(upsample(part, height, width), (2, 1, 0))))
    return rles


def _upsampled(logits: Tensor, height: int, width: int) -> NDArray[np.uint8]:
    """[N, width, height] masks."""
    full = F.interpolate(logits[:, None].float(), (height, width), mode="bilinear", align_corners=False)
    columns: NDArray[np.uint8] = (full[:, 0] > 0).transpose(1, 2).contiguous().to(torch.uint8).cpu().numpy()
    return columns


def _upsampled_around(logits: Tensor, height: int, width: int) -> NDArray[np.uint8]:
    """``_upsampled`` where a logit above 0 is among a pixel's neighbours; elsewhere no mean can be.

    The arithmetic is PyTorch's but for the rounding of its vector instructions: a pixel whose mean is 0 within it may
    differ (3 pixels of 20,000 masks of 640×480, benchmarks/own_time.py).
    """
    values = logits.float().numpy()
    masks = np.zeros((len(values), width, height), dtype=np.uint8)
    above = (logits > 0).numpy()
    rows, columns = (np.asarray(above.any(axis=axis)) for axis in (2, 1))
    vertical, horizontal = _axis(values.shape[1], height), _axis(values.shape[2], width)
    for n in np.flatnonzero(above.any(axis=(1, 2))).tolist():
        ys, xs = _reached(rows[n], vertical), _reached(columns[n], horizontal)
        (top, low, top_share, low_share), (left, right, left_share, right_share) = (
            [part[reached] for part in axis] for axis, reached in ((vertical, ys), (horizontal, xs))
        )
        patch = values[n, :, left[0] : right[-1] + 1]
        lines = (patch[top] * top_share[:, None] + patch[low] * low_share[:, None]).T.copy()
        found = lines[left - left[0]] * left_share[:, None]
        found += lines[right - left[0]] * right_share[:, None]
        masks[n, xs, ys] = found > 0
    return masks


def _axis(size: int, wanted: int) -> Axis:
    """Of every output position the two input positions it lies between and their shares, in PyTorch's arithmetic."""
    scale = np.float32(size) / np.float32(wanted)
    place = np.maximum(scale * (np.arange(wanted, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5), np.float32(0))
    before = np.minimum(place.astype(np.int64), size - 1)
    share = np.clip(place - before.astype(np.float32), np.float32(0), np.float32(1))
    return before, np.minimum(before + 1, size - 1), np.float32(1) - share, share


def _reached(above: NDArray[np.bool_], axis: Axis) -> slice:
    """The output positions next to an input position where ``above`` is true, and those between them."""
    inside = np.flatnonzero(above)
    before, after = axis[:2]
    return slice(int(np.searchsorted(after, inside[0])), int(np.searchsorted(before, inside[-1], side="right")))
