"""Operations per part, against what the architecture says by hand and what the issue of their counting was."""

from __future__ import annotations

import pytest

from sam3slim.models.flops import count_flops
from sam3slim.specs import ModelSpec


def test_count_flops__of_sam3() -> None:
    found = count_flops(ModelSpec())
    tokens, width, hidden = 72 * 72, 1024, 4736
    # 32 blocks: four projections and the MLP of every token; the attention of 28 windows of 24 x 24 and 4 whole maps.
    linear = 32 * tokens * 2 * (4 * width * width + 2 * width * hidden)
    attention = 28 * tokens * 24 * 24 * 4 * width + 4 * tokens * tokens * 4 * width
    patches = tokens * 2 * 3 * 14 * 14 * width
    neck = 214_884_679_680
    assert found.image["vision"] == pytest.approx(linear + attention + patches + neck, rel=0.001)
    # 0.26 TFLOP of the encoder, 0.12 of the mask head and 0.015 of the decoder before prompts shared anything.
    assert found.prompt["encoder"] + found.image["encoder"] == pytest.approx(0.256e12, rel=0.02)
    assert found.prompt["encoder"] < 0.9 * 0.256e12
    assert found.prompt["mask"] < 0.5 * 0.143e12
    assert found.prompt["decoder"] == pytest.approx(0.0204e12, rel=0.02)
    assert found.total(80) - found.total(79) == sum(found.prompt.values())
