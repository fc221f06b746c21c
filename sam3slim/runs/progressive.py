"""Progressive slimming: cut a little, recover, cut again (``progressive`` in conf/train.yaml)."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

from sam3slim import config as cfg
from sam3slim.distill import teacher_overrides
from sam3slim.environment import this_process
from sam3slim.errors import UserError
from sam3slim.records import FILE_NAME, RunRecord, config_hash, read_record
from sam3slim.runs.specs import TrainSpec
from sam3slim.runs.train import train as train_once
from sam3slim.slimming import check_slimmer
from sam3slim.strict import spec_from_dict

# Strategies that fork the processes of one stage; the others run the whole command again, and so all stages.
FORKS = ("ddp_fork", "ddp_spawn", "ddp_notebook")
WAIT = 1.0  # seconds


def train(config: dict[str, Any], output_dir: Path, choices: dict[str, str], command: str) -> RunRecord:
    """Train as composed, through the intermediate architectures of ``progressive`` if there are any.

    Every stage is a run of its own, in ``stage_1``, ``stage_2``, … of the run's folder, with its record, plan and
    artifact; each inherits from the stage before, and the last one is the run itself. With ``resume=auto`` finished
    stages are not run again, and the one that was stopped goes on.

    Raises:
        UserError: bad input of any stage, before the first one starts.
    """
    if not config.get("progressive"):
        return train_once(config, output_dir, choices, command)
    steps = stage_configs(config, output_dir)
    for number, (folder, stage) in enumerate(steps, start=1):
        rank_zero_only(print)(f"stage {number} of {len(steps)}: {stage['name']} in {folder}")
        record = _finished(folder, stage) or train_once(stage, folder, choices, command)
        if this_process().rank and number < len(steps):
            _wait_for(folder, stage)
    return record


def recorded_config(config: dict[str, Any], output_dir: Path) -> dict[str, Any]:
    """The configuration that the run's own record will be of: with ``progressive``, that of its last stage."""
    return _stages(config, output_dir)[-1][1] if config.get("progressive") else config


def stage_configs(config: Mapping[str, Any], output_dir: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Folder and configuration of every stage, checked.

    A stage says what differs from the run's configuration: ``model`` (the name of a conf/model option, or single
    sizes) and anything else, usually ``trainer.max_steps``.

    Raises:
        UserError: an unknown key, an impossible size, a stage that is larger than the one before it, several
            processes that would run all stages, folders of another run.
    """
    found = _stages(config, output_dir)
    specs = [_checked(stage, number) for number, (_, stage) in enumerate(found, start=1)]
    for number, (larger, smaller) in enumerate(pairwise(specs), start=1):
        try:
            check_slimmer(larger.model, smaller.model)
        except UserError as error:
            raise UserError(f"progressive: stage {number + 1} cannot be cut out of stage {number}: {error}") from error
    if config["resume"] is None:
        for folder, _ in found:
            if (folder / "checkpoints").exists():
                raise UserError(f"{folder} holds an earlier run: go on with resume=auto, or choose another folder")
    return found


def _stages(config: Mapping[str, Any], output_dir: Path) -> list[tuple[Path, dict[str, Any]]]:
    base = {key: value for key, value in config.items() if key != "progressive"}
    if base["init"]["kind"] != "pruned":
        raise UserError(f"progressive cuts a larger model step by step: use init=pruned, not {base['init']['kind']}")
    if base["resume"] not in (None, "auto"):
        raise UserError(f"resume={base['resume']} is one file, and progressive has several runs; use resume=auto")
    _refuse_reruns(base["trainer"])
    stages = config["progressive"]
    found: list[tuple[Path, dict[str, Any]]] = []
    for number, changes in enumerate([*stages, {}], start=1):
        last = number > len(stages)
        folder = output_dir if last else output_dir / f"stage_{number}"
        stage = _merged(base, _with_model(changes, number))
        if not last:
            stage = _moved(stage, str(base["output_dir"]), str(folder)) | {"name": f"{base['name']}_stage_{number}"}
        if found:
            stage["distill"] = {**stage["distill"], "overrides": teacher_overrides(base["distill"], base["init"])}
            stage["init"] = stage["init"] | {"checkpoint": str(found[-1][0]), "overrides": None}
        found.append((folder, stage | {"resume": "auto"}))
    return found


def _wait_for(folder: Path, stage: dict[str, Any]) -> None:
    """Until the first process has measured and exported the stage that all have trained.

    A process that went on alone would give up waiting for the first one after Lightning's 30 minutes.

    Raises:
        UserError: the stage failed there.
    """
    while _finished(folder, stage) is None:
        record = read_record(folder)
        if record.status == "failed":
            raise UserError(f"{folder}: {record.error}")
        time.sleep(WAIT)


def _with_model(changes: Mapping[str, Any], number: int) -> dict[str, Any]:
    if not isinstance(changes, Mapping):
        raise UserError(f"progressive[{number - 1}]={changes!r} must be a group of keys such as {{model: nano_half}}")
    name = changes.get("model")
    model = {"model": cfg.compose_model([f"model={name}"]).to_dict()} if isinstance(name, str) else {}
    return {**changes, **model}


def _checked(stage: dict[str, Any], number: int) -> TrainSpec:
    try:
        return spec_from_dict(TrainSpec, stage, "")
    except UserError as error:
        raise UserError(f"progressive, stage {number}: {error}") from error


def _merged(base: Any, changes: Any) -> Any:
    """``base`` with what ``changes`` says, dicts merged key by key."""
    if not isinstance(base, Mapping) or not isinstance(changes, Mapping):
        return changes
    return {**base, **{key: _merged(base.get(key), value) for key, value in changes.items()}}


def _moved(value: Any, old: str, new: str) -> Any:
    """``value`` with every path in the folder ``old`` moved to ``new``."""
    if isinstance(value, Mapping):
        return {key: _moved(item, old, new) for key, item in value.items()}
    if isinstance(value, list):
        return [_moved(item, old, new) for item in value]
    inside = isinstance(value, str) and (value == old or value.startswith(f"{old}/"))
    return new + value[len(old) :] if inside else value


def _finished(folder: Path, stage: dict[str, Any]) -> RunRecord | None:
    if not (folder / FILE_NAME).is_file():
        return None
    record = read_record(folder)
    same = record.config_hash == config_hash(stage)
    if not same and (folder / "checkpoints").exists():
        raise UserError(f"{folder} holds another run (its configuration differs); choose another hydra.run.dir")
    return record if same and record.status == "finished" else None


def _refuse_reruns(trainer: Mapping[str, Any]) -> None:
    several = trainer.get("devices", 1) not in (1, "1") or trainer.get("num_nodes", 1) != 1
    if several and trainer.get("strategy", "auto") not in FORKS and "WORLD_SIZE" not in os.environ:
        raise UserError(
            f"trainer.devices={trainer.get('devices')} with progressive: every process would start all stages again; "
            "start them with torchrun, or use one device"
        )
