"""Clipping with and without the fused optimiser in every precision, and precisions that cannot be."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor

from sam3slim.errors import UserError
from sam3slim.training import (
    OptimSpec,
    ScheduleSpec,
    build_optimizer,
    check_precision,
    precision_of,
    precision_plugins,
)
from sam3slim.training import autocast as precision_file
from sam3slim.training import module as module_file
from sam3slim.training.autocast import PRECISIONS
from tests.tiny import tiny_model
from tests.training.test_module import loader, module

CLIP, STEPS = 0.1, 12
CPU = torch.device("cpu")


class Norms(lightning.Callback):
    """The gradients' norm before and after clipping, of every step that has finite gradients."""

    def __init__(self) -> None:
        self.before: list[float] = []
        self.after: list[float] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.before.append(norm_of(pl_module))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any, **__: Any) -> None:
        self.after.append(norm_of(pl_module))


def norm_of(net: torch.nn.Module) -> float:
    return float(torch.nn.utils.get_total_norm([p.grad for p in net.parameters() if p.grad is not None]))


def fitted(precision: str, fused: bool, monkeypatch: pytest.MonkeyPatch) -> tuple[Norms, dict[str, Tensor]]:
    """A few steps as ``build_trainer`` has them; optimiser fused or not."""

    def plain(*arguments: Any) -> Any:
        optimizer, scheduler = build_optimizer(*arguments)
        for group in optimizer.param_groups:
            group["fused"] = False
        return optimizer, scheduler

    monkeypatch.setattr(module_file, "build_optimizer", build_optimizer if fused else plain)
    settings = {"precision": precision}
    plugins: list[Any] = precision_plugins(settings, CPU)
    torch.manual_seed(0)
    net, norms = module(), Norms()
    trainer = lightning.Trainer(
        accelerator="cpu", max_steps=STEPS, gradient_clip_val=CLIP, callbacks=[norms], plugins=plugins,
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        **({} if plugins else settings),  # type: ignore[arg-type]
    )  # fmt: skip
    trainer.fit(net, loader())
    if precision != "32-true":
        assert isinstance(trainer.precision_plugin, MixedPrecision)
        assert trainer.precision_plugin.precision == precision
    return norms, net.state_dict()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_clipping__same_norm_and_weights_with_and_without_fused(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms, weights = fitted(precision, True, monkeypatch)
    expected, other = fitted(precision, False, monkeypatch)
    finite = [after for before, after in zip(norms.before, norms.after, strict=True) if before < float("inf")]
    # FP16's loss scale starts too high: its first steps find an overflow, are skipped, and halve it.
    assert len(finite) >= STEPS // 3
    assert finite == pytest.approx([CLIP] * len(finite), rel=1e-4)
    assert norms.after == pytest.approx(expected.after, rel=1e-4, nan_ok=True)
    assert max(norm for norm in norms.before if norm < float("inf")) > 10 * CLIP
    start = module().state_dict()
    # Softmax forgets these: their gradients are rounding, which Adam enlarges.
    keys = [key for key in weights if not key.endswith(("k_proj.bias", "_x.layer2.bias", "_y.layer2.bias"))]
    moved, apart = (
        torch.cat([(weights[key] - base[key]).float().flatten() for key in keys]).norm() for base in (start, other)
    )
    assert float(apart) < 0.01 * float(moved)


def test_build_optimizer__may_be_clipped_on_a_gpu_also_after_a_resume() -> None:
    optimizer, _ = build_optimizer(tiny_model(), OptimSpec(), ScheduleSpec(), 10)
    assert all(group["fused"] for group in optimizer.param_groups)
    for parameter in optimizer.param_groups[0]["params"]:
        parameter.grad = torch.ones_like(parameter)
    gpu = MixedPrecision("bf16-mixed", "cuda")
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for restored in (optimizer, pickle.loads(pickle.dumps(optimizer))):
        gpu.clip_gradients(restored, CLIP)
    norm = torch.nn.utils.get_total_norm([p.grad for p in optimizer.param_groups[0]["params"]])
    assert float(norm) == pytest.approx(CLIP, rel=1e-4)


@pytest.mark.parametrize(
    ("given", "expected"),
    [("32-true", "32-true"), (32, "32-true"), (None, "32-true"), ("bf16", "bf16-mixed"), (16, "16-mixed")],
)
def test_precision_of__lightnings_other_names(given: Any, expected: str) -> None:
    assert precision_of({"precision": given}) == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("bf16-true", "use trainer.precision=bf16-mixed"),
        ("16-true", "use trainer.precision=16-mixed"),
        ("8-bit", "trainer.precision=8-bit: expected 32-true, bf16-mixed, 16-mixed"),
    ],
)
def test_precision_of__one_line(given: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        precision_of({"precision": given})


def test_check_precision__what_the_device_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PRECISIONS:
        check_precision({"precision": name}, CPU)
    monkeypatch.setattr(precision_file, "fp16_trains_on_cpu", lambda: False)
    with pytest.raises(UserError, match=r"use trainer.precision=bf16-mixed or 32-true"):
        check_precision({"precision": "16-mixed"}, CPU)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a V100")
    with pytest.raises(UserError, match=r"a V100 has no bfloat16; use trainer.precision=16-mixed"):
        check_precision({"precision": "bf16-mixed"}, torch.device("cuda"))


def test_precision_plugins__lightning_would_train_in_bf16_instead(tmp_path: Path) -> None:
    (plugin,) = precision_plugins({"precision": "16-mixed"}, CPU)
    assert (plugin.precision, plugin.device) == ("16-mixed", "cpu")
    assert plugin.scaler is not None
    assert precision_plugins({"precision": "bf16-mixed"}, CPU) == []
