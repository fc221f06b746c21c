"""A data loader that shuffles by (seed, epoch), resumes inside an epoch, and keeps bad input to one line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, DistributedSampler

from sam3slim.data.batch import Batch, Sample
from sam3slim.data.coco import CocoConcepts
from sam3slim.data.collate import Collate
from sam3slim.errors import UserError


class EpochSampler(DistributedSampler[Sample]):
    """Order of the images, dealt out to the ranks: shuffled by (seed, epoch), or as in the file.

    Lightning calls ``set_epoch`` and leaves a ``DistributedSampler`` in place. Without shuffling no image
    is repeated to even out the ranks, because evaluation would count it twice.
    """

    def __init__(
        self, dataset: CocoConcepts, *, shuffle: bool, seed: int, world_size: int = 1, rank: int = 0
    ) -> None:
        super().__init__(dataset, num_replicas=world_size, rank=rank, shuffle=shuffle, seed=seed)
        # Images that the next iteration leaves out, because a resumed epoch has had them.
        self.skip = 0

    def set_epoch(self, epoch: int) -> None:
        """Start another order, other negatives and other augmentations."""
        super().set_epoch(epoch)
        assert isinstance(self.dataset, CocoConcepts)
        self.dataset.set_epoch(epoch)

    def __iter__(self) -> Iterator[int]:  # type: ignore[override]  # torch types it by sample, not index
        skip, self.skip = self.skip, 0
        order: list[Any] = list(super().__iter__()) if self.shuffle else list(self._mine())
        return iter(order[skip:])

    def __len__(self) -> int:
        return super().__len__() if self.shuffle else len(self._mine())

    def _mine(self) -> range:
        assert isinstance(self.dataset, CocoConcepts)
        return range(self.rank, len(self.dataset), self.num_replicas)


class ConceptLoader(DataLoader[Sample]):
    """Batches of a ``CocoConcepts``; ``state_dict`` makes a resumed epoch go on with its next batch."""

    def __init__(
        self,
        dataset: CocoConcepts,
        collate: Collate,
        *,
        batch_size: int,
        training: bool,
        num_workers: int = 0,
        seed: int = 0,
        world_size: int = 1,
        rank: int = 0,
    ) -> None:
        self._done, self._resume_at = 0, 0
        sampler = EpochSampler(dataset, shuffle=training, seed=seed, world_size=world_size, rank=rank)
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

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        assert isinstance(self.sampler, EpochSampler)
        assert self.batch_size is not None
        start, self._resume_at = self._resume_at, 0
        self.sampler.skip = start * self.batch_size
        try:
            for count, batch in enumerate(super().__iter__(), start=start + 1):
                # Lightning asks for the state after the step on this batch.
                self._done = count
                yield batch
        except UserError as error:
            # A worker's exception arrives with its traceback as text; the last line is the message.
            line = str(error).strip().splitlines()[-1]
            raise UserError(line.removeprefix("sam3slim.errors.UserError: ")) from error

    def state_dict(self) -> dict[str, Any]:
        """Epoch and batches handed out in it."""
        assert isinstance(self.sampler, EpochSampler)
        return {"epoch": self.sampler.epoch, "batches": self._done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Start the next iteration behind the batches already handed out."""
        assert isinstance(self.sampler, EpochSampler)
        self.sampler.set_epoch(int(state["epoch"]))
        self._resume_at = int(state["batches"]) % max(len(self), 1)
