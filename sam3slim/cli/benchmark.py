"""``sam3slim benchmark``: one model in every runtime and arithmetic of this machine."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sam3slim.cli.command import Command, plain_console, quick_imports
from sam3slim.errors import UserError
from sam3slim.runtimes.registry import RUNTIMES, all_arithmetics

WIDE = 240


def _arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "targets", nargs="+", metavar="ARTIFACT|KEY=VALUE",
        help="artifacts or checkpoints; settings of evaluate.py (data=coco data.root=DIR) to measure mAP, too",
    )  # fmt: skip
    add("--runtime", action="append", default=[], metavar="NAME", help=f"only these of {', '.join(RUNTIMES)}")
    add(
        "--arithmetic",
        action="append",
        default=[],
        metavar="NAME",
        help=f"only these of {', '.join(all_arithmetics())}",
    )
    add("--prompts", default="1,10,80", metavar="N,…", help="prompts asked of one image (default: %(default)s)")
    add("--repeats", type=int, default=10, metavar="N", help="calls that are timed (default: %(default)s)")
    add("--threads", type=int, metavar="N", help="of the CPU (default: PyTorch's own number)")
    add("--device", default="auto", help="auto, cpu or cuda (default: %(default)s)")
    add("--out", default="outputs/benchmark", metavar="DIR", help="rows and tables (default: %(default)s)")


def _run(arguments: argparse.Namespace) -> None:
    try:
        prompts = tuple(int(number) for number in arguments.prompts.split(","))
    except ValueError:
        raise UserError(f"--prompts {arguments.prompts}: expected numbers, e.g. 1,10,80") from None
    with quick_imports():
        from sam3slim.benchmarking import BenchmarkSpec, benchmark
        from sam3slim.benchmarking.table import notes, shown

    # A path may hold "=", a setting's key has no folder in it.
    is_setting = {text: "=" in text and not Path(text).exists() for text in arguments.targets}
    spec = BenchmarkSpec(
        [text for text in arguments.targets if not is_setting[text]],
        [text for text in arguments.targets if is_setting[text]],
        arguments.out, arguments.runtime, arguments.arithmetic, prompts, arguments.repeats, arguments.device,
        arguments.threads,
    )  # fmt: skip
    rows = benchmark(spec)
    from rich.table import Table

    headings, cells = shown(rows)
    table = Table(title="one image and its prompts", title_justify="left")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for line in cells:
        table.add_row(*line)
    console = plain_console(None if sys.stdout.isatty() else WIDE)
    console.print(table)
    for note in notes(rows):
        console.print(note, soft_wrap=True)
    print(f"written: {Path(arguments.out) / 'benchmark.csv'}, {Path(arguments.out) / 'benchmark.md'}")


BENCHMARK = Command(
    "benchmark",
    "speed, memory, parity and mAP of a model in every runtime of this machine",
    _arguments,
    _run,
    epilog="sam3slim benchmark assets/nano data=shapes limit=100",
)
