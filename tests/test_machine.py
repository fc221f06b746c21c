"""What this machine cannot do is told in one line before anything is loaded, with a setting that passes."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
import torch

from sam3slim.errors import UserError
from sam3slim.launch.compose import compose_plain
from sam3slim.runs import machine
from sam3slim.runs.machine import check_machine
from sam3slim.runs.specs import TrainSpec
from sam3slim.strict import spec_from_dict
from tests.tiny import OVERRIDES
from tests.tiny_runs import data

ROOT = Path(__file__).resolve().parent.parent


def check(root: Path, *overrides: str) -> None:
    config = compose_plain("train", [*OVERRIDES, *data(root), *overrides], root)
    check_machine(spec_from_dict(TrainSpec, config, ""))


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.parametrize(
    ("overrides", "message", "fix"),
    [
        (["trainer=gpu"], "trainer.accelerator=gpu: there is no GPU here", ["trainer=cpu"]),
        (["trainer=ddp"], "trainer.accelerator=gpu: there is no GPU here", ["trainer=cpu_ddp"]),
        (["trainer=fsdp"], "there is no GPU here", ["trainer.accelerator=cpu", "trainer.devices=2"]),
        (["trainer=ddp", "trainer.accelerator=cpu"], "trainer.devices=-1: on the CPU", ["trainer.devices=2"]),
        (["trainer.strategy=fsdp"], "FSDP2 here; use trainer=fsdp",
         ["trainer=fsdp", "trainer.strategy={_target_: sam3slim.training.FullySharded}", "trainer.accelerator=cpu",
          "trainer.devices=2"]),
        (["trainer.strategy=ddb"], "trainer.strategy=ddb is unknown; use auto, ddp", ["trainer.strategy=ddp"]),
        (["trainer.precision=bf17"], "trainer.precision=bf17: expected 32-true", ["trainer.precision=32-true"]),
        (["trainer.precision=bf16-true"], "use trainer.precision=bf16-mixed", ["trainer.precision=bf16-mixed"]),
    ],
)  # fmt: skip
def test_check_machine__one_line_and_a_fix_that_passes(
    tmp_path: Path, no_gpu: None, overrides: list[str], message: str, fix: list[str]
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        check(tmp_path, *overrides)
    assert "\n" not in str(caught.value)
    check(tmp_path, *overrides, *fix)


@pytest.mark.parametrize("name", machine.EXTRAS)
def test_check_machine__a_loggers_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert name in extras
    monkeypatch.setattr(machine, "find_spec", lambda package: None)
    with pytest.raises(UserError, match=rf"logger={name} needs .* pip install 'sam3slim\[{name}\]', or use logger=csv"):
        check(tmp_path, f"logger={name}")
    monkeypatch.setattr(machine, "find_spec", lambda package: package)
    check(tmp_path, f"logger={name}")


def test_check_machine__gpus_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for devices in (3, [0, 2]):
        with pytest.raises(UserError, match=r"2 GPUs are here; use trainer.devices=-1"):
            machine._check_gpus(devices, 2)
    for devices in (-1, "auto", 2, [1]):
        machine._check_gpus(devices, 2)


def test_check_machine__a_model_that_no_memory_holds(tmp_path: Path) -> None:
    """Its sizes are counted, and nothing is allocated for it."""
    sizes = ["model.vit.embed_dim=32768", "model.vit.num_heads=512", "model.vit.depth=100", "model.vit.mlp_ratio=4"]
    with pytest.raises(UserError, match=r"has 1,293,\S+ parameters, which are 5\S+ GB .* choose smaller sizes"):
        check(tmp_path, *sizes)
    check(tmp_path)
