"""Sizes of the architectures the project promises."""

from __future__ import annotations

import pytest

from sam3slim.launch.compose import compose_model
from sam3slim.models import bytes_by_part, count_params


@pytest.mark.parametrize(("name", "params"), [("full", 840_376_374), ("slim", 556_056_822)])
def test_count_params__published_sizes(name: str, params: int) -> None:
    assert sum(count_params(compose_model([f"model={name}"])).values()) == params


def test_count_params__nano_family() -> None:
    nano, slim = (compose_model([f"model={name}"]) for name in ("nano", "nano_slim"))
    assert sum(count_params(nano).values()) <= 8_000_000
    # As slim cuts full: ViT width and depth by a quarter, encoder and decoder layers by a third.
    assert slim.vit.embed_dim / nano.vit.embed_dim == slim.vit.depth / nano.vit.depth == 0.75
    assert slim.vit.head_dim == nano.vit.head_dim
    assert slim.encoder.num_layers / nano.encoder.num_layers == slim.decoder.num_layers / nano.decoder.num_layers
    assert (slim.encoder.num_layers, nano.encoder.num_layers) == (2, 3)


def test_bytes_by_part__consistent() -> None:
    spec = compose_model(["model=nano"])
    params, sizes = count_params(spec), bytes_by_part(spec)
    for part, count in params.items():
        assert sizes[part]["fp32"] == 4 * count
        assert sizes[part]["fp16"] == 2 * count
        assert count < sizes[part]["int8"] <= 2 * count
