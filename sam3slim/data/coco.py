"""The one data set class: any COCO-format set as images, concept prompts and their instances."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from sam3slim.data.batch import GroundTruth, ImageInfo, Sample
from sam3slim.data.boxes import BoxPrompts, example_boxes, sample_boxes
from sam3slim.data.entries import Same
from sam3slim.data.images import UnreadableImage, read_image
from sam3slim.data.opening import open_annotated
from sam3slim.data.pictures import picture_index
from sam3slim.data.prompt_file import read_prompts
from sam3slim.data.records import ImageRecord
from sam3slim.data.sampling import PromptSampler, PromptSpec
from sam3slim.data.sides import says_side
from sam3slim.data.store import ImageStore
from sam3slim.data.transforms import AugmentSpec, Fields, augmented, mirror, normalise, squash, transform
from sam3slim.data.views import View
from sam3slim.errors import UserError
from sam3slim.files import file_sha256
from sam3slim.text.phrases import BOXES_ONLY

log = logging.getLogger(__name__)

BOX_STREAM, SYNONYM_STREAM = 1, 2  # of random numbers, beside that of prompts and augmentation


class CocoConcepts(Dataset[Sample]):
    """Images of a COCO-format set with prompts made of its categories' names.

    A category with an instance in the image is a positive prompt; one with crowd regions only is neither
    positive nor negative. Annotations are in the frame their file's width and height describe, before or
    after EXIF rotation.

    Args:
        root: folder of the set.
        split: ``train``, ``val`` or ``test``; chooses among several annotation files.
        annotations, images: JSON file and image folder (relative to ``root``) instead of a search.
        image_size: side S of the model's square input.
        prompts: how prompts are chosen; a bare word is its protocol.
        augment: training augmentation, or None.
        on_unreadable: an image file that is missing or broken stops (``fail``) or is left out (``skip``).
        cache: ``ram`` keeps decoded images (at S by S) and masks, per worker process.
        limit: keep the first images only.
        phrases: text file with a phrase on every line: the set is then the pictures below ``images`` (or ``root``),
            without annotations; in evaluation what a model finds becomes their ground truth (``data.agreement``).
        deal: of those pictures, the ones that fall to ``split``, see ``picture_index``.
        prompts_file: what the categories are asked for with instead of their names, see ``read_prompts``.
        same: see ``index_of``.
        seed: of prompts and augmentation, together with epoch and image.
        name: among several data sets; goes into ``ImageInfo.data_set``.

    Attributes:
        categories: the set's ``Category`` entries.
        has_masks: False for a boxes-only set (targets have no masks).
        by_model: whether the ground truth is what a model found; ``labels_sha256`` tells which, empty before.
        file_names: of all images there are, whatever ``limit`` says.
        report: counts of what was read, repaired and left out.

    Raises:
        UserError: bad input, in one line.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        *,
        image_size: int,
        annotations: str | Path | None = None,
        images: str | Path | None = None,
        prompts: PromptSpec | str = "all",
        augment: AugmentSpec | None = None,
        on_unreadable: Literal["fail", "skip"] = "fail",
        cache: Literal["none", "ram"] = "none",
        limit: int | None = None,
        phrases: str | Path | None = None,
        deal: bool = False,
        prompts_file: str | Path | None = None,
        same: Same | None = None,
        seed: int = 0,
        name: str = "",
    ) -> None:
        _check_choice("data.on_unreadable", on_unreadable, ("fail", "skip"))
        _check_choice("data.cache", cache, ("none", "ram"))
        self.root, self.split, self.image_size, self.seed = Path(root), split, image_size, seed
        self.prompts = PromptSpec(prompts) if isinstance(prompts, str) else prompts
        self.on_unreadable, self.name = on_unreadable, name
        if phrases is None:
            index, self.folder = open_annotated(
                self.root,
                split,
                annotations=annotations,
                images=images,
                phrases=None if prompts_file is None else read_prompts(Path(prompts_file)),
                same=same,
                skip_missing=on_unreadable == "skip",
            )
        else:
            self.folder = self.root / (images or ".")
            dealt = split if deal else None
            index = picture_index(self.folder, Path(phrases), skip=on_unreadable == "skip", split=dealt)
        path, self.annotation_file = index.path, index.path
        self.categories, self.report = index.categories, index.report
        self.by_model, self.labels_sha256 = phrases is not None and not self.prompts.training, ""
        self.has_masks = (index.has_masks or self.by_model) and not self.prompts.unlabelled
        self.file_names = [record.file_name for record in index.records]
        self.records = index.records[:limit]
        self._sampler = PromptSampler(self.categories, self.prompts)
        self._store = ImageStore(self.folder, keep=cache == "ram")
        self._augment = augment
        # Shared memory, because worker processes outlive an epoch.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._told_unreadable: set[str] = set()
        if not self.prompts.training and on_unreadable == "skip":
            self.verify()
        self._keep_usable(index.records, limit)
        level = logging.WARNING if self.report.problems else logging.INFO
        log.log(level, "%s, %s:\n  %s", path, split, "\n  ".join(self.report.lines()))

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, item: int | View) -> Sample:
        view = item if isinstance(item, View) else View(item)
        return self.at(view, int(self._epoch) if self.prompts.training else 0)

    def at(self, view: View, epoch: int) -> Sample:
        """The image of ``view`` with the prompts and the augmentation of ``epoch``, whichever epoch it is now.

        Raises:
            UserError: an image that cannot be read, with ``on_unreadable="fail"``; none can.
        """
        for step in range(len(self)):
            place = (view.place + step) % len(self)
            record = self.records[place]
            try:
                return self._sample(view._replace(place=place), epoch)
            except UnreadableImage as error:
                message = f"image {self.folder / record.file_name} {error}"
                # In evaluation another image in its place would be counted twice.
                if self.on_unreadable == "fail" or not self.prompts.training:
                    raise UserError(f"{message}; fix or remove it, or set data.on_unreadable=skip") from error
                self._tell_unreadable(record, message)
        raise UserError(f"none of the {len(self)} images in {self.folder} can be read")

    def set_epoch(self, epoch: int) -> None:
        """Choose other negatives and augmentations (training protocol only), also in running workers."""
        self._epoch.fill_(epoch)

    def verify(self) -> None:
        """Decode every image now and leave out (``skip``) or name (``fail``) those that cannot be read.

        Raises:
            UserError: an unreadable image, with ``on_unreadable="fail"``, or none left.
        """
        kept = []
        for record in self.records:
            try:
                read_image(self.folder / record.file_name, record.height, record.width)
                kept.append(record)
            except UnreadableImage as error:
                message = f"image {self.folder / record.file_name} {error}"
                if self.on_unreadable == "fail":
                    raise UserError(f"{message}; fix or remove it, or set data.on_unreadable=skip") from error
                self._tell_unreadable(record, message)
        self.records = kept

    def annotations_digest(self) -> str:
        """SHA-256 (hex) of the annotation file; of what was read where it is not COCO's JSON."""
        if self.annotation_file.suffix.lower() in (".json", ".txt"):
            return file_sha256(self.annotation_file)
        read = [(record.id, record.file_name, record.annotations) for record in self.records]
        return hashlib.sha256(repr((self.categories, read)).encode()).hexdigest()

    def targets_of(self, record: ImageRecord) -> dict[int, list[int]]:
        """Category id → positions in ``record.annotations`` that are its instances (no crowd regions)."""
        if self.prompts.unlabelled:
            return {}
        least = self.prompts.min_area if self.prompts.training else 0.0
        found: dict[int, list[int]] = {}
        for position, annotation in enumerate(record.annotations):
            if annotation.iscrowd or annotation.area < least:
                continue
            if not self.prompts.training or annotation.category_id not in record.unclear:
                found.setdefault(annotation.category_id, []).append(position)
        return found

    def pool_of(self, record: ImageRecord) -> list[int]:
        """The categories the image may be asked for, the same in every epoch (see ``PromptSpec.pool``)."""
        targets = self.targets_of(record)
        rng = np.random.default_rng((self.seed, record.id % 2**63))
        return self._sampler.pool(targets.keys(), _unclear(record, targets), rng, self._asked(record))

    def phrase_of(self, category: int) -> str:
        """The phrase a category is asked for with, but for a training with synonyms."""
        return self._sampler.categories[category].phrase

    def picture(self, record: ImageRecord, mirrored: bool, side: int | None = None) -> Tensor:
        """The image as training without other augmentation sees it, [3, S, S] float32 normalised.

        Args:
            side: S; None: ``image_size``.

        Raises:
            UnreadableImage: the file is missing or broken.
        """
        image = self._store.image(record, side or self.image_size)
        return normalise(mirror(image) if mirrored else image)

    def _sample(self, view: View, epoch: int) -> Sample:
        place, side = view.place, view.side or self.image_size
        record = self.records[place]
        rng = np.random.default_rng((self.seed, epoch, place))
        targets = self.targets_of(record)
        among = self._asked(record) if self.prompts.pool is None else self.pool_of(record)
        category_ids = self._sampler(targets.keys(), _unclear(record, targets), rng, among)
        phrases = self._phrases(place, epoch, category_ids)
        positions = [position for category in category_ids for position in targets.get(category, [])]
        labels = [prompt for prompt, category in enumerate(category_ids) for _ in targets.get(category, [])]
        sides = (side,) if view.teacher_side is None else (side, view.teacher_side)
        fields, *others = self._pictures(place, positions, labels, phrases, int(rng.integers(2**63)), sides)
        boxes = torch.as_tensor(fields["boxes"]).as_subclass(Tensor) / side
        prompt_index = fields["labels"]
        masks = fields["masks"].as_subclass(Tensor).bool() if self.has_masks else None
        asked = None
        if self.prompts.with_boxes:
            asked = self._box_prompts(place, epoch, boxes, prompt_index, category_ids)
            phrases = [BOXES_ONLY if alone else phrase for phrase, alone in zip(phrases, asked.alone, strict=True)]
            boxes, prompt_index = boxes[asked.wanted], prompt_index[asked.wanted]
            masks = None if masks is None else masks[asked.wanted]
        corners, far = boxes[:, :2], boxes[:, 2:]
        return Sample(
            image=normalise(fields["image"].as_subclass(Tensor)),
            category_ids=category_ids,
            phrases=phrases,
            boxes=torch.cat([(corners + far) / 2, far - corners], dim=1),
            masks=masks,
            prompt_index=prompt_index,
            info=self._info(place, mirrored=bool(fields.get("mirrored"))),
            box_prompts=None if asked is None else asked.rows,
            teacher_image=normalise(others[0]["image"].as_subclass(Tensor)) if others else None,
        )

    def _asked(self, record: ImageRecord) -> frozenset[int] | None:
        """The categories that the image may be asked for; None: all."""
        return None if self.prompts.unlabelled else record.asked

    def _phrases(self, place: int, epoch: int, category_ids: list[int]) -> list[str]:
        """What the categories are asked for with: in training any of their phrases, as far as a teacher knows them."""
        categories = [self._sampler.categories[category] for category in category_ids]
        if not self.prompts.training or self.prompts.pool is not None or not any(c.synonyms for c in categories):
            return [category.phrase for category in categories]
        rng = np.random.default_rng((self.seed, epoch, place, SYNONYM_STREAM))
        return [str(rng.choice(category.phrases)) for category in categories]

    def _box_prompts(
        self, place: int, epoch: int, boxes: Tensor, prompt_index: Tensor, category_ids: list[int]
    ) -> BoxPrompts:
        """Boxes of the prompts, drawn from the augmented targets: what a crop left of an object is what a box shows."""
        spec = self.prompts.boxes
        if not self.prompts.training:
            image = self.records[place].id
            return example_boxes(spec, self.prompts.kind, boxes, prompt_index, image, category_ids)
        # Draws of their own, so that prompts and augmentation are those of a training without boxes.
        rng = np.random.default_rng((self.seed, epoch, place, BOX_STREAM))
        return sample_boxes(spec, boxes, prompt_index, len(category_ids), rng)

    def _pictures(
        self, place: int, positions: list[int], labels: list[int], phrases: list[str], seed: int, sides: tuple[int, ...]
    ) -> list[Fields]:
        """Image, boxes and masks at each of ``sides``, with the same mirroring, colours and crop.

        A crop falls on other pixels at another size, so the smaller pictures are then made of the largest one.
        """
        flip = not any(map(says_side, phrases))

        def made(side: int, positions: list[int], labels: list[int]) -> Fields:
            fields = self._store.fields(self.records[place], positions, labels, side, masks=self.has_masks)
            return augmented(fields, transform(side, self._augment, flip), seed)

        if self._augment is not None and self._augment.crops:
            largest = max(sides)
            fields = made(largest, positions, labels)
            return [fields if side == largest else squash(side)(fields) for side in sides]
        # A teacher's picture needs no targets.
        return [made(sides[0], positions, labels), *(made(side, [], []) for side in sides[1:])]

    def _info(self, place: int, mirrored: bool) -> ImageInfo:
        record = self.records[place]
        truth = None if self.prompts.training else self.ground_truth(record)
        return ImageInfo(record.id, record.file_name, record.height, record.width, truth, mirrored, self.name)

    def ground_truth(self, record: ImageRecord) -> GroundTruth:
        """What evaluation compares with."""
        items = record.annotations
        return GroundTruth(
            boxes=torch.tensor([item.box for item in items], dtype=torch.float64).reshape(-1, 4),
            labels=torch.tensor([item.category_id for item in items], dtype=torch.int64),
            iscrowd=torch.tensor([item.iscrowd for item in items], dtype=torch.int64),
            area=torch.tensor([item.area for item in items], dtype=torch.float64),
            rles=list(self._store.rles(record)) if self.has_masks else None,
            known=record.asked,
            unclear=record.unclear,
            by_model=self.by_model,
        )

    def labelled(self, digest: str) -> None:
        """The records' annotations are what a model found (``data.agreement``)."""
        self.labels_sha256 = digest
        self._store.forget_rles()

    def check_limit(self, limit: int | None, key: str) -> None:
        """Refuse to measure or train on the first ``limit`` images where no object is in them.

        Raises:
            UserError: naming the setting ``key``, and how many images it takes.
        """
        self._check_limit(self.records, limit, key)

    def _check_limit(self, records: list[ImageRecord], limit: int | None, key: str) -> None:
        first = next((place for place, record in enumerate(records, 1) if self.targets_of(record)), None)
        if limit is not None and first is not None and limit < first:
            raise UserError(
                f"{key}={limit}: no object is in the first {limit} images of {self.annotation_file.name}, the first "
                f"that has one is number {first}; set {key}={first} or more"
            )

    def _keep_usable(self, records: list[ImageRecord], limit: int | None) -> None:
        """Drop images that nothing can be asked of, and stop when no target is left.

        Args:
            records: those there are without ``limit``.
        """
        if self.prompts.unlabelled or self.by_model:
            return
        usable = [bool(self.targets_of(record)) for record in self.records]
        if not any(usable):
            self._check_limit(records, limit, "data.limit" if self.prompts.training else "data.eval_limit")
            raise UserError(self._no_target())
        asks_absent = self.prompts.negatives > 0 and self.prompts.protocol != "present"
        everything = self.prompts.protocol == "all"
        self.records = [
            record
            for record, use in zip(self.records, usable, strict=True)
            if use or (everything and record.asked != frozenset()) or (asks_absent and self._lacks_a_phrase(record))
        ]
        if not self.has_masks:
            log.info("%s has boxes only: no mask targets, the mask loss is off", self.annotation_file)

    def _no_target(self) -> str:
        report = self.report
        kinds = ("masks_dropped", "masks_missing", "boxes_dropped")
        first = next((report.findings[kind].first for kind in kinds if kind in report.findings), "")
        if not first and report.crowd_regions and report.crowd_regions == report.annotations:
            first = "all annotations are crowd regions; where they are single objects, set their iscrowd to 0"
        teacher = " (a teacher can train without: distill.labels=false)" if self.prompts.training else ""
        return (
            f"{self.annotation_file} has no usable target ({report.summary()}){f': {first}' if first else ''}; "
            f"training and evaluation need at least one annotation that is not a crowd region{teacher}"
        )

    def _lacks_a_phrase(self, record: ImageRecord) -> bool:
        """Whether something absent can be asked for."""
        there = {item.category_id for item in record.annotations}
        return any(category.id not in there for category in self.categories) and (
            record.asked is None or not record.asked <= there
        )

    def _tell_unreadable(self, record: ImageRecord, message: str) -> None:
        if record.file_name not in self._told_unreadable:
            self._told_unreadable.add(record.file_name)
            self.report.note("images_unreadable", message)
            log.warning("skipped: %s", message)


def _unclear(record: ImageRecord, targets: dict[int, list[int]]) -> set[int]:
    """Categories that have annotations in the image, but no target."""
    return {annotation.category_id for annotation in record.annotations} - targets.keys()


def _check_choice(key: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UserError(f"{key}={value}: expected one of {', '.join(choices)}")
