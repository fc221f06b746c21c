"""How a command line becomes a run or a sweep of runs, and one line for every bad input."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

import hydra
from hydra._internal.callbacks import Callbacks
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import run_job
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, open_dict, read_write

from sam3slim.errors import EXIT_BAD_INPUT, EXIT_INTERRUPTED, UserError, exit_with
from sam3slim.launch import messages, sweep
from sam3slim.launch.compose import CONFIG_DIR, VERSION_BASE, as_user_error, conf_dir, own_hydra, run_of
from sam3slim.launch.quoting import as_hydra_reads
from sam3slim.launch.run import PROGRAM, RunCommand

# Set by a user who wants Hydra's and our tracebacks for bad input too.
FULL_ERROR = "HYDRA_FULL_ERROR"
# Hydra's flags that ask to see something and run nothing.
SHOWING = {"--help", "-h", "--hydra-help", "--version", "--cfg", "-c", "--resolve", "--package", "-p", "--info", "-i",
           "--shell-completion", "-sc"}  # fmt: skip


def main(command: RunCommand, argv: Sequence[str] | None = None, program: str = PROGRAM) -> None:
    """Run what a command line asks for.

    Bad input becomes one ``error: …`` line on stderr and exit status 2, in a plain run before any folder is made;
    Ctrl-C one line and status 130. Every other exception is a bug and keeps its traceback.

    A sweep (``-m``, or a file of the sweep group) runs every trial, in a process of its own, in a folder that its
    configuration decides; a trial that fails is told and recorded, the others go on, and the status is 2 at the end.

    Args:
        argv: arguments; None for those of this process.
        program: what comes before them.
    """
    again = ""
    try:
        arguments = _arguments(sys.argv[1:] if argv is None else list(argv))
        if arguments.shown:
            _show(command.name, arguments.shown)
            return
        asked = sweep.sweep_of(command.name, arguments.overrides, arguments.multirun)
        sweep.refuse_ranks(asked, arguments.overrides)
        if isinstance(asked, sweep.Sweep):
            again = "; the same command goes on with the rest"
            asked.run(command, arguments.overrides, program)
        else:
            _run(command, asked, program)
    except KeyboardInterrupt:
        exit_with(f"interrupted{again}", EXIT_INTERRUPTED)
    except UserError as error:
        if os.environ.get(FULL_ERROR) == "1":
            raise
        exit_with(f"error: {messages.one_line(str(error))}", EXIT_BAD_INPUT)


def _arguments(argv: list[str]) -> argparse.Namespace:
    """``overrides``, ``multirun``, and ``shown``: everything, where a flag of Hydra's asks to see something.

    Raises:
        UserError: another flag, or a folder that is none.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("-m", "--multirun", action="store_true")
    parser.add_argument("-cd", "--config-dir")
    found, flags = parser.parse_known_intermixed_args(argv)
    for flag in flags:
        if flag.startswith("-") and flag.partition("=")[0] not in SHOWING:
            raise UserError(f"unknown flag {flag}; known: -m, --config-dir DIR, --help, --cfg job, --info")
    if found.config_dir is not None:
        folder = Path(found.config_dir).absolute()
        if not folder.is_dir():
            raise UserError(f"--config-dir {found.config_dir} is not a folder; give one with groups such as model/")
        os.environ[CONFIG_DIR] = str(folder)
    found.overrides = as_hydra_reads(found.overrides)
    found.shown = as_hydra_reads(argv) if flags else []
    return found


def _show(name: str, argv: list[str]) -> None:
    """Hydra reads the arguments itself, and raises where it would print a traceback and exit."""
    with (
        as_user_error(name, [text for text in argv if not text.startswith("-")]),
        patch.object(sys, "argv", [f"{name}.py", *argv]),
        patch.dict(os.environ, {FULL_ERROR: "1"}),
    ):
        hydra.main(config_path=str(conf_dir()), config_name=name, version_base=VERSION_BASE)(lambda cfg: None)()


def _run(command: RunCommand, cfg: DictConfig, program: str) -> None:
    """A plain run: checked, then in Hydra's job, which has a folder and a log."""
    folder = os.path.expanduser(str(cfg.hydra.run.dir))
    with read_write(cfg.hydra), open_dict(cfg.hydra):
        cfg.hydra.run.dir = folder
        cfg.hydra.mode = RunMode.RUN
        cfg.hydra.runtime.output_dir = os.path.abspath(folder)
    HydraConfig.instance().set_config(cfg)
    with as_user_error(command.name, cfg.hydra.overrides.task):
        run = run_of(command.name, cfg, Path(cfg.hydra.runtime.output_dir), program)
    work = command.prepare(run)
    sweep.make_folder(folder, "hydra.run.dir")
    refused: list[UserError] = []

    def job(_: DictConfig) -> None:
        try:
            work()
        except UserError as error:
            refused.append(error)  # Hydra would announce it with a line of its own

    with own_hydra(command.name) as ours:
        done = run_job(job, cfg, "hydra.run.dir", None, HydraContext(ours.config_loader, Callbacks(cfg)))
    _ = done.return_value  # raises what went wrong
    if refused:
        raise refused[0]
