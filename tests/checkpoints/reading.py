"""Reading files of weights, and what refuses them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sam3slim.checkpoints import CheckpointError, LoadReport, load
from sam3slim.models import Sam3

HEADS = {"text.num_heads": 2}
State = dict[str, Tensor]


def assert_loads(content: Any, model: Sam3, path: Path, **options: Any) -> LoadReport:
    torch.save(content, path)
    found, report = load(path, overrides={**HEADS, **options})
    assert_weights(found, model)
    return report


def assert_weights(found: Sam3, model: Sam3) -> None:
    for key, value in model.state_dict().items():
        assert torch.equal(found.state_dict()[key], value), key


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(path, overrides={**HEADS, **options})
    message = str(caught.value)
    assert "\n" not in message
    assert "\x1b" not in message
    return message
