"""Sizes as people write them."""

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
