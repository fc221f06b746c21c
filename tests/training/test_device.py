"""Every process of a training has its own GPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sam3slim.launch.compose import compose_plain
from sam3slim.runs.initial import training_device
from sam3slim.runs.specs import TrainSpec
from sam3slim.strict import spec_from_dict
from tests.tiny import OVERRIDES
from tests.tiny_runs import data


@pytest.mark.parametrize(
    ("devices", "local", "expected"),
    [(1, "0", 0), ("auto", "3", 3), ([3], "0", 3), ([2, 3], "1", 3), ([2, 3], "0", 2), (8, "7", 7)],
)
def test_training_device__of_each_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, devices: Any, local: str, expected: int
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", local)
    spec = spec_from_dict(TrainSpec, compose_plain("train", [*OVERRIDES, *data(tmp_path)], tmp_path), "")
    asked = replace(spec, trainer={**spec.trainer, "accelerator": "gpu", "devices": devices})
    assert training_device(asked) == torch.device("cuda", expected)
    assert training_device(replace(spec, trainer={**spec.trainer, "accelerator": "cpu"})) == torch.device("cpu")
