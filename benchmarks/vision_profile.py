"""Where PyTorch's time in the vision tower goes, and how fast other libraries multiply the same matrices.

    python benchmarks/vision_profile.py [--blocks 2] [--rounds 3]

One thread, a ViT of SAM 3's width (1,024; 5,184 tokens) with random weights. First the operators of one forward, in
milliseconds and as shares of all (torch.profiler). Then products of the tower's own sizes, in turns: PyTorch's FP32
``linear`` (MKL), oneDNN through PyTorch with weights packed beforehand, and one ``MatMul`` in ONNX Runtime and in
OpenVINO; then PyTorch's fused attention and ONNX Runtime's on the sizes of a global block. Billions of operations per
second of processor time, the best of ``--rounds``.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx_vision import Backbone
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from sam3slim.environment import cpu_flags, describe_device
from sam3slim.files import write_csv
from sam3slim.runtimes.openvino_models import compile_graph

RESULTS = Path(__file__).parent / "results"
TOKENS, WIDTH, HIDDEN, HEADS = 5184, 1024, 4736, 16
Rows = list[dict[str, Any]]


def operators(blocks: int) -> Rows:
    model, pixels = Backbone(blocks), torch.randn(1, 3, 1008, 1008)
    with torch.no_grad():
        model(pixels)
        with profile(activities=[ProfilerActivity.CPU]) as taken:
            model(pixels)
    found = sorted(taken.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in found)
    return [
        {"what": f"{blocks} blocks, {event.key}", "calls": event.count,
         "ms": round(event.self_cpu_time_total / 1000, 1), "share": round(event.self_cpu_time_total / total, 4)}
        for event in found if event.self_cpu_time_total > 0.001 * total
    ]  # fmt: skip


def graph(nodes: list[Any], inputs: dict[str, Any], weights: dict[str, Any], file: Path) -> None:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, array.shape) for name, array in inputs.items()]
    out = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    stored = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    made = helper.make_graph(nodes, "g", values, out, stored)
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), file)


def session(file: Path, feed: dict[str, Any]) -> Callable[[], object]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    loaded = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return lambda: loaded.run(None, feed)


def linear(inputs: int, outputs: int, folder: Path) -> dict[str, Callable[[], object]]:
    x, w, b = torch.randn(TOKENS, inputs), torch.randn(outputs, inputs), torch.randn(outputs)
    packed = torch.ops.mkldnn._reorder_linear_weight(w, TOKENS)
    feed = {"x": x.numpy()}
    file = folder / f"{inputs}_{outputs}.onnx"
    graph(
        [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Add", ["m", "b"], ["y"])],
        feed, {"w": np.ascontiguousarray(w.numpy().T), "b": b.numpy()}, file,
    )  # fmt: skip
    request = compile_graph(file, "fp32", tower=True, threads=1)
    return {
        "PyTorch (MKL)": lambda: F.linear(x, w, b),
        "oneDNN, packed": lambda: torch.ops.mkldnn._linear_pointwise(x, packed, b, "none", [], ""),
        "ONNX Runtime": session(file, feed),
        "OpenVINO": lambda: request.infer(feed, share_inputs=True),
    }


def attention(folder: Path) -> dict[str, Callable[[], object]]:
    q = torch.randn(1, HEADS, TOKENS, WIDTH // HEADS)
    feed = {"q": q.numpy(), "k": q.transpose(2, 3).contiguous().numpy()}
    nodes = [
        helper.make_node("MatMul", ["q", "k"], ["s"]), helper.make_node("Softmax", ["s"], ["p"], axis=-1),
        helper.make_node("MatMul", ["p", "q"], ["y"]),
    ]  # fmt: skip
    graph(nodes, feed, {}, folder / "attention.onnx")
    return {
        "PyTorch (fused)": lambda: F.scaled_dot_product_attention(q, q, q),
        "ONNX Runtime (written out)": session(folder / "attention.onnx", feed),
    }


def rates(rounds: int, folder: Path) -> Rows:
    subjects: dict[str, tuple[float, dict[str, Callable[[], object]]]] = {
        f"linear {TOKENS:,} x {inputs:,} x {outputs:,}": (
            2.0 * TOKENS * inputs * outputs,
            linear(inputs, outputs, folder),
        )
        for inputs, outputs in ((WIDTH, WIDTH), (WIDTH, HIDDEN), (HIDDEN, WIDTH))
    }
    subjects[f"attention over {TOKENS:,} tokens"] = (4.0 * TOKENS * TOKENS * WIDTH, attention(folder))
    rows: Rows = []
    for what, (operations, calls) in subjects.items():
        best = dict.fromkeys(calls, float("inf"))
        for number in range(rounds + 1):
            for name in calls if number % 2 else reversed(calls):
                started = time.process_time()
                calls[name]()
                if number:
                    best[name] = min(best[name], time.process_time() - started)
        rows += [
            {"what": f"{what}, {name}", "ms": round(1000 * taken, 1), "gflops": round(operations / taken / 1e9, 1)}
            for name, taken in best.items()
        ]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        rows = [*rates(arguments.rounds, Path(folder)), *operators(arguments.blocks)]
    about = {
        "device": describe_device("cpu"), "flags": " ".join(cpu_flags()),
        **{name: version(name) for name in ("torch", "onnxruntime", "openvino")},
    }  # fmt: skip
    empty = dict.fromkeys(("what", "calls", "ms", "share", "gflops"))
    for row in rows:
        print({key: value for key, value in row.items() if value is not None}, flush=True)
    write_csv(RESULTS / "vision_profile.csv", [empty | row | about for row in rows])


if __name__ == "__main__":
    main()
