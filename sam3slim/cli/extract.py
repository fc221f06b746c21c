"""``sam3slim extract``: the weights out of a checkpoint."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from sam3slim.cli.command import Command, plain_console, plain_progress, quick_imports
from sam3slim.cli.inspect import parse_overrides
from sam3slim.files import size_text
from sam3slim.precisions import casts

if TYPE_CHECKING:
    from sam3slim.artifacts.extraction import Extracted


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help="a checkpoint: file, folder or hub id")
    parser.add_argument("target", help="a folder (hf) or a file (safetensors, reference)")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="sizes the file does not tell")
    parser.add_argument("--dtype", choices=casts(), help="default: as stored")
    parser.add_argument(
        "--format",
        choices=("hf", "safetensors", "reference"),
        default="hf",
        help="hf: a folder for transformers; reference: a .pt for the reference implementation",
    )
    parser.add_argument("--lora", metavar="ADAPTER", help="merge a LoRA adapter: a folder of peft's, or a file")
    parser.add_argument("--lora-alpha", type=float, metavar="ALPHA", help="where the adapter does not state its alpha")
    parser.add_argument("--overwrite", action="store_true", help="replace the target")


def _run(arguments: argparse.Namespace) -> None:
    with quick_imports():
        import torch

        from sam3slim.artifacts.extraction import extract

    # Rounding waits for memory; a second core is worth more to hashing and writing.
    torch.set_num_threads(1)
    with plain_progress() as bar:
        task = bar.add_task(f"writing {arguments.target}", total=None)
        done = 0

        def advance(count: int, total: int) -> None:
            nonlocal done
            done += count
            bar.update(task, completed=done, total=total)

        found = extract(
            arguments.source,
            arguments.target,
            dtype=arguments.dtype,
            format=arguments.format,
            overrides=parse_overrides(arguments.overrides),
            overwrite=arguments.overwrite,
            lora=arguments.lora,
            lora_alpha=arguments.lora_alpha,
            advance=advance,
        )
    _print(found)


def _print(found: Extracted) -> None:
    from rich.table import Table

    shown = Table()
    for heading in ("part", "before", "after", "saved", "%"):
        shown.add_column(heading, justify="left" if heading == "part" else "right")
    for part, size in found.before.items():
        shown.add_row(part, *_saved(size, found.after.get(part, 0)))
    shown.add_section()
    shown.add_row("on disk", *_saved(found.file_before, found.file_after))
    console = plain_console()
    console.print(shown)
    for line in found.rounding.describe():
        console.print(line, soft_wrap=True)
    console.print(f"written: {found.path}", soft_wrap=True)


def _saved(before: int, after: int) -> tuple[str, str, str, str]:
    share = (before - after) / before if before else 0.0
    return size_text(before), size_text(after), size_text(before - after), f"{share:.1%}"


EXTRACT = Command(
    "extract",
    "weights only, in a precision and format of your choice",
    _arguments,
    _run,
    epilog="sam3slim extract checkpoint.pt sam3-fp16 --dtype fp16",
)
