"""All rows, one process after another; what is finished is kept."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import sam3slim
from sam3slim.benchmarking.row import FAILED, FINISHED, REQUEST, RESULT, Asked
from sam3slim.benchmarking.table import write_rows
from sam3slim.checkpoints import locate
from sam3slim.checkpoints.locating import graph_format
from sam3slim.checkpoints.readers import read_artifact_metadata
from sam3slim.environment import choose_device, cpu_flags, describe_device, has_bf16, library_versions
from sam3slim.errors import UserError
from sam3slim.files import ensure_writable_dir, read_json, write_json
from sam3slim.launch.compose import compose_plain
from sam3slim.predict.opening import identity
from sam3slim.progress import progress_bar
from sam3slim.results.record import plain
from sam3slim.runs.specs import EvaluateSpec
from sam3slim.runtimes import RUNTIMES, Runtime, check_runtime, runtime_named
from sam3slim.runtimes.registry import AUTO, W8A8_STATIC, WEIGHTS, all_arithmetics, default_runtime
from sam3slim.strict import spec_from_dict

ROWS = "rows"
REPEATS = 10


@dataclass(frozen=True)
class BenchmarkSpec:
    """The options of ``sam3slim benchmark``, checked.

    Attributes:
        sources: artifacts or checkpoints.
        settings: of ``evaluate.py`` (``data=coco``, ``limit=50``): measure the mAP too; empty: do not.
        out: folder of rows and tables.
        runtimes, arithmetics: which; empty: all.
        prompts: numbers of prompts that are timed.
        repeats: forwards that are timed.
        device: ``auto``, ``cpu`` or ``cuda``; threads: None for PyTorch's own number.

    Raises:
        UserError: a value out of its range, or a name that is not known.
    """

    sources: Sequence[str]
    settings: Sequence[str] = ()
    out: str = "outputs/benchmark"
    runtimes: Sequence[str] = ()
    arithmetics: Sequence[str] = ()
    prompts: Sequence[int] = (1, 10, 80)
    repeats: int = REPEATS
    device: str = "auto"
    threads: int | None = None

    def __post_init__(self) -> None:
        if not self.sources:
            raise UserError("benchmark needs an artifact or a checkpoint, e.g. sam3slim benchmark assets/nano")
        for name in self.runtimes:
            runtime_named(name)
        for name in self.arithmetics:
            if name not in all_arithmetics():
                raise UserError(f"--arithmetic {name}: expected {', '.join(all_arithmetics())}")
        if not self.prompts or min(self.prompts) < 1:
            raise UserError(f"--prompts {','.join(map(str, self.prompts))}: expected numbers from 1 on, e.g. 1,10,80")
        for name in ("repeats", "threads"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"--{name} {value}: expected at least 1")


def benchmark(spec: BenchmarkSpec, *, progress: bool = True) -> list[dict[str, Any]]:
    """Every row, measured now or kept from before, and ``benchmark.csv`` and ``benchmark.md`` in the output folder.

    The first row of a source is the one that the others are compared with: PyTorch in FP32, or for graphs the runtime
    of their own. A row that fails has its reason; the same command tries it again.

    Raises:
        UserError: bad input, or a source whose first row fails: nothing could be compared with it.
    """
    out = ensure_writable_dir(Path(os.path.expanduser(spec.out)))
    device = choose_device(spec.device)
    threads = spec.threads or torch.get_num_threads()
    torch.set_num_threads(threads)  # what the machine's description says
    machine = {"device": describe_device(device), "flags": list(cpu_flags()), "versions": library_versions()}
    config = _config(spec.settings, out)
    planned = [
        Asked(
            str(source), identity(source), runtime.name, arithmetic, _place(runtime, device), threads,
            tuple(spec.prompts), spec.repeats, config, None, machine,
        )
        for source in spec.sources
        for runtime, arithmetic in subjects(source, spec, device)
    ]  # fmt: skip
    rows: list[dict[str, Any]] = []
    first: dict[str, Path] = {}
    with progress_bar(show=progress) as bar:
        task = bar.add_task("", total=len(planned))
        for asked in planned:
            bar.update(task, description=f"{Path(asked.source).name} {asked.runtime} {asked.arithmetic}")
            reference = first.get(asked.source)
            asked = replace(asked, reference=None if reference is None else str(reference))
            folder = out / ROWS / asked.key
            row = _measured(asked, folder)
            if reference is None:
                if row["status"] != FINISHED:
                    raise UserError(
                        f"{asked.source} does not run in {asked.runtime} {asked.arithmetic}, with which the others "
                        f"would be compared: {row['error']}"
                    )
                first[asked.source] = folder
            rows.append(row)
            write_rows(rows, out)
            bar.advance(task)
    return rows


def subjects(source: str, spec: BenchmarkSpec, device: torch.device) -> Iterator[tuple[Runtime, str]]:
    """Runtimes and arithmetics for ``source``, the one that the others are compared with first.

    Raises:
        CheckpointError: no checkpoint.
    """
    located = locate(source)
    kind = graph_format(located) or WEIGHTS
    written = str(read_artifact_metadata(located.path)["precision"]) if kind != WEIGHTS else "fp32"
    own = RUNTIMES[default_runtime(kind)]
    first = own, "fp32" if kind == WEIGHTS or (kind == "onnx" and written == "fp32") else AUTO
    yield first
    for runtime in RUNTIMES.values():
        if kind not in runtime.kinds or (spec.runtimes and runtime.name not in spec.runtimes):
            continue
        able = runtime.arithmetics if kind == WEIGHTS or (kind == "onnx" and written == "fp32") else (AUTO,)
        if kind == "onnx" and runtime.name == "onnx":
            able = (first[1],)  # ONNX Runtime runs graphs as they are written
        for arithmetic in able:
            asked = arithmetic in spec.arithmetics if spec.arithmetics else _is_fast(arithmetic, runtime, device)
            if not spec.arithmetics and not spec.settings and arithmetic == W8A8_STATIC:
                continue  # without data there is nothing to calibrate it on
            if asked and (runtime, arithmetic) != first:
                yield runtime, arithmetic


def _is_fast(arithmetic: str, runtime: Runtime, device: torch.device) -> bool:
    """Half precision is left out where no instruction multiplies in it, unless it is asked for."""
    if arithmetic not in ("fp16", "bf16") or _place(runtime, device) == "cuda":
        return True
    return arithmetic == "bf16" and has_bf16()


def _place(runtime: Runtime, device: torch.device) -> str:
    return device.type if device.type in runtime.devices else runtime.devices[0]


def _config(settings: Sequence[str], out: Path) -> dict[str, Any] | None:
    """Of ``evaluate.py``, checked; None where nothing is to be evaluated."""
    if not settings:
        return None
    ours = ("checkpoint", "runtime", "arithmetic", "device", "threads", "latency", "reference")
    for setting in settings:
        if (key := setting.partition("=")[0].lstrip("+~")) in ours:
            raise UserError(f"{setting}: benchmark sets {key} for every row; leave it out (docs/runtimes.md)")
    config = compose_plain("evaluate", ["checkpoint=artifact", *settings], out)
    spec_from_dict(EvaluateSpec, config, "").data.find()
    return config


def _measured(asked: Asked, folder: Path) -> dict[str, Any]:
    """The row in ``folder``, which is measured unless it is finished."""
    result = folder / RESULT
    if result.is_file():
        with suppress(UserError):
            found = read_json(result, "run the benchmark again")
            if found.get("status") == FINISHED:
                return found
    try:
        check_runtime(asked.runtime, asked.arithmetic)
    except UserError as error:
        return {"status": FAILED, "error": str(error), "asked": _told(asked)}
    ensure_writable_dir(folder)
    result.unlink(missing_ok=True)
    asked.write(folder / REQUEST)
    # The same code, wherever this process found it; no network, whatever a library would like to look up.
    path = os.pathsep.join([str(Path(sam3slim.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path.rstrip(os.pathsep), "HF_HUB_OFFLINE": "1"}
    with (folder / "log.txt").open("w") as log:
        done = subprocess.run(
            [sys.executable, "-m", "sam3slim.benchmarking.worker", str(folder)], env=environment, check=False,
            stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
    if done.returncode == 130:
        raise KeyboardInterrupt
    if not result.is_file():
        why = f"its process ended with status {done.returncode} (negative: killed by that signal, 9 for lack of memory)"
        write_json(result, {"status": FAILED, "error": f"{why}; see {folder / 'log.txt'}", "asked": _told(asked)})
    return read_json(result, "run the benchmark again")


def _told(asked: Asked) -> dict[str, Any]:
    told: dict[str, Any] = plain(replace(asked, config=None))
    return told
