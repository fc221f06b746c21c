"""The forward against transformers' own, and what it must not repeat."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Sam3Model

from sam3slim.models import Sam3, build_model
from sam3slim.models.build import empty_model
from sam3slim.models.configuration import to_sam3_config
from sam3slim.models.pixels import masks_shared
from sam3slim.specs import ModelSpec
from tests.tiny import tiny_model, tokens

SHARED = ("pred_logits", "pred_boxes", "pred_masks", "presence_logits", "semantic_seg")


@pytest.fixture(scope="module")
def model() -> Sam3:
    return tiny_model()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(5)) * 2 - 1


def boxes_of(prompts: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(6)
    labels = torch.tensor([[1, 0], [1, -10], [0, 1]])[:prompts]
    return torch.rand(prompts, 2, 4, generator=generator) * 0.3 + 0.3, labels


@torch.no_grad()
def test_forward__box_prompt_equals_transformers(model: Sam3, images: torch.Tensor) -> None:
    ids, mask = tokens(3)
    boxes, labels = boxes_of(3)
    inputs = {"pixel_values": images, "input_ids": ids, "attention_mask": mask}
    ours = model(**inputs, input_boxes=boxes, input_boxes_labels=labels)
    theirs = Sam3Model.forward(model, **inputs, input_boxes=boxes, input_boxes_labels=labels)
    for name in SHARED:
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), atol=1e-6, rtol=0)
    assert theirs.pred_masks.std() > 1e-3  # equal because computed, not because nothing is


@torch.no_grad()
def test_forward__cls_token_without_boxes(model: Sam3, images: torch.Tensor) -> None:
    """As the reference does and ``Sam3Model.forward`` does not: the prompt ends with the CLS token."""
    ids, mask = tokens(3)
    ours = model(images, ids, mask)
    skipped = Sam3Model.forward(model, pixel_values=images, input_ids=ids, attention_mask=mask)
    assert (ours.pred_logits - skipped.pred_logits).abs().max() > 1e-4
    # A box slot that is only padding leaves nothing but the CLS token.
    padded = model(images, ids, mask, torch.zeros(3, 1, 4), torch.full((3, 1), -10))
    torch.testing.assert_close(ours.pred_logits, padded.pred_logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.pred_masks, padded.pred_masks, atol=1e-4, rtol=0)


@torch.no_grad()
def test_forward__many_prompts_equal_one_at_a_time(model: Sam3, images: torch.Tensor) -> None:
    ids, mask = tokens(5)
    index = torch.tensor([0, 0, 1, 2, 2])
    together = model(images, ids, mask, image_index=index)
    for prompt, image in enumerate(index.tolist()):
        alone = model(images[image : image + 1], ids[prompt : prompt + 1], mask[prompt : prompt + 1])
        for name in SHARED:
            torch.testing.assert_close(getattr(together, name)[prompt], getattr(alone, name)[0], atol=2e-5, rtol=1e-5)


@torch.no_grad()
def test_forward__towers_run_once(model: Sam3, images: torch.Tensor) -> None:
    seen: dict[str, list[int]] = {"vision": [], "text": [], "geometry": []}
    hooks = [
        model.vision_encoder.register_forward_pre_hook(lambda _, args: seen["vision"].append(len(args[0]))),
        model.text_encoder.register_forward_pre_hook(
            lambda _, args, kwargs: seen["text"].append(len(kwargs["input_ids"])), with_kwargs=True
        ),
        model.geometry_encoder.register_forward_pre_hook(
            lambda _, args, kwargs: seen["geometry"].append(len(kwargs["img_feats"][0])), with_kwargs=True
        ),
    ]
    ids, mask = tokens(2)
    pick = torch.tensor([0, 1, 0, 0, 1, 0])
    model(images, ids[pick], mask[pick], image_index=torch.tensor([0, 0, 1, 1, 2, 2]))
    for hook in hooks:
        hook.remove()
    assert seen == {"vision": [3], "text": [2], "geometry": [3]}


@torch.no_grad()
def test_forward__layers_and_shapes(model: Sam3, images: torch.Tensor) -> None:
    ids, mask = tokens(3)
    out = model(images, ids, mask)
    assert out.layer_logits.shape == (2, 3, 6)
    assert out.layer_boxes.shape == (2, 3, 6, 4)
    assert out.layer_presence.shape == (2, 3, 1)
    assert out.pred_masks is not None
    assert out.pred_masks.shape == (3, 6, 16, 16)
    assert torch.equal(out.layer_logits[-1], out.pred_logits)
    assert torch.equal(out.layer_presence[-1], out.presence_logits)
    cx, cy, w, h = out.layer_boxes[-1].unbind(-1)
    torch.testing.assert_close(out.pred_boxes, torch.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], -1))
    assert not torch.equal(out.layer_boxes[0], out.layer_boxes[1])


@torch.no_grad()
def test_forward__one_to_many_leaves_one_to_one_alone(model: Sam3, images: torch.Tensor) -> None:
    """The copies skip self-attention, so the first queries never see them."""
    ids, mask = tokens(3)
    plain, both = model(images, ids, mask), model(images, ids, mask, one_to_many=True)
    for name in (*SHARED, "layer_logits", "layer_boxes", "layer_presence"):
        torch.testing.assert_close(getattr(plain, name), getattr(both, name), atol=1e-5, rtol=1e-5)
    assert both.o2m_logits.shape == both.layer_logits.shape
    assert both.o2m_masks.shape == both.pred_masks.shape
    assert (both.o2m_logits - both.layer_logits).abs().max() > 1e-4
    assert plain.o2m_logits is None


@torch.no_grad()
def test_forward__precomputed_embeddings(model: Sam3, images: torch.Tensor) -> None:
    ids, mask = tokens(3)
    whole = model(images, ids, mask)
    text = model.get_text_features(input_ids=ids, attention_mask=mask, return_dict=True)
    parts = model(vision_embeds=model.get_vision_features(images), text_embeds=text, attention_mask=mask)
    torch.testing.assert_close(whole.pred_logits, parts.pred_logits, atol=1e-6, rtol=0)


def test_forward__inputs_that_do_not_fit(model: Sam3, images: torch.Tensor) -> None:
    ids, mask = tokens(2)
    with pytest.raises(ValueError, match="exactly one of pixel_values"):
        model(None, ids, mask)
    with pytest.raises(ValueError, match="exactly one of input_ids"):
        model(images)
    with pytest.raises(ValueError, match="give image_index"):
        model(images, ids, mask)
    with pytest.raises(ValueError, match="1 entries for 2 prompts"):
        model(images, ids, mask, image_index=torch.tensor([0]))


@pytest.mark.parametrize("index", [[0, 0, 1, 1, 2, 2], [0, 0, 0, 2], [1, 1, 1, 1, 1, 1, 1]])
@torch.no_grad()
def test_forward__prompts_that_share_their_image(model: Sam3, images: torch.Tensor, index: list[int]) -> None:
    """Equal to every prompt alone through transformers' own modules."""
    ids, mask = tokens(len(index))
    image = torch.tensor(index)
    shared = model(images, ids, mask, image_index=image)
    model.shares_images = False
    alone = model(images, ids, mask, image_index=image)
    model.shares_images = True
    for name in (*SHARED, "encoder_hidden_states", "layer_boxes"):
        torch.testing.assert_close(getattr(shared, name), getattr(alone, name), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_forward__masks_of_the_queries_that_are_asked_for(
    model: Sam3, images: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, mask = tokens(6)
    index = torch.tensor([0, 0, 0, 1, 1, 2])
    every = model(images, ids, mask, image_index=index)
    asked = model(images, ids, mask, image_index=index, with_masks="asked")
    sizes: list[int] = []
    ask = masks_shared

    def count(*arguments: Any) -> Any:
        sizes.append(len(arguments[2]))
        return ask(*arguments)

    monkeypatch.setattr("sam3slim.models.masks.masks_shared", count)
    prompt, query = torch.tensor([4, 0, 1, 4, 2, 3, 0]), torch.tensor([1, 0, 3, 0, 2, 1, 0])
    torch.testing.assert_close(asked.pred_masks[prompt, query], every.pred_masks[prompt, query], atol=1e-5, rtol=1e-5)
    assert sizes in ([], [5])  # prompt 5 is left alone; five prompts of three images share too little
    torch.testing.assert_close(asked.semantic_seg[:], every.semantic_seg, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("side", [48, 24, 40])
@torch.no_grad()
def test_forward__another_image_size_equals_transformers(model: Sam3, side: int) -> None:
    """Weights do not depend on the size; windows that the grid does not fill are padded."""
    spec = replace(model.spec, vit=replace(model.spec.vit, image_size=side))
    ours = build_model(spec).eval()
    ours.load_state_dict(model.state_dict())
    config = to_sam3_config(spec)
    theirs = Sam3Model(config).eval()
    theirs.load_state_dict(model.state_dict())
    ids, mask = tokens(2)
    boxes, labels = boxes_of(2)
    images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(3)) * 2 - 1
    inputs = {"input_ids": ids, "attention_mask": mask, "input_boxes": boxes, "input_boxes_labels": labels}
    found, expected = ours(pixel_values=images, **inputs), theirs(pixel_values=images, **inputs)
    assert found.pred_masks.shape[-1] == 4 * side // spec.vit.patch_size
    as_it_is = model(pixel_values=images, **inputs)  # made for another size
    for name in SHARED:
        torch.testing.assert_close(getattr(as_it_is, name), getattr(found, name), atol=0, rtol=0)
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("side", "share"), [(672, 0.424), (504, 0.291)])
def test_vision_tower__work_at_smaller_sizes(side: int, share: float) -> None:
    """Below the tokens' 0.444 at 672 px, because global attention shrinks faster; above their 0.25 at 504 px, because
    36 patches are padded to two windows of 24."""

    def work(size: int) -> int:
        spec = replace(ModelSpec(), vit=replace(ModelSpec().vit, image_size=size))
        tower = empty_model(spec, device="meta").vision_encoder.backbone.eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            tower(torch.empty(1, 3, size, size, device="meta"))
        return int(counter.get_total_flops())

    assert work(side) / work(1008) == pytest.approx(share, abs=0.001)
