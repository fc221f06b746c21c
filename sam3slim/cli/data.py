"""``sam3slim data``: what is read of a data set, changed and left out, and why, with pictures."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from sam3slim.cli.command import Command, plain_console, quick_imports
from sam3slim.errors import UserError

if TYPE_CHECKING:
    from sam3slim.data.records import CocoIndex

SHOWN = 12  # phrases in a line


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("root", metavar="ROOT", help="folder of the data set, as data.root")
    parser.add_argument("--split", choices=("train", "val", "test"), help="default: all that are there")
    parser.add_argument("--annotations", metavar="FILE", help="as data.annotations")
    parser.add_argument("--images", metavar="FOLDER", help="as data.images")
    parser.add_argument("--prompts", metavar="FILE", help="phrases for the categories, as data.prompts")
    parser.add_argument("--pictures", type=int, default=6, metavar="N", help="annotated images to draw (6; 0: none)")
    parser.add_argument("--out", default="outputs/data", metavar="DIR", help="for the pictures (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON for machines")


def _run(arguments: argparse.Namespace) -> None:
    if arguments.pictures < 0:
        raise UserError(f"--pictures {arguments.pictures}: expected 0 or more")
    with quick_imports():
        from pathlib import Path

        from sam3slim.data.locate import find_annotations
        from sam3slim.data.opening import open_annotated
        from sam3slim.data.prompt_file import read_prompts
        from sam3slim.data.spec import SPLITS
        from sam3slim.report.records import draw_records

    phrases = None if arguments.prompts is None else read_prompts(Path(arguments.prompts))
    root, console = Path(arguments.root), plain_console()
    wanted: dict[Path, list[str]] = {}
    told: dict[str, UserError] = {}
    found: dict[str, Any] = {}
    for split in [arguments.split] if arguments.split else SPLITS:
        try:
            path = find_annotations(root, split, arguments.annotations)
        except UserError as error:
            told[split] = error
            continue
        # A COCO file that serves several splits says the same of all; YOLO's description and VOC's folder do not.
        wanted.setdefault(path if path.suffix.lower() == ".json" else path / split, []).append(split)
    for splits in wanted.values():
        name = ", ".join(splits)
        try:
            index, folder = open_annotated(
                root,
                splits[0],
                annotations=arguments.annotations,
                images=arguments.images,
                phrases=phrases,
                skip_missing=True,
            )
        except UserError as error:
            told[name] = error
            continue
        file = None
        if arguments.pictures:
            file = draw_records(index, folder, Path(arguments.out) / f"{splits[0]}.png", arguments.pictures)
        found[name] = {"annotations": str(index.path), "images_in": str(folder), **index.report.to_dict()}
        if not arguments.json:
            for line in (f"{name}: {index.path}, images in {folder}", *_lines(index)):
                console.print(line, soft_wrap=True)
            if file is not None:
                console.print(f"  drawn: {file}", soft_wrap=True)
    if not found:
        raise next(iter(told.values()))
    if arguments.json:
        print(json.dumps(_with_errors(found, told), indent=2, ensure_ascii=False))
        return
    for split, reason in told.items():
        console.print(f"{split}: {reason}", soft_wrap=True)


def _lines(index: CocoIndex) -> list[str]:
    from sam3slim.data.sides import says_side
    from sam3slim.report.records import phrase_counts

    counts = phrase_counts(index)
    shown = ", ".join(f"{phrase} {count}" for phrase, count in counts[:SHOWN])
    lines = [*index.report.lines(), f"phrases: {shown}{', …' if len(counts) > SHOWN else ''}"]
    sided = [phrase for phrase, _ in counts if says_side(phrase)]
    if sided:
        lines.append(f"never mirrored when asked for: {', '.join(sided[:SHOWN])}{', …' if len(sided) > SHOWN else ''}")
    return [f"  {line}" for line in lines]


def _with_errors(found: dict[str, Any], told: dict[str, UserError]) -> dict[str, Any]:
    return {**found, **({"errors": {split: str(error) for split, error in told.items()}} if told else {})}


DATA = Command(
    "data",
    "what is read of a data set, changed and left out, and why, with pictures of a few annotated images",
    _arguments,
    _run,
    epilog="sam3slim data DIR --out outputs/data",
)
