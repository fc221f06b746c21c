"""``sam3slim export``: the best run that keeps the limits, in the format that inference code wants."""

from __future__ import annotations

import argparse
import shlex
import sys
from typing import TYPE_CHECKING

from sam3slim.cli.command import Command, plain_console, plain_progress, quick_imports
from sam3slim.errors import UserError

if TYPE_CHECKING:
    from sam3slim.results.select import Selection

WIDE = 160


def _arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUNS", help="folders; every record.json in and below them is looked at")
    add("--out", metavar="DIR", help="a new or empty folder")
    add("--format", default="hf", metavar="FORMAT", help="hf, reference, onnx or torch-export (default: %(default)s)")
    add("--max-drop", type=float, metavar="POINTS", help="most points of the metric lost against the full model")
    add("--max-bytes", metavar="SIZE", help="largest size of the export, e.g. 500MB or 1.5GiB")
    add(
        "--max-latency",
        metavar="TIME",
        help="longest median of one forward, e.g. 120ms or 0.5s, measured on this machine",
    )
    add("--on", choices=("cpu", "cuda"), help="with --max-latency: where it was measured")
    add("--any-machine", action="store_true", help="with --max-latency: also latencies of other machines")
    add("--best", metavar="WHAT", help="map: the best metric, size: the smallest, of those within the limits")
    add("--metric", metavar="NAME", help="the metric that decides (default: segm; bbox where no run has masks)")
    add("--group", metavar="N", help="number or words of the data and protocol, where records have several")
    add("--reference", metavar="RUN", help="folder of the full model's run, which drops then count against")
    add("--data", metavar="DIR", help="where the data lie now, if not where the records say")
    add("--check-images", type=int, default=8, metavar="N", help="images evaluated again (default: %(default)s)")
    add("--overwrite", action="store_true", help="replace an export that is there")
    add("--dry-run", action="store_true", help="only say which run would be taken, and why")


def _run(arguments: argparse.Namespace) -> None:
    from sam3slim.export.sizes import parse_bytes, parse_milliseconds
    from sam3slim.results.select import ExportCriteria

    max_bytes = None if arguments.max_bytes is None else parse_bytes(arguments.max_bytes)
    limits = {"max_drop": arguments.max_drop, "max_bytes": max_bytes, "best": arguments.best}
    latency = None if arguments.max_latency is None else parse_milliseconds(arguments.max_latency)
    limits |= {"metric": arguments.metric, "max_latency_ms": latency, "on": arguments.on}
    limits["any_machine"] = arguments.any_machine
    criteria = ExportCriteria(arguments.format, **limits)
    if arguments.dry_run:
        from sam3slim.results.select import choose

        _tell(choose(arguments.runs, criteria, group=arguments.group, reference=arguments.reference), arguments.format)
        return
    if arguments.out is None:
        raise UserError("--out DIR is missing; give a new or empty folder, or --dry-run")
    with quick_imports():
        from sam3slim.export.run import export

    bar = plain_progress(show=sys.stdout.isatty())
    task = bar.add_task("writing weights", total=None)

    def advance(count: int, total: int) -> None:
        bar.start()
        bar.update(task, advance=count, total=total)

    def step(text: str) -> None:
        bar.stop()  # the processes that open the export have bars of their own
        print(f"{text} …", flush=True)

    try:
        done = export(
            arguments.runs, arguments.out, format=arguments.format, **limits, group=arguments.group,
            reference=arguments.reference, data=arguments.data, check_images=arguments.check_images,
            overwrite=arguments.overwrite, command=shlex.join(["sam3slim", *sys.argv[1:]]),
            on_choice=lambda selection: _tell(selection, arguments.format), step=step, advance=advance,
        )  # fmt: skip
    finally:
        bar.stop()
    for line in [*done.made.notes, *done.verified.lines()]:
        print(line)
    print(f"written: {done.path} ({done.made.bytes:,} bytes of weights; {done.path / 'README.md'} is its card)")


def _tell(selection: Selection, format: str) -> None:
    """The table of what was looked at, and why the first of it was taken."""
    from rich.table import Table

    shown = Table(title="runs that were looked at", title_justify="left")
    for i, heading in enumerate(selection.headings(format)):
        shown.add_column(heading, justify="right" if 2 <= i <= 4 else "left", overflow="fold")
    for row in selection.rows():
        shown.add_row(*row)
    # Into a file or a pipe, lines need not be folded.
    console = plain_console(None if sys.stdout.isatty() else WIDE)
    console.print(shown)
    for line in [selection.why, *(f"warning: {warning}" for warning in selection.warnings)]:
        console.print(line, soft_wrap=True)


EXPORT = Command(
    "export",
    "pick the best run within limits, convert it, reopen it in a fresh process, check it",
    _arguments,
    _run,
    epilog="sam3slim export outputs --max-drop 1.0 --format onnx --out exported",
)
