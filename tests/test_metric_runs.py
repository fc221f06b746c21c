"""A metric named on the command line decides wherever one does; cgF1 of the trained nano is in every record."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from sam3slim.checkpoints import load
from sam3slim.compression import GROUPS, Mixed
from sam3slim.data.shapes import ShapesSpec, make_shapes
from sam3slim.errors import UserError
from sam3slim.launch.compose import compose_plain
from sam3slim.results.measuring import measure_files
from sam3slim.results.metrics import METRICS
from sam3slim.results.record import read_record
from sam3slim.results.recording import config_hash
from sam3slim.runs.plans import PrecisionEvaluator
from sam3slim.runs.specs import EvaluateSpec
from sam3slim.strict import spec_from_dict
from tests import running as runs

NANO = Path(__file__).parent.parent / "assets" / "nano"
IMAGES = 4
SHAPES = [f"data.shapes.{split}_images={IMAGES}" for split in ("train", "val", "test")]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("metric")
    make_shapes(folder / "data", ShapesSpec(train_images=IMAGES, val_images=IMAGES, test_images=IMAGES), progress=False)
    return folder


@pytest.fixture(scope="module")
def compressed(root: Path) -> Path:
    given = ["compress=[fp16]", "compress.metric=cgf1", "latency=false"]
    config = compose_plain("compress", [f"checkpoint={NANO}", *data(root), *given], root / "compressed")
    runs.compress(config, root / "compressed", {}, "python compress.py")
    return root / "compressed"


def data(root: Path) -> list[str]:
    return [f"data.root={root / 'data'}", *SHAPES]


def test_record__has_cgf1_with_its_drop(compressed: Path) -> None:
    full, half = read_record(compressed / "full"), read_record(compressed / "fp16")
    for name in ("cgf1", "cgf1_bbox"):
        numbers = full.metrics.values[name]
        assert 0.3 < numbers["cgf1"] == pytest.approx(numbers["pmf1"] * numbers["il_mcc"])
        drop = half.drop[name]
        assert drop.points == pytest.approx(100 * (numbers["cgf1"] - half.metrics.values[name]["cgf1"]))
        assert drop.ci95 is not None
        assert (compressed / f"fp16/matches_{name}.npz").is_file()


def test_compress__a_named_metric_decides(compressed: Path, root: Path) -> None:
    assert "mask cgF1 drop, points (95 %)" in (compressed / "compression.md").read_text()
    with (compressed / "compression.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert float(rows[0]["cgf1"]) == pytest.approx(read_record(compressed / "full").metrics.values["cgf1"]["cgf1"])
    for metric, message in (("cgf", "compress.metric=cgf is not known"), ("cgf1", "measured are bbox, segm;")):
        given = [f"compress.metric={metric}", "compress=[fp16]", "data.protocol=present", "latency=false", "limit=1"]
        config = compose_plain("compress", [f"checkpoint={NANO}", *data(root), *given], root / "present")
        with pytest.raises(UserError, match=message):
            runs.compress(config, root / "present", {}, "python compress.py")


def test_budget__is_of_the_named_metric(root: Path) -> None:
    plain = compose_plain("evaluate", [f"checkpoint={NANO}", *data(root)], root)
    model, _ = load(NANO)
    built = spec_from_dict(EvaluateSpec, plain, "").data.build(model.spec, 0)
    evaluator = PrecisionEvaluator(model, built, "val", torch.device("cpu"), metric="cgf1")
    assert evaluator.metric is METRICS["cgf1"]
    plan = Mixed(dict.fromkeys(GROUPS, "int8"))
    assert evaluator.points(plan) == pytest.approx(evaluator.drops(plan)["cgf1"].points)


def test_training__a_named_metric_is_what_is_watched(root: Path) -> None:
    given = [
        "model=nano", "init=checkpoint", f"init.checkpoint={NANO}", "metric=cgf1", "trainer.max_steps=1", "logger=csv",
        "trainer.val_check_interval=1", "trainer.enable_progress_bar=false", "schedule.warmup_steps=0",
        "optim.lr=1e-9", "eval_at_end=false", "data.batch_size=1", "data.max_prompts=2",
    ]  # fmt: skip
    runs.train(compose_plain("train", [*data(root), *given], root / "train"), root / "train", {}, "python train.py")
    with (root / "train/csv/metrics.csv").open() as file:
        row = next(row for row in csv.DictReader(file) if row["val/map"])
    assert float(row["val/map"]) == float(row["val/cgf1"]) != float(row["val/segm_map"])
    assert 0 < float(row["val/cgf1_pmf1"]) < 1
    with pytest.raises(UserError, match="metric=f1 is not known; choose from bbox, segm, cgf1_bbox, cgf1"):
        runs.train(compose_plain("train", ["metric=f1"], root / "bad"), root / "bad", {}, "python train.py")


def test_config_hash__an_unset_metric_is_what_older_records_have() -> None:
    assert config_hash({"a": 1, "metric": None, "compress": {"metric": None}}) == config_hash({"a": 1, "compress": {}})
    assert config_hash({"a": 1, "metric": "cgf1"}) != config_hash({"a": 1})


def test_predictions__other_evaluators_find_what_the_record_says(root: Path, tmp_path: Path) -> None:
    """COCO's results in ``sam3slim metrics``, and SA-Co's annotations and predictions."""
    annotations = root / "data/annotations/instances_test.json"
    for kind in ("coco", "saco"):
        given = [f"checkpoint={NANO}", *data(root), "latency=false", f"predictions={kind}"]
        runs.evaluate(compose_plain("evaluate", given, root / kind), root / kind, {}, "python evaluate.py")
    recorded = read_record(root / "coco").metrics.values
    assert recorded == read_record(root / "saco").metrics.values
    found = measure_files(root / "coco/predictions.json", [annotations]).numbers
    for name, numbers in recorded.items():
        for key, value in numbers.items():
            assert found[name][key] == (None if value is None else pytest.approx(value, abs=1e-9)), (name, key)
    entries = measure_files(root / "saco/saco/predictions.json", [root / "saco/saco/annotations.json"])
    assert entries.entries == 23 * IMAGES
    for name in ("cgf1", "cgf1_bbox"):
        assert entries.numbers[name] == pytest.approx(dict(recorded[name]), abs=1e-9)


def test_max_detections__is_recorded_and_counts(root: Path) -> None:
    given = [f"checkpoint={NANO}", *data(root), "latency=false", "max_detections=3"]
    few = runs.evaluate(compose_plain("evaluate", given, root / "few"), root / "few", {}, "python evaluate.py")
    full = read_record(root / "coco")
    assert few.data.max_detections == 3
    assert few.data.identity != full.data.identity
    assert few.metrics.values["segm"]["map"] < full.metrics.values["segm"]["map"]
    # What a user sees does not depend on it.
    assert few.metrics.values["cgf1"] == full.metrics.values["cgf1"]
    with pytest.raises(UserError, match="max_detections=0 must be at least 1"):
        spec_from_dict(EvaluateSpec, compose_plain("evaluate", [f"checkpoint={NANO}", "max_detections=0"]), "")
