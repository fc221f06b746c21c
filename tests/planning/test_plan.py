"""The memory plan: fake tensors count what real ones take; arithmetic of cards and processes; bad input."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from sam3slim.cli import main
from sam3slim.compression import FakeQuantised
from sam3slim.errors import UserError
from sam3slim.models import build_model, init_for_training
from sam3slim.planning import Trace, make_plan, parse_cards
from sam3slim.planning.cuda import as_on_cuda
from sam3slim.planning.fake import without_data
from sam3slim.planning.ledger import Ledger
from sam3slim.planning.memo import Memo
from sam3slim.planning.plan import BUCKETS, GATHERED, GIB, strategy
from sam3slim.planning.request import MISSING, planned_spec
from sam3slim.planning.tracing import BATCH, GRADIENTS, OPTIMISER, ROUNDED, SAVED, STANDING, TEACHER, WEIGHTS, trace
from sam3slim.runs.specs import TrainSpec
from tests.tiny import OVERRIDES

SMALL = [*OVERRIDES, "data.batch_size=2", "data.max_prompts=2", "loss.one_to_many=false"]
STEP = Trace(
    standing={WEIGHTS: 100, GRADIENTS: 90, OPTIMISER: 180},
    before_backward={WEIGHTS: 100, OPTIMISER: 180, "vision": 50},
    at_peak={WEIGHTS: 100, GRADIENTS: 90, OPTIMISER: 180, "vision": 70}, peak=440, during="vision",
)  # fmt: skip


@pytest.mark.parametrize("extra", [[], ["activation_checkpointing=true", "callbacks=ema"]], ids=["plain", "recomputed"])
def test_trace__without_data_counts_what_real_tensors_take(extra: list[str]) -> None:
    spec = planned_spec([*SMALL, *extra])
    fake, real = (trace(spec, 2, spec.model, cuda=False, data=data) for data in (False, True))
    assert {name: fake.standing[name] for name in (WEIGHTS, GRADIENTS, OPTIMISER)} == {
        name: real.standing[name] for name in (WEIGHTS, GRADIENTS, OPTIMISER)
    }
    for part in SAVED:
        assert fake.before_backward.get(part, 0) == pytest.approx(real.before_backward.get(part, 0), rel=0.02), part
    assert fake.peak == pytest.approx(real.peak, rel=0.02)


def test_trace__weights_gradients_and_state_are_the_models() -> None:
    spec = planned_spec([*SMALL, "init=pruned", "distill=features", "optim.freeze=[text]"])
    found = trace(spec, 1, spec.model, cuda=True)
    model = build_model(spec.model, device="meta")
    held = sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers()))
    weights = 4 * sum(parameter.numel() for parameter in model.parameters())
    text = 4 * sum(p.numel() for name, p in model.named_parameters() if name.startswith("text_"))
    assert found.standing[WEIGHTS] == found.standing[TEACHER] == held
    assert 0 < found.standing[GRADIENTS] < weights - text
    assert 2 * found.standing[GRADIENTS] <= found.standing[OPTIMISER] < 2 * (weights - text)
    assert set(found.before_backward) <= {*STANDING, *SAVED}
    assert found.peak >= sum(found.before_backward.values())


@pytest.mark.parametrize("qat", ["int8_weight", "{method: int4_weight, group: 32}"])
def test_trace__rounded_copies_are_those_of_a_training(qat: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes of the copies that a training's own rounding holds, measured, and what they add to the peak."""
    spec = planned_spec([*SMALL, f"qat={qat}"])
    plain, found = (trace(one, 2, one.model, cuda=True) for one in (planned_spec(SMALL), spec))
    model = init_for_training(build_model(spec.model), 0)
    own = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    with FakeQuantised(model, spec.rounding):
        copies = sum(p.nbytes for name, p in model.named_parameters() if p.data_ptr() != own[name])
    assert 0 < copies == found.before_backward[ROUNDED] < found.standing[WEIGHTS]
    assert {**found.standing, ROUNDED: 0} == {**plain.standing, ROUNDED: 0}
    assert found.peak >= plain.peak
    plan = make_plan(spec, found)
    assert plan.saved[ROUNDED] == copies
    assert (plan.at_peak.get(ROUNDED) == copies) == (found.peak == plain.peak + copies)
    real = trace(spec, 2, spec.model, cuda=False, data=True)
    fake = trace(spec, 2, spec.model, cuda=False)
    assert real.before_backward[ROUNDED] == copies
    assert fake.peak == pytest.approx(real.peak, rel=0.02)


