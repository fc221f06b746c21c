from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from sam3slim.data.batch import Targets
from sam3slim.errors import UserError
from sam3slim.losses import Counts, Criterion, LossSpec, Summed
from sam3slim.losses.matcher import HungarianMatcher, OneToManyMatcher

from .conftest import Golden, MakeCase, Outputs, Shipped

GOLDEN_NAMES = {
    "loss_ce": "loss_cls",
    "presence_loss": "loss_presence",
    "loss_bbox": "loss_bbox",
    "loss_giou": "loss_giou",
    "loss_mask": "loss_mask",
    "loss_dice": "loss_dice",
    "ce_f1": "ce_f1",
    "presence_dec_acc": "presence_dec_acc",
}


# Class losses as plain means over the queries, the branch one-to-many on every layer.
PLAIN = LossSpec(o2m_matcher_on_aux=True, pad_n_queries=1)


@pytest.mark.parametrize("name", sorted(GOLDEN_NAMES))
def test_criterion__golden_one_to_one(golden: Golden, name: str) -> None:
    found = Criterion(PLAIN)(golden.outputs, golden.targets)
    assert found[GOLDEN_NAMES[name]].item() == pytest.approx(golden.values[f"o2o.{name}"], abs=1e-5)


@pytest.mark.parametrize("name", ["loss_ce", "loss_bbox", "loss_giou", "loss_mask", "loss_dice"])
def test_criterion__golden_one_to_many(golden: Golden, name: str) -> None:
    found = Criterion(PLAIN)(golden.outputs, golden.targets)
    assert found[f"o2m_{GOLDEN_NAMES[name]}"].item() == pytest.approx(golden.values[f"o2m.{name}"], abs=1e-5)


def test_criterion__golden_one_to_many_f1(golden: Golden) -> None:
    criterion = Criterion(matcher=OneToManyMatcher())  # type: ignore[arg-type]
    found = criterion(golden.outputs, golden.targets)
    assert found["ce_f1"].item() == pytest.approx(golden.values["o2m.ce_f1"], abs=1e-5)


def test_criterion__shipped_configuration_equals_the_reference(shipped: Shipped) -> None:
    """Total, every term of the last layer, the sum over layers, and every gradient."""
    found = Criterion()(shipped.outputs, shipped.targets)
    found["loss"].backward()
    assert found["loss"].item() == pytest.approx(shipped.total, rel=1e-5)
    names = {theirs: ours for theirs, ours in GOLDEN_NAMES.items() if ours in found}
    names |= {f"{theirs}_o2m": f"o2m_{ours}" for theirs, ours in names.items() if f"o2m_{ours}" in found}
    names |= {"loss_semantic_seg": "loss_semantic_focal", "loss_semantic_dice": "loss_semantic_dice"}
    assert set(names.values()) == set(found) - {"loss"}
    assert {ours: found[ours].item() for ours in names.values()} == pytest.approx(
        {ours: shipped.terms[theirs] for theirs, ours in names.items()}, rel=1e-5
    )
    assert shipped.gradients.keys() == shipped.outputs.leaves().keys()
    for name, leaf in shipped.outputs.leaves().items():
        assert leaf.grad is not None
        wanted = shipped.gradients[name]
        assert (leaf.grad - wanted).norm() <= 1e-5 * wanted.norm(), name


@pytest.mark.parametrize("layer", [0, 1])
def test_criterion__shipped_terms_of_the_other_layers(shipped: Shipped, layer: int) -> None:
    """Alone, a layer is the last one: the branch is then matched as on the others, one-to-one."""
    if f"loss_ce_aux_{layer}" not in shipped.terms:
        pytest.skip("this case has fewer layers")
    per_layer = ("layer_logits", "layer_boxes", "layer_presence", "o2m_logits", "o2m_boxes")
    cut = {name: getattr(shipped.outputs, name)[layer : layer + 1] for name in per_layer}
    single = replace(shipped.outputs, **cut, pred_masks=None, semantic_seg=None, o2m_masks=None)
    found = Criterion(o2m_matcher=HungarianMatcher())(single, shipped.targets)  # type: ignore[arg-type]
    for theirs, ours in GOLDEN_NAMES.items():
        if ours in found:
            assert found[ours].item() == pytest.approx(shipped.terms[f"{theirs}_aux_{layer}"], rel=1e-5), ours
        if f"o2m_{ours}" in found:
            wanted = shipped.terms[f"{theirs}_aux_{layer}_o2m"]
            assert found[f"o2m_{ours}"].item() == pytest.approx(wanted, rel=1e-5), ours


