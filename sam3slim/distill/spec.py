"""The losses against the teacher and their weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sam3slim.checkpoints import IMAGE_SIZE
from sam3slim.errors import UserError

FEATURES = ("fpn", "memory")
PREDICTIONS = ("presence", "scores", "bbox", "giou", "mask", "dice", "semantic")
# What teaches each output.
LESSONS_OF_OUTPUTS = (("presence",), ("scores",), ("bbox", "giou"), ("mask", "dice"), ("semantic",))


@dataclass(frozen=True)
class DistillSpec:
    """What the student is taught beside its labels, or instead of them.

    Attributes:
        teacher: checkpoint of the teacher; None switches distillation off.
        overrides: sizes the teacher's file does not tell, as ``checkpoints.load`` takes them; None: those of
            ``init.overrides`` where the teacher is ``init.checkpoint`` (``teacher_overrides``).
        image_size: side of the pictures that the teacher sees, in pixels: None, its own; ``student``, those of the
            student's batch; or a number. Its maps are resized to the student's.
        labels: False trains on the teacher's answers alone: annotations are not looked at. What no loss reaches
            (decoder and mask head, with ``fpn`` and ``memory`` alone) keeps its weights.
        min_score: class x presence probability from which a query of the teacher is a detection to be learnt.
        fpn: weight of the neck's feature maps (same width in every model of a family: no adapter).
        memory: weight of the encoder's output, per prompt.
        presence: of the presence logit, every decoder layer.
        scores: of the class scores, every decoder layer: the teacher's score for the query that is matched with
            one of its detections, its own mean low score for the others.
        bbox, giou: of the matched boxes, every decoder layer.
        mask, dice: of the matched masks of the last layer, against the teacher's probabilities.
        semantic: of the semantic map.
        cache: folder where the teacher's answers are kept, computed before training starts; None asks the teacher
            itself at every step.
        cache_prompts: prompts per image in the cache. Training then asks an image for no others: those in it, then
            absent ones up to this number.
        cache_limit_gb: most that a cache may take on disk.
    """

    teacher: str | None = None
    overrides: dict[str, Any] | None = None
    image_size: int | Literal["student"] | None = None
    labels: bool = True
    min_score: float = 0.3
    fpn: float = 0.0
    memory: float = 0.0
    presence: float = 0.0
    scores: float = 0.0
    bbox: float = 0.0
    giou: float = 0.0
    mask: float = 0.0
    dice: float = 0.0
    semantic: float = 0.0
    cache: str | None = None
    cache_prompts: int = 32
    cache_limit_gb: float = 20.0

    def __post_init__(self) -> None:
        for key in (*FEATURES, *PREDICTIONS):
            if getattr(self, key) < 0:
                raise UserError(f"distill.{key}={getattr(self, key)} must be at least 0")
        if not 0 < self.min_score < 1:
            raise UserError(f"distill.min_score={self.min_score} must lie between 0 and 1, e.g. 0.3")
        if isinstance(self.image_size, int) and self.image_size < 1:
            raise UserError(
                f"distill.image_size={self.image_size} must be at least 1, student, or null for the teacher's own"
            )
        if self.teacher is None and self.image_size is not None:
            raise UserError("distill.image_size needs distill.teacher; choose distill=full, or distill.image_size=null")
        if self.cache_prompts < 1:
            raise UserError(f"distill.cache_prompts={self.cache_prompts} must be at least 1")
        if not self.cache_limit_gb > 0:
            raise UserError(f"distill.cache_limit_gb={self.cache_limit_gb:g} must be above 0")
        weighted = any(getattr(self, key) for key in (*FEATURES, *PREDICTIONS))
        if self.teacher is None and (weighted or not self.labels):
            what = "" if self.labels else " (distill.labels=false leaves nothing else to learn from)"
            raise UserError(f"distill.teacher is missing{what}; give a checkpoint, or distill=none")
        if self.teacher is None and self.cache is not None:
            raise UserError("distill.cache needs distill.teacher; choose distill=full, or distill.cache=null")
        if self.teacher is not None and not weighted:
            raise UserError("distill.teacher is given but every distillation weight is 0; set distill.fpn")

    @property
    def missing_objectives(self) -> list[str]:
        """Weights that are 0 although, without labels, nothing else teaches an output; empty with labels."""
        return [
            " or ".join(f"distill.{key}" for key in keys)
            for keys in LESSONS_OF_OUTPUTS
            if not self.labels and not any(getattr(self, key) for key in keys)
        ]

    @property
    def predictions(self) -> bool:
        """Whether the teacher's predictions are taught, not only its features."""
        return any(getattr(self, key) for key in PREDICTIONS)

    @property
    def masks(self) -> bool:
        """Whether the teacher's mask head is needed."""
        return bool(self.mask or self.dice or self.semantic)


def teacher_overrides(
    distill: Mapping[str, Any], init: Mapping[str, Any], student_size: int | None = None
) -> dict[str, Any] | None:
    """Overrides that the teacher is loaded with, of the plain configurations ``distill`` and ``init``.

    The model that is cut usually teaches, too: what its file does not tell is said once. ``student_size`` is that of
    the student's pictures, in pixels, for ``distill.image_size=student``.
    """
    same = distill["teacher"] is not None and distill["teacher"] == init["checkpoint"]
    found: dict[str, Any] | None = distill["overrides"] or (init["overrides"] if same else None)
    size = student_size if distill.get("image_size") == "student" else distill.get("image_size")
    return found if size is None else {**(found or {}), IMAGE_SIZE: size}
