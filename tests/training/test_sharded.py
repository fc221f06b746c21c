"""All shares are of one model."""

from __future__ import annotations

import os

import torch
from torch.distributed.device_mesh import init_device_mesh

from sam3slim.training.sharded import gathered, shard
from tests.processes import run_two
from tests.tiny import tiny_model


def one_process(rank: int, port: int) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    model, first = tiny_model(rank), tiny_model(0).state_dict()
    assert rank == 0 or any(not torch.equal(value, first[name]) for name, value in model.state_dict().items())
    shard(model, init_device_mesh("cpu", (2,)))
    with gathered(model):
        for name, value in model.named_parameters():
            assert torch.equal(value, first[name]), name
    torch.distributed.destroy_process_group()


def test_shard__of_the_first_process_model(unused_port: int) -> None:
    run_two(one_process, unused_port)
