"""Phrases that a mirrored picture makes wrong."""

from __future__ import annotations

import re
from functools import lru_cache

# Also inside words ("leftmost", "bottomright"). Where a word only looks so and is not named here, a picture stays
# unmirrored, which costs an augmentation and nothing else.
_SIDE = re.compile(r"(?<!\bc)left(?!overs?\b)|(?<!\bb)(?<!\bf)(?<!\bup)(?<!copy)(?<![^o]w)right(?!eous)|clockwise")


@lru_cache(maxsize=100_000)
def says_side(phrase: str) -> bool:
    """Whether ``phrase`` says left or right, or which way something turns: "left-hand", "turn-right", "leftmost"."""
    return _SIDE.search(phrase.casefold().replace("_", " ")) is not None
