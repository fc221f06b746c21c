"""Sizes and times as people write them."""

from __future__ import annotations

import math
import re

from sam3slim.errors import UserError

UNITS = {"": 1, "b": 1} | {
    f"{letter}{infix}b": base**power
    for power, letter in enumerate("kmgt", start=1)
    for infix, base in (("", 1000), ("i", 1024))
}
_SIZE = re.compile(r"\s*(?P<number>\d+(?:[.,_]\d+)*(?:e\d+)?)\s*(?P<unit>[a-z]*)\s*", re.IGNORECASE)
_TIME = re.compile(r"\s*(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>ms|s)?\s*", re.IGNORECASE)


def parse_bytes(text: str | int, what: str = "--max-bytes") -> int:
    """``500MB`` → 500,000,000; ``1.5GiB`` → 1,610,612,736; a bare number is bytes.

    Raises:
        UserError: not a size, an unknown unit, or nothing.
    """
    if isinstance(text, int):
        size = text
    else:
        match = _SIZE.fullmatch(text)
        scale = UNITS.get(match["unit"].lower()) if match else None
        try:
            number = float(match["number"]) if match else math.nan
        except ValueError:  # a decimal comma, two points
            scale, number = None, math.nan
        if scale is None or not math.isfinite(number):
            raise UserError(
                f"{what} {text}: expected a number and B, kB, MB, GB, KiB, MiB or GiB, e.g. 500MB or 1.5GiB"
            )
        size = math.floor(number * scale)
    if size < 1:
        raise UserError(f"{what} {text}: expected at least one byte")
    return size


def parse_milliseconds(text: str, what: str = "--max-latency") -> float:
    """``120ms`` → 120, ``0.5s`` → 500; a bare number is milliseconds.

    Raises:
        UserError: not a time, or none above 0.
    """
    match = _TIME.fullmatch(text)
    if match is None or not float(match["number"]) > 0:
        raise UserError(f"{what} {text}: expected a time such as 120ms or 0.5s")
    return float(match["number"]) * (1000 if (match["unit"] or "ms").lower() == "s" else 1)
