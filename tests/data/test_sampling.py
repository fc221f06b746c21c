"""Which phrases an image is asked for."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from sam3slim.data.annotations import Category
from sam3slim.data.sampling import PromptSampler, PromptSpec
from sam3slim.errors import UserError

NAMES = ("red circle", "blue circle", "red square", "green star", "cup", "mug")
CATEGORIES = [Category(number, name) for number, name in enumerate(NAMES)]


def ask(spec: PromptSpec, present: set[int], unclear: set[int] = frozenset(), seed: int = 0) -> list[int]:  # type: ignore[assignment]
    return PromptSampler(CATEGORIES, spec)(present, unclear, np.random.default_rng(seed))


def test_sampler__protocols() -> None:
    assert ask(PromptSpec("all"), {1}) == [0, 1, 2, 3, 4, 5]
    assert ask(PromptSpec("present"), {3, 1}) == [1, 3]
    assert ask(PromptSpec("present"), set()) == []
    for protocol, count in (("present+k", 2), ("present+4", 4)):
        chosen = ask(PromptSpec(protocol, negatives=2), {3, 1})
        assert chosen[:2] == [1, 3]
        assert len(chosen) == len(set(chosen)) == 2 + count


def test_sampler__same_generator_same_prompts() -> None:
    spec = PromptSpec(negatives=2)
    assert ask(spec, {0}, seed=3) == ask(spec, {0}, seed=3)
    assert len({tuple(ask(spec, {0}, seed=seed)) for seed in range(20)}) > 3


def test_sampler__unclear_categories_are_never_asked_in_training() -> None:
    for seed in range(20):
        assert not {1, 2} & set(ask(PromptSpec(negatives=9), {0}, {1, 2}, seed))


def test_sampler__same_phrase_as_a_present_one_is_no_negative() -> None:
    sampler = PromptSampler([Category(1, "cup"), Category(2, "cup"), Category(3, "mug")], PromptSpec(negatives=5))
    assert sampler({1}, set(), np.random.default_rng(0)) == [1, 3]


def test_sampler__hard_negatives_share_a_word() -> None:
    spec = PromptSpec(negatives=2, hard_negatives=1.0)
    assert all(set(ask(spec, {0}, seed=seed)[1:]) == {1, 2} for seed in range(10))
    counts = Counter(
        negative
        for seed in range(200)
        for negative in ask(PromptSpec(negatives=1, hard_negatives=0), {0}, seed=seed)[1:]
    )
    assert set(counts) == {1, 2, 3, 4, 5}


def test_sampler__hard_negatives_share_a_supercategory() -> None:
    categories = [Category(1, "cup", "kitchen"), Category(2, "fork", "kitchen"), Category(3, "dog", "animal")]
    sampler = PromptSampler(categories, PromptSpec(negatives=1, hard_negatives=1.0))
    assert {sampler({1}, set(), np.random.default_rng(seed))[1] for seed in range(20)} == {2}


def test_sampler__too_few_hard_ones_are_filled_up() -> None:
    assert sorted(ask(PromptSpec(negatives=5, hard_negatives=1.0), {0})) == [0, 1, 2, 3, 4, 5]


def test_sampler__max_prompts_keeps_the_negatives_places() -> None:
    chosen = ask(PromptSpec(negatives=2, max_prompts=4), {0, 1, 2, 3})
    assert len(set(chosen) & {0, 1, 2, 3}) == 2
    assert len(set(chosen) & {4, 5}) == 2
    chosen = ask(PromptSpec(negatives=5, max_prompts=2), {0, 1})
    assert len(set(chosen) & {0, 1}) == 1
    assert len(chosen) == 2


def test_sampler__image_without_objects_gets_a_negative() -> None:
    assert len(ask(PromptSpec(negatives=0), set())) == 1
    assert len(ask(PromptSpec(negatives=3), set())) == 3


@pytest.mark.parametrize("bad", [{"protocol": "some"}, {"hard_negatives": 1.5}, {"negatives": -1}, {"max_prompts": 0}])
def test_spec__bad_value_names_its_key(bad: dict[str, object]) -> None:
    key = next(iter(bad))
    with pytest.raises(UserError, match=rf"data\.{key}="):
        PromptSpec(**bad)  # type: ignore[arg-type]


def test_sampler__without_labels_any_category_is_asked_for() -> None:
    spec = PromptSpec(max_prompts=3, labels=False)
    assert all(len(set(ask(spec, {0}, {1}, seed))) == 3 for seed in range(9))
    assert {category for seed in range(20) for category in ask(spec, {0}, {1}, seed)} == set(range(6))
    assert len(ask(PromptSpec("all", labels=False), {0})) == 6  # evaluation looks at annotations all the same


@pytest.mark.parametrize("labels", [True, False])
def test_pool__every_epoch_asks_within_it(labels: bool) -> None:
    sampler = PromptSampler(CATEGORIES, PromptSpec(negatives=2, max_prompts=3, pool=4, labels=labels))
    pool = sampler.pool({0, 1}, {2}, np.random.default_rng(5))
    assert len(pool) == 4
    if labels:
        assert pool[:2] == [0, 1]
        assert 2 not in pool
    asked = [sampler({0, 1} if labels else (), {2}, np.random.default_rng(seed), pool) for seed in range(30)]
    assert {category for prompts in asked for category in prompts} == set(pool)


def test_pool__more_places_than_categories_and_more_present_than_places() -> None:
    assert PromptSampler(CATEGORIES, PromptSpec(pool=9)).pool({3}, {1}, np.random.default_rng(0)) == [0, 1, 2, 3, 4, 5]
    assert PromptSampler(CATEGORIES, PromptSpec(pool=2)).pool({5, 3, 4}, set(), np.random.default_rng(0)) == [3, 4]
