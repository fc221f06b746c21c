"""Answers on one GPU: the same as on the CPU? How many pictures per second, and how long does one take?"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from gpu_rows import Measure, Recorder
from gpu_subjects import Subjects, stored
from torch import Tensor

from sam3slim.artifacts import write_artifact
from sam3slim.data.batch import Batch
from sam3slim.data.module import ConceptData
from sam3slim.data.spec import DataSpec
from sam3slim.evaluation import evaluate, measure_latency
from sam3slim.evaluation.inference import eval_mode
from sam3slim.launch.compose import compose_plain
from sam3slim.models import Sam3
from sam3slim.models.arithmetic import HALVES, compute_in, computing
from sam3slim.predict import PredictSpec, predict_files
from sam3slim.runtimes.eager import to_device
from sam3slim.strict import spec_from_dict

# Case → arithmetic, whether convolutions may use TF32 (PyTorch's default; rounds as FP16 does), and what probabilities
# and coordinates in 0..1 may differ by in the mean.
# About five times what a narrow model of full depth differs by on a CPU.
PARITY = {
    "fp32": ("fp32", True, 2e-3),
    "fp32 without TF32": ("fp32", False, 1e-4),
    "bf16": ("bf16", True, 2e-2),
    "fp16": ("fp16", True, 2e-3),
}
PARITY_PROMPTS = 2
PRECISIONS = ("fp32", "bf16", "fp16", "int8_weight", "int8_dynamic", "fp8_dynamic")
LATENCY_PROMPTS = (1, 16)
WARM_UP = 2  # forwards


def parity(recorder: Recorder, subjects: Subjects) -> None:
    """Scores, boxes and masks on the device against those of the CPU in FP32, the same weights."""
    expected: dict[str, Tensor] = {}
    recorder.attempt("CPU, fp32", partial(_expect, subjects, expected))
    for case in PARITY:
        recorder.attempt(f"{subjects.device.type}, {case}", partial(_differences, subjects, expected, case))
    subjects.back_to_cpu()


def _expect(subjects: Subjects, expected: dict[str, Tensor]) -> Iterator[Measure]:
    model, batch = subjects.full, subjects.question(PARITY_PROMPTS)
    started = time.perf_counter()
    expected |= predictions(model, batch)
    yield Measure("a forward", time.perf_counter() - started, "s", f"1 image, {PARITY_PROMPTS} prompts")


def _differences(subjects: Subjects, expected: dict[str, Tensor], case: str) -> Iterator[Measure]:
    if not expected:
        raise RuntimeError("the CPU's answers are missing")
    arithmetic, tf32, allowed = PARITY[case]
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = before and tf32
    model: Sam3 = subjects.full.to(subjects.device)  # type: ignore[arg-type]
    compute_in(model, arithmetic)
    try:
        found = predictions(model, subjects.question(PARITY_PROMPTS))
    finally:
        compute_in(model, "fp32")
        torch.backends.cudnn.allow_tf32 = before
    for key, value in found.items():
        difference = (value - expected[key]).abs()
        mean = float(difference.mean())
        note = f"at most {allowed:g}: {'met' if mean <= allowed else 'NOT MET'}"
        yield Measure(f"{key}, mean difference", mean, "", note)
        yield Measure(f"{key}, largest difference", float(difference.max()), "")


def predictions(model: Sam3, batch: Batch) -> dict[str, Tensor]:
    """Numbers in 0..1, float64 on the CPU."""
    with torch.inference_mode(), eval_mode(model), computing(model):
        output = model(**batch.to(model.device).inputs())
    assert output.pred_masks is not None
    scores = output.pred_logits.double().sigmoid() * output.presence_logits.double().sigmoid()
    found = {"scores": scores, "boxes": output.pred_boxes, "masks": output.pred_masks.double().sigmoid()}
    return {key: value.double().cpu() for key, value in found.items()}


def pictures(recorder: Recorder, subjects: Subjects) -> None:
    """Evaluation and ``sam3slim predict`` on drawn pictures, every phrase asked of each."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for precision in ("fp32", "fp16"):
            recorder.attempt(f"evaluate, {precision}", partial(_evaluation, subjects, precision, folder))
        recorder.attempt("predict", partial(_prediction, subjects, folder))
    subjects.back_to_cpu()


