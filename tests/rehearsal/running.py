"""Data, a teacher, and processes for the rehearsals."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from sam3slim.artifacts import write_artifact
from sam3slim.checkpoints import load
from sam3slim.data.shapes import ShapesSpec, make_shapes
from sam3slim.results.record import read_record
from tests.checkpoints.test_plain_vit import dinov2
from tests.small import small_model, tiny_spec

ROOT = Path(__file__).resolve().parents[2]
SHAPES = ShapesSpec(image_size=32, train_images=8, val_images=2, test_images=2)
SHAPES_SIZES = ["data.shapes.image_size=32", "data.shapes.train_images=8", "data.shapes.val_images=2",
                "data.shapes.test_images=2"]  # fmt: skip
SHORT = [
    "trainer.enable_progress_bar=false", "trainer.log_every_n_steps=1", "logger=none",
    "data.batch_size=2", "data.eval_batch_size=2", "data.num_workers=0",
]  # fmt: skip


def make_data(folder: Path) -> Path:
    """Data, and the weights that the experiments start from.

    ``shapes``: drawn pictures; ``boxes``: the same without masks; ``teacher``: has a layer to cut everywhere; ``vit``:
    a plain ViT of the teacher's sizes.
    """
    make_shapes(folder / "shapes", SHAPES)
    boxes = folder / "boxes"
    (boxes / "annotations").mkdir(parents=True)
    for file in sorted((folder / "shapes").rglob("instances_*.json")):
        content = json.loads(file.read_text(encoding="utf-8"))
        for entry in content["annotations"]:
            entry.pop("segmentation", None)
        (boxes / "annotations" / file.name).write_text(json.dumps(content), encoding="utf-8")
    for pictures in (folder / "shapes").iterdir():
        if pictures.is_dir() and pictures.name != "annotations":
            (boxes / pictures.name).symlink_to(pictures)
    write_artifact(small_model(tiny_spec()), folder / "teacher")
    dinov2(folder / "vit", num_hidden_layers=tiny_spec().vit.depth)
    return folder


def watch(clip: float, scale: float | None = None) -> dict[str, Any]:
    """The configuration of ``watch.Watch``."""
    return {"_target_": "tests.rehearsal.watch.Watch", "clip": clip, "scale": scale}


def rehearse(root: Path, name: str, recipes: dict[str, dict[str, Any]], processes: int) -> None:
    """All recipes (folder of ``root`` → composed configuration) one after the other, in new processes.

    Args:
        processes: 1, which may fork others itself, or 2, as Lightning or ``torchrun`` starts them.
    """
    listed = [
        {"folder": str(root / recipe), "config": config, "port": free_port()} for recipe, config in recipes.items()
    ]
    file = root / f"{name}.json"
    file.write_text(json.dumps(listed), encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
    ranks = [{"LOCAL_RANK": str(rank)} for rank in range(processes)] if processes > 1 else [{}]
    command = [sys.executable, "-m", "tests.rehearsal.pair", str(file)]
    with (root / f"{name}.log").open("w") as log:
        started = [
            subprocess.Popen(command, cwd=ROOT, env=environment | rank, stdout=log, stderr=log) for rank in ranks
        ]
        try:
            for process in started:
                process.wait(timeout=900)
        finally:
            for process in started:
                process.kill()
    failed = "\n".join(path.read_text() for path in sorted(root.glob("*.failed.*")))
    assert all(process.returncode == 0 for process in started), failed or (root / f"{name}.log").read_text()[-3000:]


def check_result(folder: Path) -> None:
    """A finished record, and an artifact of finite weights."""
    record = read_record(folder)
    assert record.status == "finished", record.error
    model, _ = load(folder / "artifact")
    assert all(bool(torch.isfinite(value).all()) for value in model.state_dict().values())


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
