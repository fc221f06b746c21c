"""Pictures from disk while the model works on others."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from PIL import Image

from sam3slim.data.batch import ImageInfo
from sam3slim.data.images import UnreadableImage, read_upright
from sam3slim.predict.images import Picture
from sam3slim.predict.overlay import preview
from sam3slim.predict.predictor import Predictor, PredictRequest
from sam3slim.predict.prompts import Prompts, questions
from sam3slim.predict.tiles import Place, Tiling
from sam3slim.predict.writer import stamp

READERS = min(4, os.cpu_count() or 1)
T = TypeVar("T")


@dataclass(frozen=True)
class Decoded:
    """A picture as read.

    Attributes:
        asked: for the model.
        tiles: what is asked of each tile of a large picture instead, and where it lies.
        image: to draw on, or None.
        stamp: of the file before it was read.
    """

    picture: Picture
    asked: PredictRequest
    image: Image.Image | None
    stamp: list[int]
    tiles: Sequence[tuple[PredictRequest, Place]] = ()


@dataclass(frozen=True)
class Unread:
    """A picture that cannot be read, and why in a few words."""

    picture: Picture
    reason: str


def decode(
    pictures: Iterable[Picture],
    predictor: Predictor,
    prompts: Prompts,
    *,
    ahead: int,
    keep: bool,
    tiling: Tiling | None = None,
) -> Iterator[Decoded | Unread]:
    """``pictures`` in their order, at most ``ahead`` of them read in advance by other threads.

    Args:
        keep: also a picture to draw on.
        tiling: how pictures larger than a tile are cut; None: they are not.
    """
    categories = prompts.categories

    def read(picture: Picture) -> Decoded | Unread:
        before = stamp(picture.path)
        try:
            pixels = read_upright(picture.path)
        except UnreadableImage as error:
            return Unread(picture, str(error))
        info = ImageInfo(picture.image_id, picture.name, pixels.shape[0], pixels.shape[1])
        asked = questions(prompts.phrases, prompts.boxes.get(picture.name, ()), categories)
        image = preview(pixels) if keep else None
        places = [] if tiling is None else tiling.places(info.height, info.width)
        tiles = [
            (
                PredictRequest(
                    predictor.prepare(pixels[p.y : p.y + p.height, p.x : p.x + p.width]),
                    ImageInfo(picture.image_id, picture.name, p.height, p.width),
                    asked,
                ),
                p,
            )
            for p in places
        ]
        whole = tiles[0][0] if tiles else PredictRequest(predictor.prepare(pixels), info, asked)
        return Decoded(picture, whole, image, before, tiles)

    waiting: deque[Future[Decoded | Unread]] = deque()
    pool = ThreadPoolExecutor(READERS, thread_name_prefix="read")
    try:
        for picture in pictures:
            waiting.append(pool.submit(read, picture))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def batches(items: Iterator[T], size: int) -> Iterator[list[T]]:
    """Lists of ``size`` items, the last one shorter."""
    while batch := list(islice(items, size)):
        yield batch
