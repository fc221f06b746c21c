"""Which pictures to predict on: folders, globs, files and lists of files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from glob import glob, has_magic
from pathlib import Path

from sam3slim.data.pictures import EXPECTED, is_picture, picture_files
from sam3slim.errors import UserError
from sam3slim.files import read_lines

LIST_SUFFIX = ".txt"


@dataclass(frozen=True)
class Picture:
    """A picture to predict on.

    Attributes:
        path: absolute.
        name: path below the folder that all pictures share, with forward slashes; unique.
        image_id: 1..N in the order of the pictures.
    """

    path: Path
    name: str
    image_id: int


def find_pictures(sources: Sequence[str | Path], leave_out: Path | None = None) -> list[Picture]:
    """Every picture of ``sources``, each once, in their order.

    Args:
        sources: folders (with everything below, hidden files left out), globs (``**`` goes down), files, and
            ``.txt`` lists with a path on every line, relative to the list's folder.
        leave_out: a folder whose pictures are not taken from folders and globs: the output, inside the input.

    Raises:
        UserError: a source that does not exist or gives no picture, a list with a missing file.
    """
    paths: dict[Path, None] = {}
    for source in sources:
        found = [Path(os.path.abspath(path)) for path in _expand(source, leave_out)]
        if not found:
            raise UserError(f"no images in {source}; expected {EXPECTED} (another ending: name the file itself)")
        paths.update(dict.fromkeys(found))
    if not paths:
        raise UserError("no images given; name folders, globs, files or .txt lists")
    root = shared_folder(list(paths))
    return [Picture(path, path.relative_to(root).as_posix(), number) for number, path in enumerate(paths, start=1)]


def shared_folder(paths: Sequence[Path]) -> Path:
    """The deepest folder that holds all of the absolute ``paths``."""
    return Path(os.path.commonpath([path.parent for path in paths]))


def _expand(source: str | Path, leave_out: Path | None) -> Iterator[Path]:
    # os.path answers no where pathlib raises: for names that are too long, and for unknown users after "~".
    path = Path(os.path.expanduser(source))
    if os.path.isdir(path):
        yield from picture_files(path, leave_out)
    elif os.path.isfile(path):
        yield from _listed(path) if path.suffix.lower() == LIST_SUFFIX else [path]
    elif has_magic(str(source)):
        for match in sorted(glob(str(path), recursive=True)):
            if Path(match).is_dir():
                # "**" matches folders besides what is in them.
                yield from [] if "**" in str(source) else picture_files(Path(match), leave_out)
            elif is_picture(Path(match).name) and not _inside(Path(match), leave_out):
                yield Path(match)
    else:
        raise UserError(f"images {path}: no such file or folder; give folders, globs, files or .txt lists")


def _inside(path: Path, folder: Path | None) -> bool:
    return folder is not None and Path(os.path.abspath(path)).is_relative_to(os.path.abspath(folder))


def _listed(path: Path) -> Iterator[Path]:
    for number, line in enumerate(read_lines(path), start=1):
        if line:
            listed = path.parent / os.path.expanduser(line)
            if not os.path.isfile(listed):
                raise UserError(
                    f"{path} line {number}: no file {listed}; paths are relative to the list's folder, or absolute"
                )
            yield listed
