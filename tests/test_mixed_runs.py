"""train.py and evaluate.py on several data sets, with a model of milliseconds."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from sam3slim.data.shapes import ShapesSpec, make_shapes
from sam3slim.errors import UserError
from sam3slim.launch.compose import compose_plain
from sam3slim.results.collect import collect
from sam3slim.results.record import RunRecord, read_record
from sam3slim.runs.specs import TrainSpec
from sam3slim.runs.vocabulary import data_phrases
from sam3slim.strict import spec_from_dict
from tests import running as runs
from tests.tiny import OVERRIDES

SMALL = ShapesSpec(image_size=32, train_images=4, val_images=2, test_images=3)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mixed")
    make_shapes(root / "one", SMALL, progress=False)
    make_shapes(root / "two", replace(SMALL, seed=1, test_images=2), progress=False)
    return root


def mixed(root: Path, *more: str, names: tuple[str, ...] = ("one", "two")) -> list[str]:
    sets = ",".join(f"{name}:{{root:'{root / name}'}}" for name in names)
    return [
        *OVERRIDES, "data=coco_mix", f"data.sets={{{sets}}}", "data.batch_size=2", "data.num_workers=0",
        "data.augment.scale=[1,1]", "data.augment.photometric=0", *more,
    ]  # fmt: skip


def train(root: Path, folder: str, *more: str, names: tuple[str, ...] = ("one", "two")) -> tuple[RunRecord, Path]:
    out = root / folder
    quick = ["trainer.enable_progress_bar=false", "trainer.max_steps=4", "trainer.val_check_interval=4", "logger=csv"]
    config = compose_plain("train", [*mixed(root, names=names), *quick, "schedule.warmup_steps=1", *more], out)
    return runs.train(config, out, {"model": "nano"}, "python train.py"), out


@pytest.fixture(scope="module")
def trained(root: Path) -> tuple[RunRecord, Path]:
    return train(root, "full", "data.set=two")


def test_train__every_set_is_validated_and_measured(trained: tuple[RunRecord, Path], root: Path) -> None:
    record, out = trained
    with (out / "csv/metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("val/map")]
    assert len(rows) == 1
    for key in ("map", "segm_map", "bbox_map_50"):
        values = [float(rows[0][f"val/{name}/{key}"]) for name in ("one", "two")]
        assert float(rows[0][f"val/{key}"]) == pytest.approx(sum(values) / 2, abs=1e-6)
    assert (record.data.data_set, record.data.root, record.data.images) == ("two", str(root / "two"), 2)
    other = read_record(out / "sets/one")
    assert (other.kind, other.status, other.data.data_set, other.data.images) == ("evaluate", "finished", "one", 3)
    assert other.metrics.values["segm"]
    assert not (out / "sets/two").exists()
    assert {group.data.images for group in collect([out]).groups} == {2, 3}


def test_evaluate__one_set_equals_the_set_alone(trained: tuple[RunRecord, Path], root: Path) -> None:
    _, out = trained
    chosen = [text for text in mixed(root) if text.startswith("data")]
    same = []
    for folder, given in (
        ("mix", [*chosen, "data.set=one"]),
        ("alone", ["data=coco", f"data.root={root / 'one'}", "data.num_workers=0"]),
    ):
        config = compose_plain("evaluate", [f"checkpoint={out}", "latency=false", *given], root / folder)
        same.append(runs.evaluate(config, root / folder))
    first, second = same
    assert first.metrics.values == second.metrics.values == read_record(out / "sets/one").metrics.values
    assert first.data.identity == second.data.identity
    assert (first.data.data_set, second.data.data_set) == ("one", None)


def test_train__a_teacher_cache_for_each_set(trained: tuple[RunRecord, Path], root: Path) -> None:
    _, out = trained
    cache = root / "cache"
    given = ["distill=features", f"distill.teacher={out}", f"distill.cache={cache}", "eval_at_end=false"]
    train(root, "taught", *given, "trainer.limit_val_batches=0")
    assert len(list(cache.glob("*/cache.json"))) == 2
    assert len(list(cache.glob("*/*/*.safetensors"))) == 2 * 2 * SMALL.train_images


def test_vocabulary__the_phrases_of_all_sets(root: Path) -> None:
    spec = spec_from_dict(TrainSpec, compose_plain("train", mixed(root), root / "never"), "")
    expected = [category["name"] for category in SMALL.categories()]
    assert data_phrases(spec) == expected


def test_train__a_set_without_the_split_stops_first(root: Path) -> None:
    lonely = root / "lonely"
    make_shapes(lonely, replace(SMALL, seed=2), progress=False)
    for file in lonely.rglob("*test*.json"):
        file.unlink()
    with pytest.raises(UserError, match=r"data set lonely: .*no file fits the test split"):
        train(root, "stopped", names=("one", "lonely"))
    assert not (root / "stopped/checkpoints").exists()


def test_sets__given_again_are_told_how_to_add(root: Path) -> None:
    with pytest.raises(UserError, match=r"data.sets was given with a key .* '\+\+data.sets.KEY=VALUE'"):
        compose_plain("train", mixed(root, "data.sets={more:{root:x}}"), root / "never")
    added = compose_plain("train", mixed(root, "++data.sets.more.root=x"), root / "never")
    assert list(added["data"]["sets"]) == ["one", "two", "more"]
