"""The way from a command line to the training, counted."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.hydra import Hydra

from sam3slim import runs
from sam3slim.launch.run import Run
from sam3slim.results.record import ModelSummary, RunRecord
from sam3slim.runs import train
from sam3slim.runs.specs import TrainSpec

ROOT = Path(__file__).resolve().parents[2]


def test_train__is_composed_once_and_parsed_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    count = {"composed": 0, "parsed": 0}
    compose, parse = Hydra.compose_config, TrainSpec.__post_init__
    hops: list[str] = []

    def composed(*arguments: Any, **named: Any) -> Any:
        count["composed"] += 1
        return compose(*arguments, **named)

    def parsed(spec: TrainSpec) -> None:
        count["parsed"] += 1
        parse(spec)

    def trained(spec: TrainSpec, run: Run) -> RunRecord:
        frames = [frame for frame in inspect.stack() if Path(frame.filename).is_relative_to(ROOT / "sam3slim")]
        hops.extend(frame.function for frame in frames)
        assert run.config["output_dir"] == spec.output_dir == str(run.folder) == str(tmp_path / "run")
        return RunRecord("train", run.command)

    monkeypatch.setattr(Hydra, "compose_config", composed)
    monkeypatch.setattr(TrainSpec, "__post_init__", parsed)
    monkeypatch.setattr(train, "train", trained)
    runs.main("train", ["experiment=nano_slim", f"hydra.run.dir={tmp_path / 'run'}"])
    assert count == {"composed": 1, "parsed": 1}
    assert len(hops) <= 7, hops  # and train.py
    assert hops[-1] == "main"


def test_start__compress_after_is_not_done_twice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made: list[str] = []

    def trained(spec: TrainSpec, run: Run) -> RunRecord:
        made.append("train")
        with run.recording() as record:
            record.model = ModelSummary(params=1)
        return record

    def compressed(spec: Any, run: Run) -> None:
        made.append("compress")
        assert (run.config["data"], run.config["seed"]) == (asked["data"], 7)
        for name in spec.methods:
            with compress.only(run, name, spec.methods[name]).recording() as record:
                record.model = ModelSummary(params=1)

    compress = inspect.getmodule(train.compress_unfinished)
    assert compress is not None
    monkeypatch.setattr(train, "train", trained)
    monkeypatch.setattr(compress, "compress", compressed)
    given = ["seed=7", "compress_after=[fp16,bf16]"]
    asked = runs.compose_run("train", given, tmp_path).config
    first = runs.start("train", given, tmp_path)
    assert (made, first.fresh, len(first.records)) == (["train", "compress"], True, 3)
    again = runs.start("train", given, tmp_path)
    assert (made, again.fresh, again.records) == (["train", "compress"], False, first.records)
    more = runs.start("train", ["seed=7", "compress_after=[fp16,bf16,onnx]"], tmp_path)
    assert (made[2:], more.fresh) == (["compress"], True)
    (tmp_path / "checkpoints").mkdir()
    runs.start("train", [*given, "force=true"], tmp_path)
    assert made[3:] == ["train", "compress"]
    assert not (tmp_path / "checkpoints").exists()
