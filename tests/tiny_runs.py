"""train.py and evaluate.py with a model of milliseconds, on shapes drawn on first use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sam3slim.launch.compose import compose_plain
from sam3slim.results.record import RunRecord
from tests import running as runs
from tests.tiny import OVERRIDES

SLIMMER = ["model.vit.depth=1", "model.decoder.num_layers=1", "model.text.width=16", "model.text.num_heads=1"]
QUICK = [
    "trainer.enable_progress_bar=false", "trainer.max_steps=4", "trainer.val_check_interval=2",
    "trainer.log_every_n_steps=1", "schedule.warmup_steps=1", "logger=csv",
]  # fmt: skip


def data(root: Path) -> list[str]:
    return [
        f"data.root={root / 'shapes'}", "data.shapes.image_size=32", "data.shapes.train_images=8",
        "data.shapes.val_images=3", "data.shapes.test_images=4", "data.batch_size=2",
    ]  # fmt: skip


def train(root: Path, folder: str, *overrides: str) -> tuple[RunRecord, Path]:
    out = root / folder
    config = compose_plain("train", [*OVERRIDES, *QUICK, *data(root), *overrides], out)
    return runs.train(config, out, {"model": "nano"}, "python train.py"), out


def evaluate(checkpoint: Path, root: Path, folder: str, *overrides: str) -> RunRecord:
    given = [f"checkpoint={checkpoint}", *data(root), "latency=false", *overrides]
    return runs.evaluate(compose_plain("evaluate", given, root / folder), root / folder, {}, "python evaluate.py")


def segm(record: RunRecord) -> dict[str, Any]:
    return dict(record.metrics.values["segm"])


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the runs of one test module."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def trained(root: Path) -> tuple[RunRecord, Path]:
    """The full model of this module, that others are measured, cut and resumed from."""
    return train(root, "full")
