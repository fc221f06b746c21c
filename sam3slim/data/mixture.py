"""Training on several COCO-format data sets together: their settings, and their data module."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sam3slim.data.collate import LookUp
from sam3slim.data.loader import ConceptLoader
from sam3slim.data.mixed import Concepts, MixedConcepts
from sam3slim.data.module import ConceptData
from sam3slim.errors import UserError

ALSO = "; or name the sets to validate on, data.validate=[NAME]"


@dataclass(frozen=True)
class SetSpec:
    """One entry of ``data.sets``.

    Attributes:
        root: folder of the set; None leaves the set out.
        annotations, images: as ``data.annotations`` and ``data.images``.
        weight: how often an epoch shows each of its images, on average: 0.5 shows half of them, 2 all of them twice.
        mirror: False never mirrors its pictures in training, whatever ``data.augment.flip`` says.
    """

    root: str | None = None
    annotations: dict[str, Any] | str | None = None
    images: dict[str, Any] | str | None = None
    weight: float = 1.0
    mirror: bool = True


def check_sets(
    sets: Mapping[str, SetSpec], measured: str | None, validated: Sequence[str] | None
) -> dict[str, SetSpec]:
    """The sets that are not left out.

    Raises:
        UserError: none, an impossible weight, or a name that none of them has.
    """
    for name, one in sets.items():
        if one.weight <= 0:
            raise UserError(
                f"data.sets.{name}.weight={one.weight:g} must be above 0, the number of times that an epoch shows each "
                f"of its images; to leave the set out use data.sets.{name}.root=null"
            )
    there = {name: one for name, one in sets.items() if one.root is not None}
    if not there:
        raise UserError(
            "data.sets has no data set with a root; name one or more: 'data.sets={cars:{root:DIR},dogs:{root:DIR}}'"
        )
    for key, names in (("data.set", [measured] if measured else []), ("data.validate", validated or ())):
        for name in names:
            if name not in there:
                left_out = " is left out (its root is null);" if name in sets else " is none of data.sets;"
                raise UserError(f"{key}: {name}{left_out} choose from {', '.join(there)}")
    if validated is not None and not validated:
        raise UserError("data.validate=[] names no set; to train without validation set trainer.limit_val_batches=0")
    return there


class MixedData(ConceptData):
    """Training on all sets together; evaluation, as ever, on one set at a time.

    Args:
        parts: the sets by name, with equal settings but for their files and their augmentation.
        weights: by name, see ``MixedConcepts``.
        measured: the set that ``dataset`` and the loaders of splits stand for.
        validated: the sets that a training is validated on.
    """

    def __init__(
        self, parts: Mapping[str, ConceptData], weights: Mapping[str, float], *, measured: str, validated: Sequence[str]
    ) -> None:
        one = parts[measured]
        super().__init__(
            one.root,
            image_size=one.image_size,
            image_sizes=one.image_sizes,
            text=one.collate.text,
            batch_size=one.batch_size,
            eval_batch_size=one.eval_batch_size,
            num_workers=one.num_workers,
            seed=one.seed,
            name=measured,
        )
        self._parts, self.weights, self.validated = dict(parts), dict(weights), tuple(validated)
        self._mixed: MixedConcepts | None = None

    @property
    def parts(self) -> dict[str, ConceptData]:
        return self._parts

    def teach(self, look_up: LookUp) -> None:
        self._soft = look_up

    def setup(self, stage: str) -> None:
        """Read the annotation files of all sets that ``stage`` needs."""
        if stage == "fit":
            self.training_set()
            if self.trainer is None or self.trainer.limit_val_batches != 0:
                for name in self.validated:
                    with naming(name, ALSO):
                        self._parts[name].dataset("val")
        else:
            super().setup(stage)

    def require(self, *splits: str) -> None:
        """Find ``splits`` of every set, then read them, val only of those that are validated.

        Raises:
            UserError: bad input, with the set's name.
        """
        for look in (ConceptData.find, ConceptData.dataset):
            for name, part in self._parts.items():
                for split in splits:
                    if split != "val" or name in self.validated:
                        with naming(name, ALSO if split == "val" else ""):
                            look(part, split)

    def train_masks(self) -> bool:
        return self.training_set().has_masks

    def dataset(self, split: str, *, training: bool = False) -> Any:
        with naming(self.data_set):
            return self._parts[self.data_set].dataset(split, training=training)

    def training_set(self, split: str = "train") -> Concepts:
        """All sets, mixed (read once).

        Raises:
            UserError: a set that has no such split, one that is listed twice; as ``ConceptData.dataset``.
        """
        if self._mixed is None:
            found: dict[Path, str] = {}
            for name, part in self._parts.items():
                with naming(name):
                    file = part.find(split).resolve()
                if file in found:
                    raise UserError(
                        f"data.sets.{found[file]} and data.sets.{name} are one data set ({file}); list it once, and "
                        f"use data.sets.{found[file]}.weight to see it more often"
                    )
                found[file] = name
            sets = {}
            for name, part in self._parts.items():
                with naming(name):
                    sets[name] = part.dataset(split, training=True)
            self._mixed = MixedConcepts(sets, self.weights, self.seed)
        return self._mixed

    def val_dataloader(self) -> list[ConceptLoader]:
        """The val split of every set to validate on, under the evaluation protocol."""
        loaders = []
        for name in self.validated:
            self._parts[name].trainer = self.trainer
            loaders.append(self._parts[name].loader("val"))
        return loaders


@contextmanager
def naming(name: str, also: str = "") -> Iterator[None]:
    """Bad input of one data set is told with the keys of that set (``++`` adds a key that was not given)."""
    try:
        yield
    except UserError as error:
        told = re.sub(r"\bdata\.(root|annotations|images)\b(?=(=\S*)?)", rf"data.sets.{name}.\1", str(error))
        told = re.sub(rf"(with|set|or) (data\.sets\.{name}\.)", r"\1 ++\2", told)
        raise UserError(f"data set {name}: {told}{also}") from error
