"""``sam3slim compare``: every record below some folders on one page."""

from __future__ import annotations

import argparse
import sys

from sam3slim.cli.command import Command, quick_imports


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUNS", help="folders; every record.json in and below them is read")
    parser.add_argument("--out", default="outputs/compare", metavar="DIR", help="default: %(default)s")


def _run(arguments: argparse.Namespace) -> None:
    with quick_imports():
        from sam3slim.files import ensure_writable_dir
        from sam3slim.report.collect import collect
        from sam3slim.report.compare import write_comparison

    found = collect(arguments.runs)
    ensure_writable_dir(arguments.out)
    for line in found.unread:
        print(f"not read: {line}", file=sys.stderr)
    written = write_comparison(found, arguments.out)
    runs = found.runs
    not_finished = sum(run.record.status != "finished" for run in runs)
    print(f"{len(runs)} runs in {len(found.groups)} groups of equal data and protocol, {not_finished} not finished")
    for run in runs:
        if run.conflict:
            print(f"same configuration as another run, other numbers: {run.folder}")
    for path in written:
        print(f"written: {path}")


COMPARE = Command(
    "compare",
    "every run below some folders: CSV, Markdown, plots and one HTML page",
    _arguments,
    _run,
    epilog="sam3slim compare outputs --out outputs/compare",
)
