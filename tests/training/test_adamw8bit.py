"""AdamW with 8-bit moments: it trains, and goes on from a checkpoint bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sam3slim.errors import UserError
from sam3slim.launch.compose import compose_plain
from sam3slim.losses import Criterion
from sam3slim.runs.specs import TrainSpec
from sam3slim.strict import spec_from_dict
from sam3slim.training import ConceptSegmentation, OptimSpec, ScheduleSpec, StreamedCheckpoints
from sam3slim.training.adamw8bit import PlainAdamW8bit
from tests.tiny import OVERRIDES, tiny_model
from tests.training.test_module import loader, trainer

EIGHT = OptimSpec(kind="adamw8bit", lr=1e-3)


def module() -> ConceptSegmentation:
    return ConceptSegmentation(tiny_model(), Criterion(), EIGHT, ScheduleSpec(kind="constant", warmup_steps=2))


def test_adamw8bit__follows_adamw_with_a_quarter_of_the_state() -> None:
    """200 steps towards a target: as near as AdamW comes."""
    target = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    left, kept = {}, {}
    for kind in (torch.optim.AdamW, PlainAdamW8bit):
        layer = torch.nn.Linear(128, 64, bias=False)
        torch.nn.init.zeros_(layer.weight)
        optimizer = kind(layer.parameters(), lr=2e-2)
        for _ in range(200):
            optimizer.zero_grad()
            (layer.weight - target).square().sum().backward()
            optimizer.step()
        left[kind] = float((layer.weight - target).square().mean().detach())
        moments = optimizer.state_dict()["state"][0]["exp_avg"]
        tensors = moments.values() if isinstance(moments, dict) else [moments]
        kept[kind] = sum(x.nbytes for x in tensors if isinstance(x, torch.Tensor) and x.numel() != 256)
    assert left[PlainAdamW8bit] < left[torch.optim.AdamW] + 1e-2 < 0.1
    assert kept[PlainAdamW8bit] < 0.27 * kept[torch.optim.AdamW]


def test_adamw8bit__resumes_bit_for_bit(tmp_path: Path) -> None:
    whole = module()
    trainer(tmp_path, 4).fit(whole, loader())
    first, path = trainer(tmp_path, 2), tmp_path / "x.ckpt"
    net = module()
    first.fit(net, loader())
    StreamedCheckpoints().save_checkpoint(first._checkpoint_connector.dump_checkpoint(), path)
    saved = torch.load(path, weights_only=True)["optimizer_states"][0]
    packed = [v for state in saved["state"].values() for v in state.values() if isinstance(v, dict)]
    assert packed
    assert all(value["codes"].dtype is torch.uint8 for value in packed)
    again = module()
    trainer(tmp_path, 4).fit(again, loader(), ckpt_path=path, weights_only=True)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], value), name


def test_adamw8bit__not_sharded() -> None:
    asked = [*OVERRIDES, "data.root=x", "optim=adamw8bit", "trainer=fsdp"]
    with pytest.raises(UserError, match="optim=adamw8bit does not work with trainer=fsdp; use optim=adamw, or trainer"):
        spec_from_dict(TrainSpec, compose_plain("train", asked), "")


def test_max_prompts_per_batch__not_sharded_and_at_least_one() -> None:
    asked = [*OVERRIDES, "data.root=x", "data.max_prompts_per_batch=4", "trainer=fsdp"]
    with pytest.raises(UserError, match=r"max_prompts_per_batch=4 does not work with trainer=fsdp, .* trainer=ddp"):
        spec_from_dict(TrainSpec, compose_plain("train", asked), "")
    asked = [*OVERRIDES, "data.root=x", "data.max_prompts_per_batch=0"]
    with pytest.raises(UserError, match=r"data.max_prompts_per_batch=0 must be at least 1, or null for no bound"):
        spec_from_dict(TrainSpec, compose_plain("train", asked), "")
