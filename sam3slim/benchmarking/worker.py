"""The process that measures one row: ``python -m sam3slim.benchmarking.worker FOLDER``.

A process of its own, so that a runtime's settings, memory and crashes stay with its row.
"""

from __future__ import annotations

import sys
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sam3slim.benchmarking.row import FAILED, FINISHED, REQUEST, RESULT, Asked
from sam3slim.checkpoints import locate, weight_files
from sam3slim.errors import UserError
from sam3slim.evaluation import peak_memory_bytes, reset_peak_memory, timed
from sam3slim.evaluation.inference import eval_mode
from sam3slim.files import atomic_path, write_json
from sam3slim.graphs.modules import signatures
from sam3slim.graphs.verify import sample_inputs
from sam3slim.launch.run import Run
from sam3slim.models.arithmetic import computing
from sam3slim.results.record import plain
from sam3slim.runs.evaluate import evaluate
from sam3slim.runs.measure import prepared_data
from sam3slim.runs.specs import EvaluateSpec
from sam3slim.runtimes import open_runtime
from sam3slim.strict import spec_from_dict

OUTPUTS = "outputs.safetensors"
CHUNK = 32  # prompts that pass together, as in prediction
PARITY = (2, 3, 0)  # images, prompts and boxes that outputs are compared on
WARM_UP = 2


def measure_row(asked: Asked, folder: Path) -> dict[str, Any]:
    """What ``result.json`` holds besides its status: parity, latency, memory, bytes and mAP.

    Raises:
        UserError: what cannot be opened, run or measured.
    """
    torch.set_num_threads(asked.threads)
    device = torch.device(asked.device)
    spec = None if asked.config is None else spec_from_dict(EvaluateSpec, _config(asked, folder), "")
    opened = open_runtime(
        asked.source, asked.runtime, device=device, arithmetic=asked.arithmetic,
        calibration=None if spec is None else lambda model: prepared_data(spec, model).loader("train"),
    )  # fmt: skip
    model, report = opened
    found: dict[str, Any] = {
        "precision": report.precision, "name": model.spec.name,
        "bytes": sum(file.stat().st_size for file in weight_files(locate(asked.source))),
    }  # fmt: skip
    with torch.inference_mode(), eval_mode(model), computing(model):
        outputs = _outputs(model)
        with atomic_path(folder / OUTPUTS) as temporary:
            save_file(outputs, temporary)
        if asked.reference is not None:
            found["parity"] = parity(load_file(Path(asked.reference) / OUTPUTS), outputs)
        reset_peak_memory(device)
        found["latency_ms"] = _latency(model, asked, device)
        found["peak_memory_bytes"] = peak_memory_bytes(device)
    if spec is not None:
        record = evaluate(spec, Run("evaluate", folder, _config(asked, folder), {}, "sam3slim benchmark"), opened)
        found |= {"metrics": record.metrics.values, "drop": {name: d.to_dict() for name, d in record.drop.items()}}
    return found


def _config(asked: Asked, folder: Path) -> dict[str, Any]:
    """Of ``evaluate.py``, for this row."""
    return {
        **(asked.config or {}), "checkpoint": asked.source, "runtime": asked.runtime, "arithmetic": asked.arithmetic,
        "device": asked.device, "threads": asked.threads, "latency": False, "output_dir": str(folder),
        "reference": asked.reference,
    }  # fmt: skip


def _outputs(model: Any) -> dict[str, Tensor]:
    """The answers to the same random images and prompts, FP32 on the CPU."""
    inputs = {key: value.to(model.device) for key, value in sample_inputs(model.spec, *PARITY).items()}
    inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    found = model(**{key: value for key, value in inputs.items() if not key.startswith("input_boxes")})
    return {
        name: getattr(found, name).float().cpu().contiguous() for name in signatures(model.spec)["prompts"].outputs
    }  # fmt: skip


def parity(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> dict[str, dict[str, float]]:
    """Output → {"max_abs"}: largest difference; {"max_rel"}: that as a share of the largest value of ``ours``.

    Raises:
        UserError: an output is not a number.
    """
    if broken := [name for name, tensor in theirs.items() if not tensor.isfinite().all()]:
        raise UserError(f"{', '.join(broken)} hold NaN or infinity in this arithmetic; use fp32")
    differences = {name: float((ours[name] - theirs[name]).abs().max()) for name in ours}
    return {
        name: {"max_abs": value, "max_rel": value / max(float(ours[name].abs().max()), 1e-12)}
        for name, value in differences.items()
    }


def _latency(model: Any, asked: Asked, device: torch.device) -> dict[str, dict[str, float]]:
    """``timed`` of the vision tower (one image), the text tower (one phrase) and every number of prompts."""
    most = max(asked.prompts)
    inputs = {key: value.to(device) for key, value in sample_inputs(model.spec, 1, most, 0).items()}
    pixels, ids, mask = inputs["pixel_values"].to(model.dtype), inputs["input_ids"], inputs["attention_mask"]
    vision = model.get_vision_features(pixels)
    text, _ = model.encode_text(ids, mask)

    def answer(prompts: int) -> None:
        for start in range(0, prompts, CHUNK):
            part = slice(start, min(start + CHUNK, prompts))
            index = torch.zeros(part.stop - start, dtype=torch.int64, device=device)
            model(vision_embeds=vision, text_embeds=text[part], attention_mask=mask[part], image_index=index)

    runs: dict[str, Any] = {
        "vision": lambda: model.get_vision_features(pixels),
        "text": lambda: model.encode_text(ids[:1], mask[:1]),
        **{f"prompts_{count}": lambda count=count: answer(count) for count in asked.prompts},
    }
    return {name: timed(run, device, warmup=WARM_UP, repeats=asked.repeats) for name, run in runs.items()}


def main(folder: Path) -> None:
    """Measure the row that ``folder`` asks for, and leave what was found, or why nothing was, in it."""
    asked = Asked.read(folder / REQUEST)
    try:
        result = {"status": FINISHED, **measure_row(asked, folder)}
    except UserError as error:
        result = {"status": FAILED, "error": " ".join(str(error).split())}
    except Exception as error:
        # Whatever a runtime raises is its row's reason; the others go on.
        traceback.print_exc()
        lines = str(error).strip().splitlines()
        result = {"status": FAILED, "error": f"{type(error).__name__}: {(lines or [''])[0][:200]}"}
    write_json(folder / RESULT, plain({**result, "asked": replace(asked, config=None)}))


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except KeyboardInterrupt:
        sys.exit(130)
