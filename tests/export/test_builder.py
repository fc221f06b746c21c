"""The reference implementation's sizes: SAM 3's own, and strict loading where the implementation is installed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from sam3slim.artifacts.reference_file import reference_tensors, write_reference
from sam3slim.export.builder import MODULE, TEXT_MODULE, builder_lines, builder_sizes
from sam3slim.specs import ModelSpec
from tests.small import small_model
from tests.tiny import SPEC


def test_sizes__of_the_released_model_are_those_written_into_the_builder() -> None:
    sizes = builder_sizes(ModelSpec())
    made, text = sizes[MODULE], sizes[TEXT_MODULE]
    assert made["ViT"] == {
        "img_size": 1008, "pretrain_img_size": 336, "patch_size": 14, "embed_dim": 1024, "depth": 32, "num_heads": 16,
        "mlp_ratio": 4.625, "global_att_blocks": (7, 15, 23, 31), "window_size": 24,
    }  # fmt: skip
    assert made["VETextEncoder"] == {
        "d_model": 256, "width": 1024, "heads": 16, "layers": 24, "context_length": 32, "vocab_size": 49408,
    }  # fmt: skip
    assert made["TransformerEncoderFusion"] == {"num_layers": 6, "d_model": 256}
    assert (made["TransformerDecoder"]["num_layers"], made["TransformerDecoder"]["num_queries"]) == (6, 200)
    assert made["SequenceGeometryEncoder"] == {"d_model": 256, "num_layers": 3, "roi_size": 7}
    assert made["MLP"] == {"input_dim": 256, "hidden_dim": 2048, "output_dim": 256}
    assert made["MultiheadAttention"] == {"num_heads": 8, "embed_dim": 256}
    assert text == {"TextTransformer": {"mlp_ratio": 4.0, "output_dim": 512}}


def test_lines__are_python_and_state_the_same_sizes() -> None:
    code = "\n".join(builder_lines(SPEC, "model.pt"))
    compile(code, "card", "exec")
    stated = re.search(r"SIZES = (.*?)\nfor module", code, re.DOTALL)
    assert stated is not None
    assert eval(stated[1]) == builder_sizes(SPEC)


def test_lines__load_strictly_into_the_reference_implementation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        import sam3.model_builder  # noqa: F401
    except ImportError as error:
        pytest.skip(f"the reference implementation is not installed ({error})")
    model = small_model(SPEC)
    write_reference(tmp_path / "model.pt", reference_tensors(SPEC, model.state_dict()))
    monkeypatch.chdir(tmp_path)
    found: dict[str, torch.nn.Module] = {}
    exec("\n".join(builder_lines(SPEC, "model.pt")), found)
    ours = model.state_dict()["detr_decoder.query_embed.weight"]
    assert torch.equal(found["model"].state_dict()["transformer.decoder.query_embed.weight"], ours)
