"""The three commands: ``train``, ``evaluate``, ``compress``; each writes one record per result."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import lightning
import torch

from sam3slim import config as cfg
from sam3slim.checkpoints import ArtifactInfo, load, write_artifact
from sam3slim.compression import compress as compress_model
from sam3slim.compression import method_from_name
from sam3slim.data.module import ConceptData
from sam3slim.data.spec import DataSpec
from sam3slim.distill import DistillSpec, FrozenTeacher
from sam3slim.errors import UserError
from sam3slim.evaluation import EvalResult, first_images, measure_latency, peak_memory_bytes, reset_peak_memory
from sam3slim.evaluation import evaluate as evaluate_model
from sam3slim.files import ensure_writable_dir
from sam3slim.losses import Criterion, LossWeights
from sam3slim.models import Sam3, build_model, init_for_training, params_by_part
from sam3slim.records import RunRecord, plain, recording
from sam3slim.slimming import inherit
from sam3slim.specs import ModelSpec
from sam3slim.strict import spec_from_dict
from sam3slim.training import (
    ConceptSegmentation,
    FinalValidation,
    GracefulStop,
    OptimSpec,
    RandomState,
    ScheduleSpec,
    TrainingClock,
)


@dataclass(frozen=True)
class InitSpec:
    """Where the first weights come from: ``scratch``, a ``checkpoint`` of the same architecture, or ``pruned``."""

    kind: Literal["scratch", "checkpoint", "pruned"] = "scratch"
    checkpoint: str | None = None
    allow_fresh: tuple[str, ...] = ()
    importance: Literal["magnitude", "uniform", "random"] = "magnitude"


@dataclass(frozen=True)
class LossSpec(LossWeights):
    """Loss weights, and whether the one-to-many branch is trained."""

    one_to_many: bool = True


@dataclass(frozen=True)
class TrainSpec:
    """``conf/train.yaml`` after composition, checked. ``trainer``, ``callbacks`` and ``logger`` are built late."""

    name: str
    model: ModelSpec
    data: DataSpec
    init: InitSpec
    distill: DistillSpec
    loss: LossSpec
    optim: OptimSpec
    schedule: ScheduleSpec
    trainer: dict[str, Any]
    callbacks: dict[str, Any] | None
    logger: dict[str, Any] | None
    output_dir: str
    seed: int = 0
    resume: str | None = None
    eval_at_end: bool = True
    experiment: Any = None


@dataclass(frozen=True)
class EvaluateSpec:
    """``conf/evaluate.yaml`` after composition, checked."""

    name: str
    checkpoint: str
    data: DataSpec
    output_dir: str
    limit: int | None = None
    device: str = "auto"
    threads: int | None = None
    latency: bool = True
    seed: int = 0


@dataclass(frozen=True)
class CompressSpec(EvaluateSpec):
    """``conf/compress.yaml`` after composition, checked: one entry of options per method."""

    compress: dict[str, Any] = field(default_factory=dict)


def train(config: dict[str, Any], output_dir: Path, choices: dict[str, str], command: str) -> RunRecord:
    """Train as composed; leaves checkpoints, logs, the best model as an artifact, and ``record.json``.

    Raises:
        UserError: bad input, before training starts; a loss that is not finite.
    """
    spec = spec_from_dict(TrainSpec, config, "")
    ensure_writable_dir(output_dir)
    with recording(
        output_dir, kind="train", command=command, config=config, choices=choices, parent=spec.init.checkpoint
    ) as record:
        lightning.seed_everything(spec.seed, verbose=False)
        # Adam's second moments decay into denormal numbers, which CPUs handle a hundred times slower.
        torch.set_flush_denormal(True)
        model = initial_model(spec.model, spec.init, spec.seed)
        record.model = model_facts(model)
        data = spec.data.build(spec.model, spec.seed)
        module = ConceptSegmentation(
            model,
            Criterion(spec.loss),
            spec.optim,
            spec.schedule,
            one_to_many=spec.loss.one_to_many,
            teacher=_teacher(spec.distill, model),
            config=plain(config),
        )
        trainer = build_trainer(spec, output_dir)
        try:
            trainer.fit(module, data, ckpt_path=_resume_path(spec.resume, output_dir), weights_only=True)
        except SystemExit as error:  # Lightning's answer to Ctrl-C
            last = output_dir / "checkpoints/last.ckpt"
            if last.is_file():
                print(f"stopped; {last} is saved: go on with resume=auto hydra.run.dir={output_dir}")
            raise KeyboardInterrupt from error
        if trainer.is_global_zero:
            clock = next(callback for callback in trainer.callbacks if isinstance(callback, TrainingClock))
            _finish_training(spec, output_dir, data, record, clock.seconds)
    return record


def _finish_training(spec: TrainSpec, output_dir: Path, data: ConceptData, record: RunRecord, seconds: float) -> None:
    """Measure the best checkpoint and write it as an artifact that names its metrics."""
    model, _ = load(output_dir, expect=spec.model)
    metrics: dict[str, Any] = {}
    if spec.eval_at_end:
        result = evaluate_model(model, data.loader(spec.data.split))
        _add_result(record, result, spec.data)
        metrics = {"split": spec.data.split, **result.metrics}
    facts = {"command": record.command, "seed": spec.seed, "git": record.git, "device": record.device}
    extra = {**facts, "data": record.data, "training_seconds": round(seconds), "versions": record.versions}
    info = write_artifact(
        model, output_dir / "artifact", parent=spec.init.checkpoint, metrics=plain(metrics), extra=plain(extra)
    )
    record.artifact = artifact_facts(info, "fp32")


def evaluate(config: dict[str, Any], output_dir: Path, choices: dict[str, str], command: str) -> RunRecord:
    """mAP of ``checkpoint`` on ``data.split``; writes ``record.json``.

    Raises:
        UserError: bad input.
    """
    spec = spec_from_dict(EvaluateSpec, config, "")
    ensure_writable_dir(output_dir)
    with recording(
        output_dir, kind="evaluate", command=command, config=config, choices=choices, parent=spec.checkpoint
    ) as record:
        device = _device(spec)
        model, report = load(spec.checkpoint)
        print(report.render())
        record.model = model_facts(model)
        path = Path(report.source)
        size = path.stat().st_size if path.is_file() else (path / "model.safetensors").stat().st_size
        record.artifact = {"path": str(path), "bytes": size, "format": report.kind, "precision": report.precision}
        data = spec.data.build(model.spec, spec.seed)
        data.prepare_data()
        _measure(_to(model, device), data, spec, record)
        print_metrics(record)
    return record


def compress(config: dict[str, Any], output_dir: Path, choices: dict[str, str], command: str) -> list[RunRecord]:
    """One artifact and one record per method, each measured on what was written, reloaded.

    Raises:
        UserError: bad input.
    """
    spec = spec_from_dict(CompressSpec, config, "")
    methods = [method_from_name(**{"name": name, **_method(options)}) for name, options in spec.compress.items()]
    if not methods:
        raise UserError("compress is empty; choose methods, e.g. compress=[weights_only,fp16,int8_weight]")
    ensure_writable_dir(output_dir)
    device = _device(spec)
    model, report = load(spec.checkpoint)
    print(report.render())
    data = spec.data.build(model.spec, spec.seed)
    data.prepare_data()
    records = []
    for (entry, options), method in zip(spec.compress.items(), methods, strict=True):
        folder = output_dir / method.name
        with recording(
            folder, kind="compress", command=command, config={**config, "compress": {entry: options}},
            choices=choices, parent=spec.checkpoint,
        ) as record:  # fmt: skip
            tensors = compress_model(model, method)
            print(tensors.describe())
            info = tensors.write(model, folder / "artifact", parent=spec.checkpoint)
            record.artifact = artifact_facts(info, method.name)
            reloaded, _ = load(info.path, expect=model.spec)
            record.model = model_facts(model)
            _measure(_to(reloaded, device), data, spec, record)
            print_metrics(record)
        records.append(record)
    return records


def _method(options: dict[str, Any] | None) -> dict[str, Any]:
    """Options of one entry of the compress group; ``method`` names the handler (default: the entry's own name)."""
    options = dict(options or {})
    method = options.pop("method", None)
    return {**({"name": method} if method else {}), **options}


def initial_model(spec: ModelSpec, init: InitSpec, seed: int) -> Sam3:
    """The model training starts from. Raises UserError when the checkpoint does not fit."""
    if init.kind == "scratch":
        return init_for_training(build_model(spec), seed)
    if init.checkpoint is None:
        raise UserError(f"init.checkpoint is missing; init={init.kind} needs the checkpoint to start from")
    if init.kind == "checkpoint":
        model, report = load(init.checkpoint, expect=spec, allow_fresh=init.allow_fresh, dequantize=True)
        print(report.render())
        return model
    source, report = load(init.checkpoint, dequantize=True)
    print(report.render())
    model, plan = inherit(source, spec, importance=init.importance, seed=seed)
    print(plan.describe())
    return model


def build_trainer(spec: TrainSpec, output_dir: Path) -> lightning.Trainer:
    """Lightning's trainer with the configured callbacks and loggers, and those every run needs."""
    configured = dict(spec.callbacks or {})
    if not spec.trainer.get("enable_progress_bar", True):
        configured.pop("progress", None)  # Lightning refuses a bar that is switched off
    callbacks = list(cfg.build(configured).values())
    callbacks += [RandomState(), TrainingClock(), FinalValidation(), GracefulStop(output_dir / "checkpoints")]
    _keep_earlier_metrics(output_dir)
    loggers = list((cfg.build(spec.logger) if spec.logger else {}).values())
    trainer: lightning.Trainer = cfg.build(
        spec.trainer,
        callbacks=callbacks,
        logger=loggers or False,
        default_root_dir=str(output_dir),
        gradient_clip_val=spec.optim.clip or None,
        # The sampler deals out the ranks' shares itself and continues inside an epoch.
        use_distributed_sampler=False,
    )
    return trainer


def _keep_earlier_metrics(output_dir: Path) -> None:
    """Lightning's CSV logger starts its file anew; what an interrupted run logged is set aside as metrics.N.csv."""
    file = output_dir / "csv" / "metrics.csv"
    if file.is_file() and file.stat().st_size:
        file.rename(file.with_name(f"metrics.{len(list(file.parent.glob('metrics.*.csv')))}.csv"))


def _resume_path(resume: str | None, output_dir: Path) -> str | None:
    if resume is None:
        return None
    if resume == "auto":
        last = output_dir / "checkpoints" / "last.ckpt"
        return str(last) if last.is_file() else None
    if not Path(resume).is_file():
        raise UserError(f"resume={resume} is not a file; give a checkpoint (…/checkpoints/last.ckpt), or auto")
    return resume


def _teacher(spec: DistillSpec, student: Sam3) -> FrozenTeacher | None:
    if spec.teacher is None:
        return None
    model, _ = load(spec.teacher, dequantize=True)
    return FrozenTeacher(model, spec, student)


def _device(spec: EvaluateSpec) -> torch.device:
    if spec.threads is not None:
        if spec.threads < 1:
            raise UserError(f"threads={spec.threads} must be at least 1")
        torch.set_num_threads(spec.threads)
    if spec.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(spec.device)
    except RuntimeError as error:
        raise UserError(f"device={spec.device} is not a device; use auto, cpu or cuda") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device={spec.device}: no CUDA device here; use device=cpu")
    return device


def _to(model: Sam3, device: torch.device) -> Sam3:
    """``model`` on ``device`` (transformers' typing of ``to`` loses the class)."""
    moved: Sam3 = model.to(device)  # type: ignore[arg-type]
    return moved


def _measure(model: Sam3, data: ConceptData, spec: EvaluateSpec, record: RunRecord) -> None:
    """Fill ``record`` with mAP and, if asked for, latency of one image with all its prompts."""
    device = next(model.parameters()).device
    reset_peak_memory(device)
    loader = data.loader(spec.data.split)
    result = evaluate_model(model, loader, limit=spec.limit)
    _add_result(record, result, spec.data)
    if spec.latency:
        one = first_images(next(iter(loader)), 1)
        record.latency_ms = measure_latency(model, one.pixel_values, one.input_ids, one.attention_mask)
    record.peak_memory_bytes = peak_memory_bytes(device)


def _add_result(record: RunRecord, result: EvalResult, data: DataSpec) -> None:
    record.metrics = {**result.metrics, "calibration": result.calibration}
    record.data = {
        "name": data.kind,
        "root": data.root,
        "split": data.split,
        "protocol": data.protocol,
        "images": result.images,
        "prompts": result.prompts,
    }


def model_facts(model: Sam3) -> dict[str, Any]:
    """The record's ``model`` entry."""
    parts = params_by_part(model)
    return {"name": model.spec.name, "params": sum(parts.values()), "params_by_part": parts}


def artifact_facts(info: ArtifactInfo, precision: str) -> dict[str, Any]:
    """The record's ``artifact`` entry."""
    return {"path": str(info.path), "bytes": info.bytes, "format": "hf", "precision": precision}


def print_metrics(record: RunRecord) -> None:
    """One line per kind of mAP."""
    for kind in ("bbox", "segm"):
        values = (record.metrics or {}).get(kind)
        if values:
            shown = ", ".join(f"{name} {100 * value:.2f}" for name, value in values.items() if value is not None)
            print(f"{kind}: {shown}")
