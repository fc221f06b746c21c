"""Which phrases an image is asked for."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np

from sam3slim.data.boxes import PROMPT_KINDS, BoxSpec
from sam3slim.data.records import Category
from sam3slim.errors import UserError


@dataclass(frozen=True)
class PromptSpec:
    """How the prompts of an image are chosen.

    Attributes:
        protocol: ``train`` (sampled positives and negatives, other ones each epoch), ``all`` (every
            category), ``present`` (those in the image), ``present+k`` (with ``negatives`` absent ones;
            ``present+3`` fixes the number).
        negatives: absent categories per image, for ``train`` and ``present+k``.
        hard_negatives: share of the negatives (0..1) preferred among absent categories that share a word
            or the supercategory with a present one ("red circle" for "blue circle").
        max_prompts: most prompts per image in ``train``; the negatives' places are kept free first,
            but one present category always stays.
        min_area: in ``train``, annotations of fewer pixels (of the original image) are no targets, and
            a category with no other ones in the image is not asked for.
        labels: False ignores the annotations of ``train``: any ``max_prompts`` categories are asked for, and
            there are no targets.
        kind: what a prompt of an evaluation is: ``text``, ``box`` (a box on an instance alone) or ``text+box``.
        boxes: how often training prompts come with boxes, and how boxes are drawn, also in evaluation.
        pool: in ``train``, ask an image only for categories of a fixed choice of so many: those in it first, then
            absent ones. None: any.
    """

    protocol: str = "train"
    negatives: int = 3
    hard_negatives: float = 0.5
    max_prompts: int = 8
    min_area: float = 0.0
    labels: bool = True
    pool: int | None = None
    kind: str = "text"
    boxes: BoxSpec = field(default_factory=BoxSpec)

    def __post_init__(self) -> None:
        if fixed := re.fullmatch(r"present\+(\d+)", self.protocol):
            object.__setattr__(self, "negatives", int(fixed[1]))
        elif self.protocol not in ("train", "all", "present", "present+k"):
            raise UserError(
                f"data.protocol={self.protocol}: expected train, all, present, present+k or present+<number>"
            )
        if self.kind not in PROMPT_KINDS:
            raise UserError(
                f"data.prompts={self.kind}: expected {', '.join(PROMPT_KINDS)}, or a .yaml or .json file of phrases"
            )
        if self.kind != "text" and self.protocol not in ("train", "present"):
            raise UserError(
                f"data.prompts={self.kind} with data.protocol={self.protocol}: a category without an instance in the "
                "image has no box to show; set data.protocol=present"
            )
        object.__setattr__(self, "hard_negatives", float(self.hard_negatives))
        if not 0 <= self.hard_negatives <= 1:
            raise UserError(f"data.hard_negatives={self.hard_negatives}: expected a share in 0..1")
        if self.negatives < 0 or self.max_prompts < 1:
            raise UserError(
                f"data.negatives={self.negatives}, data.max_prompts={self.max_prompts}: "
                "expected negatives >= 0 and max_prompts >= 1"
            )

    @property
    def training(self) -> bool:
        """Whether prompts change from epoch to epoch."""
        return self.protocol == "train"

    @property
    def unlabelled(self) -> bool:
        """Whether annotations are not looked at."""
        return self.training and not self.labels

    @property
    def with_boxes(self) -> bool:
        """Whether any prompt may come with boxes."""
        return bool(self.boxes.share) if self.training else self.kind != "text"

    @property
    def boxes_alone(self) -> bool:
        """Whether any prompt may come without its phrase."""
        return self.with_boxes and (bool(self.boxes.alone) if self.training else self.kind == "box")


class PromptSampler:
    """Chooses the categories an image is asked for, the same for the same random generator."""

    def __init__(self, categories: Sequence[Category], spec: PromptSpec) -> None:
        self.spec = spec
        self.categories = {category.id: category for category in categories}
        self._sharing: dict[str, list[int]] = {}
        for category in categories:
            for trait in _traits(category):
                self._sharing.setdefault(trait, []).append(category.id)

    def __call__(
        self,
        present: Collection[int],
        unclear: Collection[int],
        rng: np.random.Generator,
        among: Collection[int] | None = None,
    ) -> list[int]:
        """Category ids to prompt.

        Args:
            present: categories with a target in the image.
            unclear: categories that are neither present nor absent (only crowd regions or too small).
            rng: source of all choices.
            among: the categories that the image may be asked for, such as its ``pool``; None: all.
        """
        spec = self.spec
        if among is not None:
            present = [category for category in self.categories if category in present and category in among]
        if spec.protocol == "all":
            return [category for category in self.categories if among is None or category in among]
        if spec.unlabelled:
            return self._any(spec.max_prompts, rng, among)
        positives = [category for category in self.categories if category in present]
        count = 0 if spec.protocol == "present" else spec.negatives
        if spec.training:
            count = min(count, spec.max_prompts - 1) if positives else min(max(count, 1), spec.max_prompts)
        negatives = self._negatives(present, unclear, count, rng, among)
        if spec.training and len(positives) > spec.max_prompts - len(negatives):
            chosen = rng.choice(len(positives), spec.max_prompts - len(negatives), replace=False)
            positives = [positives[index] for index in sorted(chosen)]
        return positives + negatives

    def pool(
        self,
        present: Collection[int],
        unclear: Collection[int],
        rng: np.random.Generator,
        among: Collection[int] | None = None,
    ) -> list[int]:
        """The categories that an image may be asked for in any epoch, at most ``spec.pool``; arguments as above."""
        size = self.spec.pool or len(self.categories)
        allowed = [category for category in self.categories if among is None or category in among]
        if len(allowed) <= size:
            return allowed
        if self.spec.unlabelled:
            return self._any(size, rng)
        positives = [category for category in allowed if category in present][:size]
        return positives + self._negatives(present, unclear, size - len(positives), rng, among)

    def _any(self, count: int, rng: np.random.Generator, among: Collection[int] | None = None) -> list[int]:
        """Categories of different phrases, in no order."""
        some = [category for category in self.categories.values() if among is None or category.id in among]
        distinct = list({category.phrase: category.id for category in some}.values())
        return [distinct[index] for index in rng.permutation(len(distinct))[:count]]

    def _negatives(
        self,
        present: Collection[int],
        unclear: Collection[int],
        count: int,
        rng: np.random.Generator,
        among: Collection[int] | None = None,
    ) -> list[int]:
        if count == 0:
            return []
        # By phrase, because two categories may carry the same one.
        taken = {self.categories[category].phrase for category in (*present, *unclear)}
        some = [category for category in self.categories.values() if among is None or category.id in among]
        absent = {category.phrase: category.id for category in some if category.phrase not in taken}
        pool = list(absent.values())
        near: set[int] = set()
        if self.spec.hard_negatives:
            traits = {trait for category in present for trait in _traits(self.categories[category])}
            near = {category for trait in traits for category in self._sharing[trait]}
        hard = [category for category in pool if category in near]
        wanted = min(int(rng.binomial(count, self.spec.hard_negatives)), len(hard)) if hard else 0
        chosen = [hard[index] for index in rng.permutation(len(hard))[:wanted]]
        others = [category for category in pool if category not in chosen]
        return chosen + [others[index] for index in rng.permutation(len(others))[: count - wanted]]


def _traits(category: Category) -> set[str]:
    words = set(category.phrase.split())
    return words | {f"is-a:{category.supercategory}"} if category.supercategory else words
