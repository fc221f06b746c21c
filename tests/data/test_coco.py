"""One data set class for every COCO variant: prompts, targets, ground truth, bad input."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as mask_utils
from torch import Tensor

from sam3slim.data.coco import CocoConcepts
from sam3slim.data.sampling import PromptSpec
from sam3slim.data.transforms import AugmentSpec
from sam3slim.errors import UserError

from .samples import CocoWriter, crowd, square

TRAIN = PromptSpec(negatives=1)


def open_set(root: Path, prompts: PromptSpec | str = TRAIN, **kwargs: Any) -> CocoConcepts:
    return CocoConcepts(root, "train", image_size=20, prompts=prompts, **kwargs)


def box_of(mask: Tensor) -> list[float]:
    """(cx, cy, w, h) in 0..1 of a [S, S] mask."""
    rows, columns = mask.nonzero(as_tuple=True)
    left, right = columns.min().item(), columns.max().item() + 1
    top, low = rows.min().item(), rows.max().item() + 1
    return [value / mask.shape[0] for value in ((left + right) / 2, (top + low) / 2, right - left, low - top)]


def test_sample__targets_are_grouped_by_prompt(write_coco: CocoWriter) -> None:
    blue = square(20, 10) | {"category_id": 2}
    sample = open_set(write_coco([square(0, 0), blue, square(10, 20)]))[0]
    assert sample.phrases == ["red circle", "blue circle", "cup"]
    assert sample.category_ids == [1, 2, 3]
    assert sample.prompt_index.tolist() == [0, 0, 1]
    # 40x30 pixels are squashed to 20x20.
    expected = [
        [5 / 40, 5 / 30, 10 / 40, 10 / 30],
        [15 / 40, 25 / 30, 10 / 40, 10 / 30],
        [25 / 40, 15 / 30, 10 / 40, 10 / 30],
    ]
    assert torch.allclose(sample.boxes, torch.tensor(expected))
    assert sample.masks is not None
    assert sample.masks.dtype == torch.bool
    for mask, box in zip(sample.masks, sample.boxes, strict=True):
        assert box_of(mask) == pytest.approx(box.tolist(), abs=1 / 20)


def test_sample__image_is_squashed_and_normalised(write_coco: CocoWriter) -> None:
    sample = open_set(write_coco([square(0, 0)]))[0]
    assert sample.image.shape == (3, 20, 20)
    assert torch.allclose(sample.image, torch.full((3, 20, 20), 10 / 127.5 - 1), atol=1e-6)


def test_sample__crowd_only_category_is_neither_present_nor_absent(write_coco: CocoWriter) -> None:
    root = write_coco([square(0, 0), crowd(20, 10) | {"category_id": 2}])
    data = open_set(root, PromptSpec(negatives=5))
    assert data[0].category_ids == [1, 3]
    assert data.report.crowd_regions == 1
    assert len(open_set(root, "all")[0].boxes) == 1


def test_sample__crowd_beside_instances_is_no_target(write_coco: CocoWriter) -> None:
    sample = open_set(write_coco([square(0, 0), crowd(20, 10)]))[0]
    assert len(sample.boxes) == 1


def test_sample__min_area_counts_in_training_only(write_coco: CocoWriter) -> None:
    root = write_coco([square(0, 0), square(20, 10, 3) | {"category_id": 2}])
    assert open_set(root, PromptSpec(negatives=5, min_area=50))[0].category_ids == [1, 3]
    assert len(open_set(root, PromptSpec("all", min_area=50))[0].boxes) == 2


def test_sample__image_without_annotations(write_coco: CocoWriter) -> None:
    root = write_coco([], [square(0, 0)])
    empty = open_set(root)[0]
    assert (len(empty.phrases), len(empty.boxes)) == (1, 0)
    assert empty.masks is not None
    assert empty.masks.shape == (0, 20, 20)
    whole = open_set(root, "all")[0]
    assert (len(whole.phrases), len(whole.boxes)) == (3, 0)
    assert whole.info.ground_truth is not None
    assert whole.info.ground_truth.boxes.shape == (0, 4)
    assert len(open_set(root, "present")) == 1
    assert len(open_set(root, PromptSpec(negatives=0))) == 1


def test_sample__ground_truth_is_in_original_pixels_with_crowds(write_coco: CocoWriter) -> None:
    info = open_set(write_coco([square(0, 5), crowd(20, 10) | {"category_id": 2}]), "all")[0].info
    truth = info.ground_truth
    assert truth is not None
    assert (info.image_id, info.file_name, info.height, info.width) == (1, "1.png", 30, 40)
    assert truth.boxes.tolist() == [[0, 5, 10, 15], [20, 10, 30, 20]]
    assert (truth.labels.tolist(), truth.iscrowd.tolist()) == ([1, 2], [0, 1])
    assert truth.area.tolist() == [100, 100]
    assert truth.rles is not None
    masks = mask_utils.decode(truth.rles)
    assert masks.shape == (30, 40, 2)
    assert np.argwhere(masks[..., 1]).min(axis=0).tolist() == [10, 20]
    assert masks.sum(axis=(0, 1)).tolist() == [100, 100]


def test_sample__training_carries_no_ground_truth(write_coco: CocoWriter) -> None:
    assert open_set(write_coco([square(0, 0)]))[0].info.ground_truth is None


def test_boxes_only__no_masks_and_one_note(write_coco: CocoWriter, caplog: pytest.LogCaptureFixture) -> None:
    root = write_coco([{"bbox": [0, 0, 10, 10]}], [{"bbox": [4, 0, 10, 10]}])
    with caplog.at_level(logging.INFO):
        data = open_set(root, augment=AugmentSpec(flip=1.0, scale=(1.5, 1.5)))
        samples = [data[0], data[1]]
    assert all(sample.masks is None for sample in samples)
    assert [record.message for record in caplog.records if "mask loss is off" in record.message]
    truth = open_set(root, "all")[0].info.ground_truth
    assert truth is not None
    assert truth.rles is None


def test_epochs__negatives_are_reproducible_and_change(shapes_root: Path) -> None:
    def prompts(epoch: int, seed: int = 0) -> list[list[str]]:
        data = CocoConcepts(shapes_root, image_size=48, prompts=PromptSpec(negatives=3), seed=seed)
        data.set_epoch(epoch)
        return [data[index].phrases for index in range(len(data))]

    assert prompts(1) == prompts(1)
    assert prompts(1) != prompts(2)
    assert prompts(1) != prompts(1, seed=5)


def test_epochs__evaluation_prompts_stay(shapes_root: Path) -> None:
    data = CocoConcepts(shapes_root, "val", image_size=48, prompts="present+2")
    before = data[0].phrases
    data.set_epoch(3)
    assert data[0].phrases == before


def test_augmented_sample__depends_on_epoch_and_index_only(shapes_root: Path) -> None:
    def image(epoch: int, reads_before: int) -> Tensor:
        data = CocoConcepts(
            shapes_root, image_size=48, prompts=TRAIN, augment=AugmentSpec(scale=(0.5, 1.5), photometric=1.0)
        )
        data.set_epoch(epoch)
        for index in range(reads_before):
            data[index]
        return data[5].image

    torch.manual_seed(1)
    state = torch.get_rng_state()
    assert torch.equal(image(2, 0), image(2, 3))
    assert not torch.equal(image(2, 0), image(3, 0))
    assert torch.equal(torch.get_rng_state(), state)


def test_flip__left_and_right_in_a_phrase_prevent_it(write_coco: CocoWriter) -> None:
    for name, flipped in (("left shoe", False), ("leftover", True)):
        data = open_set(write_coco([square(0, 0)], names=(name,)), augment=AugmentSpec(flip=1.0))
        assert (data[0].boxes[0, 0].item() > 0.5) is flipped


def test_cache__gives_the_same_samples(shapes_root: Path) -> None:
    plain = CocoConcepts(shapes_root, image_size=32, prompts=TRAIN)
    cached = CocoConcepts(shapes_root, image_size=32, prompts=TRAIN, cache="ram")
    for _ in range(2):
        first, second = plain[3], cached[3]
        assert torch.equal(first.image, second.image)
        assert first.masks is not None
        assert second.masks is not None
        assert torch.equal(first.masks, second.masks)
    (shapes_root / "train/000003.png").rename(shapes_root / "train/away.png")
    try:
        assert torch.equal(cached[3].image, second.image)
    finally:
        (shapes_root / "train/away.png").rename(shapes_root / "train/000003.png")


def test_limit__keeps_the_first_images(shapes_root: Path) -> None:
    assert len(CocoConcepts(shapes_root, image_size=48, limit=5)) == 5


def test_shapes__mask_of_each_prompt_lies_in_its_box(shapes_root: Path) -> None:
    data = CocoConcepts(shapes_root, "val", image_size=48)
    assert data.report.problems == {}
    for index in range(len(data)):
        sample = data[index]
        assert sample.masks is not None
        for mask, box in zip(sample.masks, sample.boxes, strict=True):
            assert box_of(mask) == pytest.approx(box.tolist())


def test_exif__annotations_in_the_shown_frame(write_coco: CocoWriter) -> None:
    root = write_coco([square(0, 0)])
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.zeros((40, 30, 3), dtype=np.uint8)
    # Stored upright 30x40, shown 40x30: the stored low-left corner becomes the top-left one.
    pixels[30:, :10] = 255
    Image.fromarray(pixels).save(root / "images/1.png", exif=exif)
    sample = open_set(root)[0]
    assert sample.masks is not None
    assert sample.image[0][sample.masks[0]].mean() > 0.5
    assert sample.image[0][~sample.masks[0]].mean() < -0.9


def test_missing_image__fails_or_is_skipped(write_coco: CocoWriter) -> None:
    root = write_coco([square(0, 0)], [square(0, 0)], [square(0, 0)])
    (root / "images/2.png").unlink()
    with pytest.raises(UserError, match=r"1 of 3 images .* first is 2\.png"):
        open_set(root)
    data = open_set(root, on_unreadable="skip")
    assert len(data) == 2
    assert data.report.problems == {"images_missing": 1}


@pytest.mark.parametrize("prompts", [TRAIN, PromptSpec("all")])
def test_broken_image__fail_names_it(write_coco: CocoWriter, prompts: PromptSpec) -> None:
    root = write_coco([square(0, 0)], [square(0, 0)])
    (root / "images/2.png").write_text("broken")
    data = open_set(root, prompts)
    with pytest.raises(UserError, match=r"2\.png cannot be decoded.*on_unreadable=skip") as caught:
        data[1]
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"2\.png"):
        data.verify()


def test_broken_image__skip_takes_another_in_training(write_coco: CocoWriter, caplog: pytest.LogCaptureFixture) -> None:
    root = write_coco([square(0, 0)], [square(0, 0)])
    (root / "images/2.png").write_text("broken")
    data = open_set(root, on_unreadable="skip")
    assert [data[1].info.image_id, data[1].info.image_id] == [1, 1]
    assert data.report.problems == {"images_unreadable": 1}
    assert len([record for record in caplog.records if "2.png" in record.message]) == 1


def test_broken_image__skip_leaves_it_out_of_evaluation(write_coco: CocoWriter) -> None:
    root = write_coco([square(0, 0)], [square(0, 0)])
    (root / "images/1.png").write_text("broken")
    data = open_set(root, "all", on_unreadable="skip")
    assert [data[index].info.image_id for index in range(len(data))] == [2]
    assert data.report.problems == {"images_unreadable": 1}


def test_broken_image__none_left(write_coco: CocoWriter) -> None:
    root = write_coco([square(0, 0)])
    (root / "images/1.png").write_text("broken")
    with pytest.raises(UserError, match="can be read"):
        open_set(root, on_unreadable="skip")[0]
    with pytest.raises(UserError, match="no usable target"):
        open_set(root, "all", on_unreadable="skip")


@pytest.mark.parametrize(
    "items", [[], [crowd(0, 0)], [square(50, 50)], [square(0, 0) | {"segmentation": [[0, 0, 1, 1]]}]]
)
def test_no_usable_target__stops(write_coco: CocoWriter, items: list[dict[str, Any]]) -> None:
    with pytest.raises(UserError, match="no usable target"):
        open_set(write_coco(items))


def test_repairs__are_one_summary_line(write_coco: CocoWriter, caplog: pytest.LogCaptureFixture) -> None:
    root = write_coco([square(0, 0), {"bbox": [50, 5, 10, 10], "segmentation": []}, square(35, 5)])
    open_set(root)
    lines = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(lines) == 1
    assert "changed: 1 boxes reach over the picture's edge" in lines[0]
    assert "dropped: 1 annotations have neither a usable mask nor a usable box" in lines[0]


@pytest.mark.parametrize("choice", ["on_unreadable", "cache"])
def test_choices__unknown_option(write_coco: CocoWriter, choice: str) -> None:
    with pytest.raises(UserError, match=rf"data\.{choice}=maybe: expected one of"):
        open_set(write_coco([square(0, 0)]), **{choice: "maybe"})


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_coco128__opens_as_it_stands(shared_dir: Path, split: str) -> None:
    data = CocoConcepts(shared_dir / "data/coco128", split, image_size=56)
    assert (len(data), len(data.categories), data.has_masks) == (128, 80, True)
    assert data.report.annotations == 900
    assert data.report.crowd_regions == 13
    assert data.report.problems == {}


def test_coco128__every_image_trains_and_masks_fit_boxes(shared_dir: Path) -> None:
    spec = replace(TRAIN, max_prompts=20)
    data = CocoConcepts(
        shared_dir / "data/coco128", image_size=112, prompts=spec, augment=AugmentSpec(scale=(0.5, 1.5))
    )
    plain = CocoConcepts(shared_dir / "data/coco128", image_size=112, prompts=spec)
    for index in range(0, 128, 4):
        sample = data[index]
        assert sample.image.shape == (3, 112, 112)
        assert sample.masks is not None
        assert len(sample.masks) == len(sample.boxes) == len(sample.prompt_index)
        assert bool(((sample.boxes >= 0) & (sample.boxes <= 1)).all())
        whole = plain[index]
        assert whole.masks is not None
        for mask, box in zip(whole.masks, whole.boxes, strict=True):
            if mask.sum() > 50:
                assert box_of(mask) == pytest.approx(box.tolist(), abs=0.03)
