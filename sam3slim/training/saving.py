"""How Lightning's checkpoints come to disk."""

from __future__ import annotations

from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from sam3slim.files import atomic_path


class StreamedCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint while it is serialised, under a temporary name.

    Lightning's own makes the whole file in memory first: 10 GB for SAM 3 with Adam's moments, on top of the training.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write ``checkpoint`` to the local ``path``; what was there stays until the new one is whole.

        Raises:
            TypeError: with ``storage_options``, which are for remote paths.
            UserError: the folder cannot be written to, or the disk is full.
        """
        if storage_options is not None:
            raise TypeError("checkpoints are written to local folders, which have no storage_options")
        # Into an open file: to a name, torch.save reports a full disk as an error of its zip writer's.
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            torch.save(checkpoint, file)
