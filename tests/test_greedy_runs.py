"""train.py with init.depth=greedy, with models of milliseconds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from sam3slim.artifacts import write_artifact
from sam3slim.checkpoints import load
from sam3slim.errors import UserError
from sam3slim.launch.compose import compose_plain
from sam3slim.models import build_model, init_for_training
from sam3slim.results.record import RunRecord
from tests import running as runs
from tests.tiny import OVERRIDES, SPEC

DEEP = replace(SPEC, vit=replace(SPEC.vit, depth=5, num_global_blocks=2))  # blocks 2 and 4 are global


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("greedy")
    write_artifact(init_for_training(build_model(DEEP), 0).eval(), root / "deep")
    return root


def train(root: Path, folder: str, *more: str) -> tuple[RunRecord, Path]:
    out = root / folder
    given = [
        f"data.root={root / 'shapes'}", "data.shapes.image_size=32", "data.shapes.train_images=8",
        "data.shapes.val_images=3", "data.shapes.test_images=4", "data.batch_size=2", "model.vit.depth=3",
        "init=pruned", f"init.checkpoint={root / 'deep'}", "init.depth=greedy", "init.fit_batches=3",
        "trainer.enable_progress_bar=false", "logger=csv", "trainer.limit_val_batches=0", "trainer.max_steps=2",
        "schedule.warmup_steps=1",
    ]  # fmt: skip
    config = compose_plain("train", [*OVERRIDES, *given, *more], out)
    return runs.train(config, out, {"model": "nano"}, "python train.py"), out


def test_train__greedy_and_resumed(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record, out = train(root, "run")
    plan = json.loads((out / "slimming_plan.json").read_text())
    blocks = plan["axes"]["vit.blocks"]["kept"]
    assert (plan["depth"], blocks, len(blocks)) == ("greedy", plan["greedy"]["blocks"], 3)
    assert {2, 4} <= set(blocks)
    model, _ = load(out / "artifact")
    assert [blocks[place] for place in model.spec.vit.global_blocks] == [2, 4]
    assert record.metrics.values["segm"]
    capsys.readouterr()
    resumed, _ = train(root, "run", "resume=auto", "trainer.max_steps=3")
    assert json.loads((out / "slimming_plan.json").read_text())["greedy"] == plan["greedy"]
    assert resumed.status == "finished"


@pytest.mark.parametrize(
    ("more", "match"),
    [
        (["model.vit.depth=1"], "model.vit.depth=1 is less than the 2 blocks"),
        (["model.vit.global_attention_blocks=[1,2]"], "set model.vit.global_attention_blocks=null"),
        (["init=scratch", "init.depth=even", "init.fit_batches=0", "init.protect_global=false"],
         "init.protect_global=False is for init=pruned"),
        (["init.depth=greedily"], "init.depth=greedily must be one of even, first, importance, greedy"),
    ],
)  # fmt: skip
def test_train__refused(root: Path, more: list[str], match: str) -> None:
    with pytest.raises(UserError, match=match):
        train(root, "refused", *more)
