"""A data loader that shuffles by (seed, epoch), resumes inside an epoch, and keeps bad input to one line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, DistributedSampler

from sam3slim.data.batch import Batch, Sample
from sam3slim.data.collate import Collate
from sam3slim.data.mixed import Concepts
from sam3slim.data.views import View, Views
from sam3slim.errors import UserError


class EpochSampler(DistributedSampler[Sample]):
    """Order of the images, dealt out to the ranks: shuffled by (seed, epoch), or as in the file.

    A ``DistributedSampler``, so that Lightning leaves it in place. Without shuffling no image is repeated to
    even out the ranks, because evaluation would count it twice.

    Args:
        views: at which size every batch of ``batch_size`` images is shown; None: at the data set's own.
    """

    def __init__(
        self,
        dataset: Concepts,
        *,
        shuffle: bool,
        seed: int,
        world_size: int = 1,
        rank: int = 0,
        views: Views | None = None,
        batch_size: int = 1,
    ) -> None:
        super().__init__(dataset, num_replicas=world_size, rank=rank, shuffle=shuffle, seed=seed)
        self._skip, self._views, self._batch_size = 0, views, batch_size

    def begin(self, epoch: int, skip: int) -> None:
        """Set order, negatives and augmentations of ``epoch``, and leave out its first ``skip`` images."""
        assert isinstance(self.dataset, Concepts)
        self.epoch, self._skip = epoch, skip
        self.dataset.set_epoch(epoch)

    def set_epoch(self, epoch: int) -> None:
        """Nothing: Lightning's count differs between a resumed and an unbroken run, the loader's does not."""

    def __iter__(self) -> Iterator[int | View]:  # type: ignore[override]  # torch types it by sample, not index
        order: list[Any] = list(super().__iter__()) if self.shuffle else list(self._mine())
        if self._views is not None:
            order = list(self._views.of(order, self.epoch, self._batch_size))
        return iter(order[self._skip :])

    def __len__(self) -> int:
        return super().__len__() if self.shuffle else len(self._mine())

    def _mine(self) -> range:
        assert isinstance(self.dataset, Concepts)
        return range(self.rank, len(self.dataset), self.num_replicas)


class ConceptLoader(DataLoader[Sample]):
    """Batches of one data set or of several; every iteration is the next epoch.

    ``state_dict``, which Lightning puts into its checkpoints, makes a resumed epoch go on where it was.

    Args:
        limit: ``trainer.limit_train_batches``, after which Lightning ends an epoch: a number, or a share below 1.0.
        views: see ``EpochSampler``.
    """

    def __init__(
        self,
        dataset: Concepts,
        collate: Collate,
        *,
        batch_size: int,
        training: bool,
        num_workers: int = 0,
        seed: int = 0,
        world_size: int = 1,
        rank: int = 0,
        limit: float = 1.0,
        views: Views | None = None,
    ) -> None:
        # (epoch, batches handed out) of this iteration and of the next one.
        self._now, self._next = (0, 0), (0, 0)
        sampler = EpochSampler(
            dataset, shuffle=training, seed=seed, world_size=world_size, rank=rank, views=views, batch_size=batch_size
        )
        super().__init__(
            dataset,
            batch_size=batch_size,
            # A last small batch would weigh its images more; a set smaller than one batch still trains.
            drop_last=training and len(sampler) >= batch_size,
            sampler=sampler,
            collate_fn=collate,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator().manual_seed(seed),
        )
        self._taken = min(limit, len(self)) if isinstance(limit, int) else int(len(self) * limit)

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        assert isinstance(self.sampler, EpochSampler)
        assert self.batch_size is not None
        epoch, done = self._now = self._next
        self._next = (epoch + 1, 0)
        self.sampler.begin(epoch, skip=done * self.batch_size)
        try:
            for count, batch in enumerate(super().__iter__(), start=done + 1):
                # Lightning asks for the state after the step on this batch.
                self._now = (epoch, count)
                yield batch
        except UserError as error:
            # A worker's exception arrives with its traceback as text; the last line is the message.
            line = str(error).strip().splitlines()[-1]
            raise UserError(line.removeprefix("sam3slim.errors.UserError: ")) from error

    def state_dict(self) -> dict[str, Any]:
        """Epoch and number of its batches that have been handed out."""
        epoch, batches = self._now
        return {"epoch": epoch, "batches": batches} if batches < self._taken else {"epoch": epoch + 1, "batches": 0}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next iteration go on where ``state_dict`` was taken."""
        self._now = self._next = (int(state["epoch"]), int(state["batches"]))
