"""The three commands: ``train``, ``evaluate``, ``compress``; each writes one record per result."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sam3slim.launch.command import main as launch
from sam3slim.launch.compose import compose_run
from sam3slim.launch.run import PROGRAM, RunCommand, Task


# Imported inside, so that mistyped options and impossible models are answered before torch is loaded.
def _train() -> Task:
    from sam3slim.runs.machine import check_machine
    from sam3slim.runs.specs import TrainSpec
    from sam3slim.runs.train import train_and_compress

    return Task(TrainSpec, train_and_compress, check_machine)


def _evaluate() -> Task:
    from sam3slim.runs.evaluate import evaluate
    from sam3slim.runs.specs import EvaluateSpec

    return Task(EvaluateSpec, evaluate)


def _compress() -> Task:
    from sam3slim.runs.compress import compress
    from sam3slim.runs.specs import CompressSpec

    return Task(CompressSpec, compress)


COMMANDS = {
    "train": RunCommand("train", _train),
    "evaluate": RunCommand("evaluate", _evaluate),
    "compress": RunCommand("compress", _compress),
}


def main(name: str, argv: Sequence[str] | None = None, program: str = PROGRAM) -> None:
    """The command ``name`` as a script; see ``launch.command.main``."""
    launch(COMMANDS[name], argv, program)


def start(name: str, overrides: Sequence[str], folder: str | Path) -> Any:
    """The command ``name`` in this process, with its results in ``folder``; returns its records.

    Raises:
        UserError: bad input, or a run that failed.
    """
    command = COMMANDS[name]
    return command.prepare(compose_run(command.name, overrides, folder))()
