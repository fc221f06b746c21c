"""The model training starts from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_only

from sam3slim.checkpoints import IMAGE_SIZE, load, locate
from sam3slim.checkpoints.plain_vit import read_plain_vit
from sam3slim.checkpoints.readers import read
from sam3slim.data.batch import Batch, Targets
from sam3slim.data.module import ConceptData
from sam3slim.environment import local_rank
from sam3slim.errors import UserError
from sam3slim.losses import Criterion
from sam3slim.models import Sam3, Sam3Output, build_model, fresh_box_labels, init_for_training, set_regularisation
from sam3slim.runs.measure import back_to_cpu
from sam3slim.runs.specs import TrainSpec
from sam3slim.slimming import (
    DATA_IMPORTANCES,
    DataScores,
    Fit,
    Greedy,
    Plan,
    VisionFit,
    adopt_vision,
    check_slimmer,
    check_vision,
    collect_scores,
    fit_model,
    greedy_blocks,
    inherit,
)
from sam3slim.specs import ModelSpec
from sam3slim.text.phrases import encode_phrases

NO_CHECKPOINT = "init.checkpoint is missing; init={kind} needs the checkpoint to start from"


@dataclass(frozen=True)
class Initial:
    """Where training starts.

    Attributes:
        plan: what was kept of a larger model; None where nothing was cut.
        vision: how well the tower does what ``init.vision`` did; None without.
    """

    model: Sam3
    plan: Plan | None = None
    vision: VisionFit | None = None


@dataclass(frozen=True)
class Known:
    """What a run found out when it began, for one that goes on from its checkpoint."""

    vision: VisionFit | None = None
    greedy: Greedy | None = None


def initial_model(spec: TrainSpec, data: ConceptData, known: Known | None = None) -> Initial:
    """Fresh, loaded or inherited weights, and what was kept of a larger model.

    Args:
        data: not set up yet; ``init.importance=activation|taylor``, ``init.depth=greedy``, ``init.fit_batches`` and
            ``init.vision`` look at it.
        known: of a run that goes on from a checkpoint: neither chosen nor fitted again.

    Raises:
        UserError: the checkpoint does not fit; no training data where some are needed.
    """
    known = known or Known()
    if spec.init.vision is None or spec.init.kind == "scratch":
        model, plan = _initial(spec, data, known.greedy)
    else:
        model, plan = _around_vision(spec, data)
    vision = known.vision
    if spec.init.vision is not None and vision is None:
        vision = _adopted(spec, model, data)
    if spec.init.fresh_box_labels:
        fresh_box_labels(model, spec.seed)
    return Initial(model, plan, vision)


def check_initial(spec: TrainSpec) -> None:
    """What ``init.vision`` would be refused for, before the data are looked at. Raises UserError."""
    if spec.init.vision is not None:
        check_vision(read_plain_vit(spec.init.vision), spec.model.vit)


def _adopted(spec: TrainSpec, model: Sam3, data: ConceptData) -> VisionFit:
    """Put the ViT that ``init.vision`` names into the model's tower, fitted on the first training batches."""
    assert spec.init.vision is not None
    device = training_device(spec)
    vit = read_plain_vit(spec.init.vision)
    images = [batch.pixel_values.to(device) for batch in data.first_batches(spec.init.vision_batches)]
    found = adopt_vision(vit.to(device), model.to(device), images)  # type: ignore[arg-type]
    back_to_cpu(model)
    rank_zero_only(print)(found.describe())
    return found


def _around_vision(spec: TrainSpec, data: ConceptData) -> tuple[Sam3, Plan]:
    """``init=pruned`` with ``init.vision``: a fresh tower, and all else as inherited by a model of the old tower."""
    if not spec.init.checkpoint:
        raise UserError(NO_CHECKPOINT.format(kind=spec.init.kind))
    old = read(locate(spec.init.checkpoint), spec.init.overrides).spec
    around, plan = _initial(replace(spec, model=replace(spec.model, vit=old.vit)), data)
    assert plan is not None
    model = init_for_training(build_model(spec.model), spec.seed)
    own = model.state_dict()
    kept = {key: value for key, value in around.state_dict().items() if not _reads_tower(key)}
    model.load_state_dict({**own, **kept}, strict=True)
    return model, replace(plan, params_after=sum(p.numel() for p in model.parameters()))


def _reads_tower(key: str) -> bool:
    """Whether a tensor is of the tower, or of those convolutions of the neck that are as wide as the tower."""
    return key.startswith("vision_encoder.") and ".proj2." not in key


