"""``data=shapes``: a deterministic COCO-format data set whose phrases compose size, colour and shape.

One object answers several phrases ("circle", "red circle", "small red circle"), so a model has to read
the phrase. The files are an ordinary COCO data set, read by the same class as any other::

    root/{train,val,test}/000000.png   root/annotations/instances_{train,val,test}.json   root/dataset.json
"""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as mask_utils

from sam3slim.data.shapes_draw import OUTLINES, PALETTE, Mask, ShapeObject, draw_scene, jittered
from sam3slim.errors import UserError
from sam3slim.files import atomic_path, read_json
from sam3slim.progress import progress_bar

# Raised whenever the same spec would give other pictures.
VERSION = 1
SPLITS = ("train", "val", "test")
PLACING_TRIES = 20


MOST_PIXELS, MOST_IMAGES, MOST_OBJECTS = 4096, 10_000_000, 1000


@dataclass(frozen=True)
class ShapesSpec:
    """What to draw; two equal specs give the same bytes.

    Attributes:
        image_size: side of the square pictures, in pixels.
        train_images, val_images, test_images: pictures per split, each split with a seed of its own.
        seed: root of all randomness.
        shapes, colors: words of the phrases; see ``shapes_draw.OUTLINES`` and ``PALETTE`` for those known.
        small, large: range of diameters of the two sizes, in shares of ``image_size``.
        sized_pairs: colour-shape pairs that also get the phrases "small …" and "large …".
        min_objects, max_objects: objects per picture.
        min_visible: least share of an object that later objects may leave visible.
        empty_share: share of the pictures without any object.
        clutter: draw lines and dots that no phrase names.
    """

    image_size: int = 96
    train_images: int = 5000
    val_images: int = 200
    test_images: int = 300
    seed: int = 0
    shapes: tuple[str, ...] = ("circle", "square", "triangle")
    colors: tuple[str, ...] = ("red", "green", "blue", "yellow")
    small: tuple[float, float] = (0.17, 0.23)
    large: tuple[float, float] = (0.31, 0.45)
    sized_pairs: int = 4
    min_objects: int = 1
    max_objects: int = 5
    min_visible: float = 0.4
    empty_share: float = 0.02
    clutter: bool = True

    def __post_init__(self) -> None:
        for name in ("shapes", "colors", "small", "large"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        _check_words("data.shapes.shapes", self.shapes, OUTLINES)
        _check_words("data.shapes.colors", self.colors, PALETTE)
        if not 32 <= self.image_size <= MOST_PIXELS:
            raise UserError(f"data.shapes.image_size={self.image_size}: expected 32 to {MOST_PIXELS} pixels")
        if self.seed < 0:
            raise UserError(f"data.shapes.seed={self.seed}: expected 0 or more")
        if not 1 <= self.min_objects <= self.max_objects <= MOST_OBJECTS:
            raise UserError(
                f"data.shapes.min_objects={self.min_objects}, data.shapes.max_objects={self.max_objects}: "
                f"expected 1 <= min_objects <= max_objects <= {MOST_OBJECTS}"
            )
        for name in ("small", "large"):
            low, high = getattr(self, name)
            if not 0 < low <= high <= 0.8:
                raise UserError(f"data.shapes.{name}=[{low}, {high}]: expected shares with 0 < low <= high <= 0.8")
        for split, count in self.counts().items():
            if not 1 <= count <= MOST_IMAGES:
                raise UserError(f"data.shapes.{split}_images={count}: expected 1 to {MOST_IMAGES:,} images")

    def counts(self) -> dict[str, int]:
        """Pictures of each split."""
        return {"train": self.train_images, "val": self.val_images, "test": self.test_images}

    def digest(self) -> str:
        """Eight hexadecimal digits that change with the spec and the generator's version."""
        return hashlib.sha256(json.dumps(_identity(self), sort_keys=True).encode()).hexdigest()[:8]

    def categories(self) -> list[dict[str, Any]]:
        """COCO categories: every shape, every colour + shape, and some with a size; supercategory = shape."""
        names = [(shape, shape) for shape in self.shapes]
        names += [(f"{color} {shape}", shape) for shape in self.shapes for color in self.colors]
        # Walking along the diagonal spreads the sized pairs over colours and shapes.
        pairs = [
            (color, self.shapes[(index + turn) % len(self.shapes)])
            for turn in range(len(self.shapes))
            for index, color in enumerate(self.colors)
        ]
        for color, shape in pairs[: self.sized_pairs]:
            names += [(f"{size} {color} {shape}", shape) for size in ("small", "large")]
        return [
            {"id": index, "name": name, "supercategory": shape} for index, (name, shape) in enumerate(names, start=1)
        ]


def make_shapes(
    root: str | Path, spec: ShapesSpec | None = None, *, overwrite: bool = False, progress: bool = True
) -> Path:
    """Write the data set to ``root``, or keep it when the same one is already there; returns ``root``.

    Raises:
        UserError: ``root`` holds something else (only another shapes set is replaced, with ``overwrite``),
            or cannot be written to.
    """
    spec, folder = spec or ShapesSpec(), Path(root)
    if _already_there(folder, spec, overwrite):
        return folder
    with atomic_path(folder) as temporary:
        (temporary / "annotations").mkdir(parents=True)
        with progress_bar(show=progress) as bar:
            task = bar.add_task("drawing shapes", total=sum(spec.counts().values()))
            for number, split in enumerate(SPLITS):
                _write_split(temporary, spec, number, split, lambda: bar.advance(task))
        record = json.dumps(_identity(spec), indent=2) + "\n"
        (temporary / "dataset.json").write_text(record, encoding="utf-8")
    return folder


def scene(spec: ShapesSpec, rng: np.random.Generator) -> list[ShapeObject]:
    """Objects of one picture, back to front, each at least ``min_visible`` to see."""
    if rng.uniform() < spec.empty_share:
        return []
    objects: list[ShapeObject] = []
    masks: list[Mask] = []
    for _ in range(rng.integers(spec.min_objects, spec.max_objects + 1)):
        for _ in range(PLACING_TRIES):
            item = _random_object(spec, rng)
            if (kept := _placed(masks, item.mask(spec.image_size), spec.min_visible)) is not None:
                objects.append(item)
                masks = kept
                break
    return objects


def phrases_of(item: ShapeObject) -> tuple[str, ...]:
    """Every phrase that names the object, from general to particular."""
    return item.shape, f"{item.color} {item.shape}", f"{item.size} {item.color} {item.shape}"


def _random_object(spec: ShapesSpec, rng: np.random.Generator) -> ShapeObject:
    size = ("small", "large")[rng.integers(2)]
    diameter = rng.uniform(*(spec.small if size == "small" else spec.large)) * spec.image_size
    # Up to a tenth of the diameter may leave the picture.
    x, y = rng.uniform(0.4 * diameter, spec.image_size - 0.4 * diameter, 2)
    color = spec.colors[rng.integers(len(spec.colors))]
    shape = spec.shapes[rng.integers(len(spec.shapes))]
    return ShapeObject(shape, color, size, (x, y), diameter, rng.uniform(0, 2 * np.pi), jittered(rng, color))


def _placed(masks: list[Mask], front: Mask, min_visible: float) -> list[Mask] | None:
    """Whole masks with ``front`` added, or None when something would be hidden too much."""
    covered = np.zeros_like(front)
    result = [*masks, front]
    for mask in reversed(result):
        if (mask & ~covered).sum() < min_visible * mask.sum():
            return None
        covered |= mask
    return result


def _write_split(folder: Path, spec: ShapesSpec, number: int, split: str, advance: Any) -> None:
    (folder / split).mkdir()
    categories = spec.categories()
    ids = {category["name"]: category["id"] for category in categories}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    draw = partial(_draw_picture, folder / split, spec, number)
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow and NumPy work outside the interpreter's lock
        for index, (objects, shared) in enumerate(pool.map(draw, range(spec.counts()[split]))):
            image_id, side = (number + 1) * 1_000_000 + index, spec.image_size
            images.append({"id": image_id, "file_name": _file_name(index), "height": side, "width": side})
            for item, geometry in zip(objects, shared, strict=True):
                for phrase in phrases_of(item):
                    if phrase in ids:
                        head = {"id": len(annotations) + 1, "image_id": image_id, "category_id": ids[phrase]}
                        annotations.append(head | geometry)
            advance()
    content = {"info": {"description": f"sam3slim shapes, {split}"}, "images": images}
    content |= {"annotations": annotations, "categories": categories}
    (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content), encoding="utf-8")


