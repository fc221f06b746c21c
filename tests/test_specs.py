"""Architectures: derived values, and impossible ones refused with the fix."""

from __future__ import annotations

from typing import Any

import pytest

from sam3slim.specs import DecoderSpec, EncoderSpec, ModelSpec, SpecError, TextSpec, VitSpec, VocabularySpec


@pytest.mark.parametrize(
    ("depth", "blocks"), [(32, (7, 15, 23, 31)), (24, (5, 11, 17, 23)), (16, (3, 7, 11, 15)), (3, (0, 1, 2))]
)
def test_global_blocks__follow_the_depth(depth: int, blocks: tuple[int, ...]) -> None:
    assert VitSpec(depth=depth).global_blocks == blocks


def test_global_blocks__given() -> None:
    assert VitSpec(depth=4, global_attention_blocks=(0, 3)).global_blocks == (0, 3)


def test_round_trip__through_plain_dict() -> None:
    text = TextSpec(vocab_size=516, vocabulary=VocabularySpec((3, 70), 600, "bytes"))
    vit = VitSpec(depth=4, global_attention_blocks=(1, 3))
    spec = ModelSpec(name="x", vit=vit, text=text, decoder=DecoderSpec(2, 16))
    plain = spec.to_dict()
    assert plain["vit"]["global_attention_blocks"] == [1, 3]
    assert plain["text"]["vocabulary"] == {"merges": [3, 70], "trimmed_from": 600, "unknown": "bytes"}
    assert ModelSpec.from_dict(plain) == spec


@pytest.mark.parametrize(
    ("make", "values", "message"),
    [
        (VitSpec, {"embed_dim": 500}, "model.vit.embed_dim=500 is not divisible by model.vit.num_heads=16; "
         "use model.vit.embed_dim=448 or 512, or model.vit.num_heads=1|5|25"),
        (VitSpec, {"embed_dim": 96, "num_heads": 16}, "model.vit.embed_dim=96 gives heads of size 6, and RoPE"),
        (VitSpec, {"image_size": 1000}, "model.vit.image_size=1000 is not a multiple of model.vit.patch_size=14; "
         "use 994 or 1008"),
        (VitSpec, {"image_size": 14}, "model.vit.image_size=14 gives one patch of 14; use 28 or more"),
        (VitSpec, {"pretrain_image_size": 3}, "model.vit.pretrain_image_size=3 is not a multiple of"),
        (VitSpec, {"depth": 0}, "model.vit.depth=0 must be at least 1"),
        (VitSpec, {"mlp_ratio": 0.0}, "model.vit.mlp_ratio=0.0 leaves an MLP without neurons; use 0.00098"),
        (VitSpec, {"depth": 4, "global_attention_blocks": (5,)}, "model.vit.global_attention_blocks=[5] must be"),
        (TextSpec, {"width": 100}, "model.text.width=100 is not divisible by model.text.num_heads=16; "
         "use model.text.width=96 or 112"),
        (TextSpec, {"vocab_size": 100}, "model.text.vocab_size=100 must lie in 514..49408"),
        (TextSpec, {"context_length": 2}, "model.text.context_length=2 must be at least 3"),
        (TextSpec, {"vocabulary": VocabularySpec((1, 2))}, "model.text.vocab_size=49408 must be 516: 514 and one for"),
        (VocabularySpec, {"merges": (2, 1)}, "model.text.vocabulary.merges must be increasing"),
        (VocabularySpec, {"merges": (86,), "trimmed_from": 600}, "model.text.vocabulary.merges must be increasing num"),
        (VocabularySpec, {"merges": (), "trimmed_from": 100}, "model.text.vocabulary.trimmed_from=100 must lie in"),
        (VocabularySpec, {"merges": (), "unknown": "skip"}, "model.text.vocabulary.unknown=skip must be one of error"),
        (ModelSpec, {"d_model": 100}, "model.d_model=100 must be a multiple of 8"),
        (ModelSpec, {"dropout": 1.0}, "model.dropout=1.0 must lie in 0..1"),
        (ModelSpec, {"attention_dropout": -0.1}, "model.attention_dropout=-0.1 must lie in 0..1"),
        (ModelSpec, {"ffn_dropout": 1.5}, "model.ffn_dropout=1.5 must lie in 0..1"),
        (VitSpec, {"drop_path": 1.0}, "model.vit.drop_path=1.0 must lie in 0..1"),
        (DecoderSpec, {"num_queries": 0}, "model.decoder.num_queries=0 must be at least 1"),
        (DecoderSpec, {"num_queries": 10**12}, "model.decoder.num_queries=1000000000000 must be at most 65536"),
        (VitSpec, {"image_size": 1_400_000}, "model.vit.image_size=1400000 must be at most 16384"),
        (VitSpec, {"depth": 10**8}, "model.vit.depth=100000000 must be at most 1024"),
        (VitSpec, {"embed_dim": 2**20}, "model.vit.embed_dim=1048576 must be at most 65536"),
        (VitSpec, {"mlp_ratio": 1e9}, "model.vit.mlp_ratio=1000000000.0 must be at most 1024 (1048576 neurons)"),
        (TextSpec, {"context_length": 10**9}, "model.text.context_length=1000000000 must be at most 65536"),
        (EncoderSpec, {"num_layers": 2000}, "model.encoder.num_layers=2000 must be at most 1024"),
    ],
)  # fmt: skip
def test_spec__impossible(make: Any, values: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        make(**values)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("embed_dim", [60, 500, 1000, 1026])
def test_spec__suggested_fix_is_valid(embed_dim: int) -> None:
    with pytest.raises(SpecError) as caught:
        VitSpec(embed_dim=embed_dim)
    fix = str(caught.value).split("use model.vit.embed_dim=")[1].split(",")[0]
    for width in fix.split(" or "):
        assert VitSpec(embed_dim=int(width)).head_dim % 4 == 0
