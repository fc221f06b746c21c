"""Overrides as people write them, as Hydra's grammar wants them.

Hydra reads the value of ``KEY=VALUE`` by a grammar of its own, in which ``epoch=3-step=10.ckpt``, ``~/coco``, ``é``,
``#``, ``&``, ``'`` and parentheses are errors, ``a,b`` is two values and a folder named ``2024_11`` the number 202411.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

# Keys whose values are paths, if they are texts, or hold paths, if they are lists or dicts.
PATHS = (
    "checkpoint", "reference", "compress.search_reference", "resume", "vocabulary", "init.checkpoint", "init.vision",
    "distill.teacher", "distill.cache", "data.root", "data.annotations", "data.images", "data.phrases", "data.prompts",
    "data.sets",
)  # fmt: skip
# They have one value in a sweep too.
FOLDERS = ("hydra.run.dir", "hydra.sweep.dir", "output_dir")
CLOSING = {"[": "]", "{": "}"}


def as_hydra_reads(overrides: Sequence[str]) -> list[str]:
    """``overrides`` in which what can only be meant as a text is quoted.

    Quoted are values that the grammar refuses, also inside lists and dicts, and paths that it would read as something
    else: numbers, and several values where the whole is there. All others stay as they are, and so does what no
    quotes can mend.
    """
    return [_mended(text) for text in overrides]


def quoted(text: str) -> str:
    """``text`` as the grammar wants a text that may hold anything."""
    # A backslash is one only before a quotation mark.
    inner = re.sub(r'(\\*)("|$)', lambda found: found[1] * 2 + (found[2] and '\\"'), text)
    return f'"{inner}"'


def for_the_shell(override: str) -> str:
    """``KEY=VALUE`` with the value as one text, to be typed as it stands."""
    key, _, value = override.partition("=")
    return shlex.quote(f"{key}={quoted(value)}")


def _mended(override: str) -> str:
    key, sign, value = override.partition("=")
    name, value = key.lstrip("+").partition("@")[0], value.strip()
    if not sign or key.startswith(("~", "-")) or not value:
        return override
    is_path = name in PATHS or name in FOLDERS
    found = _parsed(override)
    if found is not None:
        return f"{key}={_text(value)}" if is_path and _is_other(found, name, value) else override
    one = _is_whole(name, value) or (is_path and value[0] in CLOSING and not _bracketed(value))
    return f"{key}={_text(value) if one else _pieces(value)}"


def _is_other(found: Override, name: str, value: str) -> bool:
    """Whether a path was read as a number, a call, a list or several values."""
    if found.is_sweep_override():
        return _is_whole(name, value)
    read: Any = found.value()
    if isinstance(read, list | dict):
        return _is_whole(name, value)
    return not isinstance(read, str | None)


def _is_whole(name: str, value: str) -> bool:
    """Whether the value of a key is one path, whatever it holds."""
    return name in FOLDERS or (name in PATHS and os.path.exists(os.path.expanduser(value)))


def _parsed(override: str) -> Override | None:
    try:
        return OverridesParser.create().parse_override(override)
    except HydraException:
        return None


def _text(value: str) -> str:
    return quoted(os.path.expanduser(value))


def _pieces(value: str) -> str:
    """``value`` with those of its texts quoted that the grammar refuses."""
    if _bracketed(value):
        parts = list(_split(value[1:-1], ","))
        if value[0] == "[":
            return f"[{','.join(map(_piece, parts))}]"
        pairs = [list(_split(part, ":")) for part in parts]
        return f"{{{','.join(':'.join([_piece(k), _piece(':'.join(v))]) if v else k for k, *v in pairs)}}}"
    return ",".join(map(_piece, _split(value, ",")))


def _piece(text: str) -> str:
    text = text.strip()
    if not text or _parsed(f"x={text}") is not None:
        return text
    if text[0] in CLOSING:
        return _pieces(text) if _bracketed(text) else text
    return _text(text)


def _bracketed(text: str) -> bool:
    """Whether the bracket that ``text`` starts with is closed by its last letter."""
    if text[0] not in CLOSING or text[-1] != CLOSING[text[0]]:
        return False
    depths = list(accumulate((letter in "[{") - (letter in "]}") for letter in text))
    return 0 in depths and depths.index(0) == len(text) - 1


def _split(text: str, sign: str) -> Iterator[str]:
    """The parts of ``text`` between signs that are in no brackets and no quotes."""
    depth, start, quote = 0, 0, ""
    for place, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote and text[place - 1] != "\\" else quote
        elif letter in "\"'" and not text[start:place].strip():
            quote = letter
        elif letter in "[{":
            depth += 1
        elif letter in "]}":
            depth -= 1
        elif letter == sign and not depth:
            yield text[start:place]
            start = place + 1
    yield text[start:]
