from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch

from sam3slim.data.soft import SoftTargets
from sam3slim.distill import DistillSpec, FrozenTeacher, check_teacher, soft_targets
from sam3slim.errors import UserError
from sam3slim.models import Sam3, build_model, init_for_training
from sam3slim.specs import DecoderSpec, TextSpec
from sam3slim.text.vocabulary import trim
from tests.distill.lessons import EVERYTHING, phrase_batch
from tests.tiny import SPEC, tiny_model

FEATURES = DistillSpec("x", fpn=1.0, memory=1.0)


def test_frozen_teacher__itself_as_student_costs_nothing() -> None:
    teacher, student, batch = tiny_model(), tiny_model(), phrase_batch()
    distill = FrozenTeacher(teacher, FEATURES, student.spec)
    out = student(**batch.inputs())
    losses = distill.losses(batch, out)
    assert set(losses) == {"distill_fpn", "distill_memory"}
    assert all(value.item() < 1e-9 for value in losses.values())
    other = tiny_model(seed=1)
    out = other(**batch.inputs())
    assert all(value.item() > 0.1 for value in distill.losses(batch, out).values())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_frozen_teacher__is_shown_the_boxes_of_the_batch() -> None:
    """One box and a padded slot; the last prompt has none."""
    boxes = torch.tensor([[[0.4, 0.4, 0.3, 0.3], [0.0, 0.0, 0.0, 0.0]], [[0.6, 0.5, 0.2, 0.2], [0.3, 0.3, 0.2, 0.2]]])
    boxes = torch.cat([boxes, torch.zeros(1, 2, 4)])
    labels = torch.tensor([[1, -10], [0, 1], [-10, -10]])
    plain = phrase_batch()
    batch = replace(plain, input_boxes=boxes, input_boxes_labels=labels)
    teacher = FrozenTeacher(tiny_model(), EVERYTHING, SPEC)
    out = tiny_model()(**batch.inputs())
    assert teacher.losses(batch, out)["distill_memory"].item() < 1e-9
    torch.testing.assert_close(teacher.targets(batch).presence, out.presence_logits[:, 0].sigmoid())
    told, untold = teacher.targets(batch).presence, teacher.targets(plain).presence
    assert ((told - untold).abs() > 1e-6).tolist() == [True, True, False]
    # In parts as in one go.
    images, phrases = batch.pixel_values, batch.phrases
    parts = teacher.predictions(
        images, phrases, batch.image_index, chunk=1, input_boxes=boxes, input_boxes_labels=labels
    )
    torch.testing.assert_close(parts.presence, told)


def test_losses__all_of_them_weighted() -> None:
    student, batch = tiny_model(seed=1), phrase_batch()
    out = student(**batch.inputs())
    once = FrozenTeacher(tiny_model(), EVERYTHING, SPEC).losses(batch, out)
    assert set(once) == {f"distill_{name}" for name in (
        "fpn", "memory", "presence", "scores", "bbox", "giou", "mask", "dice", "semantic"
    )}  # fmt: skip
    assert all(value.item() > 0 and value.requires_grad for value in once.values())
    twice = FrozenTeacher(tiny_model(), replace(EVERYTHING, bbox=2.0, giou=0.0), SPEC).losses(batch, out)
    assert "distill_giou" not in twice
    torch.testing.assert_close(twice["distill_bbox"], 2 * once["distill_bbox"])


def test_losses__teaching_alone_brings_the_student_near() -> None:
    """Steps on the distillation losses alone bring the answers, not only the losses, to the teacher's."""
    teacher, student, batch = tiny_model(seed=3), tiny_model(seed=1), phrase_batch()
    distill = FrozenTeacher(teacher, EVERYTHING, SPEC)
    with torch.no_grad():
        wanted = teacher(**batch.inputs())

    def distances() -> dict[str, float]:
        with torch.no_grad():
            out = student(**batch.inputs())
        return {
            "presence": float((out.presence_logits.sigmoid() - wanted.presence_logits.sigmoid()).abs().mean()),
            "semantic": float((out.semantic_seg.sigmoid() - wanted.semantic_seg.sigmoid()).abs().mean()),
            "memory": float((out.encoder_hidden_states - wanted.encoder_hidden_states).square().mean()),
        }

    before = distances()
    optimizer = torch.optim.AdamW(student.parameters(), lr=2e-3)
    losses = []
    for _ in range(40):
        total = torch.stack(list(distill.losses(batch, student(**batch.inputs())).values())).sum()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        losses.append(float(total.detach()))
    assert losses[-1] < 0.6 * losses[0]
    after = distances()
    assert all(after[name] < 0.8 * before[name] for name in before), (before, after)


