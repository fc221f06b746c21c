"""Everything that is to be known of one GPU, in at most ten minutes, with random weights and without a network.

    python benchmarks/gpu.py [--small] [--device cuda|cpu] [--minutes 10] [--out benchmarks/results]

Five sections at the sizes of SAM 3: the CPU's answers against the GPU's in FP32, bf16 and fp16; an optimiser step of
every full-size experiment with its peak of memory beside the plan's; images per second of training, with and without
torch.compile; of evaluation and prediction; latency by stored precision. After every section all rows so far are in
``gpu.csv`` (section, case, quantity, value, unit, note), and in ``gpu.md`` for a reader, with hardware, versions, date
and commit. A case that fails, or has no time left, is a row that says why.

``--small`` takes the same path with a tiny model in seconds, and needs no GPU with ``--device cpu``.
"""

from __future__ import annotations

import argparse
import gc
import logging
import math
import sys
import warnings
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch
from gpu_inference import latency, parity, pictures
from gpu_rows import NOT_MEASURED, Measure, Recorder, reason_of
from gpu_subjects import Subjects, full_sizes, small_sizes
from gpu_training import experiments, throughput

from sam3slim.environment import describe_device, git_state, library_versions
from sam3slim.errors import UserError
from sam3slim.files import ensure_writable_dir
from sam3slim.predict.opening import choose_device

ROOT = Path(__file__).parent.parent
Section = Callable[[Recorder, Subjects], None]
# Each with the share of the time that may be over when it ends; the rest is for importing, and for a last kernel.
SECTIONS: dict[str, tuple[float, Section]] = {
    "CPU and GPU agree": (0.12, parity),
    "A step of each experiment": (0.42, experiments),
    "Training": (0.72, throughput),
    "Evaluation and prediction": (0.85, pictures),
    "Latency": (0.97, latency),
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a tiny model, to try the benchmark itself")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    given = parser.parse_args(arguments)
    if not 0 < given.minutes < math.inf:
        parser.error(f"--minutes {given.minutes:g} must be above 0")
    try:
        device = choose_device(given.device)
        ensure_writable_dir(given.out)
    except UserError as error:
        parser.error(str(error))
    # Lightning's remarks are about runs.
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    gc.freeze()  # the collection after every case need not look through all that was imported
    recorder, subjects = Recorder(given.minutes), Subjects(small_sizes() if given.small else full_sizes(), device)
    stem = "gpu" + ("" if device.type == "cuda" else f"_{device.type}") + ("_small" if given.small else "")
    metadata = about(device, sys.argv[1:] if arguments is None else arguments)
    for section, (share, run) in SECTIONS.items():
        recorder.begin(section, share)
        try:
            run(recorder, subjects)
        except Exception as error:  # outside its cases
            recorder.add("all", Measure(NOT_MEASURED, None, "", reason_of(error)))
        recorder.write(
            given.out, stem, f"Benchmark of {describe_device(device)}", metadata | {"seconds": round(recorder.seconds)}
        )
    recorder.say(f"written: {given.out / stem}.csv, {given.out / stem}.md")


def about(device: torch.device, arguments: Sequence[str]) -> dict[str, object]:
    """Hardware, versions, date and commit."""
    state = git_state(ROOT)
    metadata: dict[str, object] = {
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "command": " ".join(["python benchmarks/gpu.py", *arguments]),
        "commit": "unknown" if state is None else state["sha"] + (", with changes" if state["dirty"] else ""),
        "CPU": describe_device("cpu"),
        "CUDA of PyTorch's build": torch.version.cuda or "none",
        **{name: version for name, version in library_versions().items() if version},
    }
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        metadata |= {
            "GPU": f"{card.name}, {card.total_memory / 2**30:.1f} GiB, compute capability {card.major}.{card.minor}",
            "cuDNN": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        }
    return metadata


if __name__ == "__main__":
    main()
