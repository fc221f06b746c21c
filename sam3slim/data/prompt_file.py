"""``data.prompts=FILE``: the phrases that categories are asked for with instead of their names."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import yaml

from sam3slim.data.dialects import clean_phrase
from sam3slim.data.values import short
from sam3slim.errors import UserError

SUFFIXES = (".yaml", ".yml", ".json")
EXPECTED = "expected {category: phrase} or {category: [phrase, other phrase, …]}"


def read_prompts(path: Path) -> dict[str, tuple[str, ...]]:
    """Category, its name cleaned as a phrase → its phrases, in lower case, each once.

    Args:
        path: YAML or JSON.

    Raises:
        UserError: not such a file, or a category that is named twice.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError, ValueError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UserError(f"data.prompts={path} cannot be read: {reason}; {EXPECTED} in YAML or JSON") from error
    if not isinstance(content, dict) or not content:
        raise UserError(f"data.prompts={path} holds {short(content)}, {EXPECTED}")
    found: dict[str, tuple[str, ...]] = {}
    for name, given in content.items():
        category = clean_phrase(str(name))
        phrases = [given] if isinstance(given, str) else given
        if not isinstance(phrases, list) or not phrases or not all(isinstance(p, str) and p.strip() for p in phrases):
            raise UserError(f"data.prompts={path}: {short(name)} has {short(given)}, {EXPECTED}")
        if category in found:
            raise UserError(f"data.prompts={path} names the category {category!r} twice; join the two entries")
        found[category] = tuple(dict.fromkeys(" ".join(phrase.lower().split()) for phrase in phrases))
    return found


def phrases_digest(path: Path) -> str:
    """SHA-256 (hex) of what ``read_prompts`` gives: what must be equal where numbers are compared."""
    return hashlib.sha256(json.dumps(sorted(read_prompts(path).items())).encode()).hexdigest()
