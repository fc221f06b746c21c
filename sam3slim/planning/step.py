"""The training step that is planned: the real module, loss, teacher, optimiser and trainer on a made-up batch."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import lightning
import torch
from lightning.pytorch.callbacks import Callback, WeightAveraging
from torch import nn
from torch.utils.data import DataLoader

from sam3slim.data.batch import Batch, Targets
from sam3slim.data.soft import SoftTargets
from sam3slim.distill import CachedTeacher, FrozenTeacher
from sam3slim.launch.compose import build, named
from sam3slim.models.build import empty_model
from sam3slim.runs.specs import TrainSpec
from sam3slim.specs import ModelSpec
from sam3slim.training import ConceptSegmentation
from sam3slim.training.autocast import precision_of

WORDS = 4  # real tokens of every phrase


def make_batch(spec: TrainSpec, instances: int, teacher_side: int | None = None) -> Batch:
    """``data.batch_size`` images with ``data.max_prompts`` phrases each, all different, of ``instances`` objects each.

    They have the largest of ``data.image_sizes``. Every object covers a quarter of its picture.

    Args:
        teacher_side: of the pictures that a live teacher sees; None: the student's.
    """
    images, each, size = spec.data.batch_size, spec.data.max_prompts, largest_side(spec)
    second = None if teacher_side in (None, size) else torch.zeros(images, 3, *[teacher_side] * 2)
    prompts = images * each
    ids = torch.arange(prompts).remainder(spec.model.text.vocab_size)[:, None].repeat(1, spec.model.text.context_length)
    real = torch.zeros_like(ids)
    real[:, :WORDS] = 1
    index = torch.arange(prompts).repeat_interleave(instances)
    masks = torch.zeros(len(index), size, size, dtype=torch.bool)
    masks[:, : size // 2, : size // 2] = True
    boxes = torch.full((len(index), 4), 0.5)
    return Batch(
        pixel_values=torch.zeros(images, 3, size, size),
        input_ids=ids,
        attention_mask=real,
        image_index=torch.arange(images).repeat_interleave(each),
        category_ids=torch.arange(prompts),
        targets=Targets(boxes, masks, index),
        phrases=[f"thing {number}" for number in range(prompts)],
        teacher_pixels=second,
    )


def largest_side(spec: TrainSpec) -> int:
    """Of the training's images, in pixels."""
    return max(spec.data.sizes_of(spec.model))


def teacher_side(spec: TrainSpec, sizes: ModelSpec) -> int | None:
    """Of the pictures that the teacher of ``sizes`` sees; None: the student's, or there is no live teacher."""
    live = spec.distill.teacher is not None and spec.distill.cache is None
    return sizes.vit.image_size if live and spec.distill.image_size != "student" else None


def make_teacher(spec: TrainSpec, sizes: ModelSpec) -> FrozenTeacher | CachedTeacher | None:
    """The teacher that ``distill`` asks for, of ``sizes``."""
    if spec.distill.teacher is None:
        return None
    if spec.distill.cache is not None:
        return CachedTeacher(spec.distill, spec.model)
    return FrozenTeacher(empty_model(sizes), spec.distill, spec.model)


def cached_predictions(spec: TrainSpec, batch: Batch, grid: int) -> SoftTargets:
    """What a cache hands over for ``batch``, as many detections as there are instances; maps in FP16, as it does.

    ``grid`` is the side of the teacher's smallest map.
    """
    distill, prompts = spec.distill, len(batch.input_ids)
    found, half = batch.targets.prompt_index, torch.float16
    return SoftTargets(
        presence=torch.ones(prompts),
        rest=torch.zeros(prompts),
        boxes=batch.targets.boxes.clone(),
        scores=torch.ones(len(found)),
        masks=torch.zeros(len(found), 4 * grid, 4 * grid, dtype=half) if distill.mask or distill.dice else None,
        prompt_index=found,
        semantic=torch.zeros(prompts, 4 * grid, 4 * grid, dtype=half) if distill.semantic else None,
        fpn=tuple(
            torch.zeros(len(batch.pixel_values), spec.model.d_model, scale * grid, scale * grid, dtype=half)
            for scale in (4, 2, 1)
            if distill.fpn
        ),
        memory=torch.zeros(prompts, grid * grid, spec.model.d_model, dtype=half) if distill.memory else None,
    )


def fit(spec: TrainSpec, module: ConceptSegmentation, batch: Batch, watch: Callback) -> None:
    """One optimiser step on ``batch`` through Lightning, as configured, but in one process on the CPU."""
    accumulated = min(int(spec.trainer.get("accumulate_grad_batches") or 1), 2)  # from the second on all are alike
    # FP16 and bf16 are as wide, and every CPU has the second.
    chosen = {"precision": "32-true" if precision_of(spec.trainer) == "32-true" else "bf16-mixed"}
    settings = dict(spec.trainer) | chosen | {
        "accelerator": "cpu", "devices": 1, "num_nodes": 1, "strategy": "auto", "max_steps": 1, "max_epochs": -1,
        "accumulate_grad_batches": accumulated,
        "limit_train_batches": 1.0, "limit_val_batches": 0, "num_sanity_val_steps": 0, "val_check_interval": None,
        "log_every_n_steps": 10**9, "enable_progress_bar": False, "enable_model_summary": False,
        "enable_checkpointing": False, "logger": False,
    }  # fmt: skip
    # All is where it shall be, and the parameters of a module cannot be exchanged for others without data.
    with _silence(), patch.object(nn.Module, "_apply", lambda module, *_, **__: module):
        trainer: lightning.Trainer = build(
            settings, callbacks=[*_averages(spec.callbacks or {}), watch], gradient_clip_val=spec.optim.clip or None
        )
        trainer.fit(module, DataLoader([batch] * accumulated, batch_size=None))  # type: ignore[arg-type]


def _averages(callbacks: Mapping[str, Any]) -> Iterator[Callback]:
    """The configured callbacks that hold memory: moving averages of the weights."""
    for node in callbacks.values():
        if node and issubclass(named(node), WeightAveraging):
            yield build(node)


@contextmanager
def _silence() -> Iterator[None]:
    """Lightning's remarks are about a run, and this is none."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
