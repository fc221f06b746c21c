"""Time and memory of one forward."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sam3slim.environment import release_memory
from sam3slim.evaluation.inference import Segmenter, eval_mode
from sam3slim.models.arithmetic import computing

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def measure_latency(
    model: Segmenter,
    pixel_values: Tensor,
    input_ids: Tensor,
    attention_mask: Tensor,
    *,
    image_index: Tensor | None = None,
    warmup: int = 3,
    repeats: int = 20,
) -> dict[str, Any]:
    """Time and memory of the whole forward (both towers, masks included) and of its parts, as ``record.json`` has it.

    Args:
        model: on any device; runs in eval mode and is left as it was.
        pixel_values: [B, 3, S, S].
        input_ids, attention_mask: [P, T] int64.
        image_index: [P] int64, see ``Sam3.forward``.
        warmup: forwards that are not counted.
        repeats: forwards that are.

    Returns:
        {"p50", "p90"}: milliseconds per forward; {"memory_bytes"}: most bytes that one forward holds beyond weights
        and inputs; {"batch"}: B; {"prompts"}: P; {"threads"}: CPU threads of torch; {"parts"}: {"p50", "p90",
        "memory_bytes"} of ``vision`` (once per image), ``text`` (once per phrase), ``prompts`` (what every prompt of
        every image passes: encoder, decoder, mask head).
    """
    if repeats < 1 or warmup < 0:
        raise ValueError(f"repeats={repeats} must be at least 1 and warmup={warmup} at least 0")
    device = model.device
    inputs: dict[str, Any] = {
        "pixel_values": pixel_values.to(device, model.dtype),
        "input_ids": input_ids.to(device),
        "attention_mask": attention_mask.to(device),
        "image_index": None if image_index is None else image_index.to(device),
    }

    def measured(run: Callable[[], object]) -> dict[str, float | None]:
        taken = timed(run, device, warmup=warmup, repeats=repeats)
        return {"p50": taken["p50"], "p90": taken["p90"], "memory_bytes": _growth(run, device)}

    with torch.inference_mode(), eval_mode(model), computing(model):
        whole = measured(lambda: model(**inputs))
        vision = model.get_vision_features(inputs["pixel_values"])
        text, _ = model.encode_text(inputs["input_ids"], inputs["attention_mask"])
        encoded = {"vision_embeds": vision, "text_embeds": text}
        rest = {key: inputs[key] for key in ("attention_mask", "image_index")}
        parts = {
            "vision": measured(lambda: model.get_vision_features(inputs["pixel_values"])),
            "text": measured(lambda: model.encode_text(inputs["input_ids"], inputs["attention_mask"])),
            "prompts": measured(lambda: model(**encoded, **rest)),
        }
    return {
        **whole,
        "parts": parts,
        "batch": len(pixel_values),
        "prompts": len(input_ids),
        "threads": torch.get_num_threads(),
    }


def timed(
    run: Callable[[], object], device: torch.device | str, *, warmup: int = 3, repeats: int = 20
) -> dict[str, float]:
    """Milliseconds of ``run``: {"p10", "p50", "p90"} by the clock, {"cpu"}: the median of this process's own time.

    Beside other work the processor time says more than the clock; it counts every thread.
    """
    device = torch.device(device)
    clock, own = [], []
    for number in range(warmup + repeats):
        _wait(device)
        started, before = time.perf_counter(), time.process_time()
        run()
        _wait(device)
        if number >= warmup:
            clock.append(1000 * (time.perf_counter() - started))
            own.append(1000 * (time.process_time() - before))
    p10, p50, p90 = np.percentile(clock, [10, 50, 90])
    return {"p10": float(p10), "p50": float(p50), "p90": float(p90), "cpu": float(np.median(own))}


def reset_peak_memory(device: torch.device | str) -> None:
    """Start counting anew: on a CUDA device, and on Linux for the process. Elsewhere a process cannot forget."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif STATUS.exists():
        # What was freed goes back first, or the next forward would use it unseen.
        release_memory()
        RESET.write_text("5")


def peak_memory_bytes(device: torch.device | str) -> int:
    """Most bytes held since the last reset: by torch's allocator (CUDA), or by the whole process (CPU)."""
    if torch.device(device).type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if STATUS.exists():
        return _status("VmHWM")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # macOS counts bytes, others kilobytes.
    return int(peak if sys.platform == "darwin" else peak * 1024)


def _growth(run: Callable[[], object], device: torch.device) -> int | None:
    """Most bytes held during ``run`` beyond those before it; None where the system does not tell."""
    if device.type != "cuda" and not STATUS.exists():
        return None
    reset_peak_memory(device)
    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else _status("VmRSS")
    run()
    _wait(device)
    return peak_memory_bytes(device) - before


def _status(key: str) -> int:
    """A number of bytes from the kernel's account of this process."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(key))
    return 1024 * int(line.split()[1])


def _wait(device: torch.device) -> None:
    """CUDA returns before it has computed."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