@pytest.mark.parametrize(("least", "expected"), [(1, 20), (20, 20), (21, 21), (200, 200)])
def test_criterion__class_losses_are_means_over_at_least_so_many_queries(
    make_case: MakeCase, least: int, expected: int
) -> None:
    outputs, targets = make_case([2, 1, 0], queries=20)
    plain, padded = (Criterion(LossSpec(pad_n_queries=n))(outputs, targets) for n in (1, least))
    for name, value in plain.items():
        share = 20 / expected if name.endswith("loss_cls") else 1
        if name != "loss":
            assert padded[name].item() == pytest.approx(share * value.item(), rel=1e-6), name


def test_criterion__golden_branches_have_no_presence_in_o2m(golden: Golden) -> None:
    assert golden.values["o2m.presence_loss"] == 0.0 == golden.values["o2m.presence_dec_acc"]
    assert "o2m_loss_presence" not in Criterion()(golden.outputs, golden.targets)


def test_criterion__total_of_one_layer_is_the_weighted_sum_of_components(make_case: MakeCase) -> None:
    outputs, targets = make_case([2, 0, 1], layers=1)
    found = Criterion()(outputs, targets)
    weights = {"cls": 20, "presence": 20, "bbox": 5, "giou": 2, "mask": 200, "dice": 10}
    weights |= {"semantic_focal": 20, "semantic_dice": 30}
    wanted = sum(value * found[f"loss_{name}"].item() for name, value in weights.items())
    branch = ("cls", "bbox", "giou", "mask", "dice")
    wanted += 2 * sum(weights[name] * found[f"o2m_loss_{name}"].item() for name in branch)
    assert found["loss"].item() == pytest.approx(wanted, rel=1e-5)
    assert len(found) == 1 + 8 + 5 + 2


@pytest.mark.parametrize("on_aux", [True, False])
def test_criterion__layers_add_up(make_case: MakeCase, on_aux: bool) -> None:
    outputs, targets = make_case([2, 0, 3], layers=3)
    spec = LossSpec(o2m_matcher_on_aux=on_aux)
    criterion = Criterion(spec)
    aux = Criterion(spec, o2m_matcher=None if on_aux else HungarianMatcher())  # type: ignore[arg-type]
    total = criterion(outputs, targets)["loss"].item()
    parts = 0.0
    per_layer = ("layer_logits", "layer_boxes", "layer_presence", "o2m_logits", "o2m_boxes")
    for layer in range(3):
        last = layer == 2
        single = replace(outputs, **{name: getattr(outputs, name)[layer : layer + 1] for name in per_layer})
        if not last:
            single = replace(single, pred_masks=None, semantic_seg=None, o2m_masks=None)
        parts += (criterion if last else aux)(single, targets)["loss"].item()
    assert total == pytest.approx(parts, rel=1e-5)


def test_criterion__permuting_queries_changes_nothing(make_case: MakeCase) -> None:
    outputs, targets = make_case([2, 1, 0])
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    assert outputs.pred_masks is not None
    assert outputs.o2m_masks is not None
    assert outputs.o2m_logits is not None
    assert outputs.o2m_boxes is not None
    moved = replace(
        outputs,
        layer_logits=outputs.layer_logits[:, :, order],
        layer_boxes=outputs.layer_boxes[:, :, order],
        pred_masks=outputs.pred_masks[:, order],
        o2m_logits=outputs.o2m_logits[:, :, order],
        o2m_boxes=outputs.o2m_boxes[:, :, order],
        o2m_masks=outputs.o2m_masks[:, order],
    )
    before, after = Criterion()(outputs, targets), Criterion()(moved, targets)
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert after[name].item() == pytest.approx(value.item(), rel=1e-5), name


