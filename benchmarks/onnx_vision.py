"""PyTorch FP32, ONNX Runtime (FP32, INT8) and OpenVINO (FP32, bfloat16, W8A16, W8A8) on the CPU, in turns.

    python benchmarks/onnx_vision.py vit [--blocks 4] [--rounds 5] [--threads 2] [--only "openvino w8a8" …]
    python benchmarks/onnx_vision.py nano [--rounds 20] [--threads 2]

``vit`` is a ViT of SAM 3's width (1,024; 16 heads; 5,184 tokens; blocks as asked, every fourth global) with random
weights; ``nano`` is the whole of ``assets/nano`` on one image and 23 phrases: both towers, encoder, decoder, masks. One
call of each per round, after ``WARM_UP`` rounds that do not count; every other round runs in the opposite order. The
error is that of the output against PyTorch's, as a share of its norm. Beside the clock, the processor time of every
call is measured: on a machine that does other work it is what can be compared.
``--only`` opens few runtimes: at this width each keeps gigabytes of attention scores.
``openvino w8a8_static`` is one of ``vit``'s, calibrated on random images.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import Tensor, nn

from sam3slim.checkpoints import load
from sam3slim.compression import Int8Rules
from sam3slim.compression.int8_weight import quantised_names
from sam3slim.environment import cpu_flags, describe_device
from sam3slim.files import write_csv
from sam3slim.graphs import export_onnx, load_onnx
from sam3slim.graphs.quantise import quantise
from sam3slim.graphs.trace import trace
from sam3slim.models import build_model
from sam3slim.runtimes import open_runtime
from sam3slim.runtimes.openvino_models import compile_graph
from sam3slim.specs import ModelSpec, TextSpec

WARM_UP = 1
ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).parent / "results"
Run = Callable[[], Tensor]
OPENVINO = ("fp32", "bf16", "w8a16", "w8a8")
CALIBRATED_ON = 4  # other images than the one that is measured


class Backbone(nn.Module):
    """The ViT alone: pixels → tokens."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        vit = replace(ModelSpec().vit, depth=blocks, num_global_blocks=max(blocks // 4, 1))
        # The rest of the model is built only to be dropped.
        spec = replace(ModelSpec(), vit=vit, text=TextSpec(width=64, layers=1, num_heads=1, vocab_size=600))
        torch.manual_seed(0)
        self.backbone = build_model(spec).vision_encoder.backbone.eval()

    def forward(self, pixel_values: Tensor) -> Tensor:
        tokens: Tensor = self.backbone(pixel_values).last_hidden_state
        return tokens


def session(path: Path, feed: dict[str, Any], threads: int) -> Run:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    loaded = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda: torch.from_numpy(loaded.run(None, feed)[0])


