"""From the overrides of ``train.py`` to a plan, with every assumption said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sam3slim.checkpoints import locate
from sam3slim.checkpoints.readers import read
from sam3slim.distill import check_teacher
from sam3slim.errors import UserError
from sam3slim.launch.compose import compose_model, compose_plain
from sam3slim.planning.fake import CHOSEN
from sam3slim.planning.plan import ASSUMED_DEVICES, MemoryPlan, make_plan, strategy
from sam3slim.planning.step import WORDS, largest_side
from sam3slim.planning.tracing import trace
from sam3slim.runs.specs import TrainSpec
from sam3slim.runs.teacher import overrides_of
from sam3slim.specs import ModelSpec
from sam3slim.strict import spec_from_dict
from sam3slim.training import ScheduleSpec
from sam3slim.training.autocast import precision_of

INSTANCES = 2  # of every prompt, present or not
MISSING = "(not given)"


@dataclass(frozen=True)
class Planned:
    """A plan, and what it is a plan of.

    Attributes:
        assumptions: one line each.
    """

    spec: TrainSpec
    plan: MemoryPlan
    assumptions: tuple[str, ...]


def plan_memory(
    overrides: Sequence[str], *, instances: int = INSTANCES, device: str = "cuda", data: bool = False
) -> Planned:
    """The plan of ``python train.py <overrides>``. Neither weights nor data need be there.

    Args:
        instances: objects of every prompt.
        device: "cuda" or "cpu", whose way of keeping tensors for the backward pass is meant.
        data: with real tensors, to compare with.

    Raises:
        UserError: an impossible configuration.
    """
    if instances < 1:
        raise UserError(f"--instances {instances} must be at least 1")
    spec = planned_spec(overrides)
    teacher, remark = _teacher(spec)
    found = trace(spec, instances, teacher, cuda=device == "cuda", data=data)
    return Planned(spec, make_plan(spec, found), tuple(_assumptions(spec, instances, device, remark)))


def planned_spec(overrides: Sequence[str]) -> TrainSpec:
    """The configuration of a run whose files may be missing.

    Raises:
        UserError: as for ``train.py``; a precision that is not planned.
    """
    spec = spec_from_dict(TrainSpec, compose_plain("train", overrides, missing=MISSING), "")
    precision_of(spec.trainer)
    # One step is taken, into which no warm-up fits; rates take no memory.
    return replace(spec, schedule=ScheduleSpec(kind="constant", warmup_steps=0))


def _teacher(spec: TrainSpec) -> tuple[ModelSpec, str]:
    """Its sizes, and what is to be said of them."""
    if spec.distill.teacher is None:
        return spec.model, ""
    sizes, remark = _teacher_sizes(spec, spec.distill.teacher)
    size = largest_side(spec) if spec.distill.image_size == "student" else spec.distill.image_size
    if size is not None:
        sizes = replace(sizes, vit=replace(sizes.vit, image_size=size))
    return sizes, "" if spec.distill.cache is not None else remark


def _teacher_sizes(spec: TrainSpec, teacher: str) -> tuple[ModelSpec, str]:
    """Those of its file, or, where that is not there, of SAM 3, or else of the student."""
    if teacher != MISSING:
        try:
            sizes = read(locate(teacher), overrides_of(spec)).spec
        except UserError as error:
            raise UserError(f"distill.teacher: {error}") from error
        check_teacher(sizes, spec.model)
        return replace(sizes, text=replace(sizes.text, vocabulary=None)), f"teacher: {teacher}"
    sizes = compose_model(["model=full"])
    if (sizes.d_model, sizes.vit.patch_size) != (spec.model.d_model, spec.model.vit.patch_size):
        return spec.model, "teacher: no checkpoint given, counted as large as the student"
    return sizes, "teacher: no checkpoint given, counted as SAM 3 (model=full)"


def _assumptions(spec: TrainSpec, instances: int, device: str, teacher: str) -> list[str]:
    data, (kind, processes) = spec.data, strategy(spec.trainer)
    how = f"{precision_of(spec.trainer)} as on {'CUDA' if device == 'cuda' else 'the CPU'}"
    lines = [
        f"{data.batch_size} images with data.max_prompts={data.max_prompts} different phrases of {WORDS} tokens, no "
        f"boxes asked, {instances} objects per prompt ({CHOSEN} one-to-many matches each), {how}"
    ]
    if len(spec.data.sizes_of(spec.model)) > 1:
        lines.append(f"images of {largest_side(spec)} px, the largest of data.image_sizes")
    lines += [teacher] if teacher else []
    if kind != "one":
        counted = f" (trainer.devices=-1 counted as {ASSUMED_DEVICES})" if spec.trainer.get("devices") == -1 else ""
        lines.append(f"{kind} over {processes} processes{counted}: their copies or shares are calculated, not traced")
    if spec.vocabulary is not None:
        lines.append("vocabulary: the whole one")
    return lines
