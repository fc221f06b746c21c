"""The model training starts from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import torch
from lightning.pytorch.utilities import rank_zero_only

from sam3slim.checkpoints import load, locate
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
    Plan,
    check_slimmer,
    collect_scores,
    fit_vision,
    inherit,
)
from sam3slim.text.phrases import encode_phrases


def initial_model(spec: TrainSpec, data: ConceptData) -> tuple[Sam3, Plan | None]:
    """Fresh, loaded or inherited weights, and what was kept of a larger model.

    Args:
        data: not set up yet; only ``init.importance=activation|taylor`` looks at it.

    Raises:
        UserError: the checkpoint does not fit; no training data where importance needs some.
    """
    model, plan = _initial(spec, data)
    if spec.init.fresh_box_labels:
        fresh_box_labels(model, spec.seed)
    return model, plan


def _initial(spec: TrainSpec, data: ConceptData) -> tuple[Sam3, Plan | None]:
    init = spec.init
    if init.kind == "scratch":
        return init_for_training(build_model(spec.model), spec.seed), None
    if not init.checkpoint:
        raise UserError(f"init.checkpoint is missing; init={init.kind} needs the checkpoint to start from")
    if init.kind == "checkpoint":
        model, report = load(
            init.checkpoint, overrides=init.overrides, expect=spec.model, allow_fresh=init.allow_fresh, dequantize=True
        )
        rank_zero_only(print)(report.render())
        set_regularisation(model, spec.model)  # the run's, not that of the training the weights come from
        return model, None
    check_slimmer(read(locate(init.checkpoint), init.overrides).spec, spec.model)
    source, report = load(init.checkpoint, overrides=init.overrides, dequantize=True)
    rank_zero_only(print)(report.render())
    scores = data_scores(source, spec, data) if init.importance in DATA_IMPORTANCES else None
    model, plan = inherit(source, spec.model, importance=init.importance, depth=init.depth, seed=spec.seed, data=scores)
    if init.fit_batches:
        plan = replace(plan, fit=fitted(source, model, plan, spec, data))
    rank_zero_only(print)(plan.describe())
    return model, plan


def fitted(source: Sam3, model: Sam3, plan: Plan, spec: TrainSpec, data: ConceptData) -> Fit:
    """Fit the vision tower that was cut on the first ``init.fit_batches`` training batches, as ``data_scores`` does."""
    device = training_device(spec)
    with torch.random.fork_rng():
        batches = islice(_batches(data, source), spec.init.fit_batches)
        images = [batch.pixel_values.to(device) for batch in batches]
        found = fit_vision(source.to(device), model.to(device), plan, images)  # type: ignore[arg-type]
    back_to_cpu(source, model)
    return found


def data_scores(source: Sam3, spec: TrainSpec, data: ConceptData) -> DataScores:
    """Importance of the full model's units on the first ``init.importance_batches`` training batches.

    The batches are those of the first epoch, with its augmentation, so the seed decides them; every process of
    a distributed run sees the same ones. Leaves the random state as it was.
    """
    assert spec.init.importance in ("activation", "taylor")
    criterion = Criterion(spec.loss)

    def loss(outputs: Sam3Output, targets: Targets) -> torch.Tensor:
        total: torch.Tensor = criterion(outputs, targets)["loss"]
        return total

    with torch.random.fork_rng():
        found = collect_scores(
            source.to(training_device(spec)),  # type: ignore[arg-type]
            islice(_batches(data, source), spec.init.importance_batches),
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


def _batches(data: ConceptData, reader: Sam3) -> Iterator[Batch]:
    """Training batches with at least one prompt, in the tokens of ``reader``, whose vocabulary may be another one."""
    data.prepare_data()
    for batch in data.loader("train", training=True):
        if len(batch.input_ids):
            ids, mask = encode_phrases(reader.spec.text, batch.phrases)
            yield replace(batch, input_ids=ids, attention_mask=mask)