def test_trace__a_card_computes_layers_a_second_time_in_the_types_of_the_first() -> None:
    half = [*SMALL, "trainer.precision=bf16-mixed"]
    kept = []
    for extra in ("activation_checkpointing=false", "activation_checkpointing=true"):
        spec = planned_spec([*half, extra])
        found = trace(spec, 2, spec.model, cuda=True)
        kept.append(sum(found.before_backward.get(part, 0) for part in SAVED))
    assert 0 < kept[1] < kept[0]


def test_trace__the_largest_of_several_image_sizes_and_a_teachers_own() -> None:
    spec = planned_spec([*SMALL, "data.image_sizes=[32,48]"])
    alone = trace(planned_spec(SMALL), 1, spec.model, cuda=True)
    found = trace(spec, 1, spec.model, cuda=True)
    assert found.standing[BATCH] / alone.standing[BATCH] == pytest.approx((48 / 32) ** 2, rel=0.05)
    assert found.peak > alone.peak
    taught = planned_spec([*SMALL, "init=pruned", "distill=features"])
    large = replace(spec.model, vit=replace(spec.model.vit, image_size=64))
    assert trace(taught, 1, large, cuda=True).standing[BATCH] > trace(taught, 1, spec.model, cuda=True).standing[BATCH]


def test_planned_spec__a_warm_up_longer_than_the_planned_step() -> None:
    assert planned_spec([*SMALL, "schedule.warmup_steps=1000", "trainer.max_steps=5"]).schedule.warmup_steps == 0


def test_ledger__counts_what_is_alive() -> None:
    with without_data(), Ledger("made") as ledger:
        kept = torch.empty(1024, 1024)
        view = kept[:2]
        with ledger.labelled("other"):
            gone = kept * 2
        assert ledger.live == {"made": 4 << 20, "other": 4 << 20}
        del gone, kept
    assert ledger.live == {"made": 4 << 20, "other": 0}
    assert (ledger.total, ledger.peak) == (4 << 20, 8 << 20)
    del view
    assert ledger.total == 0


@pytest.mark.parametrize(
    "call",
    [
        lambda x: x[1:, ::2],
        lambda x: x.t(),
        lambda x: x.split(4, dim=1),
        lambda x: x.add_(1),
        lambda x: x @ x.t(),
        lambda x: x > 0,
        lambda x: x + torch.arange(6, dtype=torch.float64),
        lambda x: x[torch.tensor([0, 2])],
        lambda x: x.max(dim=1),
        lambda x: torch.native_layer_norm(x, [6], None, None, 1e-5),
        lambda x: torch.cat([x, x.new_zeros(2, 6)]),
    ],
)
def test_memo__what_is_remembered_is_what_was_computed(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Memo, "_known", {})
    with without_data():
        given = torch.empty(4, 6)
        first, again = (layouts(given, call(given)) for _ in range(2))
        monkeypatch.setattr(FakeTensorMode, "dispatch", lambda *_: pytest.fail("asked again"))
        assert layouts(given, call(given)) == first == again


def layouts(given: torch.Tensor, made: Any) -> list[Any]:
    """Of an operator's results; where they lie in ``given``, if they do."""
    found = [made] if isinstance(made, torch.Tensor) else list(made)
    own = given.untyped_storage()._cdata
    return [
        (x.shape, x.stride(), x.storage_offset(), x.dtype, x.device.type, x.untyped_storage().nbytes(), x is given,
         x.untyped_storage()._cdata == own)
        for x in found
    ]  # fmt: skip


def test_memo__numbers_of_other_types_are_other_calls() -> None:
    with without_data():
        given = torch.empty(3).to(torch.int32)
        assert [(given * factor).dtype for factor in (1, 1.0, 1, 1.0)] == [torch.int32, torch.float32] * 2


def saved_bytes(compute: Any, *inputs: torch.Tensor) -> int:
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = compute(*inputs)
    assert out.requires_grad
    return sum(kept.values())


