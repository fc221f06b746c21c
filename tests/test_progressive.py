"""Cut, recover, cut again: stages that inherit from one another, and go on after a stop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sam3slim import runs
from sam3slim.checkpoints import load
from sam3slim.config import compose_plain
from sam3slim.errors import UserError
from sam3slim.records import RunRecord, config_hash, read_record
from sam3slim.runs import progressive
from tests.test_runs import QUICK, SLIMMER, data
from tests.tiny import OVERRIDES

STAGE = "progressive=[{model:{vit:{depth:2}},trainer:{max_steps:2}}]"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("progressive")
    out = root / "full"
    runs.train(compose_plain("train", [*OVERRIDES, *QUICK, *data(root)], out), out, {}, "python train.py")
    return root


def config(root: Path, folder: str, *overrides: str) -> tuple[dict[str, Any], Path]:
    out = root / folder
    given = [*OVERRIDES, *QUICK, *data(root), *SLIMMER, "init=pruned", f"init.checkpoint={root / 'full'}"]
    return compose_plain("train", [*given, *overrides], out), out


def train(root: Path, folder: str, *overrides: str) -> tuple[RunRecord, Path]:
    plain, out = config(root, folder, *overrides)
    return runs.train(plain, out, {}, "python train.py"), out


def test_train__each_stage_inherits_from_the_one_before(root: Path) -> None:
    record, out = train(root, "steps", STAGE, "distill=full", "distill.min_score=0.02")
    first = read_record(out / "stage_1")
    assert (first.parent, record.parent) == (str(root / "full"), str(out / "stage_1"))
    full = read_record(root / "full")
    sizes = [int((r.model or {})["params"]) for r in (full, first, record)]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 3
    assert load(out / "stage_1")[0].spec.vit.depth == 2
    assert load(out)[0].spec.vit.depth == 1
    for folder in (out / "stage_1", out):
        assert json.loads((folder / "slimming_plan.json").read_text())["importance"] == "magnitude"
        assert (folder / "csv/metrics.csv").is_file()
        assert (folder / "artifact/model.safetensors").is_file()
    assert (first.model or {})["name"] == (record.model or {})["name"]

    again, _ = train(root, "steps", STAGE, "distill=full", "distill.min_score=0.02", "resume=auto")
    assert again.started == record.started
    assert read_record(out / "stage_1").started == first.started
    with pytest.raises(UserError, match="stage_1 holds an earlier run: go on with resume=auto"):
        train(root, "steps", STAGE, "distill=full", "distill.min_score=0.02")
    with pytest.raises(UserError, match="holds another run"):
        train(root, "steps", STAGE, "distill=none", "resume=auto")


def test_train_and_compress__knows_a_finished_run_again(root: Path) -> None:
    plain, out = config(root, "steps", STAGE, "distill=full", "distill.min_score=0.02", "resume=auto")
    plain["compress_after"] = ["fp16"]
    first = runs.train_and_compress(plain, out, {}, "python train.py")
    assert (len(first.records), first.fresh) == (2, True)
    started = [record.started for record in first.records]
    again = runs.train_and_compress(plain, out, {}, "python train.py")
    assert ([record.started for record in again.records], again.fresh) == (started, False)


def test_train__other_processes_wait_for_what_the_first_does_after_a_stage(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, out = config(root, "waiting", STAGE)
    stage = progressive.stage_configs(plain, out)[0][1]
    folder = out / "stage_1"
    waits = []

    def passes(seconds: float) -> None:
        waits.append(seconds)
        status = "finished" if len(waits) == 2 else "interrupted"
        record(status).write(folder)

    def record(status: Any) -> RunRecord:
        return RunRecord("train", "c", status, error="no room", config_hash=config_hash(stage))

    monkeypatch.setattr(progressive.time, "sleep", passes)
    record("interrupted").write(folder)
    progressive._wait_for(folder, stage)
    assert len(waits) == 2
    record("failed").write(folder)
    with pytest.raises(UserError, match="stage_1: no room"):
        progressive._wait_for(folder, stage)


def test_train__a_stopped_stage_goes_on(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = []
    real = progressive.train_once

    def stops(stage: dict[str, Any], *rest: Any) -> RunRecord:
        names.append(stage["name"])
        if len(names) == 2:
            raise KeyboardInterrupt
        return real(stage, *rest)

    monkeypatch.setattr(progressive, "train_once", stops)
    with pytest.raises(KeyboardInterrupt):
        train(root, "stopped", STAGE)
    train(root, "stopped", STAGE, "resume=auto")
    assert names == ["nano_stage_1", "nano", "nano"]


def test_train__a_trimmed_vocabulary_from_the_first_stage_on(root: Path) -> None:
    train(root, "trimmed", STAGE, "vocabulary=data")
    sizes = [load(root / folder)[0].spec.text.vocab_size for folder in ("full", "trimmed/stage_1", "trimmed")]
    assert sizes[0] > sizes[1] == sizes[2]


def test_stage_configs__options_by_name_and_paths_of_their_own(tmp_path: Path) -> None:
    given = ["experiment=nano_progressive", "callbacks=ema"]
    stages = progressive.stage_configs(compose_plain("train", given, tmp_path), tmp_path)
    assert [folder for folder, _ in stages] == [tmp_path / "stage_1", tmp_path]
    (_, first), (_, last) = stages
    assert (first["model"]["name"], last["model"]["name"]) == ("nano_half", "nano_quarter")
    assert first["callbacks"]["checkpoint"]["dirpath"] == str(tmp_path / "stage_1/checkpoints")
    assert last["callbacks"]["checkpoint"]["dirpath"] == str(tmp_path / "checkpoints")
    assert (first["init"]["checkpoint"], last["init"]["checkpoint"]) == ("assets/nano", str(tmp_path / "stage_1"))
    assert first["distill"]["teacher"] == last["distill"]["teacher"] == "assets/nano"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([STAGE, "init=scratch"], "use init=pruned, not scratch"),
        ([STAGE, "resume=a.ckpt"], "use resume=auto"),
        ([STAGE, "trainer=ddp"], "every process would start all stages again"),
        ([STAGE, "trainer=fsdp"], "every process would start all stages again"),
        (["progressive=[{model:{vit:{depht:2}}}]"], "progressive, stage 1: unknown key model.vit.depht"),
        (["progressive=[{model:nano_hlaf}]"], "nano_hlaf"),
        (["progressive=[3]"], "must be a group of keys"),
        (
            ["progressive=[{model:{decoder:{num_queries:4}}}]"],
            r"stage 2 cannot be cut out of stage 1: model\.decoder\.num_queries=6 is more",
        ),
    ],
)
def test_stage_configs__bad_input_is_one_line(root: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        train(root, "bad", *overrides)
    assert "\n" not in str(caught.value)
    assert not (root / "bad/stage_1").exists()
