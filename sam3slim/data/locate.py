"""Finding the annotation file and the image folder of a data set."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from sam3slim.data.layouts.masks import is_masks
from sam3slim.data.layouts.voc import is_voc
from sam3slim.data.layouts.yolo import is_yolo
from sam3slim.data.names import match_names, nearest_file
from sam3slim.data.values import short
from sam3slim.errors import UserError

log = logging.getLogger(__name__)

# How the three splits are spelled in file and folder names.
SPLIT_WORDS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
# COCO files that hold no instances, and the record of the shapes generator.
NOT_INSTANCES = ("captions_", "person_keypoints_", "panoptic_", "stuff_", "image_info_", "dataset")


def find_annotations(root: Path, split: str, given: str | Path | None = None) -> Path:
    """The annotations of ``split``; ``given`` (absolute, or relative to ``root``) settles it.

    Looks for COCO's files at ``root/*.json``, ``root/annotations/*.json`` and ``root/<split>/*.json``; where none is,
    for YOLO's ``data.yaml``, for Pascal VOC's XML (``Annotations``, or beside the pictures of a split), and for
    ``masks``. A set with one file or folder only uses it for every split, and says so.

    Raises:
        UserError: no folder, no file, or more than one that fits (all are listed).
    """
    if not root.is_dir():
        raise UserError(f"data.root={root} is not a folder; expected one with annotations and images")
    if given is not None:
        path = root / given
        if not os.path.isfile(path) and not (os.path.isdir(path) and (is_voc(path) or is_masks(path))):
            raise UserError(
                f"data.annotations={given}: no such file ({path}), nor a folder with Pascal VOC's XML or masks"
            )
        return path
    if split not in SPLIT_WORDS:
        raise UserError(f"data.split={split}: expected one of {', '.join(SPLIT_WORDS)}, or give data.annotations")
    found = sorted(root.glob("*.json")) + sorted(root.glob("annotations/*.json"))
    for words in SPLIT_WORDS.values():
        found += [path for word in words for path in sorted(root.glob(f"{word}*/*.json"))]
    found = [path for path in dict.fromkeys(found) if not path.name.startswith(NOT_INSTANCES)]
    if not found:
        return _other_layout(root, split)
    fitting = [path for path in found if _split_of(path, root) == split]
    if len(fitting) == 1:
        return fitting[0]
    if len(found) == 1:
        log.info("%s is the only annotation file and serves the %s split", found[0], split)
        return found[0]
    names = ", ".join(str(path.relative_to(root)) for path in (fitting or found))
    what = "several files fit" if fitting else "no file fits"
    raise UserError(
        f"data.root={root}: {what} the {split} split ({names}); choose one with data.annotations=FILE, "
        "or another split with data.split"
    )


def _other_layout(root: Path, split: str) -> Path:
    """YOLO's description, a folder of XML or one of masks."""
    described = [path for path in sorted([*root.glob("*.yaml"), *root.glob("*.yml")]) if is_yolo(path)]
    if described:
        return next((path for path in described if path.stem in ("data", "dataset")), described[0])
    for name, fits in (("Annotations", is_voc), ("masks", is_masks)):
        own = [place for word in SPLIT_WORDS[split] for place in (root / word / name, root / name / word)]
        if fits is is_voc:
            own += [root / word for word in SPLIT_WORDS[split]]
        for folder in own:
            if folder.is_dir() and fits(folder):
                return folder
        whole, words = root / name, [word for words in SPLIT_WORDS.values() for word in words]
        if whole.is_dir() and fits(whole) and not any((whole / word).is_dir() for word in words):
            log.info("%s serves the %s split", whole, split)
            return whole
    raise UserError(
        f"data.root={root} holds no annotations of the {split} split (looked for COCO's *.json, annotations/*.json and "
        f"{split}/*.json, YOLO's data.yaml, Pascal VOC's Annotations, and masks); set data.root, data.annotations or "
        "data.split"
    )


def find_images(
    root: Path, split: str, annotations: Path, file_names: Sequence[str], given: str | Path | None = None
) -> Path:
    """The folder that ``file_names`` are relative to; ``given`` settles it.

    Raises:
        UserError: no candidate folder holds any of the first files.
    """
    if given is not None:
        folder = root / given
        if not os.path.isdir(folder):
            raise UserError(f"data.images={given}: no such folder ({folder})")
        return folder
    stem = annotations.stem.removeprefix("instances_")
    subfolders = [stem, *SPLIT_WORDS.get(split, (split,)), "images", "."]
    candidates = [root / "images" / name for name in subfolders[:-2]] + [root / name for name in subfolders]
    candidates += [annotations.parent / "images", annotations.parent]
    first = list(file_names[:20])
    # In os.path, because pathlib raises where a name is too long. max keeps the first of equals, so folders named
    # after the split win.
    hits = [(sum(os.path.isfile(folder / name) for name in first), folder) for folder in candidates]
    count, folder = max(hits, key=lambda pair: pair[0])
    if count == 0:  # spelt otherwise?
        folders = dict.fromkeys(folder for folder in candidates if os.path.isdir(folder))
        hits = [(len(match_names(folder, first)), folder) for folder in folders]
        count, folder = max(hits, key=lambda pair: pair[0])
    if count == 0:
        near = nearest_file(root, first[0]) if first else None
        raise UserError(
            f"no image folder below data.root={root} holds {short(first[0] if first else '')}, the first image of "
            f"{annotations.name}{f' (a file like it: {short(near)})' if near else ''}; set data.images=FOLDER"
        )
    return folder


def missing_files(folder: Path, file_names: Sequence[str]) -> list[str]:
    """Those of ``file_names`` not in ``folder``; each sub-folder is listed once."""
    listed: dict[Path, set[str]] = {}
    missing = []
    for name in file_names:
        path = folder / name
        if path.parent not in listed:
            listed[path.parent] = set(os.listdir(path.parent)) if os.path.isdir(path.parent) else set()
        if path.name not in listed[path.parent]:
            missing.append(name)
    return missing


def _split_of(path: Path, root: Path) -> str | None:
    """The split a file names itself after (``instances_val2017``), else its folder (``valid/…``)."""
    folders = [] if path.parent == root else [path.parent.name]
    for text in (path.stem, *folders):
        pieces = text.lower().replace("-", "_").split("_")
        for split, words in SPLIT_WORDS.items():
            if any(piece.rstrip("0123456789") in words for piece in pieces):
                return split
    return None
