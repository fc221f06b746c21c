"""File names as annotation tools write them, and the files they mean."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from urllib.parse import unquote

# Endings of one format.
ENDINGS = {".jpeg": ".jpg", ".jpe": ".jpg", ".jfif": ".jpg", ".tiff": ".tif"}
Spelling = Callable[[str], str]


def plain_name(name: str) -> str:
    """``name`` with forward slashes, without URL escapes, drive, leading ``./`` or ``/``; letters composed (NFC)."""
    name = unicodedata.normalize("NFC", unquote(name.replace("\\", "/")))
    if "://" in name:
        name = name.split("://", 1)[1]
    if name[1:2] == ":" and name[:1].isalpha():
        name = name[2:]
    parts = [part for part in name.split("/") if part not in ("", ".")]
    return "/".join(parts)


def folded_name(name: str) -> str:
    """``plain_name`` in one case, with one ending for each format."""
    stem, ending = os.path.splitext(plain_name(name).casefold())
    return stem + ENDINGS.get(ending, ending)


def flat_name(name: str) -> str:
    """``folded_name`` with folders joined to the name, as tools that flatten folders do."""
    return re.sub(r"[/\s-]", "_", folded_name(name))


def base_name(name: str) -> str:
    """The last part of ``folded_name``."""
    return folded_name(name).rsplit("/", 1)[-1]


def match_names(folder: Path, names: Sequence[str], taken: Iterable[str] = ()) -> dict[str, str]:
    """Of ``names`` those that mean exactly one file below ``folder``, spelt otherwise: name → file below ``folder``.

    The strictest spelling under which a name means a single file decides; two names never mean the same one. Last,
    folders before a file's name may be missing on either side, but never differ.

    Args:
        taken: files below ``folder`` that other names mean.
    """
    left = list(dict.fromkeys(names))
    used = set(taken)
    files = [file for file in _files(folder) if file not in used]
    found: dict[str, str] = {}
    for spelling in (plain_name, folded_name, flat_name, base_name):
        asked, there = _by_spelling(left, spelling), _by_spelling(files, spelling)
        for key, same in asked.items():
            if spelling is base_name:
                pairs = [(name, file) for name in same for file in there.get(key, ()) if _one_ends_other(name, file)]
                same, files_of_key = [name for name, _ in pairs], [file for _, file in pairs]
            else:
                files_of_key = there.get(key, [])
            if len(same) == 1 and len(files_of_key) == 1:
                found[same[0]] = files_of_key[0]
        gone = set(found.values())
        left, files = [name for name in left if name not in found], [file for file in files if file not in gone]
    return found


def nearest_file(folder: Path, name: str) -> str | None:
    """The file below ``folder`` whose name is most like ``name``."""
    by_base = {base_name(file): file for file in _files(folder)}
    near = get_close_matches(base_name(name), list(by_base), 1, 0.6)
    return by_base[near[0]] if near else None


def _one_ends_other(name: str, file: str) -> bool:
    """Whether one path is the end of the other: data/val/1.jpg and val/1.jpg."""
    first, second = folded_name(name).split("/"), folded_name(file).split("/")
    shorter = min(len(first), len(second))
    return first[-shorter:] == second[-shorter:]


def _by_spelling(names: Sequence[str], spelling: Spelling) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(spelling(name), []).append(name)
    return found


def _files(folder: Path) -> Iterator[str]:
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            yield os.path.relpath(os.path.join(place, name), folder).replace(os.sep, "/")
