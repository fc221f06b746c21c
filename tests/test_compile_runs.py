"""``compile`` through the commands: the same losses, metrics, checkpoints and artifacts."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from sam3slim.artifacts import write_artifact
from sam3slim.checkpoints import load
from sam3slim.errors import UserError
from sam3slim.launch.compose import compose_plain
from sam3slim.models import compiled
from sam3slim.runs.specs import TrainSpec
from sam3slim.strict import spec_from_dict
from tests import running as runs
from tests.tiny import OVERRIDES, tiny_model
from tests.tiny_runs import data, evaluate, segm, train

# Not beside the fast tests: what TorchDynamo does after other tests' fake tensors in one process is not settled.
pytestmark = pytest.mark.slow

SHORT = ["trainer.max_steps=1", "trainer.limit_val_batches=0", "eval_at_end=false"]


def losses(run: Path) -> list[str]:
    with (run / "csv/metrics.csv").open() as file:
        return [row["train/loss"] for row in csv.DictReader(file) if row["train/loss"]]


def test_train_and_evaluate__compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "STACKS", compiled.STACKS[:1])  # tracing takes seconds for every kind of layer
    asked: list[str] = []
    original = torch.nn.Module.compile

    def counted(layer: torch.nn.Module, **options: object) -> None:
        asked.append(str(options["backend"]))
        original(layer, **options)

    monkeypatch.setattr(torch.nn.Module, "compile", counted)
    write_artifact(tiny_model(), tmp_path / "teacher")
    soft = ["distill=features", f"distill.teacher={tmp_path / 'teacher'}"]
    (_, plain), (_, fast) = (
        train(tmp_path, f"taught_{how}", *SHORT, *soft, f"compile={how}") for how in ("false", "eager")
    )
    assert asked == 2 * 2 * ["eager"]  # student and teacher
    assert [float(x) for x in losses(fast)] == pytest.approx([float(x) for x in losses(plain)], rel=1e-5)
    keys = [list(torch.load(r / "checkpoints/last.ckpt", weights_only=True)["state_dict"]) for r in (plain, fast)]
    assert keys[0] == keys[1]
    load(fast / "artifact")
    again = evaluate(fast, tmp_path, "again", "compile=eager", "latency=true", "limit=1")
    assert segm(again)["map"] >= 0
    assert again.latency_ms.compile == "eager"
    assert asked == 3 * 2 * ["eager"]


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["compile=eagre"], "compile='eagre' must be true or false or .*aot_eager or eager"),
        (["trainer=fsdp", "compile=true"], "compile=true is not for trainer=fsdp.*set trainer=ddp, or compile=false"),
        (["compile=eager", "trainer.strategy=fsdp"], "compile=eager is not for trainer=fsdp"),
    ],
)
def test_train__compile_that_cannot_be(tmp_path: Path, overrides: list[str], line: str) -> None:
    config = compose_plain("train", [*OVERRIDES, *data(tmp_path), *overrides], tmp_path)
    with pytest.raises(UserError, match=line):
        spec_from_dict(TrainSpec, config, "")


@pytest.mark.parametrize("command", ["train", "evaluate", "compress"])
def test_commands__no_compiler_is_told_before_anything_is_read(tmp_path: Path, command: str) -> None:
    from torch._inductor import config as inductor

    given = ["compile=true", f"data.root={tmp_path / 'none'}"]
    given += [] if command == "train" else [f"checkpoint={tmp_path / 'none'}", "device=cpu"]
    config = compose_plain(command, given, tmp_path)
    with (
        inductor.patch({"cpp.cxx": ("no-such-compiler",)}),
        pytest.raises(UserError, match=r"compile=true needs a C\+\+ compiler"),
    ):
        getattr(runs, command)(config, tmp_path / "out", {}, f"python {command}.py")
