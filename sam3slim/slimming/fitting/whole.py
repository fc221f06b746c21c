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
from sam3slim.specs import ModelSpec

EXACT = ("text.tokens", "text.context", "geometry.roi")  # axes with nothing in them that a fit could repair
ORDER = ("vit", "text", "geometry", "encoder", "decoder", "scoring")  # in which data flow


@torch.no_grad()
def fit_model(
    source: Sam3,
    target: Sam3,
    plan: Plan,
    batches: Sequence[Batch],
    *,
    key: str = "init.fit_batches",
    asked: int | None = None,
) -> Fit:
    """Fit ``target`` to ``source``; in place. Parts in front of the first one that was cut stay as they are.

    So does a decoder that was not cut: fitted, its answers come nearer to the full model's in the mean, and detect
    worse (EXPERIMENTS.md).

    Memory: both models' streams of all batches in front of one block, and one batch's activations in that block.

    Args:
        source: the full model, float32; it is not changed.
        target: what ``inherit`` made of it, on the same device.
        plan: the one ``inherit`` returned.
        batches: pictures and phrases, on the same device; neither labels nor tokens are looked at.
        key: that says how many batches, for messages.
        asked: how many were asked for: if ``batches`` are fewer, the data have no more. None: as many.

    Raises:
        UserError: no pictures or phrases; fewer than the widest layer has inputs; values that are not finite.
    """
    known = [in_tokens_of(source, batch) for batch in batches if batch.phrases]
    images = sum(len(batch.pixel_values) for batch in known)
    there = images if asked is not None and len(batches) < asked else None
    check_enough(target.spec, images, len(known), key, there)
    with eval_mode(source), eval_mode(target):
        answers = [Answers.of(source, batch) for batch in known]
        before = _errors(source, target, plan, known)
        if not all(map(math.isfinite, before)):
            raise UserError(
                f"{key}: what the model makes of these images is not finite; check the checkpoint and the "
                f"images, or use {key}=0"
            )
        with _whole_blocks(source), _whole_blocks(target):
            variance = _fit_parts(source, target, plan, known, answers)
        after = _errors(source, target, plan, known)
    if not all(bool(parameter.isfinite().all()) for parameter in target.parameters()):
        raise UserError(f"{key}: fitted weights are not finite on these images; use {key}=0")
    return Fit(images, variance, before, after)


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
    if "decoder" in parts:
        detector.fit_decoder()
    if "scoring" in parts:
        detector.fit_scoring()
    return variance


def check_enough(
    target: ModelSpec, images: int, batches: int, key: str = "init.fit_batches", there: int | None = None
) -> None:
    """Refuse to fit on fewer images than the widest layer has directions.

    Args:
        images, batches: to be fitted on.
        key: that says how many batches, for the message.
        there: images that the data have; None: more than these.

    Raises:
        UserError: naming how many are needed.
    """
    if not images:
        raise UserError(f"{key} needs images with phrases, and there are none; check data.root and data.limit")
    vit = target.vit
    directions = max(vit.embed_dim, vit.intermediate_size, target.ffn_dim) + 1
    pixels = (vit.image_size // vit.patch_size) ** 2
    needed = -(-directions // pixels)
    if images < needed:
        enough = there is None or there >= needed
        more = f"{key}={-(-needed * batches // images)} of batches of this size"
        raise UserError(
            f"{key}={batches} gives {images} image{'s' * (images > 1)} of {pixels} patches, and the widest layer has "
            f"{directions} directions to fit: at least {needed} images are needed, "
            + (more if enough else f"and the data have {there}: add images, or use {key}=0, which fits nothing")
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
