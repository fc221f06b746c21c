"""Box prompts: what is shown, what is ruled out, how boxes are drawn, and that they come through to the batch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.ops import box_convert, box_iou

from sam3slim.data.batch import Sample
from sam3slim.data.boxes import BoxPrompts, BoxSpec, example_boxes, noisy_box, pack_boxes, sample_boxes
from sam3slim.data.coco import CocoConcepts
from sam3slim.data.collate import Collate
from sam3slim.data.module import ConceptData
from sam3slim.data.sampling import PromptSpec
from sam3slim.data.transforms import AugmentSpec
from sam3slim.errors import UserError
from sam3slim.specs import BankSpec, TextSpec
from sam3slim.text.phrases import token_rows

EXACT = BoxSpec(share=1.0, noise=0.0)
# Prompt 0 has three objects, prompt 1 one; prompt 2 has the first of prompt 0's under another name, prompt 3 nothing.
BOXES = torch.tensor([
    [0.0, 0.0, 0.2, 0.2], [0.3, 0.0, 0.5, 0.2], [0.6, 0.0, 0.9, 0.3], [0.1, 0.5, 0.5, 0.9], [0.0, 0.0, 0.2, 0.21],
])  # fmt: skip
INDEX = torch.tensor([0, 0, 0, 1, 2])


def drawn(spec: BoxSpec, seed: int) -> BoxPrompts:
    return sample_boxes(spec, BOXES, INDEX, 4, np.random.default_rng(seed))


def target_of(box: tuple[float, ...]) -> int:
    """The row of BOXES that an exact box shows, as prompt 0 or 1 knows it."""
    return int(box_iou(box_convert(torch.tensor([box]), "cxcywh", "xyxy"), BOXES[:4]).argmax())


@pytest.mark.parametrize(
    "bad",
    [
        {"share": 1.5}, {"share": -0.1}, {"alone": 2.0}, {"negative": -1.0}, {"max_boxes": 0}, {"noise": 0.6},
        {"noise": -0.1}, {"noise_limit": 0.0}, {"noise_limit": 2.0}, {"noise": float("nan")},
    ],
)  # fmt: skip
def test_box_spec__out_of_range_names_its_key(bad: dict[str, float]) -> None:
    (key,) = bad
    with pytest.raises(UserError, match=rf"data\.boxes\.{key}="):
        BoxSpec(**bad)  # type: ignore[arg-type]


def test_noisy_box__stays_inside_and_within_its_limit() -> None:
    rng, spec = np.random.default_rng(0), BoxSpec(noise=0.5, noise_limit=0.05)
    box = torch.tensor([0.0, 0.4, 0.3, 1.0])
    moved = torch.stack([noisy_box(box, spec, rng) for _ in range(200)])
    assert moved.min() >= 0
    assert moved.max() <= 1
    assert (moved - box).abs().max() <= 0.05 + 1e-6
    assert (moved[:, 1:3] != box[1:3]).all()


def test_noisy_box__deviation_is_a_share_of_the_sides() -> None:
    rng, spec = np.random.default_rng(0), BoxSpec(noise=0.1, noise_limit=1.0)
    box = torch.tensor([0.4, 0.3, 0.6, 0.7])
    shift = torch.stack([noisy_box(box, spec, rng) for _ in range(2000)]) - box
    assert torch.allclose(shift.std(0), torch.tensor([0.02, 0.04, 0.02, 0.04]), rtol=0.06)


def test_noisy_box__never_turned_inside_out() -> None:
    rng, spec = np.random.default_rng(0), BoxSpec(noise=0.5, noise_limit=1.0)
    box = torch.tensor([0.4, 0.3, 0.6, 0.7])
    moved = torch.stack([noisy_box(box, spec, rng) for _ in range(500)])
    assert (moved[:, 2:] > moved[:, :2]).all()
    assert (moved == box).all(dim=1).any()  # where the noise would have


def test_sample_boxes__same_generator_same_boxes() -> None:
    spec = BoxSpec(share=0.7)
    assert drawn(spec, 3).rows == drawn(spec, 3).rows
    assert len({str(drawn(spec, seed).rows) for seed in range(20)}) > 10


def test_sample_boxes__none_without_a_share() -> None:
    found = drawn(BoxSpec(share=0.0), 0)
    assert found.rows == [[]] * 4
    assert found.wanted.all()
    assert not any(found.alone)


def test_sample_boxes__positive_shows_a_wanted_instance_and_negative_rules_out_its_own() -> None:
    ruled_out = elsewhere = 0
    for seed in range(300):
        found = drawn(EXACT, seed)
        for prompt in (0, 1):
            own = set((prompt == INDEX).nonzero().squeeze(1).tolist())
            wanted = {target for target in own if found.wanted[target]}
            shown = {target_of(box) for box, label in found.rows[prompt] if label == 1}
            negative = {target_of(box) for box, label in found.rows[prompt] if label == 0}
            assert shown <= wanted
            assert len(shown) <= EXACT.max_boxes
            assert own - wanted == negative & own
            ruled_out += len(own - wanted)
            elsewhere += len(negative - own)
            if found.alone[prompt]:
                assert shown
    assert ruled_out > 50
    assert elsewhere > 50


def test_sample_boxes__an_object_of_two_names_is_not_ruled_out_as_another() -> None:
    # The first object of prompt 0 is prompt 2's only one: nothing else of prompt 2 lies there.
    for seed in range(200):
        found = drawn(replace(EXACT, negative=1.0), seed)
        for box, label in found.rows[2]:
            if label == 0 and found.wanted[4]:
                assert target_of(box) != 0


def test_sample_boxes__absent_concepts_come_with_their_phrase_alone() -> None:
    assert all(not drawn(EXACT, seed).rows[3] and not drawn(EXACT, seed).alone[3] for seed in range(20))


def test_sample_boxes__the_only_instance_may_be_ruled_out_beside_a_phrase() -> None:
    found = [drawn(replace(EXACT, alone=0.0, negative=1.0), seed) for seed in range(50)]
    assert any(not one.wanted[3] for one in found)
    alone = [drawn(replace(EXACT, alone=1.0, negative=1.0), seed) for seed in range(50)]
    assert all(one.wanted[3] for one in alone)


def test_example_boxes__decided_by_image_and_category() -> None:
    spec = BoxSpec()
    found = example_boxes(spec, "box", BOXES[:4], INDEX[:4], 7, [11, 12])
    assert [[label for _, label in row] for row in found.rows] == [[1], [1]]
    assert found.alone == [True, True]
    # Other prompts of the same image do not matter.
    assert example_boxes(spec, "text+box", BOXES[3:4], torch.tensor([0]), 7, [12]).rows == found.rows[1:]
    assert example_boxes(spec, "box", BOXES[:4], INDEX[:4], 8, [11, 12]).rows != found.rows
    with pytest.raises(ValueError, match="no instance"):
        example_boxes(spec, "box", BOXES[:3], INDEX[:3], 7, [11, 12])


def test_pack_boxes__pads_to_the_longest() -> None:
    rows = [[((0.5, 0.5, 0.2, 0.1), 1), ((0.1, 0.2, 0.1, 0.1), 0)], [], [((0.3, 0.3, 0.1, 0.1), 1)]]
    boxes, labels = pack_boxes(rows)
    assert boxes is not None
    assert labels is not None
    assert labels.tolist() == [[1, 0], [-10, -10], [1, -10]]
    assert torch.equal(boxes[0, 1], torch.tensor([0.1, 0.2, 0.1, 0.1]))
    assert pack_boxes([[], []]) == (None, None)


def shapes(root: Path, boxes: BoxSpec, augment: AugmentSpec | None = None) -> CocoConcepts:
    prompts = PromptSpec(boxes=boxes, hard_negatives=0.25)
    return CocoConcepts(root, "train", image_size=48, prompts=prompts, augment=augment, seed=5)


def every(data: CocoConcepts) -> list[Sample]:
    return [data[place] for place in range(len(data))]


def corners(boxes: Tensor) -> Tensor:
    return box_convert(boxes, "cxcywh", "xyxy")


def test_training_sample__everything_else_is_as_without_boxes(shapes_root: Path) -> None:
    augment = AugmentSpec(scale=(0.6, 1.4))
    plain, boxed = (shapes(shapes_root, spec, augment) for spec in (BoxSpec(), replace(EXACT, negative=0.0)))
    for epoch in (0, 1):
        plain.set_epoch(epoch)
        boxed.set_epoch(epoch)
        for one, two in zip(every(plain), every(boxed), strict=True):
            assert one.box_prompts is None
            assert torch.equal(one.image, two.image)
            assert torch.equal(one.boxes, two.boxes)
            assert one.category_ids == two.category_ids
            assert all(right in (left, "visual") for left, right in zip(one.phrases, two.phrases, strict=True))


@pytest.mark.parametrize("augment", [AugmentSpec(flip=1.0), AugmentSpec(flip=0.5, scale=(0.5, 1.5))])
def test_training_sample__boxes_follow_the_picture(shapes_root: Path, augment: AugmentSpec) -> None:
    shown = 0
    for sample in every(shapes(shapes_root, EXACT, augment)):
        assert sample.box_prompts is not None
        for prompt, row in enumerate(sample.box_prompts):
            own = sample.boxes[sample.prompt_index == prompt]
            for box, label in row:
                if label == 1:
                    assert torch.isclose(torch.tensor(box), own, atol=1e-6).all(dim=1).any()
                    shown += 1
                elif len(own):
                    assert box_iou(corners(torch.tensor([box])), corners(own)).max() < 0.99
    assert shown > 5


def test_training_sample__depends_on_epoch_and_image_only(shapes_root: Path) -> None:
    data = shapes(shapes_root, BoxSpec(share=0.8))
    first = [data[i].box_prompts for i in range(len(data))]
    assert [data[i].box_prompts for i in reversed(range(len(data)))] == first[::-1]
    data.set_epoch(1)
    assert [data[i].box_prompts for i in range(len(data))] != first


@pytest.mark.parametrize("masks", [True, False])
def test_batch__carries_boxes_and_keeps_targets_of_what_is_wanted(shapes_root: Path, masks: bool) -> None:
    data = shapes(shapes_root, BoxSpec(share=1.0, negative=1.0))
    data.has_masks = masks
    samples: list[Sample] = [data[i] for i in range(6)]
    batch = Collate(TextSpec())(samples)
    assert batch.input_boxes is not None
    assert batch.input_boxes_labels is not None
    assert batch.input_boxes.shape == (*batch.input_boxes_labels.shape, 4)
    assert batch.input_boxes.shape[0] == len(batch.input_ids)
    assert set(batch.input_boxes_labels.unique().tolist()) == {-10, 0, 1}
    assert {"input_boxes", "input_boxes_labels"} <= batch.inputs().keys()
    moved = batch.to("meta")
    assert moved.input_boxes is not None
    assert moved.input_boxes.device.type == "meta"
    assert (batch.targets.masks is not None) == masks
    if batch.targets.masks is not None:
        assert len(batch.targets.masks) == len(batch.targets.boxes)
    plain = Collate(TextSpec())([replace(sample, box_prompts=None) for sample in samples])
    assert plain.input_boxes is None
    assert "input_boxes" not in plain.inputs()


@pytest.mark.parametrize("kind", ["box", "text+box"])
def test_evaluation_sample__one_positive_box_for_every_prompt(shapes_root: Path, kind: str) -> None:
    prompts = PromptSpec("present", kind=kind, boxes=BoxSpec(noise=0.0))
    plain = CocoConcepts(shapes_root, "test", image_size=48, prompts="present")
    boxed = CocoConcepts(shapes_root, "test", image_size=48, prompts=prompts)
    for one, two in zip(every(plain), every(boxed), strict=True):
        assert two.box_prompts is not None
        assert two.phrases == (["visual"] * len(one.phrases) if kind == "box" else one.phrases)
        assert torch.equal(one.boxes, two.boxes)
        assert torch.equal(one.prompt_index, two.prompt_index)
        for prompt, row in enumerate(two.box_prompts):
            ((box, label),) = row
            assert label == 1
            assert torch.isclose(torch.tensor(box), one.boxes[one.prompt_index == prompt], atol=1e-6).all(dim=1).any()


def test_evaluation_sample__the_seed_of_the_run_does_not_matter(shapes_root: Path) -> None:
    prompts = PromptSpec("present", kind="box")
    one, two = (CocoConcepts(shapes_root, "test", image_size=48, prompts=prompts, seed=seed) for seed in (0, 1))
    assert [sample.box_prompts for sample in every(one)] == [sample.box_prompts for sample in every(two)]


@pytest.mark.parametrize("protocol", ["all", "present+k", "present+2"])
def test_prompt_spec__a_box_needs_an_instance(protocol: str) -> None:
    with pytest.raises(UserError, match=r"data\.prompts=box with data\.protocol=.*set data\.protocol=present"):
        PromptSpec(protocol, kind="box")


def test_prompt_spec__unknown_kind() -> None:
    with pytest.raises(UserError, match=r"data\.prompts=boxes: expected text, box, text\+box"):
        PromptSpec("present", kind="boxes")


def test_data_module__the_word_for_boxes_must_be_readable(shapes_root: Path) -> None:
    phrases = [category.phrase for category in CocoConcepts(shapes_root, "test", image_size=48).categories]
    bank = BankSpec(tuple(phrases), tuple(token_rows(TextSpec(), phrases)))
    prompts = PromptSpec(kind="box")
    data = ConceptData(shapes_root, image_size=48, text=TextSpec(bank=bank), prompts=prompts, eval_prompts="present")
    with pytest.raises(UserError, match="phrase 'visual' is not one of the"):
        data.dataset("test")
    ConceptData(shapes_root, image_size=48, text=TextSpec(bank=bank), eval_prompts="present").dataset("test")
