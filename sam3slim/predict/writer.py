"""The output folder: a line for every finished picture while the work goes on, one COCO file at the end."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from filelock import FileLock, Timeout
from pycocotools import mask as mask_utils

from sam3slim.data.detections import Detections
from sam3slim.errors import UserError
from sam3slim.files import atomic_path, ensure_writable_dir, is_leftover, read_json_value, write_json
from sam3slim.predict.images import Picture

SETTINGS_FILE, PARTS_FILE, FINAL_FILE, OVERLAYS = "predict.json", "parts.jsonl", "detections.json", "overlays"
LOCK_FILE = ".lock"
SCHEMA = 1
LINE = {"path": str, "stamp": list, "height": int, "width": int, "detections": list}
LONGEST_NAME = 240  # bytes of an overlay's name: file systems end at 255, and a temporary name is 14 longer


class OutputFolder:
    """Keeps what is finished, so that a run that was killed goes on where it stopped.

    ``parts.jsonl`` gets one line per finished picture; in memory there is only where each line starts. A
    picture whose file has changed since counts as not finished. Use as a context manager.

    Args:
        folder: new, empty, or of an earlier run with the same settings.
        settings: everything the detections depend on besides the pictures (JSON values); ``images`` is the folder
            below which the pictures' names count.
        overwrite: forget an earlier run, whatever its settings, and remove what it wrote.

    Raises:
        UserError: not writable, holds other files, other settings, or is in use.
    """

    def __init__(self, folder: str | Path, settings: Mapping[str, Any], *, overwrite: bool = False) -> None:
        self.folder = Path(folder)
        self.settings = {"schema": SCHEMA, **settings}
        self._overwrite = overwrite
        self._starts: dict[str, tuple[int, list[int]]] = {}
        self._lock = FileLock(self.folder / LOCK_FILE)
        self._parts: FileIO
        self._reader: IO[bytes]
        check_folder(self.folder, self.settings, overwrite=overwrite)

    def __enter__(self) -> OutputFolder:
        ensure_writable_dir(self.folder)
        marker, parts = self.folder / SETTINGS_FILE, self.folder / PARTS_FILE
        if not marker.is_file():
            write_json(marker, self.settings)  # first: a folder with anything else in it is refused
        self._acquire()
        try:
            # Unbuffered: what does not fit on a full disk must not be written again on closing.
            self._parts = parts.open("ab", buffering=0)
            # Again: until now another run could have begun the folder.
            old = check_folder(self.folder, self.settings, overwrite=self._overwrite)
            self._remove_leftovers()
            if self._overwrite:
                self._forget(old)
                write_json(marker, self.settings)
            self._starts = read_index(parts)
            self._reader = parts.open("rb")
        except BaseException:
            self._lock.release()
            raise
        return self

    def _acquire(self) -> None:
        """Keep other runs out until the lock is released, or the process ends in any way."""
        try:
            self._lock.acquire(blocking=False)
        except Timeout as error:
            raise UserError(
                f"output folder {self.folder} is in use by another run; wait for it, or choose another folder"
            ) from error
        except OSError as error:
            raise UserError(
                f"cannot lock {self._lock.lock_file}: {error.strerror}; choose an output folder on a local disk"
            ) from error

    def _remove_leftovers(self) -> None:
        """Half-written files of a run that was killed."""
        for place, folders, files in os.walk(self.folder):
            if Path(place) == self.folder:
                folders[:] = [name for name in folders if name == OVERLAYS]
            for name in filter(is_leftover, files):
                Path(place, name).unlink(missing_ok=True)

    def _forget(self, old: Mapping[str, Any]) -> None:
        """Remove what the run with the settings ``old`` wrote; a user's own files stay."""
        with (self.folder / PARTS_FILE).open("rb") as file:
            for raw in file:
                try:
                    name = Path(json.loads(raw)["path"]).relative_to(old["images"]).as_posix()
                except (ValueError, KeyError, TypeError):
                    continue  # a damaged line, or an overlay of which nothing says where it is
                overlay = self._overlay(name)
                overlay.unlink(missing_ok=True)
                _remove_empty(overlay.parent, self.folder)
        self._parts.truncate(0)
        (self.folder / FINAL_FILE).unlink(missing_ok=True)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reader.close()
        self._parts.close()
        self._lock.release()

    def __len__(self) -> int:
        return len(self._starts)

    def is_done(self, picture: Picture) -> bool:
        """Whether the picture's detections are there and its file is the one they were found in."""
        place = self._starts.get(str(picture.path))
        return place is not None and place[1] == stamp(picture.path)

    def overlay(self, picture: Picture) -> Path:
        """Where the picture with its detections drawn on it goes; a digest replaces a name that is too long."""
        return self._overlay(picture.name)

    def _overlay(self, name: str) -> Path:
        place, last = os.path.split(f"{name}.jpg")
        if len(os.fsencode(last)) > LONGEST_NAME:
            last = f"{hashlib.sha256(os.fsencode(last)).hexdigest()}.jpg"
        return self.folder / OVERLAYS / place / last

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
        return write_final(self.folder / FINAL_FILE, done, self._line, categories, self.settings, skipped)

    def _line(self, picture: Picture) -> dict[str, Any]:
        self._reader.seek(self._starts[str(picture.path)][0])
        line: dict[str, Any] = json.loads(self._reader.readline())
        return line