def _initial(spec: TrainSpec, data: ConceptData, known_blocks: Greedy | None = None) -> tuple[Sam3, Plan | None]:
    init = spec.init
    if init.kind == "scratch":
        return init_for_training(build_model(spec.model), spec.seed), None
    if not init.checkpoint:
        raise UserError(NO_CHECKPOINT.format(kind=init.kind))
    overrides = _at_image_size(spec)
    if init.kind == "checkpoint":
        model, report = load(
            init.checkpoint, overrides=overrides, expect=spec.model, allow_fresh=init.allow_fresh, dequantize=True
        )
        rank_zero_only(print)(report.render())
        set_regularisation(model, spec.model)  # the run's, not that of the training the weights come from
        return model, None
    check_slimmer(read(locate(init.checkpoint), overrides).spec, spec.model)
    source, report = load(init.checkpoint, overrides=overrides, dequantize=True)
    rank_zero_only(print)(report.render())
    scores = data_scores(source, spec, data) if init.importance in DATA_IMPORTANCES else None
    target, greedy = spec.model, None
    if init.depth == "greedy":
        greedy = known_blocks or _greedy(source, spec, data)
        target = with_blocks(spec.model, source.spec, greedy)
    model, plan = inherit(
        source, target, importance=init.importance, depth=init.depth, seed=spec.seed, data=scores, greedy=greedy
    )
    if init.fit_batches:
        plan = replace(plan, fit=fitted(source, model, plan, spec, data))
    rank_zero_only(print)(plan.describe())
    return model, plan


def _at_image_size(spec: TrainSpec) -> dict[str, Any]:
    """``init.overrides`` with the run's image size: weights serve any, the full model is then looked at in that size.

    Position embeddings are tiled over the image, and rotary tables are computed from the size.
    """
    assert spec.init.checkpoint is not None
    have = read(locate(spec.init.checkpoint), spec.init.overrides).spec.vit.image_size
    want = spec.model.vit.image_size
    if have != want:
        rank_zero_only(print)(f"image size: {want} px instead of the {have} px that the weights were trained at")
    return {**(spec.init.overrides or {}), IMAGE_SIZE: want}


def _greedy(source: Sam3, spec: TrainSpec, data: ConceptData) -> Greedy:
    """The blocks that stay, by the first ``init.importance_batches`` training batches."""
    device = training_device(spec)
    images = [batch.pixel_values.to(device) for batch in data.first_batches(spec.init.importance_batches)]
    found = greedy_blocks(
        source.to(device),  # type: ignore[arg-type]
        spec.model.vit.depth,
        images,
        protect_global=spec.init.protect_global is not False,
    )
    back_to_cpu(source)
    return found


def with_blocks(model: ModelSpec, source: ModelSpec, greedy: Greedy) -> ModelSpec:
    """``model`` with global attention in those of the kept blocks that have it in ``source``."""
    if model.vit.global_attention_blocks is not None:
        raise UserError(
            f"model.vit.global_attention_blocks={list(model.vit.global_attention_blocks)}: init.depth=greedy finds out "
            "which blocks stay, and which of them are global; set model.vit.global_attention_blocks=null"
        )
    places = tuple(place for place, block in enumerate(greedy.blocks) if block in source.vit.global_blocks)
    return replace(model, vit=replace(model.vit, global_attention_blocks=places))


def fitted(source: Sam3, model: Sam3, plan: Plan, spec: TrainSpec, data: ConceptData) -> Fit:
    """Fit what was cut on the first ``init.fit_batches`` training batches, as ``data_scores`` does."""
    device = training_device(spec)
    batches = [batch.to(device) for batch in _batches(data, source, spec.init.fit_batches)]
    found = fit_model(source.to(device), model.to(device), plan, batches)  # type: ignore[arg-type]
    back_to_cpu(source, model)
    return found


def data_scores(source: Sam3, spec: TrainSpec, data: ConceptData) -> DataScores:
    """Importance of the full model's units on the first ``init.importance_batches`` training batches."""
    assert spec.init.importance in ("activation", "taylor")
    criterion = Criterion(spec.loss)

    def loss(outputs: Sam3Output, targets: Targets) -> torch.Tensor:
        total: torch.Tensor = criterion(outputs, targets)["loss"]
        return total

    found = collect_scores(
        source.to(training_device(spec)),  # type: ignore[arg-type]
        _batches(data, source, spec.init.importance_batches),
        spec.init.importance,
        loss,
    )
    back_to_cpu(source)
    return found


def training_device(spec: TrainSpec) -> torch.device:
    """Where this process will train, known before Lightning's trainer exists.

    Every process of a machine has its own GPU, of those that ``trainer.devices=[2,3]`` lists if it is a list.
    """
    on_gpu = torch.cuda.is_available() and spec.trainer.get("accelerator") != "cpu"
    if not on_gpu:
        return torch.device("cpu")
    chosen, local = spec.trainer.get("devices"), local_rank()
    # A process too many is Lightning's to refuse.
    return torch.device("cuda", chosen[local] if isinstance(chosen, list) and local < len(chosen) else local)


def _batches(data: ConceptData, reader: Sam3, count: int) -> Iterator[Batch]:
    """The first training batches in the tokens of ``reader``, whose vocabulary may be another one."""
    for batch in data.first_batches(count):
        ids, mask = encode_phrases(reader.spec.text, batch.phrases)
        yield replace(batch, input_ids=ids, attention_mask=mask)
