"""Activation checkpointing and frozen parts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sam3slim.errors import UserError
from sam3slim.losses import Criterion
from sam3slim.models import Sam3, build_model, init_for_training, part_of
from sam3slim.models.count import PARTS
from sam3slim.specs import DecoderSpec, EncoderSpec, GeometrySpec
from sam3slim.training import ConceptSegmentation, OptimSpec, ScheduleSpec, recompute_activations
from sam3slim.training.step_loss import StepLoss
from tests.tiny import SPEC, tiny_batch, tiny_model
from tests.training.gradients import assert_same_gradients
from tests.training.test_module import loader, trainer


def deep_model(recompute: bool, dropout: float = 0.3) -> Sam3:
    """Six layers in every stack, in training mode."""
    deep = replace(
        SPEC, vit=replace(SPEC.vit, depth=6), encoder=EncoderSpec(6), decoder=DecoderSpec(6, num_queries=6),
        geometry=GeometrySpec(6),
    )  # fmt: skip
    model = init_for_training(build_model(deep), 0).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = dropout
    if recompute:
        recompute_activations(model)
    return model


@contextmanager
def kept_bytes(model: Sam3) -> Iterator[dict[int, int]]:
    """Bytes of the storages that are kept for the backward pass, weights left out."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept


def gradients_of(model: Sam3) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def step(recompute: bool, dtype: torch.dtype | None) -> tuple[Tensor, dict[str, Tensor], int, list[str]]:
    """Loss, gradients, bytes kept for the backward pass, and names of weights."""
    model, batch = deep_model(recompute), tiny_batch()
    torch.manual_seed(0)
    with kept_bytes(model) as kept, torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        loss = StepLoss(model, criterion=Criterion(), one_to_many=True).losses(batch)["loss"]
    loss.backward()
    return loss.detach(), gradients_of(model), sum(kept.values()), list(model.state_dict())


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["fp32", "bf16"])
def test_recompute__same_loss_and_gradients_with_less_kept(dtype: torch.dtype | None) -> None:
    plain, frugal = step(False, dtype), step(True, dtype)
    assert torch.equal(frugal[0], plain[0])
    assert frugal[3] == plain[3]
    assert frugal[1].keys() == plain[1].keys()
    for name, gradient in plain[1].items():
        assert torch.equal(frugal[1][name], gradient), name
    assert frugal[2] < 0.35 * plain[2]


def test_recompute__covers_decoder_mask_head_and_geometry() -> None:
    """Each keeps little more than its inputs, where the rest of the model does not count: it is frozen."""
    kept = {}
    for prefix in ("detr_decoder", "mask_decoder", "geometry_encoder"):
        for recompute in (False, True):
            model, batch = deep_model(recompute), tiny_batch()
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(name.startswith(prefix))
            boxes = torch.rand(3, 5, 4, generator=torch.Generator().manual_seed(0))
            vision = model.get_vision_features(batch.pixel_values)
            with kept_bytes(model) as found:
                out = model(
                    vision_embeds=vision, input_ids=batch.input_ids, attention_mask=batch.attention_mask,
                    image_index=batch.image_index, input_boxes=boxes, one_to_many=True, with_masks="asked",
                )  # fmt: skip
                if prefix == "mask_decoder":
                    assert out.mask_head is not None
                    out.mask_head.compute(torch.tensor([0, 1, 2]), torch.tensor([3, 0, 11]))
            kept[prefix, recompute] = sum(found.values())
    for prefix in ("detr_decoder", "mask_decoder", "geometry_encoder"):
        assert kept[prefix, True] < 0.4 * kept[prefix, False], (prefix, kept)


def test_recompute__frozen_towers_keep_nothing() -> None:
    model, batch = deep_model(True), tiny_batch()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(part_of(name) not in ("vision", "text"))
    with kept_bytes(model) as kept:
        vision = model.get_vision_features(batch.pixel_values)
        model.encode_text(batch.input_ids, batch.attention_mask)
    assert not kept
    assert not vision.fpn_hidden_states[0].requires_grad


def test_recompute__in_parts_of_prompts_up_to_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    grads = []
    for largest in (2**26, 1):  # all together; a prompt, or a mask, at a time
        monkeypatch.setattr("sam3slim.parts.LARGEST", largest)
        model = deep_model(True, dropout=0.0)
        StepLoss(model, criterion=Criterion(), one_to_many=True).losses(tiny_batch())["loss"].backward()
        grads.append(gradients_of(model))
    assert_same_gradients(grads[1], grads[0])


def frozen_module(*parts: str) -> ConceptSegmentation:
    return ConceptSegmentation(
        tiny_model(), Criterion(), OptimSpec(lr=1e-2, freeze=parts), ScheduleSpec(warmup_steps=0)
    )


def test_freeze__the_part_stays_and_the_others_learn(tmp_path: Path) -> None:
    net = frozen_module("vision", "text")
    before = {name: value.clone() for name, value in net.model.state_dict().items()}
    fit = trainer(tmp_path, 2)
    fit.fit(net, loader())
    changed = {part_of(name) for name, value in net.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == set(PARTS) - {"vision", "text"}
    assert not net.model.vision_encoder.training
    assert net.model.detr_decoder.training
    assert all(not group["name"].startswith(("vision", "text")) for group in fit.optimizers[0].param_groups)


def test_freeze__the_vision_tower_without_its_neck(tmp_path: Path) -> None:
    net = frozen_module("vit")
    before = {name: value.clone() for name, value in net.model.state_dict().items()}
    trainer(tmp_path, 2).fit(net, loader())
    changed = {name for name, value in net.model.state_dict().items() if not torch.equal(value, before[name])}
    assert not any(name.startswith("vision_encoder.backbone.") for name in changed)
    assert any(name.startswith("vision_encoder.neck.") for name in changed)
    assert not net.model.vision_encoder.backbone.training
    assert net.model.vision_encoder.neck.training


def test_freeze__bad_parts() -> None:
    with pytest.raises(
        UserError, match=r"optim.freeze: unknown part 'visoin'; parts: vision, .*; did you mean vision\?"
    ):
        OptimSpec(freeze=("visoin",))
    with pytest.raises(UserError, match="nothing is left to train"):
        OptimSpec(freeze=tuple(PARTS))