def write_final(
    path: Path,
    done: Sequence[Picture],
    line: Callable[[Picture], Mapping[str, Any]],
    categories: Mapping[str, int],
    settings: Mapping[str, Any],
    skipped: Mapping[str, str],
) -> int:
    """Write the COCO file of finished pictures, one at a time; returns the number of detections.

    Args:
        line: of ``parts.jsonl``, of a picture.
        settings, skipped: for ``info``, which is the first line.
    """
    count = 0
    # The phrases are the file's categories already.
    brief = {key: value for key, value in settings.items() if key != "prompts"}
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        info = {"description": "sam3slim predict", "settings": brief, "skipped": dict(skipped)}
        kinds = [{"id": number, "name": phrase} for phrase, number in categories.items()]
        file.write(f'{{"info": {json.dumps(info)},\n"categories": {json.dumps(kinds)},\n"images": [')
        for i, picture in enumerate(done):
            found = line(picture)
            image = {
                "id": picture.image_id, "file_name": picture.name, "height": found["height"], "width": found["width"],
            }  # fmt: skip
            file.write((",\n" if i else "\n") + json.dumps(image))
        file.write('\n],\n"annotations": [')
        for picture in done:
            for entry in line(picture)["detections"]:
                count += 1
                row = {"id": count, "image_id": picture.image_id, **entry}
                file.write((",\n" if count > 1 else "\n") + json.dumps(row))
        file.write("\n]}\n")
    return count


def read_index(path: Path, *, repair: bool = True) -> dict[str, tuple[int, list[int]]]:
    """Picture's path → where its line starts, and its stamp; a last line cut off by a kill is removed.

    ``repair=False`` leaves the file as it is, and a cut line out.

    Raises:
        UserError: a broken line before the last.
    """
    starts: dict[str, tuple[int, list[int]]] = {}
    start = 0
    with path.open("r+b" if repair else "rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                line = _parse(raw)
            except ValueError as error:
                if file.read(1):
                    raise UserError(
                        f"{path} line {number} is damaged; begin again with --overwrite, or delete that line and the "
                        "same command does its picture again"
                    ) from error
                break
            if not raw.endswith(b"\n"):
                break  # its line break is missing, so it is written again
            starts[line["path"]] = (start, line["stamp"])
            start += len(raw)
        if repair:
            file.truncate(start)
    return starts


def _parse(raw: bytes) -> dict[str, Any]:
    """A line of ``parts.jsonl``. Raises ValueError for anything else."""
    line = json.loads(raw)
    if not isinstance(line, dict) or not all(isinstance(line.get(key), kind) for key, kind in LINE.items()):
        raise ValueError(f"expected an object with {', '.join(LINE)}")
    return line


def _remove_empty(folder: Path, top: Path) -> None:
    """Remove ``folder`` and what holds it, up to but without ``top``, as far as they are empty."""
    while folder != top:
        try:
            folder.rmdir()
        except OSError:
            return
        folder = folder.parent


def check_folder(folder: Path, settings: Mapping[str, Any], *, overwrite: bool) -> dict[str, Any]:
    """Refuse a folder that is not ours to write to; nothing is written.

    Returns:
        Settings of the earlier run in it, {} for a new folder.

    Raises:
        UserError: a file, other files than a prediction's, or a prediction with other settings.
    """
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise UserError(f"output folder {folder} is a file; choose a folder")
    foreign = f"output folder {folder} holds files that are not predictions; choose a new or empty one"
    marker = folder / SETTINGS_FILE
    if not os.path.isfile(marker):
        if os.path.isdir(folder) and not all(map(is_leftover, os.listdir(folder))):
            raise UserError(foreign)
        return {}
    for name in (PARTS_FILE, FINAL_FILE):
        if (folder / name).is_dir():
            raise UserError(f"{folder / name} is a folder; move it away, or choose another output folder")
    old = read_json_value(marker, "choose another output folder")
    if not isinstance(old, dict) or "schema" not in old:
        raise UserError(foreign)
    before = {"images": settings.get("images"), **old}  # early folders do not say below which folder names count
    different = [key for key in {**before, **settings} if before.get(key) != settings.get(key)]
    if different and not overwrite:
        key = different[0]
        raise UserError(
            f"output folder {folder} was begun with other settings ({key} {_short(old.get(key))}, now "
            f"{_short(settings.get(key))}); use the same, another --out, or --overwrite"
        )
    return old


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
    most = 300 if isinstance(value, str) else 60  # two paths may differ in their ends alone
    return text if len(text) <= most else f"{text[: most - 1]}…"
