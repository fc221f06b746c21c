"""The ``data`` group as a checked dataclass, and the data module it describes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from sam3slim.data.boxes import BoxSpec
from sam3slim.data.locate import find_annotations
from sam3slim.data.mixture import MixedData, SetSpec, check_sets
from sam3slim.data.module import ConceptData, of_split
from sam3slim.data.prompt_file import SUFFIXES, phrases_digest, read_prompts
from sam3slim.data.sampling import PromptSpec
from sam3slim.data.shapes import ShapesSpec
from sam3slim.data.transforms import AugmentSpec
from sam3slim.errors import UserError
from sam3slim.specs import ModelSpec

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class DataSpec:
    """Keys of conf/data; see ``ConceptData`` and ``PromptSpec`` for what each does.

    Attributes:
        root: of the one data set; None with ``sets``.
        sets: several data sets that are trained on together, by name.
        set: the one of them that is measured, by evaluation and first of all at the end of a training; None: the first.
        validate: those of them that a training is validated on; None: all.
        max_prompts_per_batch: most prompts that a training step takes through the model together; more are taken one
            part after another, with the same gradients. None: no bound.
        image_sizes: training draws the side of the square input from these for every batch, in pixels; None: it is
            ``model.vit.image_size``, which is one of them.
        phrases: needs distill.labels=false, because the pictures have no annotations.
        prompts: what evaluation shows the model of a category: its phrase (``text``), a box on one of its instances
            (``box``), or both (``text+box``), see ``PromptSpec.kind``; or a file of phrases to ask for instead of the
            categories' names, in training too, see ``read_prompts``.
    """

    kind: Literal["shapes", "coco", "pictures"]
    root: str | None = None
    sets: dict[str, SetSpec] | None = None
    set: str | None = None
    validate: tuple[str, ...] | None = None
    split: str = "test"
    annotations: dict[str, Any] | str | None = None
    images: dict[str, Any] | str | None = None
    phrases: str | None = None
    batch_size: int = 8
    eval_batch_size: int = 8
    image_sizes: tuple[int, ...] | None = None
    num_workers: int = 0
    cache: Literal["none", "ram"] = "none"
    negatives: int = 3
    hard_negatives: float = 0.5
    max_prompts: int = 8
    max_prompts_per_batch: int | None = None
    min_area: float = 0.0
    protocol: str = "all"
    prompts: str = "text"
    boxes: BoxSpec = field(default_factory=BoxSpec)
    on_unreadable: Literal["fail", "skip"] = "fail"
    limit: int | None = None
    eval_limit: int | None = None
    overwrite: bool = False
    augment: AugmentSpec = field(default_factory=AugmentSpec)
    shapes: ShapesSpec | None = None

    def __post_init__(self) -> None:
        if (self.kind == "shapes") != (self.shapes is not None):
            raise UserError(f"data.kind={self.kind} {'needs' if self.kind == 'shapes' else 'excludes'} data.shapes")
        self._check_sets()
        self._check_pictures()
        if self.split not in SPLITS:
            raise UserError(f"data.split={self.split} must be one of {', '.join(SPLITS)}")
        for key in ("batch_size", "eval_batch_size"):
            if getattr(self, key) < 1:
                raise UserError(f"data.{key}={getattr(self, key)} must be at least 1")
        for key in ("limit", "eval_limit"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise UserError(f"data.{key}={value} must be at least 1, or null for all images")
        if self.max_prompts_per_batch is not None and self.max_prompts_per_batch < 1:
            raise UserError(
                f"data.max_prompts_per_batch={self.max_prompts_per_batch} must be at least 1, or null for no bound"
            )
        replace(self.training_prompts(), protocol=self.protocol)  # is checked together with prompts

    def sizes_of(self, model: ModelSpec) -> tuple[int, ...]:
        """The sides of the images that ``model`` is trained on, in pixels, its own first.

        Raises:
            UserError: one that the model cannot see, or its own is not among them.
        """
        own = model.vit.image_size
        given = [own] if self.image_sizes is None else list(self.image_sizes)
        for size in given:
            try:
                replace(model.vit, image_size=size)
            except UserError as error:
                message = str(error).replace(f"model.vit.image_size={size}", str(size))
                raise UserError(f"data.image_sizes={given}: {message}") from error
        if len(set(given)) != len(given):
            raise UserError(f"data.image_sizes={given} names a size twice; each is drawn as often as the others")
        if own not in given:
            raise UserError(
                f"data.image_sizes={given} leaves out model.vit.image_size={own}, at which the model is validated and "
                f"written; use data.image_sizes={[own, *given]}, or model.vit.image_size={given[0]}"
                if given
                else f"data.image_sizes=[] names no size; use data.image_sizes=null, or [{own}]"
            )
        return (own, *(size for size in given if size != own))

    @property
    def prompts_file(self) -> Path | None:
        """The file that ``prompts`` names; None where it names a kind."""
        return Path(self.prompts) if Path(self.prompts).suffix.lower() in SUFFIXES else None

    @property
    def prompt_kind(self) -> str:
        """``text``, ``box`` or ``text+box``."""
        return self.prompts if self.prompts_file is None else "text"

    def _check_sets(self) -> None:
        if self.sets is not None:
            for key in ("root", "annotations", "images", "phrases"):
                if (value := getattr(self, key)) is not None:
                    where = "data=coco trains on one" if key == "phrases" else f"write data.sets.NAME.{key}"
                    raise UserError(f"data.{key}={value} is for one data set, and data.sets lists several; {where}")
            object.__setattr__(self, "sets", check_sets(self.sets, self.set, self.validate))
            return
        if self.root is None:
            raise UserError("data.root has no value; pass data.root=FOLDER (images with a COCO-format JSON file)")

    def _check_pictures(self) -> None:
        if self.kind != "pictures":
            return
        if self.phrases is None:
            raise UserError("data=pictures needs phrases to ask for; pass data.phrases=FILE, a phrase on every line")
        for key, wanted in (("annotations", None), ("prompts", "text"), ("protocol", "all"), ("sets", None)):
            if (value := getattr(self, key)) != wanted:
                fix = "null" if wanted is None else wanted
                raise UserError(
                    f"data.{key}={value} needs annotations, and data=pictures has none; set data.{key}={fix}, or "
                    "data=coco"
                )

    def one(self, name: str) -> DataSpec:
        """The set ``name`` alone, as ``data=coco`` would have it."""
        assert self.sets is not None
        own = self.sets[name]
        augment = self.augment if own.mirror else replace(self.augment, flip=0.0)
        return replace(
            self, root=own.root, annotations=own.annotations, images=own.images, augment=augment,
            sets=None, set=name, validate=None,
        )  # fmt: skip

    def each(self) -> dict[str, DataSpec]:
        """Every data set by name, the one that is measured first; the name is empty where there is only one."""
        if self.sets is None:
            return {self.measured_set: self}
        return {name: self.one(name) for name in dict.fromkeys([self.measured_set, *self.sets])}

    @property
    def validated(self) -> tuple[str, ...]:
        """Names of the sets that a training is validated on."""
        return self.validate or tuple(self.sets or {self.measured_set: self})

    @property
    def measured_set(self) -> str:
        """Name of the set that is measured; empty where there is only one."""
        return self.set or next(iter(self.sets or {}), "")

    def measured(self) -> DataSpec:
        """The set that is measured, alone."""
        return self if self.sets is None else self.one(self.measured_set)

    def training_prompts(self, *, labels: bool = True, pool: int | None = None) -> PromptSpec:
        """How training prompts are chosen; ``labels`` and ``pool`` are a teacher's wishes, see ``PromptSpec``."""
        return PromptSpec(
            protocol="train",
            negatives=self.negatives,
            hard_negatives=self.hard_negatives,
            max_prompts=self.max_prompts,
            min_area=self.min_area,
            labels=labels,
            pool=pool,
            kind=self.prompt_kind,
            boxes=self.boxes,
        )

    def given_files(self) -> dict[str, Any]:
        """{"files": {"annotations", "images"}} where they are not searched for below ``root``, for a record."""
        keys = ("annotations", "images", *(["phrases"] if self.kind == "pictures" else []))
        files = {key: getattr(self, key) for key in keys if getattr(self, key) is not None}
        return {"files": files} if files else {}

    def given_phrases(self) -> dict[str, Any]:
        """{"prompts_file", "phrases_sha256"} where categories are asked for with other phrases, for a record."""
        file = self.prompts_file
        return {} if file is None else {"prompts_file": str(file), "phrases_sha256": phrases_digest(file)}

    def given_boxes(self) -> dict[str, Any]:
        """{"prompt_kind", "box_noise"} of an evaluation with boxes, for a record; {} of one with phrases alone."""
        if self.prompt_kind == "text":
            return {}
        return {"prompt_kind": self.prompt_kind, "box_noise": [self.boxes.noise, self.boxes.noise_limit]}

    def find(self) -> None:
        """Look for the annotations that are measured on, so that a wrong path stops a run before it reads weights.

        Raises:
            UserError: none, or several files that fit.
        """
        measured = self.measured()
        if measured.kind == "coco" and measured.root is not None:
            find_annotations(Path(measured.root), self.split, of_split(measured.annotations, self.split))

    def build(self, model: ModelSpec, seed: int = 0, *, labels: bool = True, pool: int | None = None) -> ConceptData:
        """The data module for ``model``: its image size and text tower."""
        if self.sets is not None:
            weights = {name: one.weight for name, one in self.sets.items()}
            parts = {name: self.one(name).build(model, seed, labels=labels, pool=pool) for name in self.sets}
            return MixedData(parts, weights, measured=self.measured_set, validated=self.validated)
        assert self.root is not None
        if self.prompts_file is not None:
            read_prompts(self.prompts_file)  # before anything else is
        return ConceptData(
            self.root,
            image_size=model.vit.image_size,
            image_sizes=self.image_sizes or (),
            text=model.text,
            batch_size=self.batch_size,
            eval_batch_size=self.eval_batch_size,
            num_workers=min(self.num_workers, usable_cores()),  # PyTorch warns of more
            cache=self.cache,
            prompts=self.training_prompts(labels=labels and self.phrases is None, pool=pool),
            eval_prompts=self.protocol,
            augment=self.augment,
            annotations=self.annotations,
            images=self.images,
            phrases=self.phrases,
            unlabelled=self.kind == "pictures",
            prompts_file=self.prompts_file,
            on_unreadable=self.on_unreadable,
            limit=self.limit,
            eval_limit=self.eval_limit,
            shapes=self.shapes,
            overwrite=self.overwrite,
            seed=seed,
            name=self.measured_set,
        )


def usable_cores() -> int:
    """Processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def recorded_data(data: Mapping[str, Any], *, root: str | Path | None = None) -> DataSpec:
    """The set that a record's ``data`` entry names, read as COCO-format files (a shapes set is one), never drawn.

    Args:
        root: where the set lies now, if not where the record says.

    Raises:
        UserError: it is not there, or the entry does not say where it was.
    """
    folder = root or data.get("root")
    if folder is None:
        raise UserError("the record does not say where its data lie; give data=FOLDER")
    if not Path(folder).is_dir():
        raise UserError(f"data set {folder} is not there")
    files = data.get("files") or {}
    noise, limit = data.get("box_noise") or (BoxSpec.noise, BoxSpec.noise_limit)
    kind: Literal["coco", "pictures"] = "pictures" if files.get("phrases") else "coco"
    return DataSpec(
        kind=kind, phrases=files.get("phrases"), root=str(folder), split=data.get("split") or "test",
        protocol=data.get("protocol") or "all",
        annotations=files.get("annotations"), images=files.get("images"), on_unreadable="skip",
        prompts=data.get("prompts_file") or data.get("prompt_kind") or "text",
        boxes=BoxSpec(noise=noise, noise_limit=limit),
    )  # fmt: skip
