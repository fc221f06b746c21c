"""Fitting every part of a cut model, in the order in which data flow."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from sam3slim.data.batch import Batch
from sam3slim.errors import UserError
from sam3slim.evaluation.inference import eval_mode
from sam3slim.models import Sam3
from sam3slim.slimming.fitting.detector import Answers, Detector, in_tokens_of
from sam3slim.slimming.fitting.text import TextTower
from sam3slim.slimming.fitting.vision import VisionTower
from sam3slim.slimming.plan import Fit, Plan

EXACT = ("text.tokens", "text.context", "geometry.roi")  # axes with nothing in them that a fit could repair
ORDER = ("vit", "text", "geometry", "encoder", "decoder", "scoring")  # in which data flow


@torch.no_grad()
def fit_model(source: Sam3, target: Sam3, plan: Plan, batches: Sequence[Batch]) -> Fit:
    """Fit ``target`` to ``source``; in place. Parts in front of the first one that was cut stay as they are.

    Memory: both models' streams of all batches in front of one block, and one batch's activations in that block.

    Args:
        source: the full model, float32; it is not changed.
        target: what ``inherit`` made of it, on the same device.
        plan: the one ``inherit`` returned.
        batches: pictures and phrases, on the same device; neither labels nor tokens are looked at.

    Raises:
        UserError: no pictures or phrases; fewer than the widest layer has inputs; values that are not finite.
    """
    asked = [in_tokens_of(source, batch) for batch in batches if batch.phrases]
    _check_enough(target, asked)
    with eval_mode(source), eval_mode(target):
        answers = [Answers.of(source, batch) for batch in asked]
        before = _errors(source, target, plan, asked)
        if not all(map(math.isfinite, before)):
            raise UserError(
                "init.fit_batches: what the model makes of these images is not finite; check the checkpoint and the "
                "images, or use init.fit_batches=0"
            )
        with _whole_blocks(source), _whole_blocks(target):
            variance = _fit_parts(source, target, plan, asked, answers)
        after = _errors(source, target, plan, asked)
    if not all(bool(parameter.isfinite().all()) for parameter in target.parameters()):
        raise UserError("init.fit_batches: fitted weights are not finite on these images; use init.fit_batches=0")
    return Fit(sum(len(batch.pixel_values) for batch in asked), variance, before, after)


def _fit_parts(
    source: Sam3, target: Sam3, plan: Plan, batches: Sequence[Batch], answers: Sequence[Answers]
) -> float | None:
    cut = {kept.axis for kept in plan.kept if not kept.everything and kept.axis not in EXACT}
    parts = {"vit" if axis.startswith("neck") else re.split(r"\W", axis)[0] for axis in cut}
    first = min((ORDER.index(part) for part in parts), default=len(ORDER))  # what is in front of it is as it was
    variance = None
    if "vit" in parts:
        variance = VisionTower(source, target, plan).fit_all([batch.pixel_values for batch in batches])
    if "text" in parts:
        TextTower(source, target, plan).fit_all([phrase for batch in batches for phrase in batch.phrases])
    detector = Detector(source, target, plan, batches, answers)
    if "geometry" in parts:
        detector.fit_geometry()
    if first <= ORDER.index("encoder"):
        detector.fit_encoder()
    if first <= ORDER.index("decoder"):
        detector.fit_decoder()
    if "scoring" in parts:
        detector.fit_scoring()
    return variance


def _check_enough(target: Sam3, batches: Sequence[Batch]) -> None:
    if not batches:
        raise UserError(
            "init.fit_batches needs training images with phrases, and there are none; check data.root and data.limit"
        )
    vit = target.spec.vit
    directions = max(vit.embed_dim, vit.intermediate_size, target.spec.ffn_dim) + 1
    pixels = (vit.image_size // vit.patch_size) ** 2
    images = sum(len(batch.pixel_values) for batch in batches)
    if images * pixels < directions:
        needed = -(-directions // pixels)
        raise UserError(
            f"init.fit_batches={len(batches)} gives {images} image{'s' * (images > 1)} of {pixels} patches, and the "
            f"widest layer has {directions} directions to fit: at least {needed} images are needed, "
            f"init.fit_batches={-(-needed * len(batches) // images)} of batches of this size"
        )


@contextmanager
def _whole_blocks(model: Sam3) -> Iterator[None]:
    """Blocks are called whole, not part by part for several prompts of an image: hooks on them run."""
    shares, model.shares_images = model.shares_images, False
    try:
        yield
    finally:
        model.shares_images = shares


def _errors(source: Sam3, target: Sam3, plan: Plan, batches: Sequence[Batch]) -> tuple[float, ...]:
    """What ``Fit.before`` and ``Fit.after`` hold."""
    queries = plan["decoder.queries"].entries()
    total = torch.zeros(5, 2, dtype=torch.float64)
    for batch in batches:
        full = source(**batch.inputs(), with_masks=False)
        slim = target(**in_tokens_of(target, batch).inputs(), with_masks=False)
        hidden = full.decoder_hidden_states[-1][:, queries], slim.decoder_hidden_states[-1]
        pairs = [*zip(full.fpn_hidden_states, slim.fpn_hidden_states, strict=True),
                 (full.encoder_hidden_states, slim.encoder_hidden_states), hidden]  # fmt: skip
        for row, (want, found) in zip(total, pairs, strict=True):
            row[0] += float((found - want).square().sum(dtype=torch.float64))
            row[1] += float((want - want.mean()).square().sum(dtype=torch.float64))
    return tuple((total[:, 0] / total[:, 1]).tolist())
