"""The one data set class: any COCO-format set as images, concept prompts and their instances."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from sam3slim.data.annotations import ImageRecord, load_index
from sam3slim.data.batch import GroundTruth, ImageInfo, Sample
from sam3slim.data.boxes import BoxPrompts, example_boxes, sample_boxes
from sam3slim.data.images import UnreadableImage, read_image
from sam3slim.data.locate import find_annotations, find_images, missing_files
from sam3slim.data.pictures import picture_index
from sam3slim.data.sampling import PromptSampler, PromptSpec
from sam3slim.data.store import ImageStore
from sam3slim.data.transforms import AugmentSpec, Fields, mirror, normalise, transform
from sam3slim.errors import UserError
from sam3slim.text.phrases import BOXES_ONLY

log = logging.getLogger(__name__)

SIDE_WORDS = {"left", "right"}
BOX_STREAM = 1  # of random numbers, beside that of prompts and augmentation


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
            without annotations.
        seed: of prompts and augmentation, together with epoch and image.
        name: among several data sets; goes into ``ImageInfo.data_set``.

    Attributes:
        categories: the set's ``Category`` entries.
        has_masks: False for a boxes-only set (targets have no masks).
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
        seed: int = 0,
        name: str = "",
    ) -> None:
        _check_choice("data.on_unreadable", on_unreadable, ("fail", "skip"))
        _check_choice("data.cache", cache, ("none", "ram"))
        self.root, self.split, self.image_size, self.seed = Path(root), split, image_size, seed
        self.prompts = PromptSpec(prompts) if isinstance(prompts, str) else prompts
        self.on_unreadable, self.name = on_unreadable, name
        if phrases is None:
            index = load_index(find_annotations(self.root, split, annotations))
            names = [record.file_name for record in index.records]
            self.folder = find_images(self.root, split, index.path, names, images)
        else:
            self.folder = self.root / (images or ".")
            index = picture_index(self.folder, Path(phrases), skip=on_unreadable == "skip")
        path, self.annotation_file = index.path, index.path
        self.categories, self.report = index.categories, index.report
        self.has_masks = index.has_masks and not self.prompts.unlabelled
        self.records = self._without_missing(index.records)
        self.file_names = [record.file_name for record in self.records]
        self.records = self.records[:limit]
        self._sampler = PromptSampler(self.categories, self.prompts)
        self._store = ImageStore(self.folder, image_size, keep=cache == "ram")
        self._transforms = {flip: transform(image_size, augment, flip) for flip in (True, False)}
        # Shared memory, because worker processes outlive an epoch.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._told_unreadable: set[str] = set()
        if not self.prompts.training and on_unreadable == "skip":
            self.verify()
        self._keep_usable()
        log.log(logging.WARNING if self.report.problems else logging.INFO, "%s: %s", path, self.report.summary())

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        return self.at(index, int(self._epoch) if self.prompts.training else 0)

    def at(self, index: int, epoch: int) -> Sample:
        """The image at ``index`` with the prompts and the augmentation of ``epoch``, whichever epoch it is now.

        Raises:
            UserError: an image that cannot be read, with ``on_unreadable="fail"``; none can.
        """
        for step in range(len(self)):
            place = (index + step) % len(self)
            record = self.records[place]
            try:
                image = self._store.image(record)
            except UnreadableImage as error:
                message = f"image {self.folder / record.file_name} {error}"
                # In evaluation another image in its place would be counted twice.
                if self.on_unreadable == "fail" or not self.prompts.training:
                    raise UserError(f"{message}; fix or remove it, or set data.on_unreadable=skip") from error
                self._tell_unreadable(record, message)
                continue
            return self._sample(place, epoch, image)
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

    def targets_of(self, record: ImageRecord) -> dict[int, list[int]]:
        """Category id → positions in ``record.annotations`` that are its instances (no crowd regions)."""
        if self.prompts.unlabelled:
            return {}
        least = self.prompts.min_area if self.prompts.training else 0.0
        found: dict[int, list[int]] = {}
        for position, annotation in enumerate(record.annotations):
            if not annotation.iscrowd and annotation.area >= least:
                found.setdefault(annotation.category_id, []).append(position)
        return found

    def pool_of(self, record: ImageRecord) -> list[int]:
        """The categories the image may be asked for, the same in every epoch (see ``PromptSpec.pool``)."""
        targets = self.targets_of(record)
        rng = np.random.default_rng((self.seed, record.id % 2**63))
        return self._sampler.pool(targets.keys(), _unclear(record, targets), rng)

    def phrase_of(self, category: int) -> str:
        """The phrase a category is asked for with."""
        return self._sampler.categories[category].phrase

    def picture(self, record: ImageRecord, mirrored: bool) -> Tensor:
        """The image as training without other augmentation sees it, [3, S, S] float32 normalised.

        Raises:
            UnreadableImage: the file is missing or broken.
        """
        image = self._store.image(record)
        return normalise(mirror(image) if mirrored else image)

    def _sample(self, place: int, epoch: int, image: Tensor) -> Sample:
        record = self.records[place]
        rng = np.random.default_rng((self.seed, epoch, place))
        targets = self.targets_of(record)
        among = None if self.prompts.pool is None else self.pool_of(record)
        category_ids = self._sampler(targets.keys(), _unclear(record, targets), rng, among)
        phrases = [self._sampler.categories[category].phrase for category in category_ids]
        positions = [position for category in category_ids for position in targets.get(category, [])]
        labels = [prompt for prompt, category in enumerate(category_ids) for _ in targets.get(category, [])]
        fields = self._fields(place, image, positions, labels)
        fields = self._augmented(fields, phrases, rng)
        boxes = torch.as_tensor(fields["boxes"]).as_subclass(Tensor) / self.image_size
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
        )

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

    def _fields(self, place: int, image: Tensor, positions: list[int], labels: list[int]) -> Fields:
        """Image, boxes and masks of the chosen annotations, all at [S, S]."""
        record, side = self.records[place], self.image_size
        boxes = torch.tensor([record.annotations[position].box for position in positions]).reshape(-1, 4)
        scale = torch.tensor([side / record.width, side / record.height])
        fields: Fields = {
            "image": tv_tensors.Image(image),
            "boxes": tv_tensors.BoundingBoxes(  # type: ignore[call-overload]
                boxes * scale.repeat(2), format="XYXY", canvas_size=(side, side)
            ),
            "labels": torch.tensor(labels, dtype=torch.int64),
        }
        if self.has_masks:
            fields["masks"] = self._store.masks(record, positions)
        return fields

    def _augmented(self, fields: Fields, phrases: list[str], rng: np.random.Generator) -> Fields:
        mirror = not any(SIDE_WORDS & set(phrase.split()) for phrase in phrases)
        step = self._transforms[mirror]
        if step is None:
            return fields
        # torchvision draws from torch's global generator; borrowing it keeps samples independent of one
        # another. (torch.manual_seed would reseed the GPUs too, and takes longer than the transform.)
        before = torch.get_rng_state()
        torch.default_generator.manual_seed(int(rng.integers(2**63)))
        try:
            return step(fields)
        finally:
            torch.set_rng_state(before)

    def _info(self, place: int, mirrored: bool) -> ImageInfo:
        record = self.records[place]
        truth = None
        if not self.prompts.training:
            items = record.annotations
            truth = GroundTruth(
                boxes=torch.tensor([item.box for item in items], dtype=torch.float32).reshape(-1, 4),
                labels=torch.tensor([item.category_id for item in items], dtype=torch.int64),
                iscrowd=torch.tensor([item.iscrowd for item in items], dtype=torch.int64),
                area=torch.tensor([item.area for item in items], dtype=torch.float32),
                rles=list(self._store.rles(record)) if self.has_masks else None,
            )
        return ImageInfo(record.id, record.file_name, record.height, record.width, truth, mirrored, self.name)

    def _without_missing(self, records: list[ImageRecord]) -> list[ImageRecord]:
        missing = missing_files(self.folder, [record.file_name for record in records])
        if not missing:
            return records
        if self.on_unreadable == "fail":
            raise UserError(
                f"{len(missing)} of {len(records)} images of {self.annotation_file.name} are not in "
                f"{self.folder}, the first is {missing[0]}; add them, set data.images, "
                "or set data.on_unreadable=skip"
            )
        self.report.images_missing = len(missing)
        names = set(missing)
        return [record for record in records if record.file_name not in names]

    def _keep_usable(self) -> None:
        """Drop images that nothing can be asked of, and stop when no target is left."""
        if self.prompts.unlabelled:
            return
        usable = [bool(self.targets_of(record)) for record in self.records]
        if not any(usable):
            advice = " (a teacher can train without: distill.labels=false)" if self.prompts.training else ""
            raise UserError(
                f"{self.annotation_file} has no usable target ({self.report.summary()}); "
                f"training and evaluation need at least one annotation that is not a crowd region{advice}"
            )
        asks_absent = self.prompts.negatives > 0 and self.prompts.protocol != "present"
        if self.prompts.protocol != "all":
            self.records = [
                record
                for record, use in zip(self.records, usable, strict=True)
                if use or (asks_absent and self._lacks_a_phrase(record))
            ]
        if not self.has_masks:
            log.info("%s has boxes only: no mask targets, the mask loss is off", self.annotation_file)

    def _lacks_a_phrase(self, record: ImageRecord) -> bool:
        """Whether something absent can be asked for; by phrase, because two categories may carry the same one."""
        there = {self.phrase_of(item.category_id) for item in record.annotations}
        return any(category.phrase not in there for category in self.categories)

    def _tell_unreadable(self, record: ImageRecord, message: str) -> None:
        if record.file_name not in self._told_unreadable:
            self._told_unreadable.add(record.file_name)
            self.report.images_unreadable += 1
            log.warning("skipped: %s", message)


def _unclear(record: ImageRecord, targets: dict[int, list[int]]) -> set[int]:
    """Categories that have annotations in the image, but no target."""
    return {annotation.category_id for annotation in record.annotations} - targets.keys()


def _check_choice(key: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UserError(f"{key}={value}: expected one of {', '.join(choices)}")
