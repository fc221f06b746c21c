"""The small model, and the same with a prompt bank instead of its text tower."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from sam3slim.artifacts import write_artifact
from sam3slim.artifacts.cut import cut_text
from sam3slim.checkpoints import load
from sam3slim.models import Sam3
from sam3slim.text.phrases import encode_phrases

PHRASES = ("red", "cat", "a cup", "Tree")


def banked(model: Sam3, folder: Path, phrases: Sequence[str] = PHRASES) -> Sam3:
    """Through files: ``folder/full`` and ``folder/bank``."""
    write_artifact(model, folder / "full")
    cut_text(folder / "full", folder / "bank", phrases, bank=True)
    return load(folder / "bank")[0]


def asked(model: Sam3, inputs: dict[str, Tensor], phrases: Sequence[str]) -> dict[str, Tensor]:
    """``inputs`` with ``phrases`` as prompts."""
    input_ids, attention_mask = encode_phrases(model.spec.text, phrases)
    return {**inputs, "input_ids": input_ids, "attention_mask": attention_mask}
