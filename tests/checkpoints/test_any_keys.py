"""Whatever happens to a file's keys, it loads exactly or is refused with the right report."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from sam3slim.artifacts.reference_file import reference_tensors
from sam3slim.checkpoints import CheckpointError, load
from sam3slim.checkpoints.reference_keys import FREQS_CIS, POINTS, place_of, template_of
from sam3slim.models import Sam3, build_model
from sam3slim.models.build import state_shapes
from tests.small import tiny_spec

SPEC = tiny_spec()
TOLD = {
    "text.num_heads": 2,
    "vit.num_heads": 2,
    "vit.window_size": 2,
    "vit.image_size": 32,
    "vit.global_attention_blocks": SPEC.vit.global_blocks,
}


@pytest.fixture(scope="module")
def source() -> Sam3:
    return build_model(SPEC)


def files(model: Sam3, names: str) -> dict[str, Tensor]:
    if names == "transformers":
        return dict(model.state_dict())
    return reference_tensors(SPEC, model.state_dict())


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    names=st.sampled_from(["reference", "transformers"]),
    prefix=st.sampled_from(["", "detector.", "module.", "model.", "a.strange.one."]),
    dropped=st.integers(0, 6),
    extra=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_load__any_key_set(
    source: Sam3, tmp_path: Path, names: str, prefix: str, dropped: int, extra: bool, seed: int
) -> None:
    state, rng = files(source, names), random.Random(seed)
    keys = list(state)
    rng.shuffle(keys)
    gone, kept = set(keys[:dropped]), keys[dropped:]
    content = {prefix + key: state[key] for key in kept}
    if extra:
        content[f"{prefix}something.else"] = torch.zeros(2)
    torch.save(content, tmp_path / "x.pt")
    lost = sorted(key for key in state_shapes(SPEC) if (place_of(key).key if names == "reference" else key) in gone)
    if not lost and not extra:
        model, report = load(tmp_path / "x.pt", overrides=TOLD)
        assert report.ok
        assert all(torch.equal(value, model.state_dict()[key]) for key, value in source.state_dict().items())
        return
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path / "x.pt", overrides=TOLD)
    if caught.value.report is None:
        # Too little is left to tell the sizes.
        assert "does not tell" in str(caught.value)
        assert lost
        return
    assert sorted(caught.value.report.missing) == lost
    assert caught.value.report.unexpected == ([f"{prefix}something.else"] if extra else [])


def test_load__a_missing_rotary_table_is_no_guess(source: Sam3, tmp_path: Path) -> None:
    state = files(source, "reference")
    del state[FREQS_CIS.replace("*", "1")]
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"does not tell vit\.num_heads, .*vit\.global_attention_blocks"):
        load(tmp_path / "x.pt", overrides={"text.num_heads": 2})


def test_load__what_transformers_drops_may_be_missing(source: Sam3, tmp_path: Path) -> None:
    state = files(source, "reference")
    rest = {k: v for k, v in state.items() if k not in POINTS and template_of(k) != FREQS_CIS}
    torch.save(rest, tmp_path / "x.pt")
    assert load(tmp_path / "x.pt", overrides=TOLD)[1].ok
