"""torch.compile of the layers: the same numbers, and nothing of it in weights, checkpoints or copies."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, nn
from torch._dynamo.utils import counters
from torch.nn.parallel import DistributedDataParallel

from sam3slim.artifacts import write_artifact
from sam3slim.checkpoints import load
from sam3slim.errors import UserError
from sam3slim.losses import Criterion
from sam3slim.models.compiled import STACKS, Compile, compile_layers, compiled, require_compiler
from sam3slim.training import recompute_activations
from tests.banked import banked
from tests.tiny import tiny_batch, tiny_model

# Not beside the fast tests: what TorchDynamo does after other tests' fake tensors in one process is not settled.
pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch._dynamo.reset()
    counters.clear()


def step(model: nn.Module, one_to_many: bool) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients."""
    model.zero_grad()
    batch = tiny_batch()
    torch.manual_seed(0)
    loss = Criterion()(model(**batch.inputs(), one_to_many=one_to_many), batch.targets)["loss"]
    loss.backward()
    return loss.item(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("recompute", [False, True])
def test_compile_layers__same_loss_and_gradients_without_a_graph_break(recompute: bool) -> None:
    models = tiny_model().train(), tiny_model().train()
    for model in models:
        if recompute:
            recompute_activations(model)
    assert compile_layers(models[1], "eager") == 2 + 1 + 1 + 1 + 2
    for one_to_many in (False, True):
        plain, traced = (step(model, one_to_many) for model in models)
        assert traced[0] == plain[0]
        assert traced[1].keys() == plain[1].keys()
        for name, gradient in plain[1].items():
            torch.testing.assert_close(traced[1][name], gradient, rtol=1e-5, atol=1e-6, msg=name)
    assert counters["stats"]["unique_graphs"] >= len(STACKS)
    assert not counters["graph_break"]


def test_compile_layers__autocast() -> None:
    models = tiny_model().train(), tiny_model().train()
    compile_layers(models[1], "eager", stacks=STACKS[:1])
    with torch.autocast("cpu", torch.bfloat16):
        plain, traced = (step(model, False) for model in models)
    assert traced[0] == plain[0]
    for name, gradient in plain[1].items():
        torch.testing.assert_close(traced[1][name], gradient, rtol=1e-2, atol=1e-2 * float(gradient.abs().max()))


def test_compile_layers__ddp_with_layers_larger_than_its_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    """One process, as the compiled layers see no others; PyTorch's own setting may cut a layer at its buckets."""
    models = tiny_model().train(), tiny_model().train()
    for model in models:
        recompute_activations(model)
    compile_layers(models[1], "eager", stacks=STACKS[:1])
    monkeypatch.setattr(distributed, "_DEFAULT_FIRST_BUCKET_BYTES", 1000)
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        traced = step(DistributedDataParallel(models[1], bucket_cap_mb=0.001), False)
    finally:
        distributed.destroy_process_group()
    plain = step(models[0], False)
    assert traced[0] == plain[0]
    for name, gradient in plain[1].items():
        torch.testing.assert_close(traced[1][f"module.{name}"], gradient, rtol=1e-5, atol=1e-6, msg=name)


def test_compile_layers__names_copies_and_artifacts_know_nothing_of_it(tmp_path: Path) -> None:
    plain, traced = tiny_model(), tiny_model()
    compile_layers(traced, "eager")
    assert list(traced.state_dict()) == list(plain.state_dict())
    copy = deepcopy(traced)  # a weight average
    with torch.no_grad():
        for parameter in copy.parameters():
            parameter.zero_()
    inputs = tiny_batch().inputs()
    with torch.inference_mode():
        expected = plain(**inputs).pred_logits
        assert torch.equal(traced(**inputs).pred_logits, expected)
        write_artifact(traced, tmp_path / "artifact")
        reloaded, _ = load(tmp_path / "artifact", expect=plain.spec)
        assert torch.equal(reloaded(**inputs).pred_logits, expected)


def test_compiled__only_for_the_body() -> None:
    model = tiny_model()
    layer = model.detr_encoder.layers[0]
    with compiled(model, "eager"):
        assert layer._compiled_call_impl is not None
    assert all(module._compiled_call_impl is None for module in model.modules())
    with compiled(model, False):
        assert layer._compiled_call_impl is None


def test_compile_layers__a_prompt_bank_has_no_text_tower(tmp_path: Path) -> None:
    model = banked(tiny_model(), tmp_path)
    assert compile_layers(model, "eager") == 2 + 1 + 1 + 2


@pytest.mark.parametrize(
    ("how", "shown"), [(True, "compile=true"), ("max-autotune-no-cudagraphs", "compile=max-autotune-no-cudagraphs")]
)
def test_require_compiler__none_there(how: Compile, shown: str) -> None:
    from torch._inductor import config

    with (
        config.patch({"cpp.cxx": ("no-such-compiler",)}),
        pytest.raises(UserError, match=rf"{shown} needs a C\+\+ compiler.*install g\+\+.*or set compile=false"),
    ):
        require_compiler(how, torch.device("cpu"))
    require_compiler("aot_eager", torch.device("cpu"))


def test_require_compiler__a_gpu_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: False)
    with pytest.raises(UserError, match=r"compile=true needs Triton.*pip install triton, or set compile=false"):
        require_compiler(True, torch.device("cuda"))


@pytest.mark.slow
def test_compile_layers__inductor() -> None:
    """Of the vision tower alone: every kind of layer takes g++ a minute."""
    models = tiny_model().train(), tiny_model().train()
    assert compile_layers(models[1], True, stacks=STACKS[:1]) == 2
    plain, fast = (step(model, False) for model in models)
    assert fast[0] == pytest.approx(plain[0], rel=1e-5)
    # The biases of keys change nothing: their gradient is rounding alone, small beside all others.
    noise = 1e-7 * max(float(gradient.abs().max()) for gradient in plain[1].values())
    for name, gradient in plain[1].items():
        atol = max(1e-4 * float(gradient.abs().max()), noise)
        torch.testing.assert_close(fast[1][name], gradient, rtol=1e-3, atol=atol, msg=name)
