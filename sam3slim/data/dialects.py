"""COCO files of other meaning than COCO's: phrases with the images (SA-Co) or with the annotations, root categories.

All become what LVIS writes (arXiv:1908.03195): categories, annotations, and for every image the categories that are
known to be absent (``neg_category_ids``) or not annotated exhaustively (``not_exhaustive_category_ids``).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sam3slim.data.report import DataReport
from sam3slim.data.values import flag, id_key, short
from sam3slim.errors import UserError

FEDERATED = ("neg_category_ids", "not_exhaustive_category_ids")
TEXT, NOUN_PHRASE = "text_input", "noun_phrase"
Content = Mapping[str, Any]


def clean_phrase(name: str) -> str:
    """A name as a phrase: lower case, underscores as blanks, blanks single."""
    return " ".join(name.replace("_", " ").lower().split())


def as_coco(content: Content, path: Path, report: DataReport) -> Content:
    """``content`` with COCO's meaning of categories; see the module.

    Raises:
        UserError: phrases that are there for some entries only.
    """
    images = [image for image in content["images"] if isinstance(image, dict)]
    if any(TEXT in image for image in images):
        report.layout = "SA-Co"
        return _by_picture(content, path, report)
    if any(isinstance(item, dict) and item.get(NOUN_PHRASE) for item in content["annotations"]):
        report.layout = "COCO with a noun phrase per annotation"
        return _by_noun_phrase(content, path)
    if any(key in image for image in images for key in FEDERATED):
        report.layout = "LVIS"
    return content


def picture_name(image: Mapping[str, Any]) -> str | None:
    """The file name of an image's entry; LVIS gives only the end of a URL. None where there is none."""
    for key in ("file_name", "filename"):
        if isinstance(name := image.get(key), str) and name.strip():
            return name
    url = image.get("coco_url")
    return "/".join(url.split("/")[-2:]) if isinstance(url, str) and url else None


def _by_picture(content: Content, path: Path, report: DataReport) -> Content:
    """SA-Co: one entry of ``images`` for each pair of picture and phrase becomes one for each picture."""
    numbers: dict[str, int] = {}
    pictures: dict[str, dict[str, Any]] = {}
    entries: dict[Any, tuple[Any, int] | None] = {}
    for image in content["images"]:
        if not isinstance(image, dict):
            return content
        text, name = image.get(TEXT), picture_name(image)
        phrase = clean_phrase(text) if isinstance(text, str) else ""
        if not phrase:
            raise UserError(
                f"{path.name}: image {short(image.get('id'))} has {TEXT} {short(text)}, and others have a phrase "
                "there; give every entry its phrase, or none"
            )
        category = numbers.setdefault(phrase, len(numbers) + 1)
        key = id_key(image.get("id"))
        if name is None or key is None or key in entries:
            return content  # refused where every image's entry is checked
        picture = pictures.setdefault(name, {**image, "entries": {}, **{key: [] for key in FEDERATED}})
        entries[key] = None
        if category in picture["entries"]:
            report.note("entries_twice", f"image {short(image['id'])}")
        elif flag(image.get("is_instance_exhaustive", 1)) is False:
            report.note("entries_not_exhaustive", f"image {short(image['id'])}, {phrase!r}")
        else:
            picture["entries"][category] = image["id"]
            picture[FEDERATED[0]].append(category)  # what has annotations is present all the same
            entries[key] = (picture["id"], category)
    found = []
    for item in content["annotations"]:
        key = id_key(item.get("image_id")) if isinstance(item, dict) else None
        if key not in entries:
            found.append(item)  # belongs to no image, which is told where every annotation is checked
        elif (place := entries[key]) is not None:
            found.append({**item, "image_id": place[0], "category_id": place[1]})
    categories = [{"id": number, "name": phrase} for phrase, number in numbers.items()]
    return {**content, "images": list(pictures.values()), "annotations": found, "categories": categories}


def _by_noun_phrase(content: Content, path: Path) -> Content:
    """The phrases of the annotations are the categories."""
    numbers: dict[str, int] = {}
    found = []
    for item in content["annotations"]:
        if not isinstance(item, dict):
            found.append(item)
            continue
        text = item.get(NOUN_PHRASE)
        phrase = clean_phrase(text) if isinstance(text, str) else ""
        if not phrase:
            raise UserError(
                f"{path.name}: annotation {short(item.get('id'))} has {NOUN_PHRASE} {short(text)}, and others have a "
                "phrase there; give every annotation its phrase, or none"
            )
        found.append({**item, "category_id": numbers.setdefault(phrase, len(numbers) + 1)})
    categories = [{"id": number, "name": phrase} for phrase, number in numbers.items()]
    return {**content, "annotations": found, "categories": categories}


def root_category(categories: list[Any], used: set[Any]) -> Any:
    """The entry that only groups all others, as Roboflow writes a project's name; None where there is none.

    Args:
        used: ``id_key`` of the categories that have annotations.
    """
    for item in categories:
        name = item.get("name")
        if (
            len(categories) > 1
            and str(item.get("supercategory") or "none").lower() in ("none", str(name).lower())
            and id_key(item.get("id")) not in used
            and all(other.get("supercategory") == name for other in categories if other is not item)
        ):
            return item
    return None
