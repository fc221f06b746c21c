"""Several data sets as one to train on: every image keeps the prompts, negatives and masks of its own set."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from sam3slim.data.batch import Sample
from sam3slim.data.coco import CocoConcepts
from sam3slim.data.views import View
from sam3slim.errors import UserError


class MixedConcepts(Dataset[Sample]):
    """An epoch of several training sets.

    A set of n images and weight w gives round(w · n) of them to an epoch, at least one. They are dealt from a shuffled
    deck that is reshuffled when it is empty, so that whatever the weight is, no image of a set is seen twice before all
    of them have been seen once. What an image is asked for comes from its own set: a phrase of another set that nobody
    annotated there is not a negative.

    Args:
        sets: by name, under the training protocol.
        weights: by name, above 0.
        seed: of the decks.

    Raises:
        UserError: sets with masks beside sets of boxes alone.
    """

    def __init__(self, sets: Mapping[str, CocoConcepts], weights: Mapping[str, float], seed: int = 0) -> None:
        self.sets, self.seed = dict(sets), seed
        self.counts = {name: max(round(weights[name] * len(dataset)), 1) for name, dataset in sets.items()}
        boxes_only = [
            name for name, dataset in sets.items() if not dataset.has_masks and not dataset.prompts.unlabelled
        ]
        if boxes_only and len(boxes_only) < len(sets):
            masks = next(name for name in sets if name not in boxes_only)
            raise UserError(
                f"data.sets.{boxes_only[0]} has boxes only and data.sets.{masks} has masks; a training learns masks "
                f"from all of its sets or from none: leave one out (data.sets.{boxes_only[0]}.root=null)"
            )
        # Shared memory, because worker processes outlive an epoch.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    @property
    def has_masks(self) -> bool:
        """Whether targets have masks."""
        return all(dataset.has_masks for dataset in self.sets.values())

    def __len__(self) -> int:
        return sum(self.counts.values())

    def __getitem__(self, item: int | View) -> Sample:
        view = item if isinstance(item, View) else View(item)
        index = view.place
        for number, (name, dataset) in enumerate(self.sets.items()):
            count = self.counts[name]
            if index < count:
                deck, place = divmod(int(self._epoch) * count + index, len(dataset))
                # How often the image has been dealt before stands for the epoch: what it is asked changes each time.
                dealt = int(_deck(self.seed, number, deck, len(dataset))[place])
                return dataset.at(view._replace(place=dealt), deck)
            index -= count
        raise IndexError(view.place)

    def set_epoch(self, epoch: int) -> None:
        """Deal the images of ``epoch``, also in running workers."""
        self._epoch.fill_(epoch)

    def describe(self) -> str:
        """One line: images of an epoch by set."""
        shares = (f"{name} {count} of {len(self.sets[name])}" for name, count in self.counts.items())
        return f"an epoch has {len(self)} images: {', '.join(shares)}"


Concepts = CocoConcepts | MixedConcepts


@lru_cache(maxsize=32)
def _deck(seed: int, number: int, deck: int, size: int) -> NDArray[np.int64]:
    """The order of a set's images while its ``deck`` lasts."""
    return np.random.default_rng((seed, number, deck)).permutation(size)
