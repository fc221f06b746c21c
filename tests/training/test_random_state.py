"""Every process goes on with its own random numbers."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import torch

from sam3slim.training import RandomState
from tests.processes import run_two


def one_process(rank: int, port: int) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    torch.manual_seed(0)
    torch.rand(1 + rank)  # one has drawn more than the other
    kept = RandomState().state_dict()
    expected = torch.rand(3)
    # A checkpoint is the first process's.
    (kept,) = _broadcast([kept])
    torch.manual_seed(99)
    again, trainer = RandomState(), SimpleNamespace(world_size=2, global_rank=rank)
    again.load_state_dict(kept)
    again.on_train_start(trainer, None)  # type: ignore[arg-type]
    assert torch.equal(torch.rand(3), expected)
    torch.distributed.destroy_process_group()


def _broadcast(values: list[Any]) -> list[Any]:
    torch.distributed.broadcast_object_list(values, src=0)
    return values


def test_random_state__of_every_process(unused_port: int) -> None:
    run_two(one_process, unused_port)


def test_random_state__another_number_of_processes_starts_anew() -> None:
    torch.manual_seed(0)
    kept = RandomState().state_dict()
    again = RandomState()
    again.load_state_dict(kept)
    torch.manual_seed(7)
    expected = torch.rand(2)
    torch.manual_seed(7)
    again.on_train_start(SimpleNamespace(world_size=2, global_rank=1), None)  # type: ignore[arg-type]
    assert torch.equal(torch.rand(2), expected)
