"""What was kept of the full model, and how much of its importance that is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Kept:
    """The units kept on one axis.

    Attributes:
        axis: e.g. ``vit.channels``, ``vit.blocks``, ``vit[2].heads`` (block 2 of the slim model).
        indices: the full model's units that stay, increasing.
        total: how many the full model has.
        share: share of the axis' importance that stays, 0..1; None where order decides, not weights.
        how: the rule that chose.
    """

    axis: str
    indices: tuple[int, ...]
    total: int
    share: float | None
    how: str

    @property
    def everything(self) -> bool:
        return len(self.indices) == self.total

    def entries(self, unit: int = 1) -> Tensor:
        """Where the kept units lie on a dimension of the full model, each of them ``unit`` entries long; int64."""
        return (torch.tensor(self.indices)[:, None] * unit + torch.arange(unit)).flatten()


@dataclass(frozen=True)
class Fit:
    """What fitting did.

    Attributes:
        images: pictures it was done on.
        variance: share of the vision tower's stream that the kept directions hold; None where the width is whole.
        before, after: squared error as a share of the variance, on the same pictures: of the neck's maps that the
            detector reads, finest first, of the encoder's output, and of the decoder's last queries.
    """

    images: int
    variance: float | None
    before: tuple[float, ...]
    after: tuple[float, ...]

    def describe(self) -> str:
        """One line."""
        kept = "" if self.variance is None else f", {100 * self.variance:.1f} % of the stream's variance kept"
        before, after = (" / ".join(f"{value:.3f}" for value in values) for values in (self.before, self.after))
        return (
            f"  fitted on {self.images} images{kept}; error of the neck's three maps, the encoder's output and the "
            f"decoder's: {before} → {after}"
        )


@dataclass(frozen=True)
class Greedy:
    """Blocks of the vision tower that were removed one after another.

    Attributes:
        blocks: those that stay.
        removed: in the order in which they went.
        errors: after each of them: squared error of the neck's maps over their variance, the blocks at gaps fitted.
        images: pictures that this was measured on.
    """

    blocks: tuple[int, ...]
    removed: tuple[int, ...]
    errors: tuple[float, ...]
    images: int

    def describe(self) -> str:
        """One line."""
        steps = ", ".join(f"{block} ({error:.3f})" for block, error in zip(self.removed, self.errors, strict=True))
        return f"  blocks removed on {self.images} images, with the error of the neck's maps then: {steps}"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Greedy:
        """Inverse of ``asdict``."""
        return cls(tuple(values["blocks"]), tuple(values["removed"]), tuple(values["errors"]), int(values["images"]))


@dataclass(frozen=True)
class Plan:
    """The whole cut, enough to repeat it."""

    source: str
    target: str
    importance: str
    depth: str
    seed: int
    batches: int | None  # of data, where importance came from data
    params_before: int
    params_after: int
    kept: tuple[Kept, ...]
    fit: Fit | None = None  # what was done after the cut
    greedy: Greedy | None = None  # how its blocks were chosen

    def __getitem__(self, axis: str) -> Kept:
        return next(kept for kept in self.kept if kept.axis == axis)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able values; an axis kept whole says ``all``."""
        axes = {
            k.axis: {
                "kept": "all" if k.everything else list(k.indices),
                "total": k.total,
                "share": k.share,
                "how": k.how,
            }
            for k in self.kept
        }
        return {
            "source": self.source,
            "target": self.target,
            **self.metadata(),
            "params_before": self.params_before,
            "params_after": self.params_after,
            "axes": axes,
            **({"fit": asdict(self.fit)} if self.fit else {}),
            **({"greedy": asdict(self.greedy)} if self.greedy else {}),
        }

    def metadata(self) -> dict[str, Any]:
        """How it was chosen, without the axes."""
        metadata = {"importance": self.importance, "depth": self.depth, "batches": self.batches, "seed": self.seed}
        return metadata | ({"fit_images": self.fit.images} if self.fit else {})

    def describe(self) -> str:
        """A few lines for a person: axes of all blocks of a tower are summed up in one."""
        share = 100 * self.params_after / self.params_before
        data = "" if self.batches is None else f", from {self.batches} batches"
        lines = [
            f"{self.source} → {self.target}: {self.params_before:,} → {self.params_after:,} parameters "
            f"({share:.1f} %); importance {self.importance}{data}, depth {self.depth}"
        ]
        families: dict[str, list[Kept]] = {}
        for kept in self.kept:
            families.setdefault(re.sub(r"\[\d+\]", "", kept.axis), []).append(kept)
        for name, members in families.items():
            if not all(kept.everything for kept in members):
                lines.append(_describe_family(name, members))
        if len(lines) == 1:
            lines.append("  everything is kept")
        done = [what.describe() for what in (self.greedy, self.fit) if what is not None]
        return "\n".join([*lines, *done])


def _describe_family(name: str, members: list[Kept]) -> str:
    first = members[0]
    text = f"  {name:<16} {len(first.indices)} of {first.total}"
    if len(members) > 1:
        text += f" in each of {len(members)}"
    shares = [100 * kept.share for kept in members if kept.share is not None]
    if shares:
        low, high = f"{min(shares):.1f}", f"{max(shares):.1f}"
        span = low if low == high else f"{low}–{high}"
        text += f", {span} % of importance"
    if len(members) == 1 and (not shares or name.endswith(".blocks")):
        text += f": {', '.join(map(str, first.indices))}" if len(first.indices) <= 40 else ""
    return f"{text} ({first.how})"
