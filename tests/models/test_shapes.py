"""Names and shapes counted out from sizes are those of transformers' modules, in their order."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sam3slim.launch.compose import compose_model, conf_dir
from sam3slim.models import build_model, state_shapes
from sam3slim.specs import BankSpec, ModelSpec

MODELS = sorted(path.stem for path in (conf_dir() / "model").glob("*.yaml"))


def assert_built(spec: ModelSpec) -> None:
    model = build_model(spec, device="meta")
    built = {key: tensor.shape for key, tensor in model.state_dict().items()}
    assert list(built.items()) == list(state_shapes(spec).items())
    # Counts by part are counts of these.
    assert {name for name, _ in model.named_parameters()} == set(built)


@pytest.mark.parametrize("name", MODELS)
def test_state_shapes__every_shipped_model(name: str) -> None:
    assert_built(compose_model([f"model={name}"]))


@pytest.mark.parametrize("override", ["model/text=w512", "model.geometry.roi_size=3", "model.decoder.num_queries=7",
                                      "model.vit.pretrain_image_size=168", "model.ffn_dim=96"])  # fmt: skip
def test_state_shapes__one_size_changed(override: str) -> None:
    assert_built(compose_model(["model=full", override]))


def test_state_shapes__prompt_bank() -> None:
    spec = compose_model(["model=nano"])
    bank = BankSpec(("cat", "a dog"), ((1, 2), (1, 3, 4)))
    assert_built(replace(spec, text=replace(spec.text, bank=bank)))