@pytest.mark.parametrize("counts", [[0, 0], [0, 2], [9, 1]], ids=["none", "one-prompt", "too-many"])
@pytest.mark.parametrize("broken", ["", "flat-prediction", "flat-target", "both", "saturated"])
def test_criterion__gradients_reach_every_output_and_are_finite(
    make_case: MakeCase, counts: list[int], broken: str
) -> None:
    outputs, targets = make_case(counts, queries=4)
    assert outputs.o2m_boxes is not None
    with torch.no_grad():
        if broken in ("flat-prediction", "both"):
            outputs.layer_boxes[..., 2] = 0
            outputs.o2m_boxes[..., 2:] = 0
        if broken in ("flat-target", "both"):
            targets.boxes[..., 2:] = 0
        if broken == "both":
            outputs.layer_boxes[..., :2] = targets.boxes[:1, :2] if len(targets.boxes) else 0.5
        if broken == "saturated":
            outputs.layer_logits[..., ::2], outputs.layer_logits[..., 1::2] = 200, -200
    found = Criterion()(outputs, targets)
    found["loss"].backward()
    assert all(torch.isfinite(value) for value in found.values())
    for name, leaf in outputs.leaves().items():
        assert leaf.grad is not None, name
        assert torch.isfinite(leaf.grad).all(), name


def test_criterion__no_target_leaves_only_presence(make_case: MakeCase) -> None:
    outputs, targets = make_case([0, 0])
    found = Criterion()(outputs, targets)
    silent = {name for name, value in found.items() if "loss" in name and value.item() == 0}
    assert silent == {name for name in found if "loss" in name} - {"loss", "loss_presence"}


def test_criterion__without_masks_their_losses_are_absent(make_case: MakeCase) -> None:
    outputs, targets = make_case([2, 1])
    found = Criterion()(outputs, replace(targets, masks=None))
    assert {name for name in found if any(word in name for word in ("mask", "dice", "semantic"))} == set()
    assert found["loss"].item() < Criterion()(outputs, targets)["loss"].item()


def test_criterion__branch_off_has_no_o2m_keys(make_case: MakeCase) -> None:
    outputs, targets = make_case([2, 1], many=False)
    assert not [name for name in Criterion()(outputs, targets) if name.startswith("o2m")]


def share(outputs: Outputs, targets: Targets, first: int, end: int) -> tuple[Outputs, Targets]:
    """The prompts ``first`` to ``end`` (excluded), as another process would have them."""
    by_layer = ("layer_logits", "layer_boxes", "layer_presence", "o2m_logits", "o2m_boxes")
    cut = {name: leaf[:, first:end] if name in by_layer else leaf[first:end] for name, leaf in outputs.leaves().items()}
    mine = (targets.prompt_index >= first) & (targets.prompt_index < end)
    assert targets.masks is not None
    return Outputs(**cut), Targets(targets.boxes[mine], targets.masks[mine], targets.prompt_index[mine] - first)


