"""Optimiser groups and learning-rate schedules."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from sam3slim.errors import UserError
from sam3slim.models import part_of
from sam3slim.models.count import FREEZABLE, PARTS, check_parts
from sam3slim.training.lora import LoraSpec

BLOCK = re.compile(r"vision_encoder\.backbone\.layers\.(\d+)\.")
EMBEDDINGS = "vision_encoder.backbone.embeddings."


@dataclass(frozen=True)
class OptimSpec:
    """AdamW (Loshchilov & Hutter, 2019) with the reference recipe's groups.

    Attributes:
        kind: ``adamw8bit`` keeps the moments in 8 bits (torchao).
        lr: learning rate of everything else.
        lr_vision, lr_text: of the towers; None means ``lr``.
        lr_geometry: of the encoder of boxes; None means ``lr``.
        layer_decay: factor per ViT block from the last to the first (1 switches it off).
        layer_decay_start: how many factors the last block has; 0: none, 1: one, as only the neck has none in the
            reference. The embeddings have one more than the first block.
        layer_decay_exempt: patterns (``fnmatch``) of vision parameters that keep ``lr_vision`` itself.
        weight_decay: none on biases and norms (parameters of one dimension), but for ``decay_too``.
        decay_too: patterns of biases and norms that decay all the same.
        clip: greatest gradient norm; 0 switches clipping off.
        freeze: parts of the model (``models.count.FREEZABLE``) that stay as they are: no gradients, no optimiser state.
        lora: small matrices train instead of the weights; None trains the weights.
    """

    kind: Literal["adamw", "adamw8bit"] = "adamw"
    lr: float = 3e-4
    lr_vision: float | None = None
    lr_text: float | None = None
    lr_geometry: float | None = None
    layer_decay: float = 1.0
    layer_decay_start: int = 0
    layer_decay_exempt: tuple[str, ...] = ()
    weight_decay: float = 0.01
    decay_too: tuple[str, ...] = ()
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float = 0.1
    freeze: tuple[str, ...] = ()
    lora: LoraSpec | None = None

    def __post_init__(self) -> None:
        for key in ("lr", "lr_vision", "lr_text", "lr_geometry"):
            value = getattr(self, key)
            if value is not None and value <= 0:
                raise UserError(f"optim.{key}={value} must be above 0")
        if not 0 < self.layer_decay <= 1:
            raise UserError(f"optim.layer_decay={self.layer_decay} must lie in 0..1 (0 excluded; 1 is off)")
        if self.layer_decay_start < 0:
            raise UserError(f"optim.layer_decay_start={self.layer_decay_start} must be at least 0")
        if self.weight_decay < 0 or self.clip < 0:
            raise UserError(f"optim.weight_decay={self.weight_decay}, optim.clip={self.clip}: expected >= 0")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"optim.betas={list(self.betas)} must be two numbers in 0..1 (1 excluded)")
        check_parts("optim.freeze", self.freeze, FREEZABLE)
        if set(PARTS) <= set(self.freeze):
            raise UserError("optim.freeze names every part: nothing is left to train")
        if self.lora is not None and (both := sorted({*self.freeze} & {*self.lora.full})):
            raise UserError(f"optim.freeze and optim.lora.full both name {both[0]}; take it out of one of them")


@dataclass(frozen=True)
class ScheduleSpec:
    """Linear warm-up, then ``cosine`` to ``min_lr_ratio``, ``inverse_sqrt``, or ``constant``; then a cooldown.

    Attributes:
        warmup_steps: ``inverse_sqrt`` begins at 0, as the reference does, the others with the first part of the way.
        timescale: of ``inverse_sqrt``, in steps: sqrt(timescale / (timescale + steps since the warm-up)); None:
            ``warmup_steps``.
        cooldown_steps: linear to 0 over the last steps, times what the schedule says there.
        min_lr_ratio: least share of the learning rate between warm-up and cooldown.
    """

    kind: Literal["cosine", "inverse_sqrt", "constant"] = "cosine"
    warmup_steps: int = 200
    timescale: int | None = None
    cooldown_steps: int = 0
    min_lr_ratio: float = 0.0

    def __post_init__(self) -> None:
        for key in ("warmup_steps", "cooldown_steps"):
            if getattr(self, key) < 0:
                raise UserError(f"schedule.{key}={getattr(self, key)} must be at least 0")
        if self.timescale is not None and self.timescale < 1:
            raise UserError(f"schedule.timescale={self.timescale} must be at least 1, or null for warmup_steps")
        if not 0 <= self.min_lr_ratio <= 1:
            raise UserError(f"schedule.min_lr_ratio={self.min_lr_ratio} must lie in 0..1")

    def check_fits(self, total_steps: int) -> None:
        """Tells of a warm-up as long as a training of ``total_steps``.

        Raises:
            UserError: warm-up and cooldown are longer than the training.
        """
        if self.cooldown_steps and self.warmup_steps + self.cooldown_steps > total_steps:
            raise UserError(
                f"schedule.warmup_steps={self.warmup_steps} and schedule.cooldown_steps={self.cooldown_steps} do not "
                f"fit into {total_steps} steps of training (trainer.max_steps); train longer, or set both lower: "
                f"schedule.warmup_steps={total_steps // 10} schedule.cooldown_steps={total_steps // 10}"
            )
        if self.warmup_steps >= total_steps > 1:
            rank_zero_only(print)(
                f"schedule.warmup_steps={self.warmup_steps} reaches the end of training ({total_steps} steps): the "
                f"learning rate only rises; schedule.warmup_steps={total_steps // 10} would be a tenth of it"
            )

    def factor(self, step: int, total_steps: int) -> float:
        """Multiplier of the learning rate at ``step`` (0-based) of ``total_steps``."""
        cooldown = min((total_steps - step) / self.cooldown_steps, 1.0) if self.cooldown_steps else 1.0
        return max(cooldown, 0.0) * self._before_cooldown(step, total_steps)

    def _before_cooldown(self, step: int, total_steps: int) -> float:
        if self.kind == "inverse_sqrt":
            if step < self.warmup_steps:
                return step / self.warmup_steps
            timescale = self.timescale or max(self.warmup_steps, 1)
            return max(math.sqrt(timescale / (timescale + step - self.warmup_steps)), self.min_lr_ratio)
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.kind == "constant":
            return 1.0
        share = min((step - self.warmup_steps) / max(total_steps - self.warmup_steps, 1), 1.0)
        return self.min_lr_ratio + (1 - self.min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * share))


def param_groups(model: nn.Module, spec: OptimSpec) -> list[dict[str, object]]:
    """One group per (learning rate, decay or not) over the parameters that train, with a ``name``.

    Raises:
        UserError: a pattern of ``spec`` that no parameter matches.
    """
    _check_patterns(model, spec)
    depth = 1 + max((int(m[1]) for name, _ in model.named_parameters() if (m := BLOCK.match(name))), default=-1)
    groups: dict[tuple[str, float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        part = part_of(name)
        rates = {"vision": spec.lr_vision, "text": spec.lr_text}
        if spec.lr_geometry is not None:
            rates["geometry"] = spec.lr_geometry
        tower = part if part in rates else "rest"
        lr = rates.get(tower) or spec.lr
        if tower == "vision" and not _matches(name, spec.layer_decay_exempt):
            lr *= spec.layer_decay ** _layers_above(name, depth, spec.layer_decay_start)
        decays = parameter.ndim > 1 or _matches(name, spec.decay_too)
        groups.setdefault((tower, lr, decays), []).append(parameter)
    return [
        {
            "name": f"{tower}/{'decay' if decays else 'no_decay'}/{lr:.3g}",
            "params": parameters,
            "lr": lr,
            "weight_decay": spec.weight_decay if decays else 0.0,
        }
        for (tower, lr, decays), parameters in groups.items()
    ]


def _layers_above(name: str, depth: int, last: int) -> int:
    """How many factors of layer decay a vision parameter has: ``last`` in the last block, one more in each before."""
    if name.startswith(EMBEDDINGS) or name.startswith("vision_encoder.backbone.layer_norm."):
        return depth + last
    match = BLOCK.match(name)
    return depth - 1 - int(match[1]) + last if match else 0


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _check_patterns(model: nn.Module, spec: OptimSpec) -> None:
    names = [name for name, _ in model.named_parameters()]
    for key in ("layer_decay_exempt", "decay_too"):
        for pattern in getattr(spec, key):
            if not any(fnmatchcase(name, pattern) for name in names):
                raise UserError(
                    f"optim.{key} has {pattern}, which no parameter of this model matches; give patterns of names "
                    f"like {names[0]}, or []"
                )


def build_optimizer(
    model: nn.Module, spec: OptimSpec, schedule: ScheduleSpec, total_steps: int
) -> tuple[torch.optim.Optimizer, LambdaLR]:
    """AdamW over ``param_groups`` and its per-step schedule.

    Raises:
        UserError: the schedule or the groups do not fit this training.
    """
    schedule.check_fits(total_steps)
    groups = param_groups(model, spec)
    optimizer: torch.optim.Optimizer
    if spec.kind == "adamw8bit":
        from sam3slim.training.adamw8bit import PlainAdamW8bit  # torchao takes a second to import

        optimizer = PlainAdamW8bit(groups, lr=spec.lr, betas=spec.betas)
    else:
        optimizer = torch.optim.AdamW(groups, lr=spec.lr, betas=spec.betas, fused=True)
        # Gradients are clipped between unscaling and the step, so the fused kernel must not do the unscaling: with this
        # flag GradScaler leaves it to the kernel, and Lightning's mixed precision refuses to clip at all.
        optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
    return optimizer, LambdaLR(optimizer, lambda step: schedule.factor(step, total_steps))


def follow_settings(optimizer: torch.optim.Optimizer, scheduler: LambdaLR, model: nn.Module, spec: OptimSpec) -> None:
    """Take rates, decay and betas from ``spec``: a restored optimiser has those it was saved with; in place."""
    wanted = param_groups(model, spec)
    assert len(wanted) == len(optimizer.param_groups)  # restoring has compared them
    rates = [float(own["lr"]) for own in wanted]  # type: ignore[arg-type]
    scheduler.base_lrs = list(rates)
    for group, own, rate, factor in zip(optimizer.param_groups, wanted, rates, scheduler.lr_lambdas, strict=True):
        group |= {"initial_lr": rate, "weight_decay": own["weight_decay"], "betas": spec.betas}
        now = rate * factor(scheduler.last_epoch)
        group["lr"] = group["lr"].fill_(now) if isinstance(group["lr"], Tensor) else now
