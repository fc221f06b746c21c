"""``sam3slim shrink``: a smaller file, within a budget, without training."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from sam3slim.cli.command import Command, quick_imports


def _arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", help="a checkpoint: file, folder or hub id; not INT8")
    add("out", metavar="OUT", help="a new folder, or that of the same call, which goes on there")
    add("overrides", nargs="*", metavar="KEY=VALUE", help="settings of evaluate.py for every step: device=cuda")
    add("--images", required=True, metavar="DIR", help="pictures, or a data set with train, val and test")
    add("--phrases", metavar="FILE", help="a phrase on every line, the only ones that will be asked for")
    add("--annotations", metavar="JSON", help="COCO-format annotations of the pictures; without, agreement is measured")
    add("--max-drop", type=float, metavar="POINTS", help="most points lost against the checkpoint")
    add("--max-bytes", metavar="SIZE", help="largest size of the weights, e.g. 400MB")
    add("--keep-architecture", action="store_true", help="cut no layers; only store them in fewer bits")
    add(
        "--search-images", type=int, default=200, metavar="N",
        help="images that cuts and precisions are chosen on (default: %(default)s)",
    )  # fmt: skip


def _run(arguments: argparse.Namespace) -> None:
    from sam3slim.export.sizes import parse_bytes
    from sam3slim.files import at_home

    with quick_imports():
        from sam3slim.runs.shrink import shrink
        from sam3slim.runs.shrink_inputs import ShrinkSpec

    read: dict[str, Callable[[str], Any]] = {
        **dict.fromkeys(("out", "images", "phrases", "annotations"), at_home),
        "max_bytes": parse_bytes,
    }
    given = {field.name: getattr(arguments, field.name) for field in fields(ShrinkSpec)}
    given |= {name: parse(given[name]) for name, parse in read.items() if given[name] is not None}
    shrink(ShrinkSpec(**given), lambda text: print(text, flush=True))


SHRINK = Command(
    "shrink",
    "a smaller file within a budget, without training: cut and fitted, fewer bits, checked on held-out images",
    _arguments,
    _run,
    epilog="sam3slim shrink sam3.pt small --images photos --phrases phrases.txt --max-drop 1.0",
)
