"""The tutorial, command by command, on a few drawn pictures and two training steps."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_docs import ROOT, commands

PAGE = ROOT / "docs" / "tutorial.md"
DATA = ("data.shapes.train_images=24", "data.shapes.val_images=4", "data.shapes.test_images=6")
STEPS = ("trainer.max_steps=2", "trainer.val_check_interval=2", "schedule.warmup_steps=1", "trainer=cpu")
FEWER = {"train.py": STEPS, "compress.py": ("latency=false",)}


@pytest.mark.slow
def test_tutorial__every_command_in_order(tmp_path: Path) -> None:
    for command in commands(PAGE):
        words = shlex.split(command.replace("outputs/tutorial", f"{tmp_path}/tutorial"))
        words = [word.replace("data/shapes", f"{tmp_path}/shapes") for word in words]
        if words[0] == "sam3slim":
            words = [sys.executable, "-m", "sam3slim", *words[1:]]
        else:
            words = [sys.executable, *words[1:], *DATA, f"data.root={tmp_path}/shapes", *FEWER[words[1]]]
            if any(word.startswith("sweep=") for word in words):
                words += ["model/vit=nano_slim,nano_small", "model/decoder=l1"]
        done = subprocess.run(
            words, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    tutorial = tmp_path / "tutorial"
    assert (tutorial / "compare/compare.html").is_file()
    assert (tutorial / "exported-onnx/vision.onnx").is_file()
    found = json.loads((tutorial / "found/detections.json").read_text())
    assert len(found["images"]) == 6
    assert [category["name"] for category in found["categories"]] == ["red circle", "square"]
