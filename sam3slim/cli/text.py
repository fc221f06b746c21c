"""``sam3slim text``: a checkpoint's text tower cut down to a list of phrases."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from sam3slim.cli.command import Command, plain_console, plain_progress, quick_imports
from sam3slim.cli.inspect import parse_overrides
from sam3slim.errors import UserError
from sam3slim.files import size_text

if TYPE_CHECKING:
    from sam3slim.artifacts.cut import TextCut


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="CHECKPOINT", help="a checkpoint: file, folder or hub id; not INT8")
    parser.add_argument("target", metavar="OUT", help="folder of the new artifact")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="sizes the checkpoint does not tell")
    parser.add_argument("--phrases", metavar="FILE", help="a phrase on every line")
    parser.add_argument(
        "--coco", action="append", default=[], metavar="JSON", help="category names of a COCO file; may be repeated"
    )
    parser.add_argument(
        "--bank", action="store_true", help="store the tower's outputs for the phrases instead of the tower"
    )
    parser.add_argument(
        "--unknown",
        choices=("error", "bytes"),
        help="other phrases of a trimmed vocabulary: refused (default), or spelt in pieces the model has not learnt",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the target")


def _run(arguments: argparse.Namespace) -> None:
    if arguments.bank and arguments.unknown:
        raise UserError("--unknown is for a trimmed vocabulary; a bank refuses every other phrase: leave it out")
    if not (arguments.phrases or arguments.coco):
        raise UserError("no phrases; give --phrases FILE, --coco ANNOTATIONS.json or both")
    with quick_imports():
        from pathlib import Path

        from sam3slim.artifacts.cut import cut_text
        from sam3slim.data.annotations import category_phrases
        from sam3slim.text.phrases import read_phrase_list

    phrases = read_phrase_list(arguments.phrases) if arguments.phrases else []
    for file in arguments.coco:
        phrases += category_phrases(Path(file))
    phrases = list(dict.fromkeys(phrases))
    with plain_progress() as bar:
        tower = bar.add_task("reading phrases", total=None, visible=arguments.bank)
        writing = bar.add_task(f"writing {arguments.target}", total=None)
        found = cut_text(
            arguments.source,
            arguments.target,
            phrases,
            bank=arguments.bank,
            unknown=arguments.unknown or "error",
            overrides=parse_overrides(arguments.overrides),
            overwrite=arguments.overwrite,
            encoded=lambda count, total: bar.update(tower, advance=count, total=total),
            advance=lambda count, total: bar.update(writing, advance=count, total=total),
        )
    _reload(found)
    _print(found)


def _reload(found: TextCut) -> None:
    """What was written must open as what it is; raises CheckpointError."""
    from sam3slim.checkpoints import load

    load(found.path, expect=found.spec, mapped=True)


def _print(found: TextCut) -> None:
    from rich.table import Table

    shown = Table()
    for heading in ("part", "parameters before", "after", "bytes before", "after", "saved"):
        shown.add_column(heading, justify="left" if heading == "part" else "right")
    for part, count in found.params_before.items():
        shown.add_row(part, f"{count:,}", f"{found.params_after[part]:,}", *_bytes(
            found.bytes_before[part], found.bytes_after[part]))  # fmt: skip
    shown.add_section()
    before, after = sum(found.params_before.values()), sum(found.params_after.values())
    sizes = sum(found.bytes_before.values()), sum(found.bytes_after.values())
    shown.add_row("total", f"{before:,}", f"{after:,}", *_bytes(*sizes))
    shown.add_row("on disk", "", "", *_bytes(found.file_before, found.file_after))
    console = plain_console()
    console.print(shown)
    text = found.spec.text
    if text.bank is not None:
        console.print(f"a bank of {len(text.bank.phrases)} phrases, {sum(map(len, text.bank.tokens))} tokens")
    else:
        console.print(f"vocabulary {found.source.text.vocab_size:,} → {text.vocab_size:,} tokens")
    console.print(f"written and read back: {found.path}", soft_wrap=True)


def _bytes(before: int, after: int) -> tuple[str, str, str]:
    return size_text(before), size_text(after), f"{(before - after) / before if before else 0.0:.1%}"


TEXT = Command(
    "text",
    "cut a checkpoint's text tower down to a list of phrases: a trimmed vocabulary, or a prompt bank",
    _arguments,
    _run,
    epilog="sam3slim text sam3.pt sam3-coco --coco annotations/instances_val.json --bank",
)
