"""What to ask of the pictures: phrases of all of them, boxes of some."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any

from sam3slim.data.images import UnreadableImage, upright_size
from sam3slim.errors import UserError
from sam3slim.files import read_json_value
from sam3slim.predict.images import Picture
from sam3slim.text.phrases import BOXES_ONLY, read_phrase_list

log = logging.getLogger(__name__)

ENTRY = '{"bbox": [x, y, width, height], "prompt": "phrase", "label": 1}'
FILE = f"an object {{picture: [{ENTRY}, …]}}"
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class BoxPrompt:
    """An example of what is meant (``label`` 1) or not meant (0).

    Attributes:
        box: (x, y, width, height) in pixels of the upright picture, inside it.
        phrase: the phrase it goes with; ``visual`` for none.

    Raises:
        UserError: another label, a blank phrase, or a box that is not four finite numbers.
    """

    box: Box
    phrase: str = BOXES_ONLY
    label: int = 1

    def __post_init__(self) -> None:
        if not _is_box(self.box):
            raise UserError(f"bbox is {_short(self.box)}, expected [x, y, width, height] in pixels")
        if type(self.label) is not int or self.label not in (0, 1):
            raise UserError(f"label is {_short(self.label)}, expected 1 (this) or 0 (not this)")
        if not isinstance(self.phrase, str) or not self.phrase.strip():
            raise UserError(f"prompt is {_short(self.phrase)}, expected a phrase; leave it out for none")


@dataclass(frozen=True)
class Question:
    """One prompt to one picture: a phrase and its boxes."""

    category_id: int
    phrase: str
    boxes: tuple[BoxPrompt, ...] = ()


@dataclass(frozen=True)
class Prompts:
    """Everything that is asked.

    Attributes:
        phrases: asked of every picture.
        boxes: picture's name → its boxes.
        digest: of the boxes, "" without any.
    """

    phrases: tuple[str, ...]
    boxes: Mapping[str, tuple[BoxPrompt, ...]] = field(default_factory=dict)
    digest: str = ""

    @property
    def categories(self) -> dict[str, int]:
        """Phrase → category id, 1..N: the phrases in their order, then those that only boxes name."""
        named = (box.phrase for boxes in self.boxes.values() for box in boxes)
        return {phrase: number for number, phrase in enumerate(dict.fromkeys([*self.phrases, *named]), start=1)}


def questions(phrases: Iterable[str], boxes: Sequence[BoxPrompt], categories: Mapping[str, int]) -> list[Question]:
    """What is asked of one picture: every phrase, with its boxes where it has some, then what only boxes name."""
    by_phrase: dict[str, list[BoxPrompt]] = {phrase: [] for phrase in phrases}
    for box in boxes:
        by_phrase.setdefault(box.phrase, []).append(box)
    return [Question(categories[phrase], phrase, tuple(own)) for phrase, own in by_phrase.items()]


def read_phrases(given: Sequence[str], file: str | Path | None = None) -> tuple[str, ...]:
    """Phrases of the command line, then one of every line of ``file`` that is not blank, each once.

    Inner blanks are made single.

    Raises:
        UserError: a blank phrase, a file that cannot be read or holds none.
    """
    phrases = [_plain(phrase) for phrase in given]
    if "" in phrases:
        raise UserError("--prompt '' is empty; give a phrase")
    if file is not None:
        phrases += read_phrase_list(file)
    return tuple(dict.fromkeys(phrases))


def read_boxes(file: str | Path, pictures: Sequence[Picture]) -> tuple[dict[str, tuple[BoxPrompt, ...]], str]:
    """Boxes of the pictures that ``file`` names, and the file's digest.

    Args:
        file: JSON, ``{picture: [{"bbox": [x, y, w, h], "prompt": phrase, "label": 1 or 0}, …]}``; pixels of
            the upright picture; ``prompt`` and ``label`` (1) may be left out.
        pictures: a picture goes by its ``name``, or by its file name where no other has it.

    Returns:
        ``{picture.name: boxes}``; boxes that reach over the edge are cut there, with a warning.

    Raises:
        UserError: not such a file, an unknown picture, a box wholly outside or without area.
    """
    path = Path(file)
    content = read_json_value(path, f"expected {FILE}", hook=_no_key_twice)
    if not isinstance(content, dict) or not content:
        raise UserError(f"boxes file {path} holds {_short(content)}, expected {FILE}")
    known = _by_name(pictures)
    found: dict[str, tuple[BoxPrompt, ...]] = {}
    for name, entries in content.items():
        picture = _find(name, known, path)
        if picture.name in found:
            raise UserError(f"boxes file {path} names {picture.name} twice; join the two entries")
        if not isinstance(entries, list):
            raise UserError(f"boxes file {path}, {name}: expected a list of {ENTRY}")
        found[picture.name] = _boxes_of(picture, entries, path)
    text = json.dumps({name: entries for name, entries in sorted(content.items())}, sort_keys=True)
    return {name: boxes for name, boxes in found.items() if boxes}, hashlib.sha256(text.encode()).hexdigest()


def _by_name(pictures: Sequence[Picture]) -> dict[str, list[Picture]]:
    known: dict[str, list[Picture]] = {}
    for picture in pictures:
        for name in {picture.name, picture.path.name}:
            known.setdefault(name, []).append(picture)
    return known


def _find(name: str, known: Mapping[str, list[Picture]], path: Path) -> Picture:
    found = known.get(name, [])
    exact = [picture for picture in found if picture.name == name]
    if len(exact) == 1 or len(found) == 1:
        return (exact or found)[0]
    if found:
        names = ", ".join(picture.name for picture in found[:3])
        raise UserError(f"boxes file {path}: {name} is the name of {len(found)} images; write {names}")
    raise UserError(f"boxes file {path}: {name} is not among the images; expected a name such as {next(iter(known))}")


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of the JSON file; of a key that is there twice the reader would keep the last without a word."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"{twice!r} is there twice, join the two entries")
    return found


def _boxes_of(picture: Picture, entries: Sequence[Any], path: Path) -> tuple[BoxPrompt, ...]:
    try:
        size = upright_size(picture.path) if entries else (1, 1)
    except UnreadableImage:
        return ()  # skipped and reported when its turn comes
    boxes = tuple(_box(entry, size, f"boxes file {path}, {picture.name}[{i}]") for i, entry in enumerate(entries))
    check_positive(boxes, f"boxes file {path}, {picture.name}")
    return boxes


def _box(entry: Any, size: tuple[int, int], where: str) -> BoxPrompt:
    if not isinstance(entry, dict) or not {"bbox"} <= entry.keys() <= {"bbox", "prompt", "label"}:
        raise UserError(f"{where} is {_short(entry)}, expected {ENTRY}")
    try:
        box = BoxPrompt(entry["bbox"], entry.get("prompt", BOXES_ONLY), entry.get("label", 1))
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    return BoxPrompt(clip_box(box.box, size, where), _plain(box.phrase), box.label)


def check_positive(boxes: Iterable[BoxPrompt], where: str) -> None:
    """Refuse boxes of a picture that name no phrase and are all negative: nothing would say what is looked for.

    Raises:
        UserError: such boxes; ``where`` they were given opens the message.
    """
    labels = [box.label for box in boxes if box.phrase == BOXES_ONLY]
    if labels and 1 not in labels:
        raise UserError(f"{where}: boxes without a prompt are all negative (label 0); add a positive box, or a prompt")


def _is_box(values: Any) -> bool:
    try:
        return len(values) == 4 and all(isinstance(value, Real) and math.isfinite(value) for value in values)
    except (TypeError, OverflowError):  # no sequence, or an integer beyond every float
        return False


def _plain(phrase: str) -> str:
    return " ".join(phrase.split())


def _short(value: Any) -> str:
    try:
        text = json.dumps(value)
    except TypeError:  # from Python
        text = repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"


def clip_box(box: Sequence[float], size: tuple[int, int], where: str) -> Box:
    """``box`` (x, y, w, h) cut at the edges of a picture of ``size`` (height, width), with a warning.

    Raises:
        UserError: nothing of it is inside.
    """
    x, y, w, h = map(float, box)
    height, width = size
    left, top, right, bottom = max(x, 0.0), max(y, 0.0), min(x + w, float(width)), min(y + h, float(height))
    if w <= 0 or h <= 0 or right <= left or bottom <= top:
        raise UserError(
            f"{where}: bbox {[x, y, w, h]} covers nothing of the {width}x{height} picture; "
            "expected [x, y, width, height] in its pixels"
        )
    if (left, top) != (x, y) or right < x + w or bottom < y + h:
        log.warning("%s: bbox %s is cut at the edge of the %dx%d picture", where, [x, y, w, h], width, height)
        return left, top, right - left, bottom - top
    return x, y, w, h
