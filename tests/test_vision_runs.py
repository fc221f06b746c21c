"""train.py from a pre-trained plain ViT, with models of milliseconds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sam3slim.checkpoints import load
from sam3slim.errors import UserError
from sam3slim.launch.compose import compose_plain
from sam3slim.results.record import RunRecord
from tests import running as runs
from tests.checkpoints.test_plain_vit import dinov2
from tests.tiny import OVERRIDES, tiny_model

TOWER = ["model.vit.mlp_ratio=2", "model.vit.window_size=4"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("vision")
    dinov2(root / "vit")
    return root


def train(root: Path, folder: str, *more: str) -> tuple[RunRecord, Path]:
    out = root / folder
    data = [
        f"data.root={root / 'shapes'}", "data.shapes.image_size=32", "data.shapes.train_images=8",
        "data.shapes.val_images=3", "data.shapes.test_images=4", "data.batch_size=2",
    ]  # fmt: skip
    given = [
        f"init.vision={root / 'vit'}", "init.vision_batches=4", "trainer.enable_progress_bar=false", "logger=csv",
        "trainer.limit_val_batches=0", "trainer.max_steps=2", "schedule.warmup_steps=1", "eval_at_end=false",
    ]  # fmt: skip
    config = compose_plain("train", [*OVERRIDES, *TOWER, *data, *given, *more], out)
    return runs.train(config, out, {"model": "nano"}, "python train.py"), out


def test_train__scratch(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out = train(root, "scratch", "trainer.max_steps=0")
    told = json.loads((out / "vision.json").read_text())
    assert (told["images"], told["held_out"]) == (6, 2)
    assert "fitted on 6 pictures; error of its stream on 2 others" in capsys.readouterr().out
    assert json.loads((out / "artifact/sam3slim.json").read_text())["extra"]["vision"]["images"] == 6


def test_train__all_else_inherited(root: Path) -> None:
    from sam3slim.artifacts import write_artifact

    source = tiny_model()
    write_artifact(source, root / "source")
    _, out = train(root, "around", "init=pruned", f"init.checkpoint={root / 'source'}", "trainer.max_steps=0")
    model, _ = load(out / "artifact")
    mine, its = model.state_dict(), source.state_dict()
    changed = {key for key in mine if not torch.equal(mine[key], its[key])}
    assert changed
    assert all(key.startswith("vision_encoder.") and ".proj2." not in key for key in changed)


def test_train__resumed_without_fitting_again(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, out = train(root, "resumed")
    told = (out / "vision.json").read_text()
    capsys.readouterr()
    train(root, "resumed", "resume=auto", "trainer.max_steps=3")
    assert "fitted on" not in capsys.readouterr().out
    assert (out / "vision.json").read_text() == told


@pytest.mark.parametrize(
    ("more", "match"),
    [
        (["model.vit.depth=3"], "set model.vit.depth=2, or init.vision=null"),
        (["init.vision=nowhere/vit"], "init.vision: checkpoint nowhere/vit"),
        (["init.vision_batches=0"], "init.vision_batches=0 must be at least 1"),
        (["init=checkpoint", "init.checkpoint=x"], "init=checkpoint loads one; set init.vision=null, or init=pruned"),
        (["init=pruned", "init.checkpoint=x", "init.fit_batches=2"], "init.fit_batches=2 fits a tower that was cut"),
        (["init=pruned", "init.checkpoint=null"], "init.checkpoint is missing; init=pruned needs"),
    ],
)
def test_train__refused_before_the_data_are_read(root: Path, more: list[str], match: str) -> None:
    with pytest.raises(UserError, match=match):
        train(root, "refused", f"data.root={root / 'undrawn'}", *more)
    assert not (root / "undrawn").exists()
