"""Filling a record: what was measured, on what, of what."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from sam3slim.artifacts import ArtifactInfo
from sam3slim.checkpoints.float8 import float8_linears
from sam3slim.compression import emulated
from sam3slim.data.agreement import read_labels, write_labels
from sam3slim.data.batch import Batch
from sam3slim.data.coco import CocoConcepts
from sam3slim.data.module import ConceptData
from sam3slim.data.spec import DataSpec
from sam3slim.data.written import write_concepts, write_results
from sam3slim.environment import choose_device
from sam3slim.errors import UserError
from sam3slim.evaluation import (
    EvalResult,
    Segmenter,
    agreed,
    first_images,
    measure_latency,
    peak_memory_bytes,
    reset_peak_memory,
)
from sam3slim.evaluation import evaluate as evaluate_model
from sam3slim.models import Sam3, count_params, params_by_part
from sam3slim.models.compiled import Compile, compiled
from sam3slim.models.flops import count_flops
from sam3slim.results.metrics import METRICS, main_metric
from sam3slim.results.record import Artifact, Data, Latency, Metrics, ModelSummary, RunRecord
from sam3slim.results.recording import begin
from sam3slim.runs.reference import Reference, fill_drop, save_samples
from sam3slim.runs.specs import EvaluateSpec
from sam3slim.runtimes import runtime_named
from sam3slim.specs import ModelSpec

EMULATION = "torchao's INT8 products emulated in FP32 (latency: the kernel itself)"
FP8_ON_CPU = "FP8 codes multiplied by PyTorch on the CPU, summed in FP32"


def back_to_cpu(*models: Sam3) -> None:
    """Move the models, in place, and leave nothing on the GPU, where what follows needs the memory."""
    for model in models:
        model.to("cpu")  # type: ignore[arg-type]
    torch.cuda.empty_cache()  # does nothing without a GPU


def measure(
    model: Segmenter,
    data: ConceptData,
    spec: EvaluateSpec,
    record: RunRecord,
    folder: Path,
    reference: Reference | None,
) -> Reference:
    """Fill ``record`` with mAP, its drop against ``reference`` and, if asked for, latency of one image.

    The matching of detections and objects is left in ``folder`` and returned: a reference for others.
    """
    device = model.device
    with ExitStack() as around:
        if isinstance(model, Sam3):
            around.enter_context(compiled(model, spec.compile, device))
        elif spec.compile:
            print(f"compile={str(spec.compile).lower()} does not concern graphs, which run as they are")
        if isinstance(model, Sam3):
            record.artifact = replace(record.artifact, arithmetic=getattr(model, "arithmetic", "fp32"))
        elif told := getattr(model, "computes_in", None):
            record.artifact = replace(record.artifact, arithmetic=told)
        record.artifact = replace(record.artifact, runtime=spec.runtime)
        dataset = data.dataset(spec.data.split)
        dataset.check_limit(spec.limit, "limit")
        record.data = data_summary(spec.data, data)
        if reference is not None:
            label_as(reference, dataset)
        begin(record, folder)
        reset_peak_memory(device)
        loader = data.loader(spec.data.split)
        on_cpu = isinstance(model, Sam3) and device.type == "cpu"
        with emulated(model) if on_cpu else nullcontext(0) as count:  # type: ignore[arg-type]
            result = evaluate_model(model, loader, limit=spec.limit, top_k=spec.max_detections)
        if on_cpu and float8_linears(model):  # type: ignore[arg-type]
            record.artifact = replace(record.artifact, evaluated_with=FP8_ON_CPU)
        if count:
            record.artifact = replace(record.artifact, evaluated_with=EMULATION)
            print(f"{count} Linears: {EMULATION}")
        if dataset.by_model and reference is None:
            result = agreed(result, dataset)
            write_labels(folder, dataset)
        add_result(record, result, data, spec.data)
        record.data = replace(record.data, max_detections=spec.max_detections)
        save_samples(result.samples, folder)
        if spec.predictions == "coco":
            print(f"written: {write_results(folder / 'predictions.json', dataset, result.detections)}")
        elif spec.predictions == "saco":
            written = write_concepts(folder / "saco", dataset, result.detections, result.truths)
            print(f"written: {', '.join(map(str, written))}")
        if reference is not None:
            fill_drop(record, reference, result.samples)
        if spec.latency:
            record.latency_ms = latency_of(model, loader, spec.compile)
        record.peak_memory_bytes = peak_memory_bytes(device)
    return Reference(result.samples, spec.data.protocol, result.prompts, folder, spec.data.given_boxes())


def latency_of(model: Segmenter, loader: Iterable[Batch], compile: Compile = False) -> Latency:
    """Of the first image and its prompts, on the model's device; see ``evaluation.measure_latency``."""
    one = first_images(next(iter(loader)), 1)
    taken = measure_latency(model, one.pixel_values, one.input_ids, one.attention_mask)
    return Latency(**taken, compile=compile or None)


