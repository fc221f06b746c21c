"""What a training changes, and what it leaves as it was: the record's ``training`` entry."""

from __future__ import annotations

import logging
from collections.abc import Collection

from sam3slim.data.coco import CocoConcepts
from sam3slim.data.module import ConceptData
from sam3slim.models import part_of
from sam3slim.results.record import TrainingSummary
from sam3slim.runs.specs import TrainSpec
from sam3slim.training import ConceptSegmentation
from sam3slim.training.lora import plain_name
from sam3slim.training.unused import unused_parts

log = logging.getLogger(__name__)


def training_summary(module: ConceptSegmentation, spec: TrainSpec, *, masks: bool) -> TrainingSummary:
    """The record's ``training`` entry."""
    names = [plain_name(name) for name, _ in module.model.named_parameters()]
    if not spec.distill.labels:
        why = "distill.labels=false, and no loss against the teacher reaches it"
    else:
        why = "its losses have weight 0" if masks else "the data have no masks"
    trained = sum(p.numel() for p in module.model.parameters() if p.requires_grad)
    left = {part: why for part in unused_parts(names, module.unused)}
    if spec.optim.lora is not None:
        trains = {part_of(name) for name, parameter in module.model.named_parameters() if parameter.requires_grad}
        for part in {part_of(name): None for name in names}:
            if part not in trains:
                left.setdefault(part, "optim.lora.targets names none of its layers")
    sizes = list(spec.data.sizes_of(spec.model))
    return TrainingSummary(
        True, trained, left | {part: "optim.freeze" for part in spec.optim.freeze}, sizes if len(sizes) > 1 else None
    )


def tell_untrained(training: TrainingSummary) -> None:
    """A line for each part that keeps its weights although nobody asked for it."""
    for part, why in training.not_trained.items():
        if why != "optim.freeze":
            print(f"{part}: not trained, {why}")


def tell_seen(data: ConceptData, splits: Collection[str], validated: Collection[str]) -> None:
    """Warn of images to measure on that are trained on as well, as with one annotation file for all splits.

    Args:
        validated: names of the data sets whose val split is read.
    """
    for name, part in data.parts.items():
        if part.shapes is not None:
            continue
        trained = _images(part.dataset("train", training=True))
        for split in dict.fromkeys(split for split in splits if split != "val" or name in validated):
            measured = _images(part.dataset(split))
            if seen := len(measured & trained):
                log.warning(
                    "%s of the %s images of the %s split of %s are trained on as well: numbers measured there say "
                    "nothing of other images; give each split its own, data.annotations={train: …, val: …, test: …}",
                    seen, len(measured), split, part.root,
                )  # fmt: skip


def _images(dataset: CocoConcepts) -> set[str]:
    return {str(dataset.folder / record.file_name) for record in dataset.records}
