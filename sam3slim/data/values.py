"""Numbers, ids and flags as annotation files spell them."""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

Id = int | str
INT64 = range(-(2**63), 2**63)
FLAGS = {"0": False, "1": True, "false": False, "true": True, "no": False, "yes": True, "": False}
SHORT = 80


def number(value: Any) -> float | int | None:
    """A finite number, also one written as text; None for anything else."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    try:
        return value if math.isfinite(value) else None
    except OverflowError:  # an integer beyond every float
        return None


def whole(value: Any) -> int | None:
    """A whole number, also as float or text; None for anything else."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and len(value) < 4000 and re.fullmatch(r"\s*-?[0-9]+\s*", value):
        return int(value)  # exactly, which a float is not
    found = number(value)
    return int(found) if found is not None and found == int(found) else None


def flag(value: Any) -> bool | None:
    """A yes or no as bool, 0, 1 or text; null is no. None for anything else."""
    if value is None:
        return False
    if isinstance(value, str):
        return FLAGS.get(value.strip().lower().removesuffix(".0"))
    return bool(value) if isinstance(value, (bool, int, float)) and value in (0, 1) else None


def parsed(text: str) -> Any:
    """The value that JSON text, or Python's text of one, stands for. Raises ValueError."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError(f"{short(text)} is not JSON") from error


def id_key(value: Any) -> Id | None:
    """An id so that 3, 3.0 and "3" are one; None for what is no id."""
    if isinstance(value, str):
        text = value.strip()
        # "007" is a name, "7" a number.
        return int(text) if re.fullmatch(r"0|-?[1-9][0-9]{0,999}", text) else text or None
    return whole(value)


class Ids:
    """The ids of a file's images or categories as int64.

    Whole numbers stay what they are. Others (names, numbers beyond 64 bits) are numbered from 1, numbers first and then
    names, each in their order, which is the order pycocotools evaluates them in.

    Args:
        keys: ``id_key`` of each.
    """

    def __init__(self, keys: Iterable[Id]) -> None:
        keys = list(keys)
        self.renumbered = not all(isinstance(key, int) and key in INT64 for key in keys)
        order = sorted(keys, key=lambda key: (isinstance(key, str), key)) if self.renumbered else keys
        numbers: Iterable[Any] = range(1, len(order) + 1) if self.renumbered else order
        self._numbers: Mapping[Id, int] = dict(zip(order, numbers, strict=True))
        # "0017" and 17 are one id where nothing else could be meant.
        loose: dict[int, list[int]] = {}
        for key, given in self._numbers.items():
            if isinstance(key, str) and (as_number := whole(key)) is not None:
                loose.setdefault(as_number, []).append(given)
        self._loose = {key: given[0] for key, given in loose.items() if len(given) == 1}

    def __getitem__(self, value: Any) -> int | None:
        """The number of an id in any spelling; None where the file has no such."""
        key = id_key(value)
        if key is None:
            return None
        found = self._numbers.get(key)
        if found is not None:
            return found
        as_number = whole(key)
        if as_number is None:
            return None
        return self._numbers.get(as_number, self._loose.get(as_number))


def short(value: Any) -> str:
    """``value`` for a message: one line that every terminal can print."""
    try:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        text = type(value).__name__
    text = text if len(text) <= SHORT else f"{text[: SHORT - 1]}…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