@pytest.mark.parametrize(
    ("prompts", "at"), [([2, 1, 0, 3, 1], 2), ([2, 1, 0, 3, 1], 1), ([0, 0, 2], 2), ([1, 0], 1), ([0, 0, 0], 1)]
)
def test_criterion__shares_of_a_batch_average_to_the_whole(make_case: MakeCase, prompts: list[int], at: int) -> None:
    """Unequal numbers of prompts, of targets and of prompts that have any, as the processes of a step have them."""
    outputs, targets = make_case(prompts)
    shares = [share(outputs, targets, 0, at), share(outputs, targets, at, len(prompts))]
    total = torch.stack([Counts.of(t, o.layer_logits.shape[1]).stacked() for o, t in shares]).sum(0)
    counts = Counts.per_process(total, 2)
    criterion = Criterion()
    whole = criterion(outputs, targets)
    parts = [criterion(o, t, counts) for o, t in shares]
    for name in whole.keys() - {"ce_f1", "presence_dec_acc"}:
        mean = sum(part[name].item() for part in parts) / 2
        assert mean == pytest.approx(whole[name].item(), rel=1e-5, abs=1e-6), name
    leaves = list(outputs.leaves().values())
    expected = torch.autograd.grad(whole["loss"], leaves, retain_graph=True, allow_unused=True)
    found = torch.autograd.grad((parts[0]["loss"] + parts[1]["loss"]) / 2, leaves, allow_unused=True)
    for left, right in zip(found, expected, strict=True):
        assert (left is None) == (right is None)
        if left is not None and right is not None:
            torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("size", [1, 2])
def test_criterion__chunks_of_prompts_sum_up_to_the_whole(make_case: MakeCase, size: int) -> None:
    """With the counts of the whole step, whatever is in a chunk: no target, or none with a visible mask."""
    outputs, targets = make_case([2, 1, 0, 3, 0])
    assert targets.masks is not None
    targets.masks[2] = False
    criterion = Criterion()
    counts = Counts.per_process(Counts.of(targets, 5).stacked(), 1)
    chunks = [share(outputs, targets, first, min(first + size, 5)) for first in range(0, 5, size)]
    whole, parts = criterion(outputs, targets), [criterion(o, t, counts) for o, t in chunks]
    for name in whole.keys() - {"ce_f1", "presence_dec_acc"}:
        assert sum(part[name].item() for part in parts) == pytest.approx(whole[name].item(), rel=1e-5), name


@pytest.mark.parametrize(("per", "times", "wanted"), [("boxes", 1, 3.0), ("prompts", 1, 2.0), ("visible", 2, 4.0)])
def test_summed__is_divided_by_the_count_it_names(per: Any, times: int, wanted: float) -> None:
    counts = Counts(*torch.tensor([4.0, 6.0, 1.5]))
    assert Summed(torch.full((2,), 12.0), per, times).mean(counts).tolist() == [wanted, wanted]


def test_criterion__a_loss_that_does_not_say_what_it_is_a_mean_over_is_refused(
    make_case: MakeCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would weigh otherwise with several processes; by construction it cannot be added."""
    monkeypatch.setattr("sam3slim.losses.criterion._masks", lambda *_: {"loss_mask": torch.ones(1)})
    with pytest.raises(TypeError):
        Criterion()(*make_case([1]))


def test_counts__prompts_whose_masks_are_empty_are_not_seen(make_case: MakeCase) -> None:
    _, targets = make_case([2, 1, 0])
    assert targets.masks is not None
    targets.masks[2] = False
    assert Counts.of(targets, 3).stacked().tolist() == [3, 3, 1]
    assert Counts.of(replace(targets, masks=None), 3).stacked().tolist() == [3, 3, 2]


def test_criterion__half_precision_outputs_give_a_float32_loss_under_autocast(make_case: MakeCase) -> None:
    outputs, targets = make_case([2, 1])
    low = Outputs(**{name: leaf.bfloat16() for name, leaf in outputs.leaves().items()})
    high = Outputs(**{name: leaf.float() for name, leaf in low.leaves().items()})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = Criterion()(low, targets)
    assert {value.dtype for value in found.values()} == {torch.float32}
    assert found["loss"].item() == pytest.approx(Criterion()(high, targets)["loss"].item(), rel=1e-6)


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_loss_spec__refuses_a_bad_weight(value: float) -> None:
    with pytest.raises(UserError, match="loss weight giou="):
        LossSpec(giou=value)


@pytest.mark.parametrize("value", [0, -5])
def test_loss_spec__refuses_to_divide_by_no_query(value: int) -> None:
    with pytest.raises(UserError, match=f"loss.pad_n_queries={value} must be at least 1"):
        LossSpec(pad_n_queries=value)
