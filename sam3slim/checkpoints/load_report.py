"""What a checkpoint gave to the model, and what it did not."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from sam3slim.errors import UserError
from sam3slim.models.count import PARTS, part_of
from sam3slim.specs import ModelSpec

log = logging.getLogger(__name__)

FOREIGN = "foreign"  # keys that belong to no part of SAM 3
SHOWN_KEYS = 3


class CheckpointError(UserError):
    """A checkpoint that cannot be used; ``report`` is set when its keys did not fit the model."""

    report: LoadReport | None = None


def by_part(keys: Iterable[str]) -> dict[str, int]:
    """How many of ``keys`` belong to each part, in model order, foreign ones last."""
    counts: Counter[str] = Counter()
    for key in keys:
        try:
            counts[part_of(key)] += 1
        except KeyError:
            counts[FOREIGN] += 1
    return {part: counts[part] for part in (*PARTS, FOREIGN) if counts[part]}


def bytes_by_part(stored: Mapping[str, Tensor]) -> dict[str, int]:
    """Part → bytes of its tensors, in model order.

    Args:
        stored: plain tensors under our names, of which only shapes and types count; an INT8 weight as ``int8.flatten``
            makes it, numbers and scales apart.
    """
    sizes = dict.fromkeys(by_part(stored), 0)
    for key, tensor in stored.items():
        try:
            part = part_of(key)
        except KeyError:
            part = FOREIGN
        sizes[part] += tensor.numel() * tensor.element_size()
    return sizes


@dataclass
class LoadReport:
    """Every key of the file and of the model, accounted for.

    Attributes:
        source: the folder or file that was read.
        kind: ``artifact``, ``transformers``, ``lightning``, ``reference``, ``reference_trainer``, ``state_dict`` or
            ``onnx`` (graphs, which have no keys).
        precision: how the weights were stored: ``fp32``, ``fp16``, ``bf16``, ``int8_weight``, ``mixed`` or
            ``int8_onnx``.
        spec: the architecture the file states.
        loaded: keys copied into the model.
        missing: keys of the model the file lacks.
        fresh: the missing keys that were allowed to start fresh.
        unexpected: keys of the file the model lacks.
        mismatched: key → (shape in the file, shape in the model).
        ignored: what the file holds beside the image model, known and not needed → bytes.
        bytes_by_part: part → bytes of its weights as stored; empty where the file does not tell.
        absent: keys of the neck's last level, which nothing reads, where the file leaves it out; they are zeros.
        adapter: what LoRA matrices the file holds that are not merged, and the command that merges them; else empty.
        rivals: other sets of weights in the file.
        left_out: classes of the objects in the file that were not loaded.
        assumed: sizes of the architecture that the file does not tell and nobody has stated, by dotted key.
    """

    source: Path
    kind: str
    precision: str
    spec: ModelSpec
    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    fresh: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    ignored: dict[str, int] = field(default_factory=dict)
    bytes_by_part: dict[str, int] = field(default_factory=dict)
    absent: list[str] = field(default_factory=list)
    adapter: str = ""
    rivals: tuple[str, ...] = ()
    left_out: list[str] = field(default_factory=list)
    assumed: dict[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        fatal = set(self.missing) - set(self.fresh)
        return bool(self.loaded) and not (fatal or self.unexpected or self.mismatched or self.adapter)

    def render(self) -> str:
        """The report in one screen: counts by part, then the first few offending keys."""
        columns = {
            "loaded": by_part(self.loaded),
            "missing": by_part(self.missing),
            "unexpected": by_part(self.unexpected),
            "mismatched": by_part(self.mismatched),
        }
        parts = [p for p in (*PARTS, FOREIGN) if any(p in counts for counts in columns.values())]
        lines = [f"{self.source} ({self.kind}, {self.precision})"]
        lines.append(f"{'part':<10}" + "".join(f"{name:>12}" for name in columns))
        for part in parts:
            lines.append(f"{part:<10}" + "".join(f"{c.get(part, 0):>12,}" for c in columns.values()))
        lines.append(f"{'total':<10}" + "".join(f"{sum(c.values()):>12,}" for c in columns.values()))
        for name, keys in (("missing", self.missing), ("unexpected", self.unexpected)):
            lines += [f"{name}: {_first(keys)}"] if keys else []
        if self.ignored:
            lines.append("not needed: " + ", ".join(f"{name} {size:,} bytes" for name, size in self.ignored.items()))
        if self.fresh:
            lines.append(f"allowed to start fresh: {', '.join(by_part(self.fresh))}")
        lines += self.notes()
        for key, (in_file, in_model) in list(self.mismatched.items())[:SHOWN_KEYS]:
            lines.append(f"mismatched: {key} is {list(in_file)} in the file, {list(in_model)} in the model")
        return "\n".join(lines)

    def tell(self) -> None:
        """Log what there is to know of the file, where the whole report is not shown."""
        for line in self.notes():
            log.warning("%s: %s", self.source, line)

    def notes(self) -> list[str]:
        """What else there is to know of the file, a line each."""
        lines = []
        if self.assumed:
            sizes = ", ".join(f"{key}={list(v) if isinstance(v, tuple) else v}" for key, v in self.assumed.items())
            lines.append(f"assumed, because no tensor tells: {sizes} (overrides change it)")
        if self.absent:
            lines.append("not in the file: the neck's fourth level, which nothing reads (as in SAM 3.1)")
        if self.rivals:
            other = self.rivals[0]
            lines.append(
                f"not read: other weights under {', '.join(self.rivals)} (the override weights={other} reads them)"
            )
        if self.left_out:
            lines.append(f"not read: {len(self.left_out)} kinds of objects ({_first(self.left_out)})")
        return lines

    def problem(self) -> str:
        """One line that says why the checkpoint was refused."""
        total = len(self.loaded) + len(self.unexpected) + len(self.mismatched)
        if not self.loaded:
            keys = [*self.unexpected, *self.mismatched]
            found = f"its {total} tensors are called {_first(keys)}" if keys else "it has no tensors"
            return f"checkpoint {self.source}: not one tensor fits the model ({found})"
        reasons = [self.adapter] if self.adapter else []
        fatal = sorted(set(self.missing) - set(self.fresh))
        if fatal:
            parts = ", ".join(f"{part} {n}" for part, n in by_part(fatal).items())
            reasons.append(
                f"{len(fatal)} keys missing ({parts}; first {fatal[0]}); "
                f"allow_fresh=[{','.join(by_part(fatal))}] would start them fresh"
            )
        if self.unexpected:
            reasons.append(
                f"{len(self.unexpected)} unexpected keys ({_first(self.unexpected)}); save the file without them"
            )
        for key, (in_file, in_model) in list(self.mismatched.items())[:1]:
            reasons.append(
                f"{len(self.mismatched)} keys of another shape (first {key}: "
                f"{list(in_file)} in the file, {list(in_model)} in the model)"
            )
        return f"checkpoint {self.source} does not fit: " + "; ".join(reasons)


def _first(keys: Iterable[str]) -> str:
    listed = list(keys)
    return ", ".join(listed[:SHOWN_KEYS]) + (f", … {len(listed) - SHOWN_KEYS} more" if len(listed) > SHOWN_KEYS else "")
