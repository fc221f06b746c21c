"""The console script ``sam3slim``: one subcommand per question a user has.

A subcommand is an entry of ``COMMANDS``; its heavy imports happen when it runs, so that ``--help`` is instant.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from sam3slim.cli.benchmark import BENCHMARK
from sam3slim.cli.command import Command
from sam3slim.cli.compare import COMPARE
from sam3slim.cli.data import DATA
from sam3slim.cli.export import EXPORT
from sam3slim.cli.extract import EXTRACT
from sam3slim.cli.inspect import INSPECT
from sam3slim.cli.metrics import METRICS_COMMAND
from sam3slim.cli.predict import PREDICT
from sam3slim.cli.shrink import SHRINK
from sam3slim.cli.text import TEXT
from sam3slim.errors import EXIT_BAD_INPUT, EXIT_INTERRUPTED, UserError

COMMANDS: tuple[Command, ...] = (
    INSPECT, DATA, EXTRACT, TEXT, SHRINK, COMPARE, EXPORT, PREDICT, BENCHMARK, METRICS_COMMAND,
)  # fmt: skip
# The three scripts, for those who have no checkout; Hydra reads their arguments.
RUNS = {
    "train": "train or retrain a model, as python train.py does",
    "evaluate": "measure a checkpoint's mAP, as python evaluate.py does",
    "compress": "write and measure smaller artifacts, as python compress.py does",
}


def make_parser() -> argparse.ArgumentParser:
    """The parser of all subcommands."""
    parser = argparse.ArgumentParser(
        prog="sam3slim", description="Make SAM 3 small, and prove what each step costs in mAP."
    )
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, text in RUNS.items():
        subparsers.add_parser(name, help=text, add_help=False).add_argument("overrides", nargs="*")
    for command in COMMANDS:
        epilog = f"example: {command.epilog}" if command.epilog else None
        sub = subparsers.add_parser(command.name, help=command.help, description=command.help, epilog=epilog)
        command.add_arguments(sub)
        sub.set_defaults(run=command.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the subcommand of ``argv``; 0, or 2 after one line for bad input, or 130 after Ctrl-C."""
    words = sys.argv[1:] if argv is None else list(argv)
    if words and words[0] in RUNS:
        from sam3slim.runs import main as run

        run(words[0], words[1:], "sam3slim {kind}")
        return 0
    parser = make_parser()
    arguments, rest = parser.parse_known_args(words)
    if rest:  # argparse takes positional arguments only in one place, and KEY=VALUE may stand behind a flag as well
        settings = getattr(arguments, "overrides", getattr(arguments, "targets", None))
        if settings is None or not all("=" in text and not text.startswith("-") for text in rest):
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        settings += rest
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
