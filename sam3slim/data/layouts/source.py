"""What a reader of another layout is given, and what all of them share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sam3slim.data.images import UnreadableImage, upright_size
from sam3slim.errors import UserError
from sam3slim.progress import progress_bar


@dataclass(frozen=True)
class Source:
    """What to read.

    Attributes:
        path: the annotation file, or a folder of them.
        split: ``train``, ``val`` or ``test``.
        images: the folder of images, where it is given.
        skip: leave out pictures that cannot be read, instead of stopping.
    """

    path: Path
    split: str
    images: Path | None = None
    skip: bool = False


@dataclass
class Pictures:
    """The ``images`` entries of COCO's dict, numbered from 1, with the sizes of the upright pictures.

    Attributes:
        folder: that their names are relative to.
        unreadable: of those left out, name and reason.
    """

    folder: Path
    skip: bool
    entries: list[dict[str, Any]] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)

    def add(self, path: Path) -> dict[str, Any] | None:
        """The entry of a picture; None where it cannot be read and is left out.

        Raises:
            UserError: it cannot be read.
        """
        try:
            height, width = upright_size(path)
        except UnreadableImage as error:
            if not self.skip:
                raise UserError(f"image {path} {error}; fix or remove it, or set data.on_unreadable=skip") from error
            self.unreadable.append(f"{path} {error}")
            return None
        name = path.relative_to(self.folder).as_posix() if path.is_relative_to(self.folder) else str(path)
        entry = {"id": len(self.entries) + 1, "file_name": name, "height": height, "width": width}
        self.entries.append(entry)
        return entry


def content_of(
    layout: str, pictures: Pictures, annotations: Iterable[dict[str, Any]], names: Iterable[tuple[int, str]]
) -> dict[str, Any]:
    """COCO's dict.

    Args:
        annotations: without ids.
        names: (id, name) of the categories.
    """
    return {
        "layout": layout, "folder": str(pictures.folder), "unreadable": pictures.unreadable,
        "images": pictures.entries,
        "annotations": [{"id": number, **item} for number, item in enumerate(annotations, start=1)],
        "categories": [{"id": number, "name": name} for number, name in names],
    }  # fmt: skip


def shown(paths: Iterable[Path], what: str) -> Iterator[Path]:
    """``paths`` with a progress bar: their files are opened one by one."""
    listed = list(paths)
    with progress_bar(show=len(listed) > 100) as bar:
        yield from bar.track(listed, description=what)
