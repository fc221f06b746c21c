"""compress=[recalibrated] as a command: what it fits on, and what records say before and after."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sam3slim.artifacts import write_artifact
from sam3slim.checkpoints import load
from sam3slim.data.shapes import ShapesSpec, make_shapes
from sam3slim.errors import UserError
from sam3slim.launch.compose import compose_plain
from sam3slim.results.record import RunRecord, read_record
from tests import running as runs

NANO = Path(__file__).parent.parent / "assets" / "nano"
IMAGES = 4


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """nano whose presence has become unsure of itself, and images."""
    folder = tmp_path_factory.mktemp("recalibrated")
    make_shapes(folder / "data", ShapesSpec(train_images=1, val_images=IMAGES, test_images=IMAGES), progress=False)
    model, _ = load(NANO)
    with torch.no_grad():
        layer = model.detr_decoder.presence_head.layer3
        assert layer is not None
        layer.weight *= 0.2
        layer.bias.copy_(0.2 * layer.bias - 1)
    write_artifact(model, folder / "unsure")
    return folder


def compress(root: Path, folder: str, *overrides: str) -> list[RunRecord]:
    data = ["data=coco", f"data.root={root / 'data'}", "data.num_workers=0"]
    given = [f"checkpoint={root / 'unsure'}", *data, "latency=false", "compress=[recalibrated]", *overrides]
    return runs.compress(compose_plain("compress", given, root / folder), root / folder)


def test_recalibrated__errors_before_and_after(root: Path) -> None:
    (record,) = compress(root, "out")
    before, after = read_record(root / "out/full").metrics.calibration, record.metrics.calibration
    assert before["presence_error"] > 0.1 > 0.05 > after["presence_error"]
    assert record.artifact.images_used == IMAGES
    assert record.artifact.bytes == pytest.approx(read_record(root / "out/full").artifact.bytes, rel=1e-3)
    told = json.loads((root / "out/recalibrated/artifact/sam3slim.json").read_text())["extra"]["method"]["recalibrated"]
    assert told["presence"]["scale"] > 2
    assert told["presence"]["after"] < told["presence"]["before"]
    assert 0 <= told["class"]["after"] < 0.1


def test_recalibrated__bad_input_before_anything_is_measured(root: Path, tmp_path: Path) -> None:
    (tmp_path / "phrases.txt").write_text("circle\n")
    pictures = ["data=pictures", f"data.root={root / 'data/val'}", f"data.phrases={tmp_path / 'phrases.txt'}"]
    for overrides, message in (
        (["compress.search_split=test"], r"search_split=test is also data\.split"),
        (pictures, r"recalibrated fits scores to annotations, and data=pictures has none"),
    ):
        with pytest.raises(UserError, match=message):
            compress(root, "bad", *overrides)
        assert not (root / "bad/full").exists()
