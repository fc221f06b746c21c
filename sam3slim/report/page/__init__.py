"""One HTML page that needs no network: style, script and data are inside it."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from sam3slim.files import atomic_path
from sam3slim.precisions import PRECISIONS
from sam3slim.report.looks import OTHER_COLORS


def write_page(data: dict[str, Any], path: str | Path) -> Path:
    """Write the page of ``report.compare.page_data`` atomically.

    Raises:
        UserError: the folder cannot be written to.
        ValueError: a number in ``data`` is not finite.
    """
    colors = {"known": {name: precision.color for name, precision in PRECISIONS.items()}, "other": OTHER_COLORS}
    text = _asset("page.html").replace("/*STYLE*/", _asset("page.css")).replace("/*SCRIPT*/", _asset("page.js"))
    # The data come last, so that nothing in them is taken for one of the places above.
    text = text.replace("/*DATA*/", script_json({**data, "colors": colors}))
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path)


def script_json(value: Any) -> str:
    """JSON that cannot end the ``<script>`` it stands in, nor open a comment there."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _asset(name: str) -> str:
    return (files(__package__) / name).read_text(encoding="utf-8")
