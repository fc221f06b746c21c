"""The three commands in this process, on configurations that a test has composed or changed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sam3slim.launch.run import Run
from sam3slim.launch.trial import Done
from sam3slim.results.record import RunRecord
from sam3slim.runs import COMMANDS
from sam3slim.runs.machine import check_machine
from sam3slim.runs.specs import TrainSpec
from sam3slim.runs.train import train as train_alone
from sam3slim.strict import spec_from_dict

Config = Mapping[str, Any]


def train(config: Config, out: Path, choices: dict[str, str] | None = None, command: str = "") -> RunRecord:
    """Also where the folder's record is finished, which ``train.py`` would keep."""
    spec = spec_from_dict(TrainSpec, config, "")
    check_machine(spec)
    return train_alone(spec, Run("train", out, config, choices or {}, command))


def train_and_compress(config: Config, out: Path) -> Done:
    done: Done = COMMANDS["train"].prepare(Run("train", out, config))()
    return done


def evaluate(config: Config, out: Path, choices: dict[str, str] | None = None, command: str = "") -> RunRecord:
    record: RunRecord = COMMANDS["evaluate"].prepare(Run("evaluate", out, config, choices or {}, command))()
    return record


def compress(config: Config, out: Path, choices: dict[str, str] | None = None, command: str = "") -> list[RunRecord]:
    records: list[RunRecord] = COMMANDS["compress"].prepare(Run("compress", out, config, choices or {}, command))()
    return records
