"""Batches of several image sizes, and the second picture that a teacher of another size sees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.transforms import v2

from sam3slim.data.batch import Batch
from sam3slim.data.coco import CocoConcepts
from sam3slim.data.loader import EpochSampler
from sam3slim.data.module import ConceptData
from sam3slim.data.sampling import PromptSpec
from sam3slim.data.spec import DataSpec
from sam3slim.data.transforms import AugmentSpec
from sam3slim.data.views import View, Views
from sam3slim.errors import UserError
from sam3slim.specs import ModelSpec, TextSpec, VitSpec

TEXT = TextSpec(vocab_size=1024, context_length=16)
PROMPTS = PromptSpec(negatives=2)
SIZES = (48, 32, 16)


def module(root: Path, **values: Any) -> ConceptData:
    given = {"image_size": 48, "image_sizes": SIZES, "text": TEXT, "batch_size": 2, "prompts": PROMPTS}
    return ConceptData(root, **given | values)


def shown(batch: Batch) -> tuple[int, list[int]]:
    return batch.pixel_values.shape[-1], [info.image_id for info in batch.images]


def test_loader__one_size_for_every_batch(shapes_root: Path) -> None:
    def epochs(**values: Any) -> list[list[tuple[int, list[int]]]]:
        loader = module(shapes_root, **values).train_dataloader()
        return [[shown(batch) for batch in loader] for _ in range(4)]

    found = epochs()
    assert {size for epoch in found for size, _ in epoch} == set(SIZES)
    assert found == epochs() == epochs(num_workers=1)
    assert found != epochs(seed=1)
    alone = epochs(image_sizes=())
    assert {size for epoch in alone for size, _ in epoch} == {48}
    assert [[ids for _, ids in epoch] for epoch in alone] == [[ids for _, ids in epoch] for epoch in found]
    # What a cut is ranked or fitted on, and what is measured, have the model's own size.
    data = module(shapes_root)
    assert (
        {shown(b)[0] for b in data.loader("train", training=True)} == {shown(b)[0] for b in data.loader("val")} == {48}
    )


def test_loader__targets_at_every_size(shapes_root: Path) -> None:
    for batch in module(shapes_root).train_dataloader():
        side = batch.pixel_values.shape[-1]
        assert batch.targets.masks is not None
        assert batch.targets.masks.shape[-2:] == (side, side)
        assert float(batch.targets.boxes.min()) >= 0
        assert float(batch.targets.boxes.max()) <= 1


def test_loader__a_resumed_epoch_has_the_sizes_of_an_unbroken_one(shapes_root: Path) -> None:
    whole = module(shapes_root).train_dataloader()
    expected = [shown(batch) for _ in range(2) for batch in whole]
    first = module(shapes_root).train_dataloader()
    before = [shown(batch) for batch, _ in zip(first, range(4), strict=False)]
    again = module(shapes_root).train_dataloader()
    again.load_state_dict({"epoch": 0, "batches": 4})
    assert before + [shown(batch) for _ in range(2) for batch in again] == expected


def test_sampler__every_process_draws_the_same_sizes(shapes_root: Path) -> None:
    data = CocoConcepts(shapes_root, image_size=48, prompts=PROMPTS)
    views = Views(SIZES, seed=3)
    drawn = []
    for rank in range(2):
        sampler = EpochSampler(data, shuffle=True, seed=0, world_size=2, rank=rank, views=views, batch_size=2)
        sampler.begin(5, skip=0)
        drawn.append([view for view in sampler if isinstance(view, View)])
    assert [view.side for view in drawn[0]] == [view.side for view in drawn[1]]
    assert {view.place for view in drawn[0]}.isdisjoint(view.place for view in drawn[1])


def test_views__each_as_often_as_the_others() -> None:
    drawn = [view.side for view in Views(SIZES).of(range(30_000), 0, 10)]
    assert all(drawn[start : start + 10] == [drawn[start]] * 10 for start in range(0, len(drawn), 10))
    assert [drawn.count(side) / len(drawn) for side in SIZES] == pytest.approx([1 / 3] * 3, abs=0.03)


def test_sample__at_a_drawn_size_is_that_of_a_set_of_this_size(shapes_root: Path) -> None:
    augment = AugmentSpec(scale=(0.5, 1.5))
    large, small = (
        CocoConcepts(shapes_root, image_size=side, prompts=PROMPTS, augment=augment, cache="ram") for side in (48, 32)
    )
    for place in range(len(small)):
        for _ in range(2):  # read, and kept
            found, expected = large[View(place, 32)], small[place]
            assert torch.equal(found.image, expected.image)
            assert torch.equal(found.boxes, expected.boxes)
            assert found.masks is not None
            assert expected.masks is not None
            assert torch.equal(found.masks, expected.masks)
            assert found.teacher_image is None


@pytest.mark.parametrize("teacher", [48, 16])
def test_sample__a_teacher_sees_the_same_picture(shapes_root: Path, teacher: int) -> None:
    """Without a crop both come from the file; with one the smaller is made of the larger."""
    plain = AugmentSpec(flip=0.5, photometric=1.0)
    data = CocoConcepts(shapes_root, image_size=32, prompts=PROMPTS, augment=plain)
    other = CocoConcepts(shapes_root, image_size=teacher, prompts=PROMPTS, augment=plain)
    for place in range(len(data)):
        both, alone = data[View(place, 32, teacher)], data[place]
        assert both.teacher_image is not None
        assert torch.equal(both.image, alone.image)
        assert torch.equal(both.teacher_image, other[place].image)
    cropped = CocoConcepts(shapes_root, image_size=32, prompts=PROMPTS, augment=AugmentSpec(scale=(0.5, 1.5)))
    for place in range(len(cropped)):
        sample = cropped[View(place, 32, teacher)]
        assert sample.teacher_image is not None
        small, large = sorted((sample.image, sample.teacher_image), key=lambda image: image.shape[-1])
        shrunk = v2.functional.resize(large, list(small.shape[-2:]), antialias=True)
        assert float((shrunk - small).abs().mean()) < 0.01
        assert sample.masks is not None
        assert sample.masks.shape[-2:] == sample.image.shape[-2:]
        assert len(sample.boxes) == len(sample.masks) == len(sample.prompt_index)


def test_batch__carries_the_teachers_pictures(shapes_root: Path) -> None:
    data = module(shapes_root)
    data.show_teacher(48)
    for batch in data.train_dataloader():
        side = batch.pixel_values.shape[-1]
        assert "teacher_pixels" not in batch.inputs()
        if side == 48:  # it sees what the student sees
            assert batch.teacher_pixels is None
            continue
        assert batch.teacher_pixels is not None
        assert batch.teacher_pixels.shape == (2, 3, 48, 48)
        moved = batch.to("meta").teacher_pixels
        assert moved is not None
        assert moved.device.type == "meta"
        assert len(batch.part(slice(0, 1)).pixel_values) == 2


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([32, 30], r"data\.image_sizes=\[32, 30\]: 30 is not a multiple of model\.vit\.patch_size=8; use 24 or 32"),
        ([32, 8], r"data\.image_sizes=\[32, 8\]: 8 gives one patch of 8; use 16 or more"),
        ([32, 0], r"data\.image_sizes=\[32, 0\]: 0 must be at least 1"),
        ([32, 24, 32], r"names a size twice"),
        ([24, 16], r"leaves out model\.vit\.image_size=32.*use data\.image_sizes=\[32, 24, 16\], or .*image_size=24"),
        ([], r"data\.image_sizes=\[\] names no size; use data\.image_sizes=null, or \[32\]"),
    ],
)
def test_sizes__that_cannot_be(sizes: list[int], message: str) -> None:
    model = ModelSpec(vit=VitSpec(embed_dim=16, depth=1, num_heads=1, patch_size=8, image_size=32, window_size=2))
    with pytest.raises(UserError, match=message):
        DataSpec(kind="coco", root="x", image_sizes=tuple(sizes)).sizes_of(model)
    assert DataSpec(kind="coco", root="x", image_sizes=(24, 32)).sizes_of(model) == (32, 24)
    assert DataSpec(kind="coco", root="x").sizes_of(model) == (32,)
