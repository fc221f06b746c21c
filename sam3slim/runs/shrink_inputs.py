"""What ``sam3slim shrink`` is given: checked, its folder claimed, its images dealt into three parts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from sam3slim.checkpoints import locate, weight_files
from sam3slim.data.annotations import category_phrases
from sam3slim.data.locate import find_annotations
from sam3slim.data.pictures import dealt
from sam3slim.data.spec import SPLITS
from sam3slim.errors import UserError
from sam3slim.files import ensure_writable_dir, read_json, write_json
from sam3slim.text.phrases import read_phrase_list

STATE, STEPS = "shrink.json", "steps"
FIT_IMAGES = 8  # of a batch


@dataclass(frozen=True)
class ShrinkSpec:
    """What ``sam3slim shrink`` was asked for.

    Attributes:
        out: folder of the results.
        images: folder of pictures, or of a data set with train, val and test.
        phrases: text file: nothing else will be asked for, so a prompt bank replaces the text tower.
        annotations: COCO-format file of ``images``: drops are in mAP, not in agreement with the full model.
        max_drop: points that may be lost; max_bytes: that the weights may take. One of the two.
        keep_architecture: cut no layers, only store them in fewer bits.
        search_images: of the search part, that cuts and precisions are chosen on.
        overrides: of ``evaluate.py``, for every step.
    """

    checkpoint: str
    out: Path
    images: Path
    phrases: Path | None = None
    annotations: Path | None = None
    max_drop: float | None = None
    max_bytes: int | None = None
    keep_architecture: bool = False
    search_images: int = 200
    overrides: Sequence[str] = ()

    def __post_init__(self) -> None:
        if (self.max_drop is None) == (self.max_bytes is None):
            what = "no budget" if self.max_drop is None else "two budgets"
            raise UserError(f"{what}; give either --max-drop 1.0 (points) or --max-bytes 400MB")
        if self.max_drop is not None and not 0 <= self.max_drop <= 100:
            raise UserError(f"--max-drop {self.max_drop:g}: expected points in 0..100")
        if self.search_images < 1:
            raise UserError(f"--search-images {self.search_images}: expected at least 1")
        if not self.images.is_dir():
            raise UserError(f"--images {self.images} is not a folder; give one with pictures")
        for flag, file in (("--phrases", self.phrases), ("--annotations", self.annotations)):
            if file is not None and not file.is_file():
                raise UserError(f"{flag} {file} is not a file")

    @property
    def budget(self) -> str:
        """As it was given."""
        return f"--max-bytes {self.max_bytes}" if self.max_drop is None else f"--max-drop {self.max_drop:g}"

    @cached_property
    def annotation_files(self) -> list[Path]:
        """Those given, or of all three splits of a data set, each its own; [] where there are none."""
        if self.annotations is not None:
            return [self.annotations]
        try:
            found = [find_annotations(self.images, split) for split in SPLITS]
        except UserError:
            return []
        return found if len(set(found)) == len(SPLITS) else []


def claim(spec: ShrinkSpec) -> None:
    """Refuse a folder with other results. Raises UserError; later calls with the same inputs go on there."""
    files = weight_files(locate(spec.checkpoint))
    texts = {key: getattr(spec, key) for key in ("phrases", "annotations")}
    inputs = {
        "checkpoint": str(files[0].resolve()), "checkpoint_bytes": sum(file.stat().st_size for file in files),
        "images": str(spec.images.resolve()),
        **{key: file and hashlib.sha256(file.read_bytes()).hexdigest() for key, file in texts.items()},
    }  # fmt: skip
    state = ensure_writable_dir(spec.out) / STATE
    if (spec.out / STEPS).is_dir() and state.is_file():
        before = read_json(state, "choose another folder")
        if other := [key for key in inputs if before.get(key) != inputs[key]]:
            whose = "other " if other[0] in ("images", *texts) else "another "
            named = f" ({before.get(other[0])})" if other[0] in ("checkpoint", "images") else ""
            raise UserError(
                f"output folder {spec.out} holds results of {whose}{other[0].partition('_')[0]}{named}; choose another "
                "folder"
            )
    elif not state.is_file() and any(spec.out.iterdir()):
        raise UserError(f"output folder {spec.out} holds other files; choose a new or empty folder")
    write_json(state, inputs)


def data_settings(spec: ShrinkSpec) -> list[str]:
    """The settings of the data: a part to fit on (train), one to search with (val), and one to verify on (test)."""
    common = [
        "data.on_unreadable=skip", "data.max_prompts=8", "data.negatives=8", f"data.batch_size={FIT_IMAGES}",
        "latency=false", *spec.overrides,
    ]  # fmt: skip
    images = spec.images.resolve()
    if spec.annotations is not None:
        _deal(spec.annotations, spec.out / "data")
        listed = ",".join(f"{split}:{split}.json" for split in SPLITS)
        root = (spec.out / "data").resolve()
        own = ["data=coco", f"data.root={root}", f"data.images={images}", f"data.annotations={{{listed}}}"]
    elif spec.annotation_files:
        own = ["data=coco", f"data.root={images}"]
    elif spec.phrases is not None:
        own = ["data=pictures", f"data.root={images}", f"data.phrases={spec.phrases.resolve()}"]
    else:
        raise UserError(
            f"nothing says what to ask of the pictures in {spec.images}; give --phrases FILE (a phrase on every line) "
            "or --annotations JSON"
        )
    return [*own, *common]


def _deal(annotations: Path, folder: Path) -> None:
    """Write the three parts of a COCO-format file, images dealt by name. Raises UserError for another file."""
    content = read_json(annotations, "give a COCO-format JSON file")
    try:
        names = sorted({str(image["file_name"]) for image in content["images"]})
        for split in SPLITS:
            part = set(dealt(names, split))
            images = [image for image in content["images"] if image["file_name"] in part]
            ids = {image["id"] for image in images}
            own = [item for item in content["annotations"] if item["image_id"] in ids]
            write_json(folder / f"{split}.json", {**content, "images": images, "annotations": own})
    except (KeyError, TypeError) as error:
        raise UserError(f"--annotations {annotations} is no COCO-format file: {error!r} is missing or wrong") from error
    if len(names) < 4:
        raise UserError(f"--annotations {annotations} has {len(names)} images; at least 4 are needed to hold some out")


def bank_phrases(spec: ShrinkSpec) -> list[str]:
    """What the bank holds, if anything: the list, and the categories that drops are measured on."""
    if spec.phrases is None:
        return []
    categories = (phrase for file in spec.annotation_files for phrase in category_phrases(file))
    return list(dict.fromkeys([*read_phrase_list(spec.phrases), *categories]))
