"""Several data sets in one training: what an epoch holds, whose negatives are asked, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from sam3slim.data.boxes import BoxSpec
from sam3slim.data.mixture import MixedData
from sam3slim.data.spec import DataSpec
from sam3slim.errors import UserError
from sam3slim.specs import ModelSpec, TextSpec, VitSpec
from sam3slim.strict import spec_from_dict

from .samples import CocoWriter, square

MODEL = ModelSpec(
    vit=VitSpec(embed_dim=16, depth=1, num_heads=1, patch_size=8, image_size=32, window_size=2),
    text=TextSpec(vocab_size=1024, context_length=16),
)


@pytest.fixture
def roots(write_coco: CocoWriter, tmp_path: Path) -> dict[str, Path]:
    """Two sets of equal image and category ids: six pictures of circles and cups, three of cups and dogs."""
    write_coco(*[[square(2, 2), square(20, 5) | {"category_id": 3}]] * 6)
    circles = (tmp_path / "set").rename(tmp_path / "circles")
    write_coco(*[[square(2, 2)]] * 3, names=("cup", "black dog"))
    dogs = (tmp_path / "set").rename(tmp_path / "dogs")
    for root in (circles, dogs):
        shutil.copy(root / "instances_train.json", root / "instances_val.json")
    return {"circles": circles, "dogs": dogs}


def spec(sets: dict[str, Any], **values: Any) -> DataSpec:
    given = {"kind": "coco", "sets": sets, "batch_size": 3, "augment": {"flip": 1.0}}
    return spec_from_dict(DataSpec, given | values, "data")


def both(roots: dict[str, Path], **changes: dict[str, Any]) -> dict[str, Any]:
    return {name: {"root": str(root), **changes.get(name, {})} for name, root in roots.items()}


def test_epoch__weights_and_own_negatives(roots: dict[str, Path]) -> None:
    data = spec(both(roots, dogs={"weight": 2.0}), negatives=3).build(MODEL)
    loader = data.loader("train", training=True)
    for _ in range(2):
        infos, phrases = [], {}
        for batch in loader:
            infos += batch.images
            for prompt, image in enumerate(batch.image_index.tolist()):
                phrases.setdefault(batch.images[image].data_set, set()).add(batch.phrases[prompt])
        assert Counter(info.data_set for info in infos) == {"circles": 6, "dogs": 6}
        assert Counter(info.image_id for info in infos if info.data_set == "dogs") == {1: 2, 2: 2, 3: 2}
        # The same phrase may be in both, but nobody asks a picture for what another set annotates.
        assert phrases == {"circles": {"red circle", "blue circle", "cup"}, "dogs": {"cup", "black dog"}}


def test_epoch__a_small_weight_shows_every_image_equally_often(roots: dict[str, Path]) -> None:
    data = spec(both(roots, circles={"weight": 0.4})).build(MODEL)
    dataset = data.training_set()
    assert len(dataset) == 2 + 3
    seen: Counter[int] = Counter()
    for epoch in range(6):
        dataset.set_epoch(epoch)
        seen.update(dataset[index].info.image_id for index in range(2))
    assert seen == dict.fromkeys(range(1, 7), 2)


def test_epoch__an_image_dealt_twice_is_asked_and_drawn_anew(roots: dict[str, Path]) -> None:
    boxes = BoxSpec(share=1.0, negative=0.0, max_boxes=1)
    data = spec({"dogs": {"root": str(roots["dogs"]), "weight": 2.0}}, boxes=boxes, augment={"flip": 0.5}).build(MODEL)
    samples = [data.training_set()[index] for index in range(6)]
    by_image: dict[int, list[Any]] = {}
    for sample in samples:
        by_image.setdefault(sample.info.image_id, []).append((sample.info.mirrored, sample.box_prompts))
    assert all(first != second for first, second in by_image.values())


def test_mirror__is_the_sets_own(roots: dict[str, Path]) -> None:
    dataset = spec(both(roots, dogs={"mirror": False})).build(MODEL).training_set()
    mirrored = {(s.info.data_set, s.info.mirrored) for s in (dataset[index] for index in range(len(dataset)))}
    assert mirrored == {("circles", True), ("dogs", False)}


def test_sets__evaluated_one_at_a_time(roots: dict[str, Path]) -> None:
    mixed = spec(both(roots), set="dogs", validate=["circles"])
    data = mixed.build(MODEL)
    assert isinstance(data, MixedData)
    assert [category.phrase for category in data.dataset("val").categories] == ["cup", "black dog"]
    assert [loader.dataset.name for loader in data.val_dataloader()] == ["circles"]  # type: ignore[attr-defined]
    alone = mixed.measured()
    assert (alone.root, alone.set, alone.sets) == (str(roots["dogs"]), "dogs", None)
    assert spec(both(roots)).measured_set == "circles"


def test_sets__left_out_without_a_root(roots: dict[str, Path]) -> None:
    data = spec({**both(roots), "more": {"root": None}}).build(MODEL)
    assert list(data.parts) == ["circles", "dogs"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sets": {"a": {"root": "x", "weight": 0}}}, "data.sets.a.weight=0 must be above 0.*data.sets.a.root=null"),
        ({"sets": {"a": {"root": "x", "weight": -1}}}, "data.sets.a.weight=-1 must be above 0"),
        ({"sets": {"a": {"root": "x", "wieght": 1}}}, "data.sets.a.wieght; did you mean data.sets.a.weight"),
        ({"sets": {}}, "data.sets has no data set with a root"),
        ({"sets": {"a": {}}}, "data.sets has no data set with a root"),
        ({"sets": {"a": {"root": "x"}}, "set": "b"}, "data.set: b is none of data.sets; choose from a"),
        ({"sets": {"a": {"root": "x"}, "b": {}}, "validate": ["b"]}, "data.validate: b is left out"),
        ({"sets": {"a": {"root": "x"}}, "validate": []}, "trainer.limit_val_batches=0"),
        ({"sets": {"a": {"root": "x"}}, "root": "x"}, "data.root=x is for one data set.*data.sets.NAME.root"),
        ({"sets": {"a": {"root": "x"}}, "phrases": "x"}, "data.phrases=x is for one data set.*data=coco"),
        ({"sets": None}, "data.root has no value"),
    ],
)
def test_spec__refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        spec(**changes)


def test_training_set__listed_twice(roots: dict[str, Path]) -> None:
    same = {"a": {"root": str(roots["dogs"])}, "b": {"root": str(roots["dogs"] / ".." / "dogs")}}
    with pytest.raises(UserError, match=r"data.sets.a and data.sets.b are one data set .*data.sets.a.weight"):
        spec(same).build(MODEL).training_set()


def test_splits__a_set_without_one_is_named(roots: dict[str, Path]) -> None:
    (roots["circles"] / "instances_val.json").rename(roots["circles"] / "instances_test.json")
    data = spec(both(roots)).build(MODEL)
    with pytest.raises(UserError, match=r"data set circles: .*no file fits the val split.*\+\+data.sets.circles.anno"):
        data.require("val")
    with pytest.raises(UserError, match=r"data set circles.*data.validate=\[NAME\]"):
        data.setup("fit")
    spec(both(roots), validate=["dogs"]).build(MODEL).setup("fit")


def test_training_set__masks_beside_boxes_alone(roots: dict[str, Path]) -> None:
    file = roots["dogs"] / "instances_train.json"
    content = json.loads(file.read_text())
    for annotation in content["annotations"]:
        del annotation["segmentation"]
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"data.sets.dogs has boxes only .*data.sets.dogs.root=null"):
        spec(both(roots)).build(MODEL).training_set()
