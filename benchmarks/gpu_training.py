"""Training on one GPU: a step of every full-size experiment beside the memory planned for it, and images per second."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import lightning
import torch
from gpu_rows import Measure, Outcome, Recorder, fewer_images
from gpu_subjects import Subjects, random_model, wait
from torch.utils.data import DataLoader

from sam3slim.data.batch import Batch
from sam3slim.data.spec import usable_cores
from sam3slim.distill import FrozenTeacher
from sam3slim.evaluation import peak_memory_bytes, reset_peak_memory
from sam3slim.launch import compose as cfg
from sam3slim.models.compiled import Compile, compile_layers
from sam3slim.planning import plan_memory
from sam3slim.planning.request import INSTANCES
from sam3slim.planning.step import make_batch
from sam3slim.runs.specs import TrainSpec
from sam3slim.runs.train import training_module
from sam3slim.training import ConceptSegmentation, precision_of, precision_plugins
from sam3slim.training.autocast import check_precision

GIB = 2**30
CORES_PER_PLAN = 3  # the GPU is fed meanwhile
WARM_UP = 2  # steps: the second is the first with optimiser state


class Watch(lightning.Callback):
    """Seconds of every step, and the most memory held after the first ``warm_up`` steps (on a CUDA device)."""

    def __init__(self, device: torch.device, warm_up: int) -> None:
        self.device, self.warm_up = device, warm_up
        self.seconds: list[float] = []
        self.peak: int | None = None
        self._last = 0.0

    @property
    def timed(self) -> list[float]:
        return self.seconds[self.warm_up :]

    def on_train_start(self, *_: Any) -> None:
        wait(self.device)
        self._last = time.perf_counter()

    def on_train_batch_end(self, *_: Any) -> None:
        wait(self.device)
        self.seconds.append(time.perf_counter() - self._last)
        if self.device.type == "cuda" and len(self.seconds) == self.warm_up:
            reset_peak_memory(self.device)  # what building the model took is no part of a step
        self._last = time.perf_counter()

    def on_train_end(self, *_: Any) -> None:
        if self.device.type == "cuda":
            self.peak = peak_memory_bytes(self.device)

    def measured_peak(self) -> Measure:
        if self.peak is None:
            return Measure("measured peak", None, "GiB", "only CUDA tells the memory of tensors")
        return Measure("measured peak", self.peak / GIB, "GiB")


def fit(spec: TrainSpec, module: ConceptSegmentation, batch: Batch, steps: int, watch: Watch) -> None:
    """``steps`` optimiser steps on ``batch`` through Lightning, as configured, in one process; nothing is written."""
    plugins = precision_plugins(spec.trainer, watch.device)
    settings = dict(spec.trainer) | {
        "accelerator": "gpu" if watch.device.type == "cuda" else "cpu", "devices": 1, "num_nodes": 1,
        "strategy": "auto", "max_steps": steps, "max_epochs": -1, "limit_train_batches": 1.0, "limit_val_batches": 0,
        "num_sanity_val_steps": 0, "val_check_interval": None, "log_every_n_steps": 10**9,
        "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False, "logger": False,
    }  # fmt: skip
    trainer: lightning.Trainer = cfg.build(
        {key: value for key, value in settings.items() if not (plugins and key == "precision")},
        callbacks=[watch], plugins=plugins, gradient_clip_val=spec.optim.clip or None,
    )  # fmt: skip
    trainer.fit(module, DataLoader([batch] * steps, batch_size=None))  # type: ignore[arg-type]


def experiments(recorder: Recorder, subjects: Subjects) -> None:
    """A step of each, with as many images as memory suffices for; plans are made beside it, by other processes."""
    sizes, kind = subjects.sizes, subjects.device.type
    names = sizes.experiments
    workers = min(len(names), max(1, usable_cores() // CORES_PER_PLAN))

    def planned(name: str, images: int) -> Any:
        settings = subjects.settings([f"experiment={name}"], images, sizes.prompts)
        return pool.apply_async(planned_peak, (settings, kind))

    with multiprocessing.get_context("spawn").Pool(workers, _planning_only) as pool:
        plans = {(name, sizes.images[0]): planned(name, sizes.images[0]) for name in names}
        taken: dict[tuple[str, int], int | None] = {}
        for name in names:

            def attempt(images: int, name: str = name) -> Outcome:
                watch = Watch(subjects.device, 1)
                case = _case(name, images, sizes.prompts)
                outcome = recorder.attempt(case, partial(_step, subjects, name, images, watch))
                taken[name, images] = watch.peak
                return outcome

            fewer_images(sizes.images, attempt)
        plans |= {key: planned(*key) for key in taken if key not in plans}
        while taken:
            key = next((key for key in taken if plans[key].ready()), next(iter(taken)))
            recorder.attempt(_case(*key, sizes.prompts), partial(_compared, plans[key], taken.pop(key)))
    subjects.back_to_cpu()


def _case(name: str, images: int, prompts: int) -> str:
    return f"{name}, {images} images x {prompts} prompts"


def _step(subjects: Subjects, name: str, images: int, watch: Watch) -> Iterator[Measure]:
    spec = subjects.spec([f"experiment={name}"], images)
    check_precision(spec.trainer, subjects.device)
    teacher = None if spec.distill.teacher is None else FrozenTeacher(subjects.full, spec.distill, spec.model)
    module = training_module(spec, random_model(spec.model), teacher)
    fit(spec, module, make_batch(spec, INSTANCES), 2, watch)
    yield Measure("time of a step", watch.timed[0], "s", precision_of(spec.trainer))
    yield watch.measured_peak()


def _compared(plan: Any, peak: int | None) -> Iterator[Measure]:
    bytes_planned: int = plan.get()
    yield Measure("planned peak", bytes_planned / GIB, "GiB", "tensors of a step, as sam3slim inspect --memory counts")
    if peak is not None:
        yield Measure("planned / measured", bytes_planned / peak, "")


def planned_peak(settings: list[str], device: str) -> int:
    """Bytes; run by a process of its own, because planning leaves PyTorch believing in GPUs that are not there."""
    return plan_memory(settings, device=device).plan.peak


def _planning_only() -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # a plan needs no GPU, and must take no memory of it
    os.nice(10)
    torch.set_num_threads(1)


def throughput(recorder: Recorder, subjects: Subjects) -> None:
    """Images per second without a teacher; what compiles comes last, because it takes minutes."""
    sizes = subjects.sizes
    for name, how in (("full", False), ("slim", False), ("slim", sizes.compile), ("full", sizes.compile)):

        def attempt(images: int, name: str = name, how: Compile = how) -> Outcome:
            case = f"{_case(name, images, sizes.prompts)}, compile={str(how).lower()}"
            return recorder.attempt(case, partial(_images_per_second, subjects, name, images, how))

        fewer_images(sizes.images, attempt)


def _images_per_second(subjects: Subjects, name: str, images: int, how: Compile) -> Iterator[Measure]:
    sizes, device = subjects.sizes, subjects.device
    spec = subjects.spec([f"model={name}", "trainer=gpu", "activation_checkpointing=true"], images)
    check_precision(spec.trainer, device)
    module = training_module(spec, random_model(spec.model))
    watch = Watch(device, WARM_UP)
    try:
        compile_layers(module.model, how, device, sizes.stacks)
        fit(spec, module, make_batch(spec, INSTANCES), WARM_UP + sizes.steps, watch)
    finally:
        if how:
            torch.compiler.reset()
    note = f"{precision_of(spec.trainer)}, activation checkpointing; {len(watch.timed)} steps after {WARM_UP}"
    yield Measure("training", images * len(watch.timed) / sum(watch.timed), "images/s", note)
    yield Measure("first step", watch.seconds[0], "s")
    yield watch.measured_peak()
