"""The images and the categories that COCO's dict lists."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sam3slim.data.dialects import clean_phrase, picture_name, root_category
from sam3slim.data.records import Category, ImageRecord
from sam3slim.data.report import DataReport
from sam3slim.data.values import Id, Ids, id_key, short, whole
from sam3slim.errors import UserError

MAX_PIXELS = 2**30  # of a picture: a mask of it fills a gigabyte
SizeOf = Callable[[str], tuple[int, int]]
Same = Callable[[Sequence[str]], Sequence[Hashable]]


def image_records(
    path: Path, items: list[Any], size_of: SizeOf | None, report: DataReport
) -> tuple[Ids, dict[int, ImageRecord]]:
    keys = []
    for item in items:
        key = id_key(item.get("id")) if isinstance(item, dict) else None
        if key is None or picture_name(item) is None:
            raise UserError(f"{path.name}: image {short(item)} needs an id and a file_name")
        keys.append(key)
    if len(set(keys)) < len(keys):
        twice = next(key for place, key in enumerate(keys) if key in keys[:place])
        raise UserError(f"{path.name}: image {short(twice)} is listed twice; give every image an id of its own")
    ids = Ids(keys)
    if ids.renumbered:
        report.note("ids_renumbered", f"image {short(keys[0])}", len(keys))
    records = {}
    for item, key in zip(items, keys, strict=True):
        name = str(picture_name(item))
        height, width = _size(item, name, path, size_of, report)
        number = ids[key]
        assert number is not None
        records[number] = ImageRecord(number, name, height, width)
    return ids, records


def _size(
    item: Mapping[str, Any], name: str, path: Path, size_of: SizeOf | None, report: DataReport
) -> tuple[int, int]:
    """(height, width) of an image's entry, or of its picture where the entry has none."""
    where = f"{path.name}: image {short(item.get('id'))}"
    if size_of is not None and not item.get("height") and not item.get("width"):
        report.note("sizes_read", f"image {short(item.get('id'))}")
        return size_of(name)
    height, width = whole(item.get("height")), whole(item.get("width"))
    if height is None or width is None or min(height, width) < 1:
        given = short({key: item.get(key) for key in ("height", "width")})
        raise UserError(f"{where} ({short(name)}) has {given}, expected whole numbers of pixels; fix its entry")
    if height * width > MAX_PIXELS:
        raise UserError(
            f"{where} ({short(name)}) has {width}x{height} pixels, at most {MAX_PIXELS:,} are read; fix its entry"
        )
    return height, width


def read_categories(
    path: Path,
    content: Mapping[str, Any],
    phrases: Mapping[str, Sequence[str]],
    same: Same | None,
    report: DataReport,
) -> tuple[list[Category], Ids, dict[int, int]]:
    """The categories that are asked for, the ids of all, and id → id of the one it became (itself, or merged)."""
    items = content["categories"]
    for item in items:
        name = item.get("name") if isinstance(item, dict) else None
        if not isinstance(name, str) or not clean_phrase(name):
            raise UserError(f"{path.name}: category {short(item)} has no name; its phrase is the prompt, so give one")
    keys: dict[Id, None] = {}
    for item in items:
        key = id_key(item.get("id"))
        if key is None or key in keys:
            raise UserError(f"{path.name}: category {item['name']!r} needs an id of its own (a whole number)")
        keys[key] = None
    if not items:
        raise UserError(f"{path.name} lists no categories; their names are the prompts")
    ids = Ids(keys)
    if ids.renumbered:
        report.note("ids_renumbered", f"category {short(items[0]['id'])}", len(keys))
    used = {id_key(item.get("category_id")) for item in content["annotations"] if isinstance(item, dict)}
    root = root_category(items, used)
    if root is not None:
        report.note("root_categories", root["name"])
    found = []
    for item in items:
        number = ids[item["id"]]
        assert number is not None
        name = clean_phrase(item["name"])
        given = tuple(phrases.get(name, ()))
        if given:
            report.note("phrases_replaced", f"{name!r} is {given[0]!r}")
        if item is not root:
            words = given or (name,)
            found.append(Category(number, words[0], str(item.get("supercategory") or ""), words[1:]))
    kept, parents = _merged(found, same, report)
    return kept, ids, parents


def _merged(categories: list[Category], same: Same | None, report: DataReport) -> tuple[list[Category], dict[int, int]]:
    """One category for each phrase (of evaluations), the first; and id → id of the one it became.

    A synonym that is the phrase of another category is none.
    """
    values = same or (lambda phrases: phrases)
    first: dict[Hashable, Category] = {}
    parents = {}
    for category, value in zip(categories, values([category.phrase for category in categories]), strict=True):
        kept = first.setdefault(value, category)
        parents[category.id] = kept.id
        if kept is not category:
            report.note("categories_merged", f"{category.phrase!r} and {kept.phrase!r}")
    taken, found = set(first), []
    for category in first.values():
        new: dict[Hashable, str] = {}
        for phrase, value in zip(category.synonyms, values(category.synonyms), strict=True):
            if value in taken:
                report.note("synonyms_dropped", f"{phrase!r} of {category.phrase!r}")
            else:
                new[value] = phrase
        taken.update(new)
        found.append(replace(category, synonyms=tuple(new.values())))
    return found, parents