def drawn(subjects: Subjects, folder: Path) -> ConceptData:
    """The shapes set at ``folder``, decoded once and kept in memory."""
    sizes = subjects.sizes
    settings = [
        "checkpoint=none", f"data.root={folder / 'shapes'}", "data.eval_batch_size=8", "data.cache=ram",
        f"data.shapes.image_size={sizes.side}", "data.shapes.train_images=1", "data.shapes.val_images=1",
        f"data.shapes.test_images={sizes.pictures}",
    ]  # fmt: skip
    spec = spec_from_dict(DataSpec, compose_plain("evaluate", settings)["data"], "data")
    data = spec.build(subjects.full.spec)
    data.prepare_data()
    return data


def _evaluation(subjects: Subjects, precision: str, folder: Path) -> Iterator[Measure]:
    loader = drawn(subjects, folder).loader("test")
    model = _on_device(subjects, precision)
    evaluate(model, loader, progress=False)  # warm-up, and the pictures are decoded
    result = evaluate(model, loader, progress=False)
    note = f"{result.images} pictures, {result.prompts // result.images} prompts each, mAP included"
    yield Measure("evaluation", result.images / result.seconds, "images/s", note)


def _prediction(subjects: Subjects, folder: Path) -> Iterator[Measure]:
    data = drawn(subjects, folder)
    subjects.back_to_cpu()
    weights = {key: value.half() for key, value in subjects.full.state_dict().items()}
    write_artifact(subjects.full, folder / "artifact", precision="fp16", tensors=weights)
    del weights
    phrases = [category.phrase for category in data.dataset("test").categories]
    spec = PredictSpec(
        str(folder / "artifact"), [str(folder / "shapes" / "test")], str(folder / "found"), prompts=phrases,
        device=subjects.device.type, overlays=False,
    )  # fmt: skip
    done = predict_files(spec, progress=False)
    note = f"{done.images} pictures, {len(phrases)} prompts each, decoding and masks as RLE included, opening not"
    yield Measure("prediction", done.images / done.seconds, "images/s", note)


def latency(recorder: Recorder, subjects: Subjects) -> None:
    """One picture by stored precision, with one prompt and with many."""
    for precision in PRECISIONS:
        recorder.attempt(precision, partial(_latency, subjects, precision))
        subjects.back_to_cpu()


def _latency(subjects: Subjects, precision: str) -> Iterator[Measure]:
    model = _on_device(subjects, precision)
    for prompts in LATENCY_PROMPTS:
        batch = subjects.question(prompts)
        taken = measure_latency(
            model, batch.pixel_values, batch.input_ids, batch.attention_mask, image_index=batch.image_index,
            warmup=WARM_UP, repeats=subjects.sizes.repeats,
        )  # fmt: skip
        asked = f"{prompts} prompt{'s' if prompts > 1 else ''}"
        yield Measure(f"{asked}, median", taken["p50"], "ms", f"arithmetic={getattr(model, 'arithmetic', 'fp32')}")
        yield Measure(f"{asked}, 90th percentile", taken["p90"], "ms")
        held = taken["memory_bytes"]
        note = "beyond weights and inputs" if held is not None else "this system does not tell"
        yield Measure(f"{asked}, memory", None if held is None else held / 2**20, "MiB", note)


def _on_device(subjects: Subjects, precision: str) -> Sam3:
    """As ``evaluate.py`` runs an artifact of that precision; half ones in their own arithmetic on the CPU too."""
    subjects.back_to_cpu()
    model = subjects.full if precision == "fp32" else stored(subjects.full, precision)
    return to_device(model, subjects.device, precision, precision if precision in HALVES else "fp32")