def test_as_on_cuda__attention_with_a_bias_keeps_no_map() -> None:
    with without_data(), as_on_cuda():
        query, key = torch.empty(2, 4, 10, 8, requires_grad=True), torch.empty(2, 4, 64, 8, requires_grad=True)
        bias = torch.empty(2, 4, 10, 64, requires_grad=True)
        found = saved_bytes(lambda q, k, b: F.scaled_dot_product_attention(q, k, k, attn_mask=b), query, key, bias)
    elements = 2 * query.numel() + key.numel() + bias.numel() + 2 * 4 * 10
    assert found == 4 * elements


def test_as_on_cuda__autocast_normalises_in_float32() -> None:
    with without_data(), as_on_cuda(), torch.autocast("cpu", torch.bfloat16):
        weight = torch.empty(8, 8, requires_grad=True)
        hidden = F.linear(torch.empty(2, 8), weight)
        assert hidden.dtype == torch.bfloat16
        assert F.layer_norm(hidden, (8,)).dtype == torch.float32
        assert hidden.softmax(-1).dtype == torch.float32
        assert (hidden + 1).dtype == torch.bfloat16


def spec_with(*overrides: str) -> TrainSpec:
    return planned_spec([*OVERRIDES, *overrides])


def test_make_plan__one_process() -> None:
    plan = make_plan(spec_with(), STEP)
    assert (plan.peak, plan.temporary, plan.saved["vision"]) == (440, 20, 50)
    assert plan.needed == math.ceil(440 * 1.03) + GIB
    assert plan.fits((1.0, 2.0)) == {1.0: False, 2.0: True}


def test_make_plan__ddp_copies_gradients() -> None:
    plan = make_plan(spec_with("trainer=cpu_ddp"), STEP)
    assert plan.standing[BUCKETS] == 90
    assert plan.peak == 440 + 90


def test_make_plan__fsdp_shares_what_stands() -> None:
    plan = make_plan(spec_with("trainer=fsdp", "trainer.devices=4"), STEP)
    assert (plan.standing[WEIGHTS], plan.standing[GRADIENTS], plan.standing[OPTIMISER]) == (25, 23, 45)
    assert plan.peak == 440 - 75 - 67 - 135 + plan.standing[GATHERED]
    assert plan.standing[GATHERED] > 0


def test_strategy__devices() -> None:
    assert strategy({"devices": 1, "strategy": "ddp"}) == ("one", 1)
    assert strategy({"devices": -1, "strategy": "ddp"}) == ("ddp", 8)
    assert strategy({"devices": [0, 2], "num_nodes": 2, "strategy": "auto"}) == ("ddp", 4)


def test_planned_spec__an_experiment_without_its_files() -> None:
    spec = planned_spec(["experiment=slim"])
    assert (spec.init.checkpoint, spec.distill.teacher, spec.data.root) == (MISSING,) * 3


def test_inspect_memory__prints_a_plan(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", *OVERRIDES, "--memory", "data.batch_size=1", "data.max_prompts=1", "--cards", "2,80"]) == 0
    shown = capsys.readouterr().out
    for line in ("2 GB: fits", "80 GB: fits", "saved: decoder", "1 images with data.max_prompts=1"):
        assert line in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--memory", "--cards", "h100"], "--cards h100: unknown card; give sizes in GB above 0"),
        (["--memory", "--instances", "0"], "--instances 0 must be at least 1"),
        (["model.pt", "--memory"], "--memory plans settings of train.py, got model.pt"),
        (["--memory", "model=slimm"], "model=slimm"),
        (["--memory", "trainer.precision=bf16-true"], "trainer.precision=bf16-true would round the weights"),
    ],
)
def test_inspect_memory__bad_input(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_parse_cards__any_size() -> None:
    assert parse_cards("48") == (48.0,)
    with pytest.raises(UserError, match="unknown card"):
        parse_cards("24,-1")


def test_plan__is_json() -> None:
    plan = make_plan(spec_with(), replace(STEP, during="losses"))
    assert json.loads(json.dumps(plan.to_dict()))["fits"] == {"16": True, "24": True, "40": True, "80": True}