def _draw_picture(
    folder: Path, spec: ShapesSpec, number: int, index: int
) -> tuple[list[ShapeObject], list[dict[str, Any]]]:
    """Write picture ``index`` of split ``number``; its objects, and their masks, boxes and areas."""
    # A seed per picture: a longer set starts with the shorter one.
    rng = np.random.default_rng((spec.seed, number, index))
    objects = scene(spec, rng)
    picture, masks = draw_scene(rng, objects, spec.image_size, spec.clutter)
    Image.fromarray(picture).save(folder / _file_name(index))
    return objects, [_geometry(mask) for mask in masks]


def _file_name(index: int) -> str:
    return f"{index:06d}.png"


def _geometry(mask: Mask) -> dict[str, Any]:
    rle = mask_utils.encode(np.asfortranarray(mask.astype(np.uint8)))
    bbox = [float(value) for value in mask_utils.toBbox(rle)]
    segmentation = {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}
    return {"segmentation": segmentation, "bbox": bbox, "area": float(mask.sum()), "iscrowd": 0}


def _identity(spec: ShapesSpec) -> dict[str, Any]:
    seeds = {split: [spec.seed, number] for number, split in enumerate(SPLITS)}
    identity = {"generator": "sam3slim shapes", "version": VERSION, "spec": asdict(spec), "seeds": seeds}
    # Through JSON, so that tuples compare equal to what is read back.
    return dict(json.loads(json.dumps(identity)))


def _already_there(folder: Path, spec: ShapesSpec, overwrite: bool) -> bool:
    """True to reuse, False to write.

    Raises:
        UserError: something else is there.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    found: dict[str, Any] = {}
    with suppress(UserError):
        found = read_json(folder / "dataset.json", "")
    if found.get("generator") != "sam3slim shapes":
        raise UserError(f"data.root={folder} is not empty and not a shapes set; choose a new or empty folder")
    if found == _identity(spec):
        return True
    if overwrite:
        return False
    before, now = found.get("spec") or {}, _identity(spec)["spec"]
    changed = [f"{key} {before.get(key)} -> {now[key]}" for key in now if before.get(key) != now[key]]
    what = ", ".join(changed) or "generator version"
    raise UserError(
        f"data.root={folder} holds another shapes set ({what}); choose another data.root or set data.overwrite=true"
    )


def _check_words(key: str, words: tuple[str, ...], known: dict[str, Any]) -> None:
    unknown = [word for word in words if word not in known]
    if unknown or not words or len(set(words)) != len(words):
        raise UserError(f"{key}={list(words)}: expected different words out of {', '.join(known)}")
