"""train.py at several image sizes, and with a teacher of another one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sam3slim.checkpoints import load
from sam3slim.errors import UserError
from sam3slim.results.record import RunRecord, read_record
from tests.tiny_runs import QUICK, evaluate, segm, train

assert QUICK
SIZES = "data.image_sizes=[32,24]"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("size_runs")


@pytest.fixture(scope="module")
def several(root: Path) -> tuple[RunRecord, Path]:
    return train(root, "several", SIZES)


def test_train__at_several_sizes(several: tuple[RunRecord, Path], root: Path) -> None:
    record, out = several
    assert record.model.image_size == 32
    assert record.training.image_sizes == [32, 24]
    other = read_record(out / "sizes/24")
    assert (other.kind, other.model.image_size, other.artifact.overrides) == ("evaluate", 24, {"vit.image_size": 24})
    assert sum(other.model.flops["image"].values()) < sum(record.model.flops["image"].values())
    again = evaluate(out, root, "again", "image_size=24")
    assert again.model.image_size == 24
    assert segm(again) == segm(other)
    assert json.loads((out / "artifact/sam3slim.json").read_text())["extra"]["image_sizes"] == [32, 24]
    assert "| trained at | 32, 24 px |" in (out / "artifact/README.md").read_text()


def test_train__resumed_at_several_sizes_ends_in_the_same_weights(several: tuple[RunRecord, Path], root: Path) -> None:
    train(root, "stopped", SIZES, "trainer.max_steps=3", "schedule.kind=constant")
    _, whole = train(root, "whole", SIZES, "schedule.kind=constant")
    _, resumed = train(root, "stopped", SIZES, "schedule.kind=constant", "resume=auto")
    left, right = (
        torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for folder in (whole, resumed)
    )
    assert all(torch.equal(value, right[name]) for name, value in left.items())


@pytest.mark.parametrize("labels", [True, False])
def test_train__a_teacher_at_its_own_size(several: tuple[RunRecord, Path], root: Path, labels: bool) -> None:
    given = ["init=checkpoint", f"init.checkpoint={several[1]}", "distill=full", "distill.min_score=0.02"]
    given += ["model.vit.image_size=24", f"distill.labels={str(labels).lower()}"]
    _, out = train(root, f"taught_{labels}", *given)
    assert load(out)[0].spec.vit.image_size == 24
    columns = (out / "csv/metrics.csv").read_text().splitlines()[0].split(",")
    assert {"train/distill_fpn", "train/distill_mask", "train/distill_semantic"} <= set(columns)
    # The same from a cache, at two sizes of the student.
    folder = root / f"cache_{labels}"
    train(root, f"cached_{labels}", *given, f"distill.cache={folder}", "data.image_sizes=[24,16]")
    facts = json.loads(next(folder.glob("*/cache.json")).read_text())
    assert facts["facts"]["transform"]["image_size"] == facts["teacher"]["vit"]["image_size"] == 32


def test_train__a_teacher_at_the_students_sizes(several: tuple[RunRecord, Path], root: Path) -> None:
    given = ["init=checkpoint", f"init.checkpoint={several[1]}", "distill=features", "distill.image_size=student"]
    _, out = train(root, "follows", *given, SIZES)
    assert read_record(out).status == "finished"
    with pytest.raises(UserError, match=r"distill\.cache keeps a teacher's answers at one size"):
        train(root, "follows_cached", *given, SIZES, f"distill.cache={root / 'none'}")
    with pytest.raises(UserError, match=r"distill\.image_size=30 is not a multiple of .*use 24 or 32"):
        train(root, "no_multiple", *given[:3], "distill.image_size=30")
    with pytest.raises(UserError, match=r"distill\.image_size needs distill\.teacher"):
        train(root, "no_teacher", "distill.image_size=24")
    with pytest.raises(UserError, match=r"distill\.image_size=0 must be at least 1"):
        train(root, "nothing", *given[:3], "distill.image_size=0")
    with pytest.raises(UserError, match=r"data\.image_sizes=\[32, 30\]: 30 is not a multiple"):
        train(root, "no_such_size", "data.image_sizes=[32,30]")
