"""The console script ``sam3slim``: one subcommand per question a user has.

A subcommand is an entry of ``COMMANDS``; its heavy imports happen when it runs, so that ``--help`` is instant.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sam3slim.errors import EXIT_BAD_INPUT, EXIT_INTERRUPTED, UserError

if TYPE_CHECKING:
    from sam3slim.specs import ModelSpec


@dataclass(frozen=True)
class Command:
    """A subcommand: ``add_arguments`` describes its arguments, ``run`` does it (UserError for bad input)."""

    name: str
    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]
    epilog: str = ""


def _inspect_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="as for train.py, e.g. model=slim model/encoder=l6"
    )
    parser.add_argument("--json", action="store_true", help="print JSON for machines")


def _inspect(arguments: argparse.Namespace) -> None:
    from sam3slim.config import compose_model

    spec = compose_model(arguments.overrides)
    table = size_table(spec)
    if arguments.json:
        print(json.dumps({"model": spec.to_dict(), **table}, indent=2))
    else:
        _print_sizes(spec, table)


def size_table(spec: ModelSpec) -> dict[str, Any]:
    """Parameters and weight bytes by part, and in all; no weight is allocated.

    Returns:
        ``{"params": {"total", "by_part"}, "bytes": {"fp32" | "fp16" | "int8": {"total", "by_part"}}}``
    """
    from sam3slim.models.count import BYTES, bytes_by_part, count_params

    params, sizes = count_params(spec), bytes_by_part(spec)
    by_precision = {name: {part: row[name] for part, row in sizes.items()} for name in BYTES}
    return {
        "params": _with_total(params),
        "bytes": {name: _with_total(column) for name, column in by_precision.items()},
    }


def _with_total(by_part: dict[str, int]) -> dict[str, Any]:
    return {"total": sum(by_part.values()), "by_part": by_part}


def architecture_lines(spec: ModelSpec) -> list[str]:
    """The sizes of every part in the words of its command-line keys."""
    vit, text = spec.vit, spec.text
    return [
        f"vit       {vit.embed_dim} wide, {vit.depth} deep, {vit.num_heads} heads, MLP {vit.intermediate_size}, "
        f"{vit.image_size} px in patches of {vit.patch_size}, window {vit.window_size}, "
        f"global blocks {', '.join(map(str, vit.global_blocks))}",
        f"text      {text.width} wide, {text.layers} layers, {text.num_heads} heads, "
        f"context {text.context_length}, vocabulary {text.vocab_size}",
        f"detector  d_model {spec.d_model}, {spec.num_heads} heads, FFN {spec.ffn_dim}, geometry "
        f"{spec.geometry.num_layers}, encoder {spec.encoder.num_layers}, decoder {spec.decoder.num_layers} layers, "
        f"{spec.decoder.num_queries} queries",
    ]


def megabytes(count: int) -> str:
    """``1234567`` → ``1.23 MB``; from 1000 MB on in GB."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.2f} MB"


def _print_sizes(spec: ModelSpec, table: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    params, columns = table["params"], table["bytes"]
    shown = Table(title=f"{spec.name}: {params['total']:,} parameters", title_justify="left")
    shown.add_column("part")
    for heading in ("parameters", "share", *(name.upper() for name in columns)):
        shown.add_column(heading, justify="right")
    for part, count in params["by_part"].items():
        sizes = [megabytes(column["by_part"][part]) for column in columns.values()]
        shown.add_row(part, f"{count:,}", f"{count / params['total']:.1%}", *sizes)
    shown.add_section()
    totals = [megabytes(column["total"]) for column in columns.values()]
    shown.add_row("total", f"{params['total']:,}", "100.0%", *totals)
    console = Console(highlight=False)
    console.print(shown)
    for line in architecture_lines(spec):
        console.print(line, soft_wrap=True)


COMMANDS: tuple[Command, ...] = (
    Command(
        "inspect",
        "parameters and bytes of an architecture, by part",
        _inspect_arguments,
        _inspect,
        epilog="sam3slim inspect model=slim model/encoder=l6 model.vit.depth=20",
    ),
)


def make_parser() -> argparse.ArgumentParser:
    """The parser of all subcommands."""
    parser = argparse.ArgumentParser(
        prog="sam3slim", description="Make SAM 3 small, and prove what each step costs in mAP."
    )
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS:
        epilog = f"example: {command.epilog}" if command.epilog else None
        sub = subparsers.add_parser(command.name, help=command.help, description=command.help, epilog=epilog)
        command.add_arguments(sub)
        sub.set_defaults(run=command.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the subcommand of ``argv``; 0, or 2 after one line for bad input, or 130 after Ctrl-C."""
    arguments = make_parser().parse_args(argv)
    try:
        arguments.run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader (head, less) has seen enough; keep the interpreter from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except UserError as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
