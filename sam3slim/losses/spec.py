"""What the criterion is told: ``conf/loss/*.yaml``, checked."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from sam3slim.errors import UserError


@dataclass(frozen=True)
class LossSpec:
    """Weight of each component in the total, and how the reference recipe's choices are made.

    The defaults are the configuration that SAM 3's image training is shipped with (``loss=reference``).

    Attributes:
        cls, presence, bbox, giou, mask, dice, semantic_focal, semantic_dice: weights; 0 switches a component off.
        o2m: multiplies the whole one-to-many branch.
        one_to_many: train that branch.
        o2m_matcher_on_aux: True matches the branch one-to-many on every decoder layer; False only on the last one, and
            one-to-one on the others.
        pad_n_queries: class losses are means over at least as many queries, so that their weight fits models of few
            queries too; 1 is the plain mean.

    Raises:
        UserError: a weight is negative or not finite; ``pad_n_queries`` is below one.
    """

    cls: float = 20.0
    presence: float = 20.0
    bbox: float = 5.0
    giou: float = 2.0
    mask: float = 200.0
    dice: float = 10.0
    semantic_focal: float = 20.0
    semantic_dice: float = 30.0
    o2m: float = 2.0
    one_to_many: bool = True
    o2m_matcher_on_aux: bool = False
    pad_n_queries: int = 200

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(item.default, float) and not (math.isfinite(value) and value >= 0):
                raise UserError(f"loss weight {item.name}={value}: expected a number >= 0 (0 is off)")
        if self.pad_n_queries < 1:
            raise UserError(
                f"loss.pad_n_queries={self.pad_n_queries} must be at least 1; 1 divides class losses by the number of "
                "queries there are, 200 is the reference's"
            )
