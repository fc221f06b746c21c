"""The teacher of a run: asked at every step, or once and for all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

from sam3slim.checkpoints import load, locate, weight_files
from sam3slim.checkpoints.readers import read
from sam3slim.data.module import ConceptData
from sam3slim.data.transforms import AugmentSpec
from sam3slim.distill import (
    CachedTeacher,
    FrozenTeacher,
    StoresOfSets,
    TeacherCacheBuilder,
    TeacherStore,
    cache_metadata,
    check_teacher,
    teacher_overrides,
    views_of,
)
from sam3slim.environment import this_process
from sam3slim.errors import UserError
from sam3slim.files import ensure_writable_dir
from sam3slim.runs.initial import training_device
from sam3slim.runs.specs import TrainSpec
from sam3slim.specs import ModelSpec
from sam3slim.training import precision_of


def training_data(spec: TrainSpec) -> ConceptData:
    """The data module, asking in training what the teacher will answer."""
    distill = spec.distill
    pool = distill.cache_prompts if distill.cache is not None else None
    return spec.data.build(spec.model, spec.seed, labels=distill.labels, pool=pool)


def check_teaching(spec: TrainSpec) -> None:
    """What ``teacher_of`` would refuse, as far as it can be told without the teacher's weights and the data.

    Raises:
        UserError: the teacher cannot be read or compared with the student; the cache has no place, or training asks
            for views that it would not hold.
    """
    distill = spec.distill
    if distill.teacher is None:
        return
    try:
        raw = read(locate(distill.teacher), overrides_of(spec))
    except UserError as error:
        message = str(error)
        if isinstance(distill.image_size, int):
            message = message.replace(
                f"model.vit.image_size={distill.image_size}", f"distill.image_size={distill.image_size}"
            )
        raise UserError(f"distill.teacher: {message}") from error
    check_teacher(raw.spec, spec.model)
    if distill.cache is not None:
        views_of(spec.data.augment)
        folder = Path(distill.cache)
        if folder.exists() and not folder.is_dir():
            raise UserError(f"distill.cache={folder} is a file; give a folder for the teacher's answers")
        try:
            ensure_writable_dir(folder)
        except UserError as error:
            raise UserError(f"distill.cache: {error}") from error


def teacher_of(spec: TrainSpec, data: ConceptData) -> FrozenTeacher | CachedTeacher | None:
    """The teacher that ``distill`` names; with ``distill.cache`` its answers are completed on disk first.

    Raises:
        UserError: as ``check_teaching``; the cache does not fit the disk or its limit.
    """
    if spec.distill.teacher is None:
        return None
    if spec.distill.cache is None:
        live = _asked(spec.distill.teacher, spec)
        if spec.distill.image_size != "student":
            data.show_teacher(live.model_spec.vit.image_size)
        return live
    data.prepare_data()
    teacher = _Lazy(spec)
    # Every data set has a cache of its own, which a training on that set alone shares.
    stores = {name: _filled_store(part, spec, teacher) for name, part in data.parts.items()}
    data.teach(StoresOfSets(stores).look_up)
    return CachedTeacher(spec.distill, spec.model)


class _Lazy:
    """The teacher, loaded when a cache has something to ask it."""

    def __init__(self, spec: TrainSpec) -> None:
        self.spec = spec
        self._loaded: FrozenTeacher | None = None

    def __call__(self) -> FrozenTeacher:
        assert self.spec.distill.teacher is not None
        self._loaded = self._loaded or _asked(self.spec.distill.teacher, self.spec)
        return self._loaded


def _filled_store(data: ConceptData, spec: TrainSpec, teacher: _Lazy) -> TeacherStore:
    """The cache of one data set, completed."""
    assert spec.distill.teacher is not None
    assert spec.distill.cache is not None
    augment, precision = data.augment or AugmentSpec(flip=0.0), precision_of(spec.trainer)
    dataset = data.dataset("train", training=True)
    located, overrides = locate(spec.distill.teacher), overrides_of(spec)
    size = read(located, overrides).spec.vit.image_size
    metadata = cache_metadata(weight_files(located), overrides, dataset, augment, spec.distill, precision, size)
    store = TeacherStore(Path(spec.distill.cache), metadata)
    known = store.teacher()
    if known is not None:
        check_teacher(ModelSpec.from_dict(known), spec.model)
    builder = TeacherCacheBuilder(store, dataset, augment, training_device(spec), precision)
    if builder.missing():
        # A process that Lightning starts later finds the work done; those of torchrun and srun share it.
        builder.fill(teacher(), this_process(), spec.distill.cache_limit_gb)
    else:
        rank_zero_only(print)(f"teacher cache in {store.path}: all {len(builder.views):,} views are there")
    return store


def overrides_of(spec: TrainSpec) -> dict[str, Any] | None:
    """What the teacher is loaded with beside its file."""
    return teacher_overrides(vars(spec.distill), vars(spec.init), spec.model.vit.image_size)


def _asked(teacher: str, spec: TrainSpec) -> FrozenTeacher:
    model, report = load(teacher, overrides=overrides_of(spec), dequantize=True)
    report.tell()
    return FrozenTeacher(model, spec.distill, spec.model)
