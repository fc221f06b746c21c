"""Settings that a training cannot take stop it before anything is loaded; ``trainer.max_steps=0`` keeps the weights."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch

from sam3slim.checkpoints import load
from sam3slim.errors import UserError
from sam3slim.launch.compose import compose_plain
from sam3slim.report.rows import comparison_rows
from sam3slim.results.collect import collect
from sam3slim.results.record import read_record
from sam3slim.runs import start
from tests import running as runs
from tests.tiny import OVERRIDES
from tests.tiny_runs import QUICK, SLIMMER, data, train

# Every argument of lightning.Trainer: overrides that are refused, each with a part of the message.
REFUSED = {
    "accumulate_grad_batches": ("trainer.accumulate_grad_batches=0", "must be at least 1"),
    "barebones": ("+trainer.barebones=true", "logger=none"),
    "callbacks": ("+trainer.callbacks=[]", r"\+callbacks\.NAME"),
    "check_val_every_n_epoch": ("trainer.check_val_every_n_epoch=1", "trainer.check_val_every_n_epoch=null"),
    "default_root_dir": ("+trainer.default_root_dir=x", "hydra.run.dir"),
    "devices": ("trainer.devices=0", "must be at least 1"),
    "enable_autolog_hparams": ("+trainer.enable_autolog_hparams=true", "remove it"),
    "enable_checkpointing": ("+trainer.enable_checkpointing=false", "remove it"),
    "fast_dev_run": ("+trainer.fast_dev_run=true", "trainer.max_steps=2"),
    "gradient_clip_algorithm": ("+trainer.gradient_clip_algorithm=value", "optim.clip"),
    "gradient_clip_val": ("+trainer.gradient_clip_val=1.0", "optim.clip"),
    "limit_predict_batches": ("+trainer.limit_predict_batches=1", "remove it"),
    "limit_test_batches": ("+trainer.limit_test_batches=1", "data.eval_limit"),
    "limit_train_batches": ("trainer.limit_train_batches=0", "nothing to train on"),
    "limit_val_batches": ("trainer.limit_val_batches=-1", "at least 0"),
    "log_every_n_steps": ("trainer.log_every_n_steps=-1", "at least 0"),
    "logger": ("+trainer.logger=true", "logger=csv"),
    "max_epochs": ("+trainer.max_epochs=0", "max_steps=0"),
    "max_steps": ("trainer.max_steps=-1", "no end"),
    "model_registry": ("+trainer.model_registry=x", "remove it"),
    "num_nodes": ("trainer.num_nodes=0", "must be at least 1"),
    "overfit_batches": ("+trainer.overfit_batches=2", "data.limit"),
    "plugins": ("+trainer.plugins=[]", "plugin"),
    "reload_dataloaders_every_n_epochs": ("+trainer.reload_dataloaders_every_n_epochs=1", "remove it"),
    "sync_batchnorm": ("+trainer.sync_batchnorm=true", "remove it"),
    "use_distributed_sampler": ("+trainer.use_distributed_sampler=true", "remove it"),
    "val_check_interval": ("trainer.val_check_interval=0.5", "number of training steps"),
}
# Those that a short run goes through with, all of them together.
SUPPORTED = {
    "benchmark": "+trainer.benchmark=false",
    "detect_anomaly": "+trainer.detect_anomaly=true",
    "deterministic": "+trainer.deterministic=warn",
    "enable_model_summary": "trainer.enable_model_summary=false",
    "enable_progress_bar": "trainer.enable_progress_bar=false",
    "inference_mode": "+trainer.inference_mode=false",
    "max_time": '+trainer.max_time="00:01:00:00"',
    "min_epochs": "+trainer.min_epochs=1",
    "min_steps": "+trainer.min_steps=1",
    "num_sanity_val_steps": "trainer.num_sanity_val_steps=1",
    "profiler": "+trainer.profiler=simple",
}
# What choosing a machine is about: tests of machines and strategies.
ELSEWHERE = {"accelerator", "strategy", "precision"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("settings")


def test_trainer__every_argument_has_been_looked_at() -> None:
    assert set(inspect.signature(lightning.Trainer).parameters) == {*REFUSED, *SUPPORTED, *ELSEWHERE}


@pytest.mark.parametrize("argument", REFUSED)
def test_train__refuses_a_setting_in_one_line(argument: str, root: Path) -> None:
    override, fix = REFUSED[argument]
    out = root / "refused"
    with pytest.raises(UserError, match=rf"^trainer\.[^\n]*{fix}[^\n]*$"):
        runs.train(compose_plain("train", [*OVERRIDES, *data(root), override], out), out, {}, "")
    assert not out.exists()


def test_train__no_end_even_with_max_time(root: Path) -> None:
    given = ["trainer.max_steps=-1", '+trainer.max_time="00:00:00:01"']
    with pytest.raises(UserError, match=r"no end .*\+trainer.max_epochs"):
        runs.train(compose_plain("train", [*OVERRIDES, *data(root), *given], root), root, {}, "")


def test_train__goes_through_with_the_other_settings(root: Path) -> None:
    try:
        record, _ = train(root, "supported", *SUPPORTED.values())
    finally:
        torch.use_deterministic_algorithms(False)
        torch.autograd.set_detect_anomaly(False)
    assert record.status == "finished"


@pytest.mark.parametrize(
    "given",
    [
        ["trainer.max_steps=-1", "+trainer.max_epochs=1"],
        ["trainer.val_check_interval=100"],
        ["trainer.val_check_interval=1.0", "trainer.check_val_every_n_epoch=1"],
        ["trainer.accumulate_grad_batches=2", "trainer.limit_train_batches=2"],
    ],
)
def test_train__lengths_and_intervals(given: list[str], root: Path, request: pytest.FixtureRequest) -> None:
    record, out = train(root, f"length{abs(hash(tuple(given)))}", *given)
    assert record.status == "finished"
    assert (out / "checkpoints/best.ckpt").is_file()


def test_train__no_steps_keep_the_initial_weights(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    full, out = train(root, "nothing", "trainer.max_steps=0")
    assert (full.training.retrained, full.training.trained_params) == (False, 0)
    assert "not retrained" in capsys.readouterr().out
    assert read_record(out).metrics
    assert not (out / "checkpoints").exists()
    metadata: dict[str, Any] = json.loads((out / "artifact/sam3slim.json").read_text())
    assert (metadata["extra"]["retrained"], metadata["extra"]["training_seconds"]) == (False, 0)
    cut, _ = train(root, "cut", "trainer.max_steps=0", *SLIMMER, "init=pruned", f"init.checkpoint={out}")
    assert cut.model.params < full.model.params
    again, kept = train(root, "again", "trainer.max_steps=0", "init=checkpoint", f"init.checkpoint={out}")
    for name, value in load(out)[0].state_dict().items():
        assert torch.equal(load(kept)[0].state_dict()[name], value), name
    assert again.metrics.values["segm"] == full.metrics.values["segm"]
    (group,) = collect([out]).groups
    assert "not retrained" in comparison_rows(group)[0]["note"]


def test_train__no_steps_and_smaller_artifacts(root: Path) -> None:
    given = [*OVERRIDES, *QUICK, *data(root), "trainer.max_steps=0", "compress_after=[fp16]"]
    done = runs.train_and_compress(compose_plain("train", given, root / "smaller"), root / "smaller")
    trained, made = done.records
    assert (trained.kind, trained.status, trained.training.retrained) == ("train", "finished", False)
    assert (made.kind, made.artifact.precision, made.status) == ("compress", "fp16", "finished")
    assert made.drop


def test_train__no_steps_and_nothing_to_resume(root: Path) -> None:
    train(root, "steps")
    with pytest.raises(UserError, match=r"trainer\.max_steps=0 trains nothing, and .*last\.ckpt"):
        train(root, "steps", "trainer.max_steps=0", "resume=auto")


@pytest.mark.parametrize("seed", [-1, 10**23])
@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_seed__one_that_no_generator_takes(command: str, seed: int, root: Path) -> None:
    given = [f"seed={seed}", *data(root), *(["checkpoint=x"] if command == "evaluate" else OVERRIDES)]
    with pytest.raises(UserError, match=rf"seed={seed}: expected 0 to 4294967295"):
        start(command, given, root / "seed")
