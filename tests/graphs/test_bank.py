"""A prompt bank as ONNX: the text graph looks its rows up."""

from __future__ import annotations

from pathlib import Path

import torch

from sam3slim.compression.int8_weight import Int8Rules, quantised_names
from sam3slim.graphs import export_onnx, load_onnx
from sam3slim.text.phrases import encode_phrases
from tests.banked import PHRASES, asked, banked
from tests.small import OUTPUTS, small_model
from tests.tiny import SPEC


def test_export_onnx__a_bank(tmp_path: Path) -> None:
    bank = banked(small_model(SPEC), tmp_path)
    names = quantised_names(bank, Int8Rules(also=()))
    assert "text_bank.features.weight" in names
    export_onnx(bank, tmp_path / "int8", precision="int8_onnx", int8=["text_bank.features.weight"])
    runner, _ = load_onnx(tmp_path / "int8", expect=bank.spec)
    rows, mask = encode_phrases(bank.spec.text, PHRASES)
    with torch.no_grad():
        expected, found = bank.encode_text(rows, mask)[0], runner.encode_text(rows, mask)[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=float(expected.abs().max()) / 250)
    given = {"pixel_values": torch.rand(2, 3, 32, 32) * 2 - 1, "image_index": torch.tensor([0, 1, 1])}
    given = asked(bank, given, ["cat", "red", "a cup"])
    with torch.no_grad():
        ours, theirs = bank(**given), runner(**given)
    for name in OUTPUTS:
        torch.testing.assert_close(getattr(theirs, name), getattr(ours, name), rtol=0.05, atol=0.05, msg=name)
    # A graph cannot refuse; what it answers cannot be mistaken for an answer.
    unknown = encode_phrases(SPEC.text, ["dog"])
    assert runner.encode_text(*unknown)[0].isnan().all()
