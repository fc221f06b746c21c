"""What lies between two markers of a page is written by a program."""

from __future__ import annotations

from pathlib import Path

from sam3slim.files import atomic_path


def put_between(page: Path, name: str, text: str) -> None:
    """Replace what lies between ``<!-- NAME: begin -->`` and ``<!-- NAME: end -->``.

    Raises:
        ValueError: the page has no markers.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    content = page.read_text(encoding="utf-8")
    if begin not in content or end not in content:
        raise ValueError(f"{page} lacks {begin} and {end}")
    before, rest = content.split(begin, 1)
    after = rest.split(end, 1)[1]
    with atomic_path(page) as temporary:
        temporary.write_text(f"{before}{begin}\n{text}{end}{after}", encoding="utf-8")
