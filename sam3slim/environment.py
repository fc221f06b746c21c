"""What a run ran on: code, libraries, hardware."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sam3slim.errors import UserError

if TYPE_CHECKING:
    import torch

LIBRARIES = (
    "sam3slim",
    "torch",
    "torchvision",
    "transformers",
    "lightning",
    "pycocotools",
    "torchao",
    "onnxruntime",
    "openvino",
)


def git_state(folder: str | Path) -> dict[str, Any] | None:
    """{"sha", "dirty"} of the checkout whose code ``folder`` is; None for an installed copy or without git.

    "dirty" means that tracked files differ from the commit, or that there are new ones git does not ignore.
    """

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *arguments],
                capture_output=True,
                text=True,
                timeout=20,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # A package installed below some other repository is not that repository's code.
    if not git("ls-files", "--", "."):
        return None
    sha, changes = git("rev-parse", "HEAD"), git("status", "--porcelain")
    return None if sha is None or changes is None else {"sha": sha, "dirty": bool(changes)}


def library_versions() -> dict[str, str | None]:
    """Version of Python and of each library that numbers depend on; None where it is not installed."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def describe_device(device: torch.device | str | None = None, threads: int | None = None) -> str:
    """Name of the GPU, or of the CPU with its ``threads`` (None: torch's); None: the GPU if there is one."""
    import torch  # seconds, which reading records has no use for

    kind = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if kind.type == "cuda":
        return torch.cuda.get_device_name(kind)
    return f"{_cpu_name()}, {threads or torch.get_num_threads()} threads"


def choose_device(name: str = "auto") -> torch.device:
    """``auto`` is the GPU if there is one, else the CPU. Raises UserError for a device that is not there."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"device {name} is not a device; use auto, cpu or cuda") from error
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device {name} is not supported; use auto, cpu or cuda")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device {name}: no such CUDA device here; use auto or cpu")
    return device


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


# What the speed of products in FP32, bfloat16 and INT8 depends on.
CPU_FLAGS = (
    "avx2",
    "avx512f",
    "avx_vnni",
    "avx512_vnni",
    "avx512_bf16",
    "amx_bf16",
    "amx_int8",
    "asimddp",
    "i8mm",
    "bf16",
)


def cpu_flags() -> tuple[str, ...]:
    """Those of ``CPU_FLAGS`` that the CPU has; empty where the system does not tell."""
    info = Path("/proc/cpuinfo")
    text = info.read_text(errors="replace") if info.is_file() else ""
    line = next((line for line in text.splitlines() if line.lower().startswith(("flags", "features"))), "")
    there = set(line.partition(":")[2].split())
    return tuple(flag for flag in CPU_FLAGS if flag in there)


def has_bf16() -> bool:
    """Whether the CPU multiplies in bfloat16 by itself."""
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(cpu_flags()))


def release_memory() -> None:
    """Give freed memory back to the system; glibc would keep gigabytes of it after a loop over large tensors."""
    with suppress(OSError, AttributeError):  # other C libraries have no such function
        ctypes.CDLL(None).malloc_trim(0)


def before_fake_tensors() -> None:
    """Let autograd count this machine's accelerators while PyTorch still knows their number.

    It does so at a process's first backward pass, and starts a thread for each. FakeTensorMode, and with it
    torch.export, pretends from its first use on that there is a GPU where there is none: with a thread for that one,
    no process that is forked later (``trainer.strategy=ddp_fork``) could train.
    """
    import torch

    if not torch.accelerator.is_available():
        with torch.inference_mode(False), torch.enable_grad():
            torch.ones((), requires_grad=True).backward()  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class Process:
    """Which of how many processes this is, before Lightning knows."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1


def this_process() -> Process:
    """As torchrun says, or srun; else the only one.

    ``sbatch`` alone also sets Slurm's number of tasks, in a script that runs once: a step of ``srun`` has its own.
    """
    for rank, local, world in (
        ("RANK", "LOCAL_RANK", "WORLD_SIZE"),
        ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS"),
    ):
        if rank in os.environ and world in os.environ:
            return Process(int(os.environ[rank]), int(os.environ.get(local, "0")), int(os.environ[world]))
    return Process()


def local_rank() -> int:
    """Which of this machine's processes this is: torchrun's and srun's, or those that Lightning starts itself.

    Lightning tells its own only this much (and the number of processes), which is too little for ``this_process``.
    """
    return this_process().local_rank or int(os.environ.get("LOCAL_RANK", "0"))
