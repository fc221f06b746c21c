"""Weights beside any object: harmless ones are left out, code is named and never run."""

from __future__ import annotations

import argparse
import collections
import pathlib
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from sam3slim.checkpoints import inspect, load, locate
from sam3slim.checkpoints.readers import read
from sam3slim.models import Sam3
from sam3slim.models.build import state_shapes
from tests.checkpoints.reading import HEADS, State, refusal


class Config(dict[str, Any]):
    """As yacs, addict and ml_collections have them."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


class Names(list[str]):
    pass


OBJECTS: dict[str, Callable[[], Any]] = {
    "numpy scalar": lambda: np.float64(0.5),
    "numpy array": lambda: np.arange(3),
    "numpy random state": lambda: np.random.get_state(),
    "Namespace": lambda: argparse.Namespace(lr=0.1, deep=argparse.Namespace(x=1)),
    "Path": lambda: pathlib.Path("runs/1"),
    "OmegaConf": lambda: OmegaConf.create({"a": [1, {"b": 2}], "c": "${a}"}),
    "defaultdict": lambda: collections.defaultdict(list, {"a": [1]}),
    "deque": lambda: collections.deque([1, 2], maxlen=3),
    "dict of its own": lambda: Config(a=1, b=Config(c=2)),
    "list of its own": lambda: Names(["a", "b"]),
    "set and frozenset": lambda: {frozenset((1, 2)), "x"},
    "enum": lambda: argparse._ActionsContainer and re.IGNORECASE,
    "datetime": lambda: __import__("datetime").datetime(2026, 1, 1),
    "class": lambda: argparse.Action,
    "function": lambda: torch.nn.functional.relu,
    "partial": lambda: __import__("functools").partial(max, 1),
    "complex": lambda: 1 + 2j,
    "exception": lambda: ValueError("x"),
    "scheduler": lambda: torch.optim.lr_scheduler.StepLR(torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.1), 3),
}


@pytest.mark.parametrize("case", OBJECTS)
def test_pickle__harmless_objects_are_left_out(state: State, tmp_path: Path, case: str) -> None:
    for zipped in (True, False):
        content = {"model": state, "args": OBJECTS[case]()}
        torch.save(content, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
        raw = read(locate(tmp_path / "x.pt"), HEADS)
        assert not raw.unexpected
        assert raw.tensors.keys() == state_shapes(raw.spec).keys()


def test_pickle__what_was_left_out_is_named(state: State, tmp_path: Path) -> None:
    torch.save({"model": state, "args": argparse.Namespace(), "best": np.float64(1)}, tmp_path / "x.pt")
    report = load(tmp_path / "x.pt", overrides=HEADS)[1]
    assert "argparse.Namespace" in report.left_out
    assert inspect(tmp_path / "x.pt", HEADS).to_dict()["not_loaded"] == report.left_out


class Calls:
    """Runs ``function`` where it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("evil", "name"),
    [
        (Calls(__import__("os").system, "touch run"), "posix.system"),
        (Calls(eval, "open('run', 'w')"), "builtins.eval"),
        (Calls(exec, "open('run', 'w')"), "builtins.exec"),
        (Calls(open, "run", "w"), ".open"),
        (Calls(subprocess.Popen, ["touch", "run"]), ".Popen"),
        (Calls(__import__("runpy").run_path, "x.py"), "runpy.run_path"),
        (Calls(__import__("shutil").rmtree, "."), "shutil.rmtree"),
        (Calls(pytest.fail, "was run"), "_pytest"),
    ],
)
def test_pickle__code_is_named_and_not_run(
    state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, evil: Calls, name: str, zipped: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": state, "args": evil}, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    message = refusal(tmp_path / "x.pt")
    assert "never run" in message
    assert name in message
    assert [path.name for path in tmp_path.iterdir()] == ["x.pt"]


def test_pickle__sharded_tensors_are_named_with_advice_that_works(
    model: Sam3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import distribute_tensor

    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        layer = nn.Linear(2, 2)
        torch.save({"model": {"x.weight": distribute_tensor(layer.weight.detach(), mesh)}}, tmp_path / "x.pt")
        whole = get_model_state_dict(layer, options=StateDictOptions(full_state_dict=True))
    finally:
        torch.distributed.destroy_process_group()
    code = f"import sam3slim; sam3slim.load({str(tmp_path / 'x.pt')!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    message = done.stderr.strip().splitlines()[-1]
    assert "DTensor" in message
    assert "StateDictOptions(full_state_dict=True)" in message
    assert torch.equal(whole["weight"], layer.weight)
