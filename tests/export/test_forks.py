"""A process that has written a model can still start trainings in processes that it forks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sam3slim.launch.child import FORKS

pytestmark = pytest.mark.skipif(
    not FORKS or torch.accelerator.is_available(), reason="needs a system that forks, without a GPU"
)
ROOT = Path(__file__).resolve().parents[2]
FAKE = "with FakeTensorMode(): torch.ones(2)"
WRITE = {
    "reference": "write_reference(folder / 'w.pt', {'w': Pending((2,), torch.float32, lambda: torch.ones(2))})",
    "onnx": "trace(nn.Linear(2, 2), (torch.ones(2, 2),), folder / 'w.onnx', inputs=['x'], outputs=['y'],"
    " dynamic_shapes=({},))",
    "torch-export": "export_programs(small_model(SPEC), folder / 'w')",
}
# Gradients in this process, whose engine counts accelerators, and then in one it forks.
SCRIPT = """
import sys
from pathlib import Path

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from sam3slim.checkpoints.reference_file import Pending, write_reference
from sam3slim.onnx import export_programs
from sam3slim.onnx.trace import trace
from sam3slim.launch.child import in_child
from tests.small import small_model
from tests.tiny import SPEC

def gradient():
    try:
        torch.ones((), requires_grad=True).backward()
    except RuntimeError as error:
        return str(error)
    return "trained"

folder = Path(sys.argv[1])
{write}
gradient()
print(in_child(gradient))
"""


def after(write: str, folder: Path) -> str:
    """What a forked process says after the line ``write`` has been run in a fresh one."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.replace("{write}", write), str(folder)],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip().splitlines()[-1]


@pytest.mark.parametrize("write", WRITE.values(), ids=WRITE.keys())
def test_writers__leave_autograd_fit_to_fork(tmp_path: Path, write: str) -> None:
    assert after(write, tmp_path) == "trained"


def test_fake_tensors__alone_do_not(tmp_path: Path) -> None:
    assert "Autograd-and-Fork" in after(FAKE, tmp_path)
