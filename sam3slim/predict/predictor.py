"""Phrases and boxes in, detections out: any number of prompts to any number of pictures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sam3slim.data.batch import ImageInfo, Sample
from sam3slim.data.boxes import BoxRow
from sam3slim.data.collate import Collate
from sam3slim.data.detections import Detections
from sam3slim.data.images import UnreadableImage, read_upright, rgb_of
from sam3slim.data.transforms import normalise, squash
from sam3slim.errors import UserError
from sam3slim.evaluation.inference import TextCache, predict_batch
from sam3slim.predict.opening import choose_dtype, device_for, open_model
from sam3slim.predict.prompts import BoxPrompt, Prompts, Question, check_positive, clip_box, questions, read_phrases
from sam3slim.text.phrases import encode_phrases

Picture = str | Path | Image.Image | NDArray[np.uint8]
# Phrases whose features stay from call to call.
KEPT_PHRASES = 16_384


@dataclass(frozen=True)
class PredictRequest:
    """One picture, ready for the model, with its questions.

    Attributes:
        pixels: uint8 [3, S, S], squashed to the model's input.
        info: id, name, and size of the upright picture.
        questions: at least none.
    """

    pixels: Tensor
    info: ImageInfo
    questions: Sequence[Question]


class Predictor:
    """A model that answers phrases.

        predictor = Predictor("assets/nano")
        prompts = ["red circle", "square"]
        for found in predictor(["a.png", "b.png"], prompts): print(found.boxes, found.scores, found.labels)

    Args:
        source: any checkpoint that ``sam3slim inspect`` knows.
        device: ``auto`` (a GPU if there is one), ``cpu``, ``cuda``.
        dtype: ``auto`` (FP16 on a GPU, FP32 on a CPU), or what the runtime has: ``fp32``, ``fp16``, ``w8a8``, ….
        batch_size: pictures that pass the vision tower together.
        prompt_chunk: prompts that pass the rest together; bounds memory.
        image_size: side of the model's input in pixels; None: the checkpoint's own. Smaller is faster and less exact.
        runtime: what runs the model, see ``runtimes``; None: PyTorch, and for ONNX graphs ONNX Runtime.
        presence_threshold: phrases whose presence in a picture is below it (0..1) get no detections there, and no
            masks are computed for them.

    Raises:
        UserError: no such device, or a checkpoint that cannot be opened.
    """

    def __init__(
        self,
        source: str | Path,
        device: str = "auto",
        *,
        dtype: str = "auto",
        batch_size: int = 8,
        prompt_chunk: int = 32,
        image_size: int | None = None,
        presence_threshold: float = 0.0,
        runtime: str | None = None,
    ) -> None:
        for name, value in (("batch_size", batch_size), ("prompt_chunk", prompt_chunk)):
            if value < 1:
                raise UserError(f"{name}={value}: expected at least 1")
        place = device_for(source, device, runtime)
        if not 0 <= presence_threshold <= 1:
            raise UserError(f"presence_threshold={presence_threshold}: expected a probability in 0..1")
        self.batch_size, self.prompt_chunk = batch_size, prompt_chunk
        self.presence_threshold = presence_threshold
        self.model = open_model(source, place, choose_dtype(dtype, place, runtime, source), image_size, runtime)
        spec = self.model.spec
        self.image_size = spec.vit.image_size
        self._squash = squash(self.image_size)
        self._text = spec.text
        self._collate = Collate(spec.text)
        self._cache = TextCache()

    def __call__(
        self,
        images: Picture | Sequence[Picture],
        prompts: str | Sequence[str] = (),
        *,
        threshold: float = 0.5,
        max_per_image: int = 100,
        boxes: Sequence[Sequence[BoxPrompt]] | None = None,
    ) -> list[Detections]:
        """Detections of every picture, in their order, best first.

        Args:
            images: one or several: a path, a PIL picture, or uint8 [height, width, 3] RGB. EXIF rotation is
                applied to paths and PIL pictures; boxes and masks are in the upright picture's pixels.
            prompts: phrases asked of every picture; label ``k`` of a detection is phrase ``k - 1``.
            threshold: least score (presence · class) of a detection.
            max_per_image: detections kept per picture, over all prompts.
            boxes: for every picture its box prompts; phrases that only boxes name get the labels after.

        Raises:
            UserError: a picture that cannot be read, nothing asked, a box outside its picture.
        """
        pictures = [images] if isinstance(images, (str, Path, Image.Image, np.ndarray)) else list(images)
        given = [prompts] if isinstance(prompts, str) else list(prompts)
        phrases = read_phrases(given)
        if len(phrases) < len(given):
            raise UserError("prompts holds a phrase more than once, so labels would not count its entries; drop one")
        own = [()] * len(pictures) if boxes is None else [tuple(row) for row in boxes]
        if len(own) != len(pictures):
            raise UserError(f"boxes has {len(own)} entries for {len(pictures)} images; give one list per image")
        if not phrases and not any(own):
            raise UserError("nothing to look for; give prompts or boxes")
        categories = Prompts(phrases, {str(i): row for i, row in enumerate(own)}).categories
        if len(self._cache) > KEPT_PHRASES:
            self._cache = TextCache()
        found: list[Detections] = []
        for start in range(0, len(pictures), self.batch_size):
            asked = []
            for i in range(start, min(start + self.batch_size, len(pictures))):
                name = _name(pictures[i], i)
                pixels = _read(pictures[i], name)
                size = pixels.shape[0], pixels.shape[1]
                row = [BoxPrompt(clip_box(b.box, size, f"boxes of {name}"), b.phrase, b.label) for b in own[i]]
                check_positive(row, f"boxes of {name}")
                info = ImageInfo(i + 1, name, *size)
                asked.append(PredictRequest(self.prepare(pixels), info, questions(phrases, row, categories)))
            found += self.answer(asked, threshold, max_per_image)
        return found

    def prepare(self, pixels: NDArray[np.uint8]) -> Tensor:
        """uint8 [height, width, 3] RGB → uint8 [3, S, S], as evaluation does."""
        image = torch.from_numpy(pixels).permute(2, 0, 1)
        squashed: Tensor = image if image.shape[-2:] == (self.image_size,) * 2 else self._squash(image)
        return squashed.contiguous()

    def check_phrases(self, phrases: Iterable[str]) -> None:
        """Name the phrases that are longer than the text context, before the work starts.

        Raises:
            UserError: a phrase that the model's trimmed vocabulary lacks.
        """
        encode_phrases(self._text, list(phrases))

    def answer(self, asked: Sequence[PredictRequest], threshold: float, max_per_image: int) -> list[Detections]:
        """Detections of every one of ``asked``: the vision tower once per picture, the text tower once per phrase.

        Raises:
            UserError: the GPU's memory does not suffice, or the model returns NaN.
        """
        batch = self._collate([_sample(one) for one in asked])
        try:
            return predict_batch(
                self.model, batch, prompt_chunk=self.prompt_chunk, top_k=max_per_image, min_score=threshold,
                min_presence=self.presence_threshold, text_cache=self._cache,
            )  # fmt: skip
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"out of GPU memory with {len(asked)} images and {self.prompt_chunk} prompts at once; "
                "use a smaller --prompt-chunk or --batch-size"
            ) from error


def _sample(asked: PredictRequest) -> Sample:
    return Sample(
        image=normalise(asked.pixels),
        category_ids=[question.category_id for question in asked.questions],
        phrases=[question.phrase for question in asked.questions],
        boxes=torch.zeros(0, 4),
        masks=None,
        prompt_index=torch.zeros(0, dtype=torch.int64),
        info=asked.info,
        box_prompts=[[_box_row(box, asked.info) for box in question.boxes] for question in asked.questions],
    )


def _box_row(prompt: BoxPrompt, info: ImageInfo) -> BoxRow:
    """A box in pixels as the model takes it: (cx, cy, w, h) in 0..1."""
    x, y, w, h = prompt.box
    centre = (x + w / 2) / info.width, (y + h / 2) / info.height
    return (*centre, w / info.width, h / info.height), prompt.label


def _read(picture: Picture, name: str) -> NDArray[np.uint8]:
    try:
        if isinstance(picture, (str, Path)):
            return read_upright(Path(picture))
        if isinstance(picture, Image.Image):
            return rgb_of(picture)
    except UnreadableImage as error:
        raise UserError(f"image {name} {error}") from error
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8 or not picture.size:
        raise UserError(f"image {name} is {picture.dtype} {list(picture.shape)}; expected uint8 [height, width, 3]")
    return np.ascontiguousarray(picture)


def _name(picture: Picture, place: int) -> str:
    return str(picture) if isinstance(picture, (str, Path)) else f"number {place}"
