"""The output folder: a line for every finished picture while the work goes on, one COCO file at the end."""

from __future__ import annotations

import errno
import fcntl
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from pycocotools import mask as mask_utils

from sam3slim.errors import UserError
from sam3slim.evaluation.postprocess import Detections
from sam3slim.files import atomic_path, ensure_writable_dir, write_json
from sam3slim.predict.images import Picture

SETTINGS_FILE, PARTS_FILE, FINAL_FILE, OVERLAYS = "predict.json", "parts.jsonl", "detections.json", "overlays"
SCHEMA = 1


class OutputFolder:
    """Keeps what is finished, so that a run that was killed goes on where it stopped.

    ``parts.jsonl`` gets one line per finished picture; in memory there is only where each line starts. A
    picture whose file has changed since counts as not finished. Use as a context manager.

    Args:
        folder: new, empty, or of an earlier run with the same settings.
        settings: everything the detections depend on besides the pictures (JSON values).
        overwrite: forget an earlier run, whatever its settings.

    Raises:
        UserError: not writable, holds other files, other settings, or is in use.
    """

    def __init__(self, folder: str | Path, settings: Mapping[str, Any], *, overwrite: bool = False) -> None:
        self.folder = Path(folder).expanduser()
        self.settings = {"schema": SCHEMA, **settings}
        self._overwrite = overwrite
        self._starts: dict[str, tuple[int, list[int]]] = {}
        self._parts: FileIO
        self._reader: IO[bytes]
        check_folder(self.folder, self.settings, overwrite=overwrite)

    def __enter__(self) -> OutputFolder:
        ensure_writable_dir(self.folder)
        marker, parts = self.folder / SETTINGS_FILE, self.folder / PARTS_FILE
        if not marker.is_file():
            write_json(marker, self.settings)  # first: a folder with anything else in it is refused
        # Unbuffered: what does not fit on a full disk must not be written again on closing.
        self._parts = parts.open("ab", buffering=0)
        try:
            fcntl.flock(self._parts, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._parts.close()
            advice = "wait for it, or choose another folder"
            raise UserError(f"output folder {self.folder} is in use by another run; {advice}") from error
        try:
            if self._overwrite:
                self._parts.truncate(0)
                (self.folder / FINAL_FILE).unlink(missing_ok=True)
                shutil.rmtree(self.folder / OVERLAYS, ignore_errors=True)
                write_json(marker, self.settings)
            self._starts = read_index(parts)
            self._reader = parts.open("rb")
        except BaseException:
            self._parts.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reader.close()
        self._parts.close()

    def __len__(self) -> int:
        return len(self._starts)

    def is_done(self, picture: Picture) -> bool:
        """Whether the picture's detections are there and its file is the one they were found in."""
        place = self._starts.get(str(picture.path))
        return place is not None and place[1] == stamp(picture.path)

    def overlay(self, picture: Picture) -> Path:
        """Where the picture with its detections drawn on it goes."""
        return self.folder / OVERLAYS / f"{picture.name}.jpg"

    def add(self, picture: Picture, before: list[int], found: Detections, height: int, width: int) -> None:
        """Keep a picture's detections, whose file had the stamp ``before`` when it was read.

        Raises:
            UserError: the disk is full.
        """
        line = {
            "path": str(picture.path), "stamp": before, "height": height, "width": width,
            "detections": list(entries(found)),
        }  # fmt: skip
        rest = memoryview(json.dumps(line, allow_nan=False).encode() + b"\n")
        start = self._parts.seek(0, 2)
        try:
            while rest:
                rest = rest[self._parts.write(rest) :]
        except OSError as error:
            self._parts.truncate(start)
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise UserError(
                f"cannot write {self.folder / PARTS_FILE}: {error.strerror}; free some space, "
                "and the same command goes on"
            ) from error
        self._starts[str(picture.path)] = (start, before)

    def finish(self, pictures: Sequence[Picture], categories: Mapping[str, int], skipped: Mapping[str, str]) -> int:
        """Write ``detections.json`` of the finished ones of ``pictures``, one picture at a time; the number of them.

        Args:
            pictures: in the order of their ids.
            categories: phrase → id.
            skipped: picture's name → why it could not be read.
        """
        done = [picture for picture in pictures if self.is_done(picture)]
        count = 0
        with atomic_path(self.folder / FINAL_FILE) as temporary, temporary.open("w", encoding="utf-8") as file:
            info = {"description": "sam3slim predict", "settings": self._brief(), "skipped": dict(skipped)}
            kinds = [{"id": number, "name": phrase} for phrase, number in categories.items()]
            file.write(f'{{"info": {json.dumps(info)},\n"categories": {json.dumps(kinds)},\n"images": [')
            for i, picture in enumerate(done):
                line = self._line(picture)
                image = {
                    "id": picture.image_id, "file_name": picture.name, "height": line["height"], "width": line["width"],
                }  # fmt: skip
                file.write((",\n" if i else "\n") + json.dumps(image))
            file.write('\n],\n"annotations": [')
            for picture in done:
                for entry in self._line(picture)["detections"]:
                    count += 1
                    row = {"id": count, "image_id": picture.image_id, **entry}
                    file.write((",\n" if count > 1 else "\n") + json.dumps(row))
            file.write("\n]}\n")
        return count

    def _brief(self) -> dict[str, Any]:
        # The phrases are the file's categories already.
        return {key: value for key, value in self.settings.items() if key != "prompts"}

    def _line(self, picture: Picture) -> dict[str, Any]:
        self._reader.seek(self._starts[str(picture.path)][0])
        line: dict[str, Any] = json.loads(self._reader.readline())
        return line


def read_index(path: Path) -> dict[str, tuple[int, list[int]]]:
    """Picture's path → where its line starts, and its stamp; a last line cut off by a kill is removed.

    Raises:
        UserError: a broken line before the last.
    """
    starts: dict[str, tuple[int, list[int]]] = {}
    start = 0
    with path.open("r+b") as file:
        for raw in file:
            try:
                line = json.loads(raw)
                starts[line["path"]] = (start, line["stamp"])
            except (ValueError, KeyError, TypeError) as error:
                if file.read(1):
                    raise UserError(f"{path} is damaged at byte {start}; begin again with --overwrite") from error
                break
            if not raw.endswith(b"\n"):
                del starts[line["path"]]  # its line break is missing, so it is written again
                break
            start += len(raw)
        file.truncate(start)
    return starts


def check_folder(folder: Path, settings: Mapping[str, Any], *, overwrite: bool) -> None:
    """Refuse a folder that is not ours to write to; nothing is written.

    Raises:
        UserError: a file, other files than a prediction's, or a prediction with other settings.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"output folder {folder} is a file; choose a folder")
    marker = folder / SETTINGS_FILE
    if not marker.is_file():
        if folder.is_dir() and any(folder.iterdir()):
            raise UserError(f"output folder {folder} holds files that are not predictions; choose a new or empty one")
        return
    try:
        old = json.loads(marker.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {marker}: {error}; choose another output folder") from error
    if not isinstance(old, dict) or "schema" not in old:
        raise UserError(f"output folder {folder} holds files that are not predictions; choose a new or empty one")
    different = [key for key in {**old, **settings} if old.get(key) != settings.get(key)]
    if different and not overwrite:
        key = different[0]
        raise UserError(
            f"output folder {folder} was begun with other settings ({key} {_short(old.get(key))}, now "
            f"{_short(settings.get(key))}); use the same, another --out, or --overwrite"
        )


def stamp(path: Path) -> list[int]:
    """Size in bytes and time of change of a file; [] when it is gone."""
    try:
        found = path.stat()
    except OSError:
        return []
    return [found.st_size, found.st_mtime_ns]


def entries(found: Detections) -> Iterator[dict[str, Any]]:
    """Detections as COCO writes results: boxes (x, y, w, h) in pixels, masks as RLE with text counts."""
    for i, (box, score, label) in enumerate(zip(found.boxes, found.scores, found.labels, strict=True)):
        x1, y1, x2, y2 = box.tolist()
        entry: dict[str, Any] = {
            "category_id": int(label),
            "bbox": [round(value, 3) for value in (x1, y1, x2 - x1, y2 - y1)],
            "score": round(float(score), 6),
        }
        if found.rles is not None:
            rle = found.rles[i]
            counts = rle["counts"].decode("ascii")
            entry |= {"segmentation": {"size": rle["size"], "counts": counts}, "area": int(mask_utils.area(rle))}
        yield {**entry, "iscrowd": 0}


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
