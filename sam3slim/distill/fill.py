"""Fill a teacher's cache: what it depends on, how big it gets, and the work itself."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sam3slim.data.coco import CocoConcepts
from sam3slim.data.images import UnreadableImage
from sam3slim.data.soft import SoftTargets
from sam3slim.data.transforms import AugmentSpec
from sam3slim.distill.spec import DistillSpec
from sam3slim.distill.store import TeacherStore, pack, read_cache_metadata
from sam3slim.distill.teacher import FrozenTeacher
from sam3slim.environment import Process
from sam3slim.errors import UserError
from sam3slim.files import ensure_writable_dir, file_sha256, require_space
from sam3slim.progress import progress_bar

CHUNK = 32  # prompts that pass the teacher together
SAMPLED = 4  # views that the size of the cache is estimated from
WAIT = 2.0  # seconds between two looks at what other processes have written
PATIENCE = 1800.0  # seconds without news from them


def views_of(augment: AugmentSpec) -> tuple[bool, ...]:
    """Mirrored or not: the views of an image that training looks at.

    Raises:
        UserError: there are endlessly many.
    """
    if augment.views is None:
        raise UserError(
            "distill.cache needs pictures that come again: set data.augment.scale=[1,1] data.augment.photometric=0 "
            "(mirrored pictures are kept as a second view), or distill.cache=null"
        )
    return augment.views


def cache_metadata(
    weights: Sequence[Path],
    overrides: Mapping[str, Any] | None,
    dataset: CocoConcepts,
    augment: AugmentSpec,
    spec: DistillSpec,
    precision: str,
    image_size: int | None = None,
) -> dict[str, Any]:
    """All that a cached answer depends on: teacher, data, transform, prompts and what is kept.

    Pictures are told by name, size and time of change; reading them all would take as long as an epoch.
    ``image_size`` is that of the teacher's pictures, in pixels; None: the data set's.
    """
    stamps = hashlib.sha256()
    for name in sorted(dataset.file_names):
        found = (dataset.folder / name).stat()
        stamps.update(f"{name} {found.st_size} {found.st_mtime_ns}\n".encode())
    prompts = dataset.prompts
    all_of_them = len(dataset.categories) <= spec.cache_prompts
    chosen = {
        "pool": spec.cache_prompts, "seed": dataset.seed, "labels": prompts.labels,
        "hard_negatives": prompts.hard_negatives, "min_area": prompts.min_area,
    }  # fmt: skip
    return {
        "teacher": {
            "sha256": [file_sha256(path) for path in weights], "precision": precision,
            **({"overrides": dict(overrides)} if overrides else {}),
        },
        "data": {"annotations": dataset.annotations_digest(), "images": stamps.hexdigest()},
        "transform": {"image_size": image_size or dataset.image_size, "resize": "square, bilinear, antialias"},
        "prompts": {"pool": "all"} if all_of_them else chosen,
        "kept": {
            "min_score": spec.min_score, "fpn": bool(spec.fpn), "memory": bool(spec.memory),
            "answers": spec.predictions,
            "masks": bool(spec.mask or spec.dice), "semantic": bool(spec.semantic),
        },
    }  # fmt: skip


class TeacherCacheBuilder:
    """Asks the teacher about every view of every training image, and keeps the answers.

    Args:
        augment: of the training.
        device: where the teacher computes.
        precision: of Lightning's trainer; ``bf16-mixed`` and ``16-mixed`` compute as training does.
    """

    def __init__(
        self,
        store: TeacherStore,
        dataset: CocoConcepts,
        augment: AugmentSpec,
        device: torch.device,
        precision: str = "32-true",
    ) -> None:
        self.store, self.dataset, self.device = store, dataset, device
        self.half = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision)
        self.records = {record.id: record for record in dataset.records}
        self.views = [(image_id, mirrored) for image_id in self.records for mirrored in views_of(augment)]

    def missing(self) -> list[tuple[int, bool]]:
        """Views that are not in the store."""
        return self.store.missing(self.views)

    def fill(self, teacher: FrozenTeacher, process: Process, limit_gb: float) -> None:
        """Compute what is missing; shows the size first, and progress. Can be interrupted and called again.

        Raises:
            UserError: more than the limit, or than the disk has free; another process has stopped.
        """
        missing = self.missing()
        # By place in the whole list: the processes may look at different moments, and then see different gaps.
        wanted = set(missing)
        mine = [view for view in self.views[process.rank :: process.world_size] if view in wanted]
        if missing:
            lines = self._announce(teacher, missing, limit_gb)
            if process.rank == 0:
                print("\n".join(lines))
            self.store.create(teacher.model_spec.to_dict())
        with progress_bar(show=process.rank == 0) as bar:
            for view in bar.track(mine, description="teacher cache"):
                categories, predictions = self._ask(teacher, view)
                self.store.write(*view, categories, predictions)
        self._wait()

    def _ask(self, teacher: FrozenTeacher, view: tuple[int, bool]) -> tuple[list[int], SoftTargets]:
        record = self.records[view[0]]
        try:
            picture = self.dataset.picture(record, view[1], teacher.model_spec.vit.image_size)
        except UnreadableImage as error:
            message = f"image {self.dataset.folder / record.file_name} {error}"
            if self.dataset.on_unreadable == "fail":
                raise UserError(f"{message}; fix or remove it, or set data.on_unreadable=skip") from error
            return [], SoftTargets.nothing()  # training takes another image in its place, too
        categories = self.dataset.pool_of(record)
        phrases = [self.dataset.phrase_of(category) for category in categories]
        index = torch.zeros(len(phrases), dtype=torch.int64, device=self.device)
        kind = self.device.type
        with torch.autocast(kind, self.half or torch.bfloat16, enabled=self.half is not None):
            predictions = teacher.predictions(picture[None].to(self.device), phrases, index, chunk=CHUNK)
        return categories, predictions

    def _announce(self, teacher: FrozenTeacher, missing: Sequence[tuple[int, bool]], limit_gb: float) -> list[str]:
        """What will be written where, in lines; stops if it is too much."""
        step = max(len(missing) // SAMPLED, 1)
        sampled = [pack(*self._ask(teacher, view)) for view in missing[::step][:SAMPLED]]
        parts = {"fpn": 0.0, "memory": 0.0, "answers": 0.0}
        for tensors in sampled:
            for name, value in tensors.items():
                part = name.split(".")[0]
                parts[part if part in parts else "answers"] += value.nbytes / len(sampled)
        each = sum(parts.values())
        total, rest = each * len(self.views), each * len(missing)
        shares = ", ".join(f"{name} {value * len(self.views) / 1e9:.2f}" for name, value in parts.items() if value)
        size = f"about {total / 1e9:.2f} GB ({shares}) for {len(self.views):,} views"
        if total > limit_gb * 1e9:
            raise UserError(
                f"distill.cache would take {size}, more than distill.cache_limit_gb={limit_gb:g}; raise the limit, "
                "or keep less: distill.fpn=0, distill.memory=0, distill.cache_prompts, data.augment.flip=0, data.limit"
            )
        folder = ensure_writable_dir(self.store.path.parent)
        require_space(folder, round(rest))
        there = len(self.views) - len(missing)
        begun = f"; {there:,} are there, {rest / 1e9:.2f} GB to go" if there else ""
        return [f"teacher cache in {self.store.path}: {size}{begun}", *others(self.store)]

    def _wait(self) -> None:
        """Until the other processes have written their shares."""
        left, since = len(self.missing()), time.monotonic()
        while left:
            if time.monotonic() - since > PATIENCE:
                raise UserError(f"{left} views are still missing in {self.store.path}: another process has stopped")
            time.sleep(WAIT)
            now = len(self.missing())
            left, since = now, (time.monotonic() if now < left else since)


def others(store: TeacherStore) -> list[str]:
    """A line for each cache beside this one: what it was made from that differs."""
    lines = []
    for path in sorted(store.path.parent.glob("*/cache.json")):
        if path.parent != store.path:
            differ = differing(read_cache_metadata(path.parent)["facts"], store.metadata)
            lines.append(f"not used: {path.parent}, made with another {', '.join(differ)}")
    return lines


def differing(left: Mapping[str, Any], right: Mapping[str, Any]) -> list[str]:
    """The entries in which two caches' facts differ."""
    return [name for name in {**left, **right} if left.get(name) != right.get(name)]