def label_as(reference: Reference, dataset: CocoConcepts) -> None:
    """Ground truth of ``dataset``, if nobody has annotated it: what the model of ``reference`` found.

    Raises:
        UserError: the reference has none for these pictures and phrases.
    """
    if dataset.by_model and not dataset.labels_sha256:
        read_labels(reference.source, dataset, reference.key)


def add_result(record: RunRecord, result: EvalResult, data: ConceptData, spec: DataSpec) -> None:
    """The record's ``metrics`` and ``data`` entries."""
    record.metrics = Metrics(result.metrics, result.calibration)
    record.data = replace(data_summary(spec, data), images=result.images, prompts=result.prompts)


def data_summary(spec: DataSpec, data: ConceptData) -> Data:
    """The record's ``data`` entry, as far as it is known before anything is measured."""
    labels = data.dataset(spec.split).labels_sha256 if spec.kind == "pictures" else None
    return Data(
        spec.kind, spec.root, spec.split, spec.protocol, data_set=spec.set, **spec.given_boxes(), **spec.given_files(),
        **spec.given_phrases(), labels_sha256=labels or None, read=data.reports(),
    )  # fmt: skip


def model_summary(model: Any) -> ModelSummary:
    """The record's ``model`` entry, of a ``Sam3`` or whatever else has a ``spec``."""
    parts = params_by_part(model) if isinstance(model, Sam3) else count_params(model.spec)
    return summary_of(model.spec, parts)


def summary_of(spec: ModelSpec, parts: Mapping[str, int]) -> ModelSummary:
    """The record's ``model`` entry of an architecture, with the parameters of its parts."""
    return ModelSummary(spec.name, sum(parts.values()), parts, asdict(count_flops(spec)), spec.vit.image_size)


def written_artifact(info: ArtifactInfo, precision: str) -> Artifact:
    """The record's ``artifact`` entry of what was just written."""
    return Artifact(str(info.path), info.bytes, info.format, precision, with_rest(info.bytes_by_part, info.bytes))


def with_rest(parts: Mapping[str, int], total: int) -> dict[str, int]:
    """``parts`` and what the files hold besides (headers, names, an optimizer) as ``other``; {} where none is known."""
    rest = total - sum(parts.values())
    return {**parts, **({"other": rest} if rest > 0 else {})} if parts else {}


def print_metrics(record: RunRecord) -> None:
    """One line per metric."""
    for name, values in record.metrics.values.items():
        numbers = {key: values[key] for key in METRICS[name].printed or values}
        shown = [f"{key} {METRICS[name].text(value)}" for key, value in numbers.items() if value is not None]
        print(f"{name}: {', '.join(shown)}")


def print_set(record: RunRecord, metric_name: str | None = None) -> None:
    """One line: the metric that decides on one of several data sets; nothing where there is only one."""
    metric = main_metric(record, metric_name)
    if record.data.data_set and (value := record.metrics.value(metric)) is not None:
        print(f"{record.data.data_set} ({record.data.split}): {metric.sentence(value)}")


def prepared_data(spec: EvaluateSpec, model: ModelSpec) -> ConceptData:
    """The data for a model of this architecture. Raises UserError."""
    data = spec.data.build(model, spec.seed)
    data.prepare_data()
    return data


def measured_on(spec: EvaluateSpec, device: torch.device) -> torch.device:
    """``device``, or the CPU where no device is named and the runtime knows no other."""
    only = spec.runtime is not None and device.type not in runtime_named(spec.runtime).devices
    return torch.device("cpu") if only and spec.device == "auto" else device


def measuring_device(spec: EvaluateSpec) -> torch.device:
    """The device to measure on; sets the number of threads. Raises UserError for one that is not there."""
    if spec.threads is not None:
        if spec.threads < 1:
            raise UserError(f"threads={spec.threads} must be at least 1")
        torch.set_num_threads(spec.threads)
    return choose_device(spec.device)
