"""data=pictures: without annotations, what the full model finds is what others are compared with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from sam3slim.artifacts import write_artifact
from sam3slim.checkpoints import load
from sam3slim.compression import Mixed
from sam3slim.data.shapes import ShapesSpec, make_shapes
from sam3slim.errors import UserError
from sam3slim.export.run import export
from sam3slim.launch.compose import compose_plain
from sam3slim.report.gallery import make_gallery
from sam3slim.results.collect import collect
from sam3slim.results.metrics import METRICS
from sam3slim.results.record import RunRecord, read_record
from sam3slim.runs.plans import PrecisionEvaluator
from sam3slim.runs.specs import CompressSpec
from sam3slim.strict import spec_from_dict
from tests import running as runs
from tests.export.conftest import same_process
from tests.tiny import tiny_model

__all__ = ["same_process"]

NANO = Path(__file__).parent.parent / "assets" / "nano"
PICTURES = 8
ALONE = {"agreement", "agreement_bbox"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("agreement")
    make_shapes(folder / "set", ShapesSpec(train_images=1, val_images=1, test_images=PICTURES), progress=False)
    shutil.copytree(folder / "set/test", folder / "pictures")
    (folder / "phrases.txt").write_text("circle\nsquare\ntriangle\nred circle\n")
    return folder


def given(root: Path, *overrides: str) -> list[str]:
    data = ["data=pictures", f"data.root={root / 'pictures'}", f"data.phrases={root / 'phrases.txt'}"]
    return [*data, "data.num_workers=0", "latency=false", *overrides]


def evaluate(root: Path, folder: str, checkpoint: Path, *overrides: str) -> RunRecord:
    words = [f"checkpoint={checkpoint}", *given(root, *overrides)]
    return runs.evaluate(compose_plain("evaluate", words, root / folder), root / folder)


@pytest.fixture(scope="module")
def compressed(root: Path) -> list[RunRecord]:
    out = root / "compressed"
    words = [f"checkpoint={NANO}", "compress=[fp16,slim]", "compress.slim.model=nano", "compress.slim.fit_batches=0"]
    words += ["compress.slim.overrides=[model/encoder=l2]"]
    return runs.compress(compose_plain("compress", given(root, *words), out), out)


def value(record: RunRecord) -> float:
    found = record.metrics.value(METRICS["agreement"])
    assert found is not None
    return found


def test_compress__agreement_and_nothing_else(root: Path, compressed: list[RunRecord]) -> None:
    full = read_record(root / "compressed/full")
    assert value(full) == pytest.approx(1.0)
    for record in (full, *compressed):
        assert set(record.metrics.values) == ALONE
        assert record.data.name == "pictures"
        assert record.data.labels_sha256 == full.data.labels_sha256 != ""
        assert record.data.images == PICTURES // 4
    half, slim = compressed
    assert value(half) > 0.95 > value(slim) > 0.1  # a layer less, not fitted
    assert slim.drop["agreement"].points == pytest.approx(100 * (1 - value(slim)), abs=1e-6)
    table = (root / "compressed/compression.md").read_text()
    assert "| mask agreement % |" in table
    assert "mAP" not in table
    assert "cgF1" not in table


def test_evaluate__meets_what_the_full_model_found(root: Path, compressed: list[RunRecord]) -> None:
    artifact = root / "compressed/slim/artifact"
    record = evaluate(root, "again", artifact, f"reference={root / 'compressed/full'}")
    assert record.metrics.values == compressed[1].metrics.values
    assert record.drop == compressed[1].drop
    own = evaluate(root, "own", artifact)
    assert value(own) == pytest.approx(1.0)  # with itself, so it is no number to put beside the others
    assert own.data.identity != record.data.identity


def test_labels__are_the_confident_detections(root: Path, compressed: list[RunRecord]) -> None:
    labels = json.loads((root / "compressed/full/agreement.json").read_text())
    assert labels["score"] == 0.5
    assert labels["phrases"] == ["circle", "square", "triangle", "red circle"]
    assert len(labels["images"]) == PICTURES // 4
    assert sum(len(image["objects"]) for image in labels["images"]) > 3


def test_export__is_not_measured_where_nobody_annotated(
    root: Path, compressed: list[RunRecord], same_process: list[str]
) -> None:
    made = export([root / "compressed"], root / "export", max_drop=100)
    assert same_process
    assert made.selection.warnings == []
    assert "not evaluated again: the images are not annotated" in made.verified.lines()[-1]
    assert made.verified.differences


def test_gallery__says_that_nobody_annotated(root: Path, compressed: list[RunRecord]) -> None:
    (group,) = collect([root / "compressed"]).groups
    (run,) = (run for run in group.runs if run.folder.name == "slim")
    gallery = make_gallery(group, [run], 1)
    assert [picture["alt"].partition(":")[0] for picture in gallery.truth] == ["not annotated"]


def test_search__the_model_itself_labels_its_split(root: Path) -> None:
    plain = compose_plain("compress", [f"checkpoint={NANO}", *given(root)], root)
    model, _ = load(NANO)
    data = spec_from_dict(CompressSpec, plain, "").data.build(model.spec, 0)
    evaluator = PrecisionEvaluator(model, data, "val", torch.device("cpu"))
    assert evaluator.metric is METRICS["agreement"]
    assert evaluator.reference["agreement"].value() == pytest.approx(1.0)
    assert abs(evaluator.points(Mixed())) < 5
    files = {split: {record.file_name for record in data.dataset(split).records} for split in ("train", "val", "test")}
    assert sorted(map(len, files.values())) == [PICTURES // 4, PICTURES // 4, PICTURES // 2]
    assert len(set.union(*files.values())) == PICTURES


def test_pictures__bad_input(root: Path, compressed: list[RunRecord], tmp_path: Path) -> None:
    for overrides, message in (
        (
            ["data.protocol=present"],
            r"data\.protocol=present needs annotations, and data=pictures has none; set .*=all",
        ),
        (["predictions=coco"], r"predictions=coco writes what annotations are compared with"),
        ([f"data.root={tmp_path / 'nowhere'}"], r"nowhere is not a folder"),
        ([f"reference={root / 'other'}"], r"other phrases than .*evaluate the full model on these pictures again"),
        ([f"reference={root / 'labelled'}"], r"has no agreement\.json: it was not measured with data=pictures"),
    ):
        for name in ("other", "labelled"):
            shutil.copytree(root / "compressed/full", root / name, dirs_exist_ok=True)
        labels = json.loads((root / "other/agreement.json").read_text())
        (root / "other/agreement.json").write_text(json.dumps({**labels, "phrases": ["dog"]}))
        (root / "labelled/agreement.json").unlink()
        with pytest.raises(UserError, match=message):
            evaluate(root, "bad", NANO, *overrides)
    words = ["data=pictures", f"data.root={root / 'pictures'}", f"data.phrases={root / 'phrases.txt'}"]
    with pytest.raises(UserError, match=r"data=pictures is for evaluate\.py and compress\.py"):
        runs.train(compose_plain("train", words, tmp_path), tmp_path)
    with pytest.raises(UserError, match=r"data\.phrases has no value"):
        compose_plain("evaluate", ["checkpoint=x", "data=pictures", "data.root=x"], tmp_path)


def test_pictures__a_model_that_finds_nothing(root: Path, tmp_path: Path) -> None:
    write_artifact(tiny_model(), tmp_path / "tiny")
    with pytest.raises(UserError, match=r"finds nothing with a score of at least 0\.5 in 2 pictures"):
        evaluate(root, "nothing", tmp_path / "tiny")


def test_pictures__too_few_to_divide(root: Path, tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    for file in sorted((root / "pictures").iterdir())[:2]:
        shutil.copy(file, tmp_path / "two")
    with pytest.raises(UserError, match=r"too few pictures to divide among train, val and test; at least 4"):
        evaluate(root, "few", NANO, f"data.root={tmp_path / 'two'}")
