"""``trainer=fsdp``: weights, gradients and optimiser state shared out over all processes (FSDP2)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from sam3slim.models import Sam3

# Stacks of equal layers: each layer is gathered when its turn comes, and given up after it. The decoder's layers are
# not among them: for the one-to-many branch their parts are called one by one.
STACKS = (
    "vision_encoder.backbone.layers",
    "text_encoder.text_model.encoder.layers",
    "geometry_encoder.layers",
    "detr_encoder.layers",
)


class FullySharded(ModelParallelStrategy):
    """Lightning's strategy for FSDP2 with every process in one data-parallel group, and ordinary checkpoints.

    Unlike Lightning's ``FSDPStrategy`` (FSDP1) it clips gradients by norm, keeps the shapes that decide on weight
    decay, and runs on CPUs too (gloo), where tests compare it with one process.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False, **settings)

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()


def shard(model: Sam3, mesh: DeviceMesh) -> None:
    """Share out the parameters of ``model`` in place, layer by layer; once. They are the first process's.

    Every process has cut and fitted its model itself; where two came to another last digit, shares would be of
    different models. DDP does the same.
    """
    if isinstance(model, FSDPModule):
        return
    for tensor in model.state_dict().values():
        there = tensor.to(mesh.device_type)
        torch.distributed.broadcast(there, src=0)
        tensor.copy_(there)
    for name in STACKS:
        stack = model.get_submodule(name)
        assert isinstance(stack, nn.ModuleList)
        for layer in stack:
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


@contextmanager
def gathered(model: Sam3) -> Iterator[None]:
    """Whole weights in every process while the body runs, so that they need not go step by step together.

    Evaluation deals images out as they are: a process with a batch more would wait for ever to gather a layer. It also
    calls the model's towers one by one, for which FSDP does not gather by itself. Does nothing to an ordinary model.
    """
    parts = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for module in parts:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in parts:
            module.set_reshard_after_forward(module is not model, recurse=False)
            module.reshard()
