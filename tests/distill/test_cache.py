"""The teacher's answers on disk: right, complete, resumable, and never someone else's."""

from __future__ import annotations

import os
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sam3slim.data.module import ConceptData
from sam3slim.data.transforms import AugmentSpec
from sam3slim.distill import (
    CachedTeacher,
    DistillSpec,
    FrozenTeacher,
    TeacherCacheBuilder,
    TeacherStore,
    cache_metadata,
)
from sam3slim.environment import Process
from sam3slim.errors import UserError
from tests.distill.lessons import EVERYTHING, phrase_batch, shapes
from tests.tiny import SPEC, tiny_model

ALONE = Process()
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that stands for the teacher's checkpoint."""
    path = tmp_path_factory.mktemp("teacher") / "teacher.bin"
    path.write_bytes(b"weights")
    return path


def metadata(
    data: ConceptData,
    weights: Path,
    spec: DistillSpec = EVERYTHING,
    precision: str = "32-true",
    overrides: dict[str, Any] | None = None,
) -> dict[str, Any]:
    dataset = data.dataset("train", training=True)
    return cache_metadata([weights], overrides, dataset, AugmentSpec(), spec, precision)


def builder(data: ConceptData, folder: Path, weights: Path, spec: DistillSpec = EVERYTHING) -> TeacherCacheBuilder:
    store = TeacherStore(folder, metadata(data, weights, spec))
    return TeacherCacheBuilder(
        store, data.dataset("train", training=True), data.augment or AugmentSpec(), torch.device("cpu")
    )


def teacher(spec: DistillSpec = EVERYTHING) -> FrozenTeacher:
    return FrozenTeacher(tiny_model(3), spec, SPEC)


