"""A refactor must not change what a training step computes.

``python -m tests.test_golden_loss`` writes the numbers anew: only when a change of them is meant and explained.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sam3slim.losses import Criterion, LossSpec
from tests.tiny import tiny_batch, tiny_model

GOLDEN = Path(__file__).parent / "golden" / "tiny_loss.json"
# Equal bits on one machine; other processors round sums in another order.
TOLERANCE = 1e-5


def losses() -> dict[str, float]:
    """All losses of one step of the tiny model, and the gradient's norm."""
    model, batch = tiny_model(seed=0), tiny_batch(seed=0)
    outputs = model(**batch.inputs(), one_to_many=True)
    values = Criterion(LossSpec(o2m_matcher_on_aux=True, pad_n_queries=1))(outputs, batch.targets)
    values["loss"].backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    return {**{name: float(value.detach()) for name, value in values.items()}, "gradient_norm": float(norm)}


def test_losses__as_recorded() -> None:
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert losses() == pytest.approx(golden, rel=TOLERANCE, abs=1e-7)


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(losses(), indent=2) + "\n", encoding="utf-8")