def test_targets__a_teacher_of_other_words_queries_and_depth() -> None:
    """The teacher reads phrases with its own vocabulary and context; the maps fit all the same."""
    spec = replace(
        SPEC,
        text=TextSpec(width=32, layers=1, num_heads=2, context_length=12, vocab_size=700, projection_dim=32),
        decoder=DecoderSpec(1, num_queries=9),
        vit=replace(SPEC.vit, depth=4, num_global_blocks=2),
    )
    teacher = init_for_training(build_model(spec), 0)
    student, batch = tiny_model(seed=1), replace(phrase_batch(), phrases=["a red circle", "b", "a red circle"])
    losses = FrozenTeacher(teacher, EVERYTHING, SPEC).losses(batch, student(**batch.inputs()))
    assert all(bool(torch.isfinite(value)) for value in losses.values())


def test_targets__each_phrase_passes_the_text_tower_once(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, batch = tiny_model(), phrase_batch()
    seen: list[int] = []
    real = teacher.get_text_features

    def counted(input_ids: Any, *more: Any, **options: Any) -> Any:
        seen.append(len(input_ids))
        return real(input_ids, *more, **options)

    monkeypatch.setattr(teacher, "get_text_features", counted)
    monkeypatch.setattr("sam3slim.distill.phrases.KEPT", 2)
    distill = FrozenTeacher(teacher, EVERYTHING, SPEC)
    first, again = distill.targets(batch), distill.targets(batch)
    assert torch.equal(first.presence, again.presence)
    direct = soft_targets(tiny_model()(**batch.inputs()), EVERYTHING)
    torch.testing.assert_close(first.presence, direct.presence)
    assert seen == [2]
    distill.targets(replace(batch, phrases=["a", "c", "d"]))  # more than fit: starts anew
    assert seen == [2, 3]


def test_targets__a_phrase_the_teacher_cannot_read() -> None:
    teacher = init_for_training(build_model(replace(SPEC, text=trim(["red circle"], SPEC.text))), 0)
    batch = replace(phrase_batch(), phrases=["red circle", "other", "red circle"])
    with pytest.raises(UserError, match=r"^distill\.teacher: phrase 'other'.* trimmed to \d+ tokens"):
        FrozenTeacher(teacher, EVERYTHING, SPEC).targets(batch)


def test_soft_targets__only_what_is_sure_of_itself() -> None:
    batch = phrase_batch()
    output = tiny_model()(**batch.inputs())
    scores = output.pred_logits.sigmoid() * output.presence_logits.sigmoid()
    threshold = float(scores.median())
    soft = soft_targets(output, replace(EVERYTHING, min_score=threshold))
    assert len(soft.scores) == int((scores >= threshold).sum())
    assert bool((soft.weight >= threshold - 1e-6).all())
    assert soft.prompt_index.tolist() == sorted(soft.prompt_index.tolist())
    assert soft.masks is not None
    assert soft.masks.shape == (len(soft.scores), 16, 16)
    nothing = soft_targets(output, replace(EVERYTHING, min_score=0.999))
    assert len(nothing.boxes) == 0
    torch.testing.assert_close(nothing.rest, output.pred_logits.sigmoid().mean(1))


def test_losses__a_teacher_that_finds_nothing() -> None:
    student, batch = tiny_model(seed=1), phrase_batch()
    spec = replace(EVERYTHING, min_score=0.999)
    losses = FrozenTeacher(tiny_model(), spec, SPEC).losses(batch, student(**batch.inputs()))
    assert losses["distill_bbox"] == losses["distill_mask"] == 0
    assert losses["distill_scores"] > 0
    torch.stack(list(losses.values())).sum().backward()


def test_check_teacher__cannot_be_compared() -> None:
    with pytest.raises(UserError, match=r"distill\.teacher has model\.d_model=64, the student 32; they must be equal"):
        check_teacher(replace(SPEC, d_model=64), SPEC)


def at_size(model: Sam3, side: int, patch: int = 8) -> Sam3:
    spec = replace(model.spec, vit=replace(model.spec.vit, image_size=side, patch_size=patch))
    return init_for_training(build_model(spec), 3).eval()


def test_targets__of_a_teacher_at_another_size() -> None:
    """It looks at its own picture, and its maps come in the student's size; boxes are relative."""
    batch = replace(phrase_batch(), teacher_pixels=torch.rand(2, 3, 64, 64) * 2 - 1)
    teacher = FrozenTeacher(at_size(tiny_model(), 64), EVERYTHING, SPEC)
    soft = teacher.targets(batch)
    own = teacher.predictions(batch.teacher_pixels, batch.phrases, batch.image_index)
    assert [level.shape[-1] for level in own.fpn] == [32, 16, 8]
    assert [level.shape[-1] for level in soft.fpn] == [16, 8, 4]
    assert soft.memory is not None
    assert own.memory is not None
    assert (own.memory.shape[1], soft.memory.shape[1]) == (64, 16)
    assert soft.masks is not None
    assert soft.masks.shape[-2:] == (16, 16)
    assert torch.equal(soft.boxes, own.boxes)
    torch.testing.assert_close(soft.memory.mean(1), own.memory.mean(1), atol=0.15, rtol=0)
    student = tiny_model(seed=1)
    losses = teacher.losses(batch, student(**batch.inputs()))
    assert all(bool(torch.isfinite(value)) and value > 0 for value in losses.values())
    assert "distill_mask" in losses
    # A student of another size than its teacher's patches suggest: only the grid counts.
    other = FrozenTeacher(at_size(tiny_model(), 32, patch=4), EVERYTHING, SPEC).targets(phrase_batch())
    assert [level.shape[-1] for level in other.fpn] == [16, 8, 4]


def test_resized__what_a_smaller_pixel_covers() -> None:
    """Features and probabilities are means; maps of the right size and no maps at all stay as they are."""
    soft = FrozenTeacher(tiny_model(), EVERYTHING, SPEC).targets(phrase_batch())
    same = soft.resized(4)
    assert all(left is right for left, right in zip(same.fpn, soft.fpn, strict=True))
    assert (same.masks is soft.masks, same.memory is soft.memory) == (True, True)
    half = torch.full((1, 16, 16), -20.0)
    half[:, :, 5:] = 20.0  # the border lies within a pixel of the smaller map
    small = replace(soft, masks=half, semantic=None).resized(2).masks
    assert small is not None
    inside = small.sigmoid()[0, 4]
    assert inside[:2].max() < 0.2
    assert inside[4:].min() > 0.8
    assert 0.2 < float(inside[2]) < 0.8
    none = SoftTargets.nothing(torch.zeros(3))
    assert none.resized(2).masks is None
    empty = replace(soft, masks=torch.zeros(0, 16, 16)).resized(2).masks
    assert empty is not None
    assert empty.shape == (0, 8, 8)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"teacher": None, "fpn": 1.0}, "distill.teacher is missing; give a checkpoint, or distill=none"),
        ({"teacher": None, "labels": False}, "distill.teacher is missing .*nothing else to learn from"),
        ({}, "every distillation weight is 0"),
        ({"fpn": -1.0}, "distill.fpn=-1"),
        ({"scores": -1.0}, "distill.scores=-1"),
        ({"fpn": 1.0, "min_score": 1.0}, "distill.min_score=1.0 must lie between 0 and 1"),
    ],
)
def test_distill_spec__contradictions(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        DistillSpec(**{"teacher": "x", **values})


def test_distill_spec__outputs_that_nothing_teaches() -> None:
    """Features alone, without labels: training from scratch refuses it, a model that has weights keeps them."""
    spec = DistillSpec("x", fpn=1.0, labels=False)
    assert spec.missing_objectives == [
        "distill.presence", "distill.scores", "distill.bbox or distill.giou", "distill.mask or distill.dice",
        "distill.semantic",
    ]  # fmt: skip
    assert replace(spec, labels=True).missing_objectives == []
    assert replace(EVERYTHING, labels=False).missing_objectives == []


def test_targets__no_more_than_what_is_weighted() -> None:
    soft = FrozenTeacher(tiny_model(), DistillSpec("x", fpn=1.0), SPEC).targets(phrase_batch())
    assert soft.memory is None
    assert len(soft.boxes) == 0
    assert [m.shape[-1] for m in soft.fpn] == [16, 8, 4]
    assert not any(m.requires_grad for m in soft.fpn)
    soft = FrozenTeacher(tiny_model(), DistillSpec("x", presence=1.0), SPEC).targets(phrase_batch())
    assert (soft.fpn, soft.masks, soft.semantic, soft.memory) == ((), None, None, None)


def test_frozen_teacher__a_copy_of_the_student_shares_it() -> None:
    teacher = FrozenTeacher(tiny_model(), FEATURES, SPEC)
    assert deepcopy(teacher) is teacher
