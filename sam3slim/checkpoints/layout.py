"""Which names a checkpoint gives to SAM 3's tensors, told by the names themselves."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from sam3slim.checkpoints import reference_keys
from sam3slim.checkpoints.reference_keys import CLASS_TOKEN, FREQS_CIS, POINTS, POSITIONS, place_of, template_of
from sam3slim.models.count import PARTS

Naming = Literal["reference", "transformers"]
# Components of a key that say "video tracking", in the released files (of SAM 3 and 3.1) and in transformers' video
# layout.
_TRACKER = re.compile(r"(^|\.)(tracker|tracker_model|tracker_neck|sam2_convs|interactive_convs|propagation_convs)\.")
# The rotary table as one complex tensor, or as two real ones.
_TABLES = (FREQS_CIS, f"{FREQS_CIS}_real", f"{FREQS_CIS}_imag")
_OURS = tuple(prefix for prefixes in PARTS.values() for prefix in prefixes)
_THEIRS = reference_keys.templates()


@dataclass(frozen=True)
class Layout:
    """Names of ``format`` behind ``prefix`` (``detector.``, ``module.``, ``detector_model.``, or nothing)."""

    format: Naming
    prefix: str

    def name_of(self, key: str) -> str:
        """The file's name of the tensor that holds our tensor ``key``."""
        return self.prefix + (place_of(key).key if self.format == "reference" else key)

    def get(self, tensors: Mapping[str, Tensor], key: str) -> Tensor | None:
        """Our tensor ``key`` as a view of the file's, or None.

        Raises:
            ValueError: a tensor of a shape that cannot hold ours.
        """
        tensor = tensors.get(self.name_of(key))
        if tensor is None or self.format == "transformers":
            return tensor
        return place_of(key).take(tensor)


@dataclass
class Assigned:
    """The file's tensors sorted out.

    Attributes:
        tensors: under our keys, views of the file's.
        unexpected: names in the file that are no tensor of this architecture.
        ignored: what is known and not needed (``tracker``, ``computed``, ``point prompts``, ``counters``) → names.
        originals: of the point projections and the class token's position [1, 1, C], which transformers drops;
            the reference's names (``class_token``), without prefix.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    unexpected: list[str] = field(default_factory=list)
    ignored: dict[str, list[str]] = field(default_factory=dict)
    originals: dict[str, Tensor] = field(default_factory=dict)


def find_layout(names: Iterable[str]) -> Layout | None:
    """The layout most names agree on; None when not one is known."""
    sets = sets_of(names)
    # Names that both use (geometry_encoder.label_embed.weight) are counted for the reference, a few of many.
    return max(sets, key=lambda layout: len(sets[layout])) if sets else None


def sets_of(names: Iterable[str]) -> dict[Layout, list[str]]:
    """The names of SAM 3's tensors by layout; a tracker's, which repeat the detector's, are left out."""
    sets: dict[Layout, list[str]] = {}
    for name in names:
        if _TRACKER.search(name):
            continue
        for start in [0, *(match.end() for match in re.finditer(r"\.", name))]:
            tail = name[start:]
            if template_of(tail) in _THEIRS:
                sets.setdefault(Layout("reference", name[:start]), []).append(name)
                break
            if tail.startswith(_OURS) and is_ours(tail):
                sets.setdefault(Layout("transformers", name[:start]), []).append(name)
                break
    return sets


def is_ours(key: str) -> bool:
    """Whether ``key`` names a tensor of ``transformers.Sam3Model`` of some size."""
    try:
        place_of(key)
    except KeyError:
        return False
    return True


def assign(tensors: Mapping[str, Tensor], layout: Layout, wanted: Collection[str]) -> Assigned:
    """Give every tensor of the file to one of ``wanted`` (our keys), to ``ignored`` or to ``unexpected``."""
    result, used = Assigned(), set()
    for key in wanted:
        name = layout.name_of(key)
        if name not in tensors:
            continue
        used.add(name)
        try:
            value = layout.get(tensors, key)
        except ValueError:
            value = tensors[name]  # of a wrong shape, which the comparison with the model will tell
        assert value is not None
        result.tensors[key] = value
    for name in tensors:
        if name not in used:
            # A number without dots is a trainer's: epoch, step.
            counter = tensors[name].ndim == 0 and "." not in name
            group = "counters" if counter else _known_group(name.removeprefix(layout.prefix), layout)
            if group is None:
                result.unexpected.append(name)
            else:
                result.ignored.setdefault(group, []).append(name)
                if group == "point prompts":
                    result.originals[name.removeprefix(layout.prefix)] = tensors[name]
    table = tensors.get(layout.prefix + POSITIONS) if layout.format == "reference" else None
    if table is not None and table.ndim == 3:
        result.originals[CLASS_TOKEN] = table[:, :1]
    return result


def _known_group(name: str, layout: Layout) -> str | None:
    if _TRACKER.search(name):
        return "tracker"
    if layout.format == "reference":
        if template_of(name) in _TABLES:
            return "computed"
        if name in POINTS:
            return "point prompts"
    return None
