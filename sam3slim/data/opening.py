"""From a folder to records: annotation file, image folder, and which file each image's name means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from sam3slim.data.annotations import index_of
from sam3slim.data.content import file_names, read_content
from sam3slim.data.entries import Same
from sam3slim.data.images import UnreadableImage, upright_size
from sam3slim.data.locate import find_annotations, find_images, missing_files
from sam3slim.data.names import match_names, nearest_file
from sam3slim.data.records import CocoIndex
from sam3slim.data.values import short
from sam3slim.errors import UserError


def open_annotated(
    root: Path,
    split: str,
    *,
    annotations: str | Path | None = None,
    images: str | Path | None = None,
    phrases: Mapping[str, Sequence[str]] | None = None,
    same: Same | None = None,
    skip_missing: bool = False,
) -> tuple[CocoIndex, Path]:
    """The annotated images of ``split`` below ``root``, and the folder that their files are in.

    Args:
        annotations, images: annotation file and image folder instead of a search.
        phrases, same: see ``index_of``.
        skip_missing: leave out images that are not there, or cannot be read while looking for their size.

    Raises:
        UserError: bad input, in one line.
    """
    path = find_annotations(root, split, annotations)
    given = None if images is None else find_images(root, split, path, [], images)
    content = read_content(path, split, images=given, skip=skip_missing)
    names = file_names(content)
    known = content.get("folder") if given is None else None
    folder = Path(known) if isinstance(known, str) else find_images(root, split, path, names, images)
    missing = missing_files(folder, names)
    matched: dict[str, str] = {}
    if missing:
        gone = set(missing)
        matched = match_names(folder, missing, [name for name in names if name not in gone])

    def size_of(name: str) -> tuple[int, int]:
        file = folder / matched.get(name, name)
        try:
            return upright_size(file)
        except UnreadableImage as error:
            raise UserError(
                f"{path.name}: image {short(name)} has no height and width, and {file} {error}; fix its entry"
            ) from error

    index = index_of(content, path, size_of=size_of, phrases=phrases, same=same)
    for record in index.records:
        if record.file_name in matched:
            file = matched[record.file_name]
            index.report.note("file_names_matched", f"{short(record.file_name)} is {short(file)}")
            record.file_name = file
    lost = set(missing) - matched.keys()
    if lost and not skip_missing:
        first = next(name for name in missing if name in lost)
        near = nearest_file(folder, first)
        skip = ", or set data.on_unreadable=skip" if len(lost) < len(set(names)) else ""
        raise UserError(
            f"{len(lost)} of {len(index.records)} images of {path.name} are not in {folder}, the first is "
            f"{short(first)}{f' (a file like it: {short(near)})' if near else ''}; add them, or set data.images{skip}"
        )
    for record in index.records:
        if record.file_name in lost:
            index.report.note("images_missing", short(record.file_name))
    index.records = [record for record in index.records if record.file_name not in lost]
    return index, folder
