"""A process that has written a model can still start trainings in processes that it forks."""

from __future__ import annotations

import json
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
# What is written in a process of its own, by what it says afterwards of training in a process that it forks.
WRITE = {
    "reference": "write_reference(folder / 'w.pt', {'w': torch.ones(2)})",
    "onnx": "trace(nn.Linear(2, 2), (torch.ones(2, 2),), folder / 'w.onnx', inputs=['x'], outputs=['y'],"
    " dynamic_shapes=({},))",
    "torch-export": "export_programs(small_model(SPEC), folder / 'w')",
    "plan": "with without_data(): torch.ones(2)",
    "fake": "with FakeTensorMode(): torch.ones(2)",
}
# Every line in a process of its own, forked from one that has computed nothing: importing takes long. There gradients
# in the process itself, whose engine counts accelerators, and then in one it forks.
SCRIPT = """
import json
import sys
from pathlib import Path

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from sam3slim.artifacts.reference_file import write_reference
from sam3slim.graphs import export_programs
from sam3slim.graphs.trace import trace
from sam3slim.launch.child import in_child
from sam3slim.planning.fake import without_data
from tests.small import small_model
from tests.tiny import SPEC

def gradient():
    try:
        torch.ones((), requires_grad=True).backward()
    except RuntimeError as error:
        return str(error)
    return "trained"

def after(line):
    exec(line, globals())
    gradient()
    return in_child(gradient)

folder = Path(sys.argv[1])
for name, line in json.loads(sys.argv[2]).items():
    (folder / name).write_text(in_child(lambda: after(line)))
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file for every line of ``WRITE``."""
    folder = tmp_path_factory.mktemp("forks")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder), json.dumps(WRITE)],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


@pytest.mark.parametrize("write", [name for name in WRITE if name != "fake"])
def test_writers__leave_autograd_fit_to_fork(said: Path, write: str) -> None:
    assert (said / write).read_text() == "trained"


def test_fake_tensors__alone_do_not(said: Path) -> None:
    assert "Autograd-and-Fork" in (said / "fake").read_text()
