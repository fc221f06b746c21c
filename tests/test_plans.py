"""Sensitivity and budgets on the trained nano: a group made fragile stays in float."""

from __future__ import annotations

import csv
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sam3slim.artifacts import write_artifact
from sam3slim.checkpoints import load
from sam3slim.compression import GROUPS, Mixed
from sam3slim.compression.effects import Effects
from sam3slim.data.shapes import ShapesSpec, make_shapes
from sam3slim.errors import UserError
from sam3slim.launch.compose import compose_plain
from sam3slim.models import Sam3
from sam3slim.results.coco import Matches
from sam3slim.results.metrics import METRICS
from sam3slim.results.record import Drop, read_record
from sam3slim.runs import plans
from sam3slim.runs.specs import EvaluateSpec
from sam3slim.strict import spec_from_dict
from tests import running as runs

NANO = Path(__file__).parent.parent / "assets" / "nano"
IMAGES = 10


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plans")
    spec = ShapesSpec(train_images=1, val_images=IMAGES, test_images=IMAGES)
    make_shapes(folder / "data", spec, progress=False)
    return folder


@pytest.fixture(scope="module")
def fragile(root: Path) -> Path:
    """nano with a dead neuron of huge outgoing weights in every encoder layer: nothing changes in float.

    In INT8 those weights take the whole scale of their rows, and the others round to 0.
    """
    model, _ = load(NANO)
    with torch.no_grad():
        for layer in model.detr_encoder.layers:
            layer.mlp.fc1.weight[0] = 0
            layer.mlp.fc1.bias[0] = -1e4  # behind a ReLU
            layer.mlp.fc2.weight[:, 0] = 1000
    return write_artifact(model, root / "fragile").path


def data_of(root: Path) -> list[str]:
    shapes = [f"data.shapes.{split}_images={n}" for split, n in (("train", 1), ("val", IMAGES), ("test", IMAGES))]
    return [f"data.root={root / 'data'}", *shapes, "latency=false"]


def compress(root: Path, folder: str, checkpoint: Path, *overrides: str) -> Path:
    given = [f"checkpoint={checkpoint}", *data_of(root), *overrides]
    runs.compress(compose_plain("compress", given, root / folder), root / folder, {}, "python compress.py")
    return root / folder


