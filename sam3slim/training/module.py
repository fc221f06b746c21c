"""The LightningModule: reference recipe, validation mAP, checkpoints of primitives only."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack, nullcontext
from typing import Any, Protocol

import lightning
import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from sam3slim.data.batch import Batch
from sam3slim.data.detections import CONFIDENT
from sam3slim.data.soft import SoftTargets
from sam3slim.distill import CachedTeacher, FrozenTeacher, Totals
from sam3slim.distill.total import Average
from sam3slim.errors import UserError
from sam3slim.evaluation import ConceptMetrics, counted_detections, ground_truths, predict_batch
from sam3slim.losses import Counts, Criterion
from sam3slim.models import Sam3, part_of
from sam3slim.models.count import frozen_prefixes
from sam3slim.results.metrics import METRICS, Measured, main_of
from sam3slim.training.lora import is_matrix, plain_name
from sam3slim.training.optim import OptimSpec, ScheduleSpec, build_optimizer, follow_settings
from sam3slim.training.sharded import gathered, shard
from sam3slim.training.step_loss import StepLoss
from sam3slim.training.unused import unused_parameters


class Rounding(Protocol):
    """Weights that are rounded in forward passes; see ``compression.FakeQuantised``."""

    def round(self) -> None: ...

    def restore(self) -> None: ...

    def __enter__(self) -> Any: ...

    def __exit__(self, *_: object) -> None: ...


class ConceptSegmentation(lightning.LightningModule):
    """Trains a ``Sam3``.

    Checkpoints hold the model's weights as ``model.*`` and, under ``hyper_parameters``, the plain dict
    {"model": spec, "config": composed configuration, "unused": names}, with LoRA also {"lora": settings}, which
    ``checkpoints.load`` merges by; the teacher is in none of them.

    Args:
        model: on CPU, with ``add_lora``'s matrices where ``optim.lora`` is set; moved by Lightning.
        criterion: the loss against labels; None trains on the teacher's answers alone.
        optim, schedule: optimiser and learning-rate schedule.
        one_to_many: train the one-to-many branch too.
        teacher: for distillation.
        max_prompts: see ``StepLoss``.
        masks: whether the training data have masks.
        boxes: whether prompts come with boxes.
        metric: which one ``val/map`` is; None: mask mAP, box mAP without masks.
        config: plain nested dict kept in checkpoints.

    Attributes:
        unused: names of the parameters that no loss depends on. Like frozen ones they have no gradient, so that DDP
            does not wait for them, and no optimiser state, so that weight decay leaves them alone.
        rounding: rounds weights for each forward and backward pass and in validation, never in between, so that the
            optimiser, averages and checkpoints have the weights themselves; None: nothing is rounded.

    Raises:
        UserError: no parameter is left to train.
    """

    def __init__(
        self,
        model: Sam3,
        criterion: Criterion | None,
        optim: OptimSpec,
        schedule: ScheduleSpec,
        *,
        one_to_many: bool = True,
        teacher: FrozenTeacher | CachedTeacher | None = None,
        max_prompts: int | None = None,
        masks: bool = True,
        boxes: bool = False,
        metric: str | None = None,
        config: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if criterion is None and teacher is None:
            raise ValueError("nothing to learn from: give a criterion, a teacher, or both")
        self.model = model
        self.criterion = criterion
        self.optim, self.schedule = optim, schedule
        self.one_to_many, self.teacher = one_to_many, teacher
        self.max_prompts = max_prompts
        self.metric = metric
        self.rounding: Rounding | None = None
        self._validated: list[ConceptMetrics] = []  # of every data set that is validated on
        self._whole = ExitStack()
        self.unused = unused_parameters(
            model.spec,
            self._probe_loss,
            masks=masks,
            boxes=boxes,
            teacher=None if teacher is None else teacher.spec,
        )
        for name, parameter in model.named_parameters():
            part = part_of(name)
            beside = optim.lora is not None and part not in optim.lora.full and not is_matrix(name)
            frozen = name.startswith(frozen_prefixes(optim.freeze))
            if plain_name(name) in self.unused or frozen or beside:
                parameter.requires_grad_(False)
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise UserError(
                f"nothing is left to train: no loss reaches a parameter outside optim.freeze={list(optim.freeze)}; "
                "freeze fewer parts, or give a loss of another part a weight (loss, distill)"
            )
        self.save_hyperparameters(
            {
                "model": model.spec.to_dict(),
                "config": config or {},
                "unused": sorted(self.unused),
                **({} if optim.lora is None else {"lora": optim.lora.metadata}),
            }
        )

    def configure_model(self) -> None:
        if self.device_mesh is not None:  # trainer=fsdp
            shard(self.model, self.device_mesh["data_parallel"])

    def on_fit_start(self) -> None:
        # Loaded and inherited models come in eval mode, and Lightning leaves modes as it finds them.
        self.model.train()
        modules = dict(self.model.named_modules())
        for prefix in frozen_prefixes(self.optim.freeze):
            if (frozen := modules.get(prefix.removesuffix("."))) is not None:
                frozen.eval()  # no dropout in what does not learn

    def on_train_start(self) -> None:
        (optimizer,), (config,) = self.trainer.optimizers, self.trainer.lr_scheduler_configs
        assert isinstance(config.scheduler, LambdaLR)
        follow_settings(optimizer, config.scheduler, self.model, self.optim)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one batch.

        Raises:
            UserError: the loss is NaN or infinite.
        """
        # The teacher is asked first: what it needs on the way is free again when the student's activations pile up.
        soft = None if self.teacher is None else self.teacher.targets(batch)
        counts = None if self.criterion is None else self._counts(batch)
        if self.rounding is not None:
            self.rounding.round()  # until the backward pass is over
        losses = self._step_loss(self.model, soft, counts, self._average).losses(batch)
        loss = losses.pop("loss")
        self._check_finite(loss, losses)
        # Logged only when it will be written: sixteen log calls a step are not free on a small model.
        if (self.global_step + 1) % self._log_interval() == 0:
            size = len(batch.pixel_values)
            self.log("train/loss", loss.detach(), prog_bar=True, batch_size=size, sync_dist=True)
            self.log_dict({f"train/{name}": value for name, value in losses.items()}, batch_size=size, sync_dist=True)
        return loss

    def on_after_backward(self) -> None:
        if self.rounding is not None:
            self.rounding.restore()

    def state_dict(self, *args: Any, **options: Any) -> Any:
        """The weights themselves, also where a step was broken off."""
        if self.rounding is not None:
            self.rounding.restore()
        return super().state_dict(*args, **options)

    def _step_loss(
        self, model: Sam3, soft: SoftTargets | None, counts: Counts | None, average: Average | None = None
    ) -> StepLoss:
        return StepLoss(
            model,
            criterion=self.criterion,
            counts=counts,
            distill=None if self.teacher is None else self.teacher.spec,
            soft=soft,
            totals=None if soft is None else Totals.of(soft, average),
            # Only labels teach the one-to-many branch.
            one_to_many=self.one_to_many and self.criterion is not None,
            max_prompts=self.max_prompts,
        )

    def _probe_loss(self, model: Sam3, batch: Batch) -> Tensor:
        """What ``unused_parameters`` asks of a narrow model: the loss of a step, in one process."""
        counts = Counts.of(batch.targets, len(batch.input_ids)).stacked()
        return self._step_loss(model, batch.soft, Counts.per_process(counts, 1)).losses(batch)["loss"]

    def _counts(self, batch: Batch) -> Counts:
        """Over the processes: then the mean of their losses, and of their gradients, is that of one big batch."""
        total = Counts.of(batch.targets, len(batch.input_ids)).stacked().to(self.device)
        if self.trainer.world_size > 1:
            total = self.trainer.strategy.reduce(total, reduce_op="sum")
        return Counts.per_process(total, self.trainer.world_size)

    def _average(self, value: Tensor) -> Tensor:
        """Mean of a number over the processes."""
        if self.trainer.world_size == 1:
            return value
        reduced: Tensor = self.trainer.strategy.reduce(value, reduce_op="mean")
        return reduced

    def _log_interval(self) -> int:
        interval: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return max(interval, 1)

    def _check_finite(self, loss: Tensor, parts: dict[str, Tensor]) -> None:
        if torch.isfinite(loss):
            return
        bad = [name for name, value in parts.items() if not torch.isfinite(value)] or ["loss"]
        raise UserError(
            f"the loss is not finite at step {self.global_step} ({', '.join(bad)}); lower optim.lr "
            f"(now {self.optim.lr:g}) or optim.clip (now {self.optim.clip:g}), then resume=auto goes on "
            "from the last checkpoint"
        )

    def on_validation_start(self) -> None:
        self._validated = [ConceptMetrics() for _ in self._val_loaders()]
        self._whole.enter_context(gathered(self.model))

    def on_validation_end(self) -> None:
        self._whole.close()

    def _val_loaders(self) -> list[Any]:
        loaders = self.trainer.val_dataloaders
        return loaders if isinstance(loaders, list) else [loaders]

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        truths = ground_truths(batch)
        with self.rounding or nullcontext():
            found = predict_batch(
                self.model, batch, top_k=counted_detections(truths), keep_score=CONFIDENT,
                with_masks=truths[0].rles is not None,
            )  # fmt: skip
        self._validated[dataloader_idx].update(found, truths)

    def on_validation_epoch_end(self) -> None:
        logged: dict[str, dict[str, float]] = {}
        for loader, metrics in zip(self._val_loaders(), self._validated, strict=True):
            if measured := metrics.measure():
                # Lightning's check before a training sees a few images, which may not have every metric.
                wanted = None if self.trainer.sanity_checking else self.metric
                logged[getattr(loader.dataset, "name", "")] = _numbers(measured, wanted)
        self._validated = []
        for data_set, numbers in logged.items() if len(logged) > 1 else ():
            self.log_dict({f"val/{data_set}/{key}": value for key, value in numbers.items()}, sync_dist=True)
        # The mean over the data sets.
        for key in dict.fromkeys(key for numbers in logged.values() for key in numbers):
            values = [numbers[key] for numbers in logged.values() if key in numbers]
            shown = key in {metric.column for metric in METRICS.values()}
            self.log(f"val/{key}", sum(values) / len(values), prog_bar=shown, sync_dist=True)

    def configure_optimizers(self) -> Any:
        """AdamW with per-step schedule over the trainer's ``max_steps``."""
        total = int(self.trainer.estimated_stepping_batches)
        optimizer, scheduler = build_optimizer(self.model, self.optim, self.schedule, total)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def _numbers(measured: Mapping[str, Measured], wanted: str | None) -> dict[str, float]:
    """What is logged: of every metric its headline and what it names besides; ``map``, the main one as a score."""
    numbers = {
        METRICS[name].key(number): float(found.numbers[number] or 0.0)
        for name, found in measured.items()
        for number in dict.fromkeys((METRICS[name].headline, *METRICS[name].logged))
    }
    main = main_of(measured, wanted)
    return {**numbers, "map": main.score(numbers[main.column])}
