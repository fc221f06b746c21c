"""Low-rank adaptation (Hu et al., 2021, arXiv:2106.09685): small matrices train beside weights that stay."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from sam3slim.errors import UserError
from sam3slim.models.count import PARTS, check_parts, frozen_prefixes

_MATRIX = re.compile(r"\.lora_[AB]\.default\.weight$")


@dataclass(frozen=True)
class LoraSpec:
    """Which linear layers get W + alpha / rank · B A, of which only B [outputs, rank] and A [rank, inputs] train.

    Attributes:
        rank: of the matrices.
        alpha: None means ``rank``, so that B A counts as it is.
        dropout: of what A sees.
        rslora: alpha / √rank instead (Kalajdzievski, 2023, arXiv:2312.03732), for large ranks.
        targets: patterns (``fnmatch``) of linear layers' names, such as ``*.q_proj``; every one by default.
        full: parts of the model that train with all their weights, without matrices.
    """

    rank: int
    alpha: float | None = None
    dropout: float = 0.0
    rslora: bool = False
    targets: tuple[str, ...] = ("*",)
    full: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UserError(f"optim.lora.rank={self.rank} must be at least 1, e.g. 16")
        if self.alpha is not None and self.alpha <= 0:
            raise UserError(f"optim.lora.alpha={self.alpha:g} must be above 0, e.g. {self.rank}")
        if not 0 <= self.dropout < 1:
            raise UserError(f"optim.lora.dropout={self.dropout:g} must lie in 0..1 (1 excluded)")
        check_parts("optim.lora.full", self.full)
        if set(self.full) == set(PARTS):
            raise UserError("optim.lora.full names every part: no matrices are left; use optim.lora=null")

    @property
    def metadata(self) -> dict[str, Any]:
        """What merging needs to know, for checkpoints."""
        alpha = float(self.rank if self.alpha is None else self.alpha)
        return {"rank": self.rank, "alpha": alpha, "rslora": self.rslora}


def add_lora(model: nn.Module, spec: LoraSpec, freeze: Collection[str] = ()) -> None:
    """Put matrices beside the linear layers of ``model``, in place: B is 0, so that nothing changes yet.

    Args:
        freeze: parts that get none.

    Raises:
        UserError: peft is not installed; a pattern that no linear layer matches.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise UserError("optim.lora needs peft, which is not installed; pip install 'sam3slim[lora]'") from error
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    chosen: list[str] = []
    for pattern in spec.targets:
        found = [name for name in layers if fnmatchcase(name, pattern)]
        if not found:
            raise UserError(
                f"optim.lora.targets has {pattern}, which no linear layer of this model matches; give patterns of "
                f"names like {layers[0]}"
            )
        chosen += found
    left = {*freeze, *spec.full}
    names = sorted({name for name in chosen if not f"{name}.".startswith(frozen_prefixes(left))})
    if not names:
        raise UserError(
            f"optim.lora.targets={list(spec.targets)}: all of these layers lie in parts that are frozen or train fully "
            f"({', '.join(sorted(left))}); give other targets"
        )
    config = LoraConfig(
        r=spec.rank,
        lora_alpha=spec.metadata["alpha"],
        lora_dropout=spec.dropout,
        use_rslora=spec.rslora,
        target_modules="|".join(map(re.escape, names)),  # a list would also match the ends of other names
    )
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    inject_adapter_in_model(config, model)
    for name, parameter in model.named_parameters():  # peft has frozen everything else; that is the caller's to decide
        parameter.requires_grad_(plain_name(name) in trained)


def is_matrix(name: str) -> bool:
    """Whether a parameter's name is that of a LoRA matrix."""
    return _MATRIX.search(name) is not None


def plain_name(name: str) -> str:
    """The name that a parameter, or the weight beside a LoRA matrix, has without LoRA."""
    return _MATRIX.sub(".weight", name.replace(".base_layer.", "."))
