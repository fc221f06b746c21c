"""The Lightning data module: a COCO-format set on disk, or the shapes set drawn on first use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import lightning
import torch

from sam3slim.data.batch import Batch
from sam3slim.data.coco import CocoConcepts
from sam3slim.data.collate import Collate, LookUp
from sam3slim.data.loader import ConceptLoader
from sam3slim.data.locate import find_annotations
from sam3slim.data.mixed import Concepts
from sam3slim.data.sampling import PromptSpec
from sam3slim.data.shapes import ShapesSpec, make_shapes
from sam3slim.data.transforms import AugmentSpec
from sam3slim.data.views import Views
from sam3slim.errors import UserError
from sam3slim.specs import TextSpec
from sam3slim.text.phrases import BOXES_ONLY, check_known, token_rows


class ConceptData(lightning.LightningDataModule):
    """Train, val and test loaders of one data set.

    Args:
        root: folder of the set (with ``shapes``, where it is drawn unless it is there already).
        image_size, text: of the model.
        image_sizes: those that training draws from, one for every batch; empty: ``image_size`` alone.
        batch_size, eval_batch_size: images per step and process.
        num_workers: loading processes; 0 loads in the training process.
        cache: ``ram`` keeps decoded images and masks (once per worker).
        prompts: how training prompts are chosen; its ``kind`` is that of val and test.
        eval_prompts: protocol of val and test: ``all``, ``present``, ``present+k`` or ``present+<number>``.
        augment: training augmentation, or None.
        annotations, images: per split, a file or folder instead of a search; a bare path serves every split.
        on_unreadable: ``fail`` or ``skip``.
        phrases: text file of phrases: training takes the pictures of its image folder, without annotations.
        unlabelled: so do evaluation and all splits; of one folder each split gets its share.
        prompts_file: file of phrases for the categories, instead of their names, see ``read_prompts``.
        limit, eval_limit: use the first images only (``eval_limit`` None: all).
        shapes: draw this shapes set at ``root``.
        overwrite: replace a different shapes set at ``root``.
        seed: of order, prompts and augmentation.
        name: among several data sets (``MixedData``).
    """

    def __init__(
        self,
        root: str | Path,
        *,
        image_size: int,
        image_sizes: Sequence[int] = (),
        text: TextSpec | None = None,
        batch_size: int = 8,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        cache: Literal["none", "ram"] = "none",
        prompts: PromptSpec | None = None,
        eval_prompts: str = "all",
        augment: AugmentSpec | None = None,
        annotations: Mapping[str, str] | str | None = None,
        images: Mapping[str, str] | str | None = None,
        on_unreadable: Literal["fail", "skip"] = "fail",
        phrases: str | Path | None = None,
        unlabelled: bool = False,
        prompts_file: str | Path | None = None,
        limit: int | None = None,
        eval_limit: int | None = None,
        shapes: ShapesSpec | None = None,
        overwrite: bool = False,
        seed: int = 0,
        name: str = "",
    ) -> None:
        super().__init__()
        if batch_size < 1 or num_workers < 0:
            raise UserError(f"data.batch_size={batch_size}, data.num_workers={num_workers}: expected >= 1 and >= 0")
        self.root, self.shapes, self.overwrite, self.seed = Path(root), shapes, overwrite, seed
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size or batch_size
        self.num_workers, self.data_set, self.image_size = num_workers, name, image_size
        self.image_sizes = tuple(image_sizes) or (image_size,)
        self._teacher_side: int | None = None
        self.prompts = replace(prompts or PromptSpec(), protocol="train")
        self.eval_prompts = replace(self.prompts, protocol=eval_prompts, labels=True, pool=None)
        self.augment, self.limit, self.eval_limit = augment, limit, eval_limit
        self._annotations, self._images, self._phrases = annotations, images, phrases
        self._unlabelled = unlabelled
        self._common: dict[str, Any] = {
            "image_size": image_size, "on_unreadable": on_unreadable, "cache": cache, "seed": seed, "name": name,
            "prompts_file": prompts_file,
        }  # fmt: skip
        self.collate = Collate(text)
        self._soft: LookUp | None = None
        self._datasets: dict[str, CocoConcepts] = {}

    @property
    def parts(self) -> dict[str, ConceptData]:
        """The data sets that are trained on, by name."""
        return {self.data_set: self}

    def teach(self, look_up: LookUp) -> None:
        """Let training batches carry what a cached teacher says (``Batch.soft``)."""
        self._soft = look_up

    def show_teacher(self, side: int) -> None:
        """Let training batches carry the same pictures at a teacher's size (``Batch.teacher_pixels``)."""
        self._teacher_side = side

    def prepare_data(self) -> None:
        """Draw the shapes set if asked for (one process only).

        Raises:
            UserError: something else is in the way.
        """
        if self.shapes is not None:
            make_shapes(self.root, self.shapes, overwrite=self.overwrite)

    def setup(self, stage: str) -> None:
        """Read the annotation files, so that bad input stops before training starts.

        Without validation (``trainer.limit_val_batches=0``) no val split is needed.
        """
        needed = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("test",)}
        unvalidated = stage == "fit" and self.trainer is not None and self.trainer.limit_val_batches == 0
        for split in ("train",) if unvalidated else needed[stage]:
            self.dataset(split, training=split == "train")

    def require(self, *splits: str) -> None:
        """Find all ``splits``, then read them: bad input stops a run before its work starts, and is listed at its top.

        A shapes set, which is drawn when training starts, is not there yet.

        Raises:
            UserError: as ``dataset``.
        """
        if self.shapes is None:
            for split in splits:
                self.find(split)
            for split in splits:
                self.dataset(split)

    def find(self, split: str) -> Path:
        """The annotation file of ``split``. Raises UserError."""
        return find_annotations(self.root, split, of_split(self._annotations, split))

    def train_masks(self) -> bool:
        """Whether training targets have masks, known before ``setup``. Reads the annotations (once); raises UserError.

        A shapes set, which is drawn when training starts, always has them.
        """
        return self.shapes is not None or self.dataset("train", training=True).has_masks

    def dataset(self, split: str, *, training: bool = False) -> CocoConcepts:
        """The data set of ``split`` under the training or the evaluation protocol (read once).

        Raises:
            UserError: bad input, or a category that the model's vocabulary cannot read.
        """
        key = f"{split}/{'train' if training else 'eval'}"
        if key not in self._datasets:
            dataset = CocoConcepts(
                self.root,
                split,
                annotations=of_split(self._annotations, split),
                images=of_split(self._images, split),
                prompts=self.prompts if training else self.eval_prompts,
                augment=self.augment if training else None,
                limit=self.limit if training else self.eval_limit,
                phrases=self._phrases if training or self._unlabelled else None,
                deal=self._unlabelled and not isinstance(self._images, Mapping),
                same=partial(token_rows, self.collate.text),
                **self._common,
            )
            phrases = [phrase for category in dataset.categories for phrase in category.phrases]
            check_known([*phrases, *([BOXES_ONLY] if dataset.prompts.boxes_alone else [])], self.collate.text)
            self._datasets[key] = dataset
        return self._datasets[key]

    def training_set(self, split: str = "train") -> Concepts:
        """What an epoch is made of. Raises UserError as ``dataset``."""
        return self.dataset(split, training=True)

    def reports(self) -> dict[str, dict[str, Any]]:
        """Split → what was read of it, changed and left out, as in a record."""
        return {key.partition("/")[0]: dataset.report.to_dict() for key, dataset in self._datasets.items()}

    def loader(self, split: str, *, training: bool = False, views: Views | None = None) -> ConceptLoader:
        """Batches of ``split``, at ``image_size`` without ``views``; needs ``prepare_data``, but no trainer."""
        return ConceptLoader(
            self.training_set(split) if training else self.dataset(split),
            Collate(self.collate.text, self._soft) if training else self.collate,
            batch_size=self.batch_size if training else self.eval_batch_size,
            training=training,
            num_workers=self.num_workers,
            seed=self.seed,
            world_size=self.trainer.world_size if self.trainer else 1,
            rank=self.trainer.global_rank if self.trainer else 0,
            limit=self.trainer.limit_train_batches if self.trainer and training else 1.0,
            views=views,
        )

    def first_batches(self, count: int, split: str = "train") -> Iterator[Batch]:
        """The first ``count`` training batches of ``split`` that ask something, with their augmentation.

        The seed decides which; every process of a distributed run that has no trainer yet sees the same ones. Leaves
        the random state as it was.
        """
        self.prepare_data()
        with torch.random.fork_rng():
            yield from islice((b for b in self.loader(split, training=True) if len(b.input_ids)), count)

    def train_dataloader(self) -> ConceptLoader:
        """Shuffled, with sampled prompts, augmentation and image sizes."""
        views = Views(self.image_sizes, self._teacher_side, self.seed)
        own = self.image_sizes == (self.image_size,) and self._teacher_side in (None, self.image_size)
        return self.loader("train", training=True, views=None if own else views)

    def val_dataloader(self) -> ConceptLoader | list[ConceptLoader]:
        """The val split under the evaluation protocol."""
        return self.loader("val")

    def test_dataloader(self) -> ConceptLoader:
        """The test split under the evaluation protocol."""
        return self.loader("test")


def of_split(given: Mapping[str, str] | str | None, split: str) -> str | None:
    """What a setting by split, or for all splits, says of ``split``."""
    return given.get(split) if isinstance(given, Mapping) else given