def vit(folder: Path, blocks: int, threads: int, only: list[str]) -> dict[str, Run]:
    model = Backbone(blocks)
    pixels = torch.randn(1, 3, 1008, 1008, generator=torch.Generator().manual_seed(1))
    trace(
        model, (pixels,), folder / "fp32.onnx", inputs=["pixel_values"], outputs=["tokens"], dynamic_shapes=({},),
    )  # fmt: skip
    names = [f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    quantise(folder / "fp32.onnx", folder / "int8.onnx", names)
    feed = {"pixel_values": pixels.numpy()}
    opening: dict[str, Callable[[], Run]] = {
        "torch fp32": lambda: partial(model, pixels),
        "onnxruntime fp32": partial(session, folder / "fp32.onnx", feed, threads),
        "onnxruntime int8": partial(session, folder / "int8.onnx", feed, threads),
        **{
            f"openvino {name}": partial(_compiled, folder / "fp32.onnx", feed, threads, name)
            for name in (*OPENVINO, "w8a8_static")
        },
    }
    return {name: opened() for name, opened in opening.items() if not only or name in ("torch fp32", *only)}


def _compiled(path: Path, feed: dict[str, Any], threads: int, arithmetic: str) -> Run:
    generator = torch.Generator().manual_seed(2)
    shape = feed["pixel_values"].shape
    feeds = [{"pixel_values": torch.randn(shape, generator=generator).numpy()} for _ in range(CALIBRATED_ON)]
    return partial(_first, compile_graph(path, arithmetic, tower=True, threads=threads, feeds=feeds), feed)


def _first(request: Any, feed: dict[str, Any]) -> Tensor:
    return torch.from_numpy(next(iter(request.infer(feed, share_inputs=True).values())))


def nano(folder: Path) -> dict[str, Run]:
    model, _ = load(ROOT / "assets/nano")
    spec, generator = model.spec, torch.Generator().manual_seed(0)
    export_onnx(model, folder / "fp32")
    names = quantised_names(model, Int8Rules())
    export_onnx(model, folder / "int8", precision="int8_onnx", int8=names)
    tokens = (23, spec.text.context_length)
    inputs = {
        "pixel_values": torch.rand(1, 3, spec.vit.image_size, spec.vit.image_size, generator=generator) * 2 - 1,
        "input_ids": torch.randint(0, spec.text.vocab_size, tokens, generator=generator),
        "attention_mask": torch.ones(tokens, dtype=torch.int64),
    }
    models: dict[str, Any] = {
        "torch fp32": model,
        "onnxruntime fp32": load_onnx(folder / "fp32")[0],
        "onnxruntime int8": load_onnx(folder / "int8")[0],
        **{
            f"openvino {arithmetic}": open_runtime(folder / "fp32", "openvino", arithmetic=arithmetic)[0]
            for arithmetic in OPENVINO
        },
    }
    return {name: partial(lambda model: model(**inputs).pred_masks, m) for name, m in models.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subject", choices=["vit", "nano"])
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", nargs="+", default=[], metavar="RUN", help="of vit, beside torch fp32")
    parser.add_argument("--out", type=Path, metavar="CSV")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    subject = f"vit_{arguments.blocks}_blocks" if arguments.subject == "vit" else "nano"
    rows = []
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        runs = (
            vit(Path(folder), arguments.blocks, arguments.threads, arguments.only)
            if arguments.subject == "vit"
            else nano(Path(folder))
        )
        times, own, outputs = measure(runs, arguments.rounds)
    reference = outputs["torch fp32"]
    for name, seconds in times.items():
        error = float((outputs[name] - reference).norm() / reference.norm())
        cpu = [base / mine for base, mine in zip(own["torch fp32"], own[name], strict=True)]
        ratios = [base / own for base, own in zip(times["torch fp32"], seconds, strict=True)]
        rows.append({
            "subject": subject, "run": name, "rounds": len(seconds), "error": f"{error:.2g}",
            "median_ms": round(1000 * statistics.median(seconds), 1), "min_ms": round(1000 * min(seconds), 1),
            "max_ms": round(1000 * max(seconds), 1), "speedup_median": round(statistics.median(ratios), 2),
            "speedup_min": round(min(ratios), 2), "speedup_max": round(max(ratios), 2),
            "processor_ms": round(1000 * statistics.median(own[name]), 1),
            "processor_speedup": round(statistics.median(cpu), 2), "device": describe_device("cpu"),
            "flags": " ".join(cpu_flags()), "openvino": version("openvino"),
            "torch": version("torch"), "onnxruntime": version("onnxruntime"),
        })  # fmt: skip
        print(rows[-1], flush=True)
    write_csv(arguments.out or RESULTS / f"onnx_{subject}_{arguments.threads}_threads.csv", rows)


def measure(
    runs: dict[str, Run], rounds: int
) -> tuple[dict[str, list[float]], dict[str, list[float]], dict[str, Tensor]]:
    """Seconds of every counted call by the clock and of the processor, and the last outputs."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    own: dict[str, list[float]] = {name: [] for name in runs}
    outputs: dict[str, Tensor] = {}
    for number in range(WARM_UP + rounds):
        for name in runs if number % 2 else reversed(runs):
            started, before = time.perf_counter(), time.process_time()
            outputs[name] = runs[name]()
            if number >= WARM_UP:
                times[name].append(time.perf_counter() - started)
                own[name].append(time.process_time() - before)
    return times, own, outputs


if __name__ == "__main__":
    main()