@pytest.mark.parametrize("pool", [5, 32])
def test_cache__teaches_what_the_teacher_itself_would(tmp_path: Path, weights: Path, pool: int) -> None:
    spec = replace(EVERYTHING, cache_prompts=pool)
    data = shapes(tmp_path, pool=pool)
    work = builder(data, tmp_path / "cache", weights, spec)
    assert len(work.missing()) == 12  # six pictures and their mirror images
    work.fill(teacher(spec), ALONE, 1.0)
    assert work.missing() == []
    data.teach(work.store.look_up)
    student, live, cached = tiny_model(1), teacher(spec), CachedTeacher(spec, SPEC)
    mirrored = set()
    loader = data.loader("train", training=True)
    for _ in range(3):
        for batch in loader:
            mirrored |= {info.mirrored for info in batch.images}
            with torch.no_grad():
                out = student(**batch.inputs())
                expected, found = live.losses(batch, out), cached.losses(batch, out)
            assert found.keys() == expected.keys()
            for name, value in expected.items():
                torch.testing.assert_close(found[name], value, rtol=2e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
    assert mirrored == {False, True}


def test_cache__holds_no_more_than_the_weights_need(tmp_path: Path, weights: Path) -> None:
    spec = DistillSpec("x", presence=1.0, scores=1.0, bbox=1.0, min_score=0.02)
    data = shapes(tmp_path)
    work = builder(data, tmp_path / "cache", weights, spec)
    work.fill(teacher(spec), ALONE, 1.0)
    data.teach(work.store.look_up)
    soft = next(iter(data.loader("train", training=True))).soft
    assert soft is not None
    assert (soft.fpn, soft.masks, soft.semantic, soft.memory) == ((), None, None, None)
    assert soft.to("cpu").presence.equal(soft.presence)
    everything = builder(data, tmp_path / "cache", weights)
    everything.fill(teacher(), ALONE, 1.0)
    few, many = (
        sum(path.stat().st_size for path in store.path.rglob("*.safetensors"))
        for store in (work.store, everything.store)
    )
    assert many > 10 * few


def test_fill__an_interrupted_cache_goes_on(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    work, source = builder(shapes(tmp_path), tmp_path / "cache", weights), teacher()
    written = []
    real = work.store.write

    def stops(*view: Any) -> int:
        if len(written) == 5:
            raise KeyboardInterrupt
        written.append(view[:2])
        return real(*view)

    monkeypatch.setattr(work.store, "write", stops)
    with pytest.raises(KeyboardInterrupt):
        work.fill(source, ALONE, 1.0)
    capsys.readouterr()
    assert len(work.missing()) == 7

    again = builder(shapes(tmp_path), tmp_path / "cache", weights)
    later = []
    second = again.store.write
    monkeypatch.setattr(again.store, "write", lambda *view: later.append(view[:2]) or second(*view))
    again.fill(source, ALONE, 1.0)
    assert "5 are there" in capsys.readouterr().out
    assert len(later) == 7
    assert set(later).isdisjoint(written)
    assert again.missing() == []


def test_fill__processes_share_the_work(tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, source = shapes(tmp_path), teacher()
    first, second = (builder(data, tmp_path / "cache", weights) for _ in range(2))
    monkeypatch.setattr(first, "_wait", lambda: None)
    first.fill(source, Process(0, 0, 2), 1.0)
    assert len(first.missing()) == 6
    monkeypatch.setattr("sam3slim.distill.fill.PATIENCE", 0.0)
    monkeypatch.setattr("sam3slim.distill.fill.WAIT", 0.01)
    lonely = builder(data, tmp_path / "lonely", weights)
    with pytest.raises(UserError, match=r"6 views are still missing .* another process has stopped"):
        lonely.fill(source, Process(1, 0, 2), 1.0)
    second.fill(source, Process(1, 0, 2), 1.0)  # though it sees only what the first has left
    assert second.missing() == []


def test_fill__too_big_is_told_before_anything_is_written(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = builder(shapes(tmp_path), tmp_path / "cache", weights)
    with pytest.raises(UserError, match=r"would take about .* GB \(fpn .*\) for 12 views.*cache_limit_gb=1e-06; raise"):
        work.fill(teacher(), ALONE, 1e-6)
    monkeypatch.setattr("sam3slim.files.shutil.disk_usage", lambda _: Usage(10**9, 10**9 - 1000, 1000))
    with pytest.raises(UserError, match=r"1 kB free, and .* are to be written") as caught:
        work.fill(teacher(), ALONE, 1.0)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_fill__the_size_shown_is_the_size_written(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = []
    monkeypatch.setattr("sam3slim.distill.fill.require_space", lambda folder, size: wanted.append(size))
    work = builder(shapes(tmp_path), tmp_path / "cache", weights)
    work.fill(teacher(), ALONE, 1.0)
    size = sum(path.stat().st_size for path in work.store.path.rglob("*.safetensors"))
    assert wanted[0] == pytest.approx(size, rel=0.1)


def test_facts__whatever_changes_gets_a_folder_of_its_own(tmp_path: Path, weights: Path) -> None:
    data = shapes(tmp_path)
    base = metadata(data, weights)
    paths = {TeacherStore(tmp_path, base).path}

    def another(name: str, changed: dict[str, Any]) -> None:
        assert [key for key in base if base[key] != changed[key]] == [name]
        paths.add(TeacherStore(tmp_path, changed).path)

    other = tmp_path / "other.bin"
    other.write_bytes(b"weighty")
    another("teacher", metadata(data, other))
    another("teacher", metadata(data, weights, precision="bf16"))
    another("teacher", metadata(data, weights, overrides={"text.num_heads": 2}))
    another("kept", metadata(data, weights, replace(EVERYTHING, min_score=0.5)))
    another("prompts", metadata(data, weights, replace(EVERYTHING, cache_prompts=5)))
    few = metadata(shapes(tmp_path, seed=1), weights, replace(EVERYTHING, cache_prompts=5))
    assert few != metadata(data, weights, replace(EVERYTHING, cache_prompts=5))
    assert metadata(shapes(tmp_path, seed=1), weights) == base  # all categories: the seed chooses nothing
    assert metadata(data, weights, replace(EVERYTHING, fpn=7.0)) == base
    picture = data.dataset("train").folder / data.dataset("train").records[0].file_name
    os.utime(picture, ns=(1, 1))
    another("data", metadata(data, weights))
    assert len(paths) == 7


def test_store__a_cache_of_another_teacher_is_named_and_not_used(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = shapes(tmp_path)
    first = builder(data, tmp_path / "cache", weights)
    first.fill(teacher(), ALONE, 1.0)
    other = tmp_path / "other.bin"
    other.write_bytes(b"another")
    second = builder(data, tmp_path / "cache", other)
    assert len(second.missing()) == 12
    second.fill(teacher(), ALONE, 1.0)
    assert f"not used: {first.store.path}, made with another teacher" in capsys.readouterr().out
    # Someone renames the old folder to make it fit.
    shutil.rmtree(second.store.path)
    first.store.path.rename(second.store.path)
    with pytest.raises(UserError, match="belongs to another teacher, data set or transform") as caught:
        builder(data, tmp_path / "cache", other)
    assert "\n" not in str(caught.value)


def test_store__damage_is_one_line(tmp_path: Path, weights: Path) -> None:
    work = builder(shapes(tmp_path), tmp_path / "cache", weights)
    work.fill(teacher(), ALONE, 1.0)
    view = work.views[0]
    category = work.dataset.categories[0].id
    with pytest.raises(UserError, match="no answer for category 999"):
        work.store.read(*view, [999])
    path = work.store.file(*view)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"is damaged .*; delete it and start again"):
        work.store.read(*view, [category])
    path.unlink()
    with pytest.raises(UserError, match="is missing from the teacher cache; start again"):
        work.store.read(*view, [category])
    (work.store.path / "cache.json").write_text("{")
    with pytest.raises(UserError, match=r"cannot read .*cache\.json as JSON"):
        builder(shapes(tmp_path), tmp_path / "cache", weights)


def test_filler__pictures_that_never_come_again(tmp_path: Path, weights: Path) -> None:
    for augment in (AugmentSpec(scale=(0.5, 1.5)), AugmentSpec(photometric=0.5)):
        with pytest.raises(UserError, match=r"distill\.cache needs pictures that come again: set data\.augment\.scale"):
            builder(shapes(tmp_path, augment=augment), tmp_path / "cache", weights)
    assert len(builder(shapes(tmp_path, augment=AugmentSpec(flip=0.0)), tmp_path / "cache", weights).views) == 6


def test_fill__a_map_too_large_for_fp16(tmp_path: Path, weights: Path) -> None:
    source = teacher()
    with torch.no_grad():
        source._model.vision_encoder.neck.fpn_layers[0].proj2.bias.fill_(1e6)
    with pytest.raises(UserError, match=r"teacher's fpn does not fit FP16"):
        builder(shapes(tmp_path), tmp_path / "cache", weights).fill(source, ALONE, 1.0)


def test_fill__an_unreadable_picture_is_skipped_as_in_training(tmp_path: Path, weights: Path) -> None:
    data = shapes(tmp_path)
    work = builder(data, tmp_path / "cache", weights)
    record = work.dataset.records[2]
    (work.dataset.folder / record.file_name).write_bytes(b"broken")
    with pytest.raises(UserError, match=r"set data\.on_unreadable=skip"):
        work.fill(teacher(), ALONE, 1.0)
    work.dataset.on_unreadable = "skip"
    work.fill(teacher(), ALONE, 1.0)
    assert work.missing() == []
    data.teach(work.store.look_up)
    seen = {info.image_id for batch in data.loader("train", training=True) for info in batch.images}
    assert record.id not in seen


def test_cached_teacher__batches_without_answers() -> None:
    batch = phrase_batch()
    with pytest.raises(ValueError, match="the batch comes without"):
        CachedTeacher(EVERYTHING, SPEC).losses(batch, tiny_model()(**batch.inputs()))