def test_plan_meter__its_reference_is_measured_where_the_plans_are(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = compose_plain("evaluate", [f"checkpoint={NANO}", *data_of(root)], root)
    model, moved = load(NANO)[0], []
    data = spec_from_dict(EvaluateSpec, plain, "").data.build(model.spec, 0)

    def to_device(model: Sam3, device: torch.device, precision: str) -> Sam3:
        moved.append((device.type, precision))
        return model

    monkeypatch.setattr(plans, "to_device", to_device)
    evaluator = plans.PrecisionEvaluator(model, data, "val", torch.device("cuda"), limit=1)
    assert moved == [("cuda", "fp32")]
    plans.PrecisionEvaluator(model, data, "val", torch.device("cuda"), limit=1, reference=evaluator.reference)
    assert len(moved) == 1


def test_sensitivity__finds_the_fragile_group(root: Path, fragile: Path) -> None:
    out = compress(root, "sensitivity", fragile, "compress=[sensitivity]")
    with (out / "sensitivity/sensitivity.csv").open() as file:
        rows = {row["group"]: row for row in csv.DictReader(file)}
    assert tuple(rows) == GROUPS
    drops = {group: float(row["segm_drop"]) for group, row in rows.items()}
    assert max(drops, key=lambda group: drops[group]) == "encoder"
    assert drops["encoder"] > 5 > 2 * max(drop for group, drop in drops.items() if group != "encoder")
    model, _ = load(fragile)
    assert sum(int(row["params"]) for row in rows.values()) > 0.9 * sum(p.numel() for p in model.parameters())
    assert all(0 < int(row["bytes_saved"]) <= 3 * int(row["params"]) for row in rows.values())


def test_sensitivity__goes_on_after_an_interruption(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def drops(evaluator: plans.PrecisionEvaluator, method: Mixed) -> dict[str, Drop]:
        asked.append(next(group for group, precision in method.groups.items() if precision == "int8"))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return {name: Drop(float(len(asked)), (0.0, 9.0), 5) for name in evaluator.reference}

    monkeypatch.setattr(plans.PrecisionEvaluator, "drops", drops)
    with pytest.raises(KeyboardInterrupt):
        compress(root, "sensed", NANO, "compress=[sensitivity]", "limit=2")
    out = compress(root, "sensed", NANO, "compress=[sensitivity]", "limit=2")
    assert asked == [*GROUPS[:3], *GROUPS[2:]]
    with (out / "sensitivity/sensitivity.csv").open() as file:
        assert [float(row["segm_drop"]) for row in csv.DictReader(file)] == [1, 2, *range(4, len(asked) + 1)]


def test_budget__the_fragile_group_stays_float(root: Path, fragile: Path) -> None:
    out = compress(root, "budget", fragile, "compress=[mixed]", "compress.max_drop=1.0")
    record = read_record(out / "mixed")
    budget = record.budget
    assert budget.groups["encoder"] != "int8"
    assert sum(precision in ("int8", "int4") for precision in budget.groups.values()) >= 5
    assert budget.searched_drop <= 1.0
    assert budget.kept == (record.drop["segm"].points <= 1.0)
    trace = json.loads((out / "mixed/search.json").read_text())
    assert any(entry["groups"]["encoder"] == "int8" and not entry["kept"] for entry in trace)
    assert all(entry["drop"] <= 1.0 for entry in trace if entry["kept"])
    full = read_record(out / "full")
    assert record.artifact.bytes < 0.5 * full.artifact.bytes


def test_budget__blocks_as_small_as_asked(root: Path, fragile: Path) -> None:
    more = ["compress.max_bytes=4000000", "compress.mixed.granularity=block", "compress.mixed.int4_group=32"]
    out = compress(root, "blocks", fragile, "compress=[mixed]", *more)
    record = read_record(out / "mixed")
    plan, effects = record.budget.groups, json.loads((out / "mixed/effects.json").read_text())
    assert set(plan) == set(effects["int8"]) > {"vision_0", "vision_3", "text_1", "encoder_2", "decoder"}
    assert record.budget.kept
    assert record.artifact.bytes <= 4_000_000
    fragile_ones = {f"encoder_{i}" for i in range(3)}
    assert {plan[unit] for unit in fragile_ones} == {"fp16"}
    assert max(effects["int8"], key=lambda unit: effects["int8"][unit]["error"]) in fragile_ones
    assert len(json.loads((out / "mixed/search.json").read_text())) == 2
    method = json.loads((out / "mixed/artifact/sam3slim.json").read_text())["extra"]["method"]
    assert (method["int4_group"], method["granularity"], method["groups"]) == (32, "block", dict(plan))


def test_budget__bad_input_before_anything_is_measured(root: Path) -> None:
    for overrides, message in (
        (["compress=[fp16]", "compress.max_drop=1"], r"are budgets of mixed"),
        (["compress=[mixed]", "compress.max_drop=-1"], r"max_drop=-1"),
    ):
        with pytest.raises(UserError, match=message):
            compress(root, "bad", NANO, *overrides)
        assert not (root / "bad" / "full").exists()


def test_budget__searched_on_the_split_it_is_judged_by(root: Path) -> None:
    with pytest.raises(UserError, match=r"search_split=test is also data\.split"):
        compress(root, "same", NANO, "compress=[mixed]", "compress.max_drop=1", "compress.search_split=test")


def test_budget__splits_that_share_images(root: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(root / "data/val", data / "val")
    (data / "test").symlink_to(data / "val")
    (data / "annotations").mkdir()
    for split in ("val", "test"):
        shutil.copy(root / "data/annotations/instances_val.json", data / f"annotations/instances_{split}.json")
    given = [f"checkpoint={NANO}", f"data.root={data}", "data=coco", "compress=[mixed]", "compress.max_drop=1"]
    config = compose_plain("compress", [*given, "data.split=test"], tmp_path / "out")
    with pytest.raises(UserError, match=rf"shares {IMAGES} images with data\.split=test"):
        runs.compress(config, tmp_path / "out", {}, "python compress.py")


def test_budget__an_interrupted_search_goes_on(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither an output error nor a plan is measured twice, unless it is of other weights."""
    plans_measured: list[str] = []
    units_measured: list[str] = []
    effect = Effects._effect

    def points(evaluator: plans.PrecisionEvaluator, method: Mixed) -> float:
        plans_measured.append(repr(method))
        if len(plans_measured) == stop:
            raise KeyboardInterrupt
        return 0.1 * sum(precision == "int4" for precision in method.groups.values())

    def counted(effects: Effects, precision: str, names: list[str]) -> Any:
        units_measured.append(f"{precision} {names[0]}")
        return effect(effects, precision, names)

    monkeypatch.setattr(plans.PrecisionEvaluator, "points", points)
    monkeypatch.setattr(Effects, "_effect", counted)
    weights = root / "weights"
    shutil.copytree(NANO, weights, ignore=shutil.ignore_patterns("sam3slim.json"))
    given = ["compress=[mixed]", "compress.max_drop=0.35", "limit=2"]
    stop = 3
    with pytest.raises(KeyboardInterrupt):
        compress(root, "stopped", weights, *given)
    assert read_record(root / "stopped/mixed").status == "interrupted"
    stop = 0
    compress(root, "stopped", weights, *given)
    assert len(plans_measured) - 1 == len(set(plans_measured)) > 4  # the one that was interrupted is measured again
    assert len(units_measured) == len(set(units_measured)) > 20
    trace = json.loads((root / "stopped/mixed/search.json").read_text())
    assert len(trace) == len(set(plans_measured))

    before, stop = set(plans_measured), len(plans_measured) + 2
    with pytest.raises(KeyboardInterrupt):  # a search that has come to its end is not kept
        compress(root, "stopped", weights, *given)
    os.utime(weights / "model.safetensors", (1, 1))
    plans_measured.clear()
    stop = 0
    compress(root, "stopped", weights, *given)
    assert len(plans_measured) == len(before)
    assert not (root / "stopped/mixed/unfinished.json").exists()


def test_search_reference__drops_are_counted_from_the_full_model(root: Path) -> None:
    """A plan of a cut model within half a point of the cut model is not within half a point of the full one."""
    evaluated = compose_plain("evaluate", [f"checkpoint={NANO}", *data_of(root), "data.split=val"], root / "val")
    full = runs.evaluate(evaluated, root / "val")
    slim = ["compress=[slim]", "compress.slim.model=nano", "compress.slim.overrides=[model/encoder=l2]"]
    cut = compress(root, "cut", NANO, *slim, "compress.slim.fit_batches=0")
    against = [f"reference={cut / 'full'}", f"compress.search_reference={root / 'val'}"]
    roomy = ["compress=[mixed]", "compress.max_bytes=100000000"]  # FP16 will do: one measurement
    out = compress(root, "searched", cut / "slim/artifact", *roomy, *against)
    (measured,) = json.loads((out / "mixed/search.json").read_text())
    given = [f"checkpoint={out / 'mixed/artifact'}", *data_of(root), "data.split=val", f"reference={root / 'val'}"]
    again = runs.evaluate(compose_plain("evaluate", given, root / "again"), root / "again")
    assert measured["drop"] == pytest.approx(again.drop["segm"].points) != 0
    assert measured["drop"] > 5
    assert read_record(out / "mixed").budget.searched_drop == measured["drop"]
    assert full.metrics.value(METRICS["segm"]) is not None

    for overrides, message in (
        ([*roomy, against[1]], r"search_reference=.*val is what a search counts drops against; also give .*reference="),
        (["compress=[fp16]", *against], r"search_reference=.* also give the budget"),
        ([*roomy, against[0], f"compress.search_reference={cut / 'full'}"], r"search_reference=.*full was measured on "
         r"data\.split=test, and the comparison is on val; measure it with data\.split=val"),
        ([*roomy, *against, "limit=3"], rf"search_reference=.*val was measured on {IMAGES} images, and .* gives 3"),
        ([*roomy, against[0], f"compress.search_reference={root}"], r"search_reference=.* has no matches"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            compress(root, "refused", cut / "slim/artifact", *overrides)
        assert not (root / "refused/mixed").exists()


def test_plan_meter__other_objects_are_refused(root: Path) -> None:
    plain = compose_plain("evaluate", [f"checkpoint={NANO}", *data_of(root)], root)
    model, _ = load(NANO)
    data = spec_from_dict(EvaluateSpec, plain, "").data.build(model.spec, 0)
    evaluator = plans.PrecisionEvaluator(model, data, "val", torch.device("cpu"), limit=1)
    found = evaluator.reference["segm"]
    assert isinstance(found, Matches)
    other = {"segm": replace(found, positives=found.positives + 1)}
    evaluator = plans.PrecisionEvaluator(model, data, "val", torch.device("cpu"), limit=1, reference=other)
    with pytest.raises(UserError, match=r"a drop needs the same objects"):
        evaluator.points(Mixed())
