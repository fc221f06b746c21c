"""A teacher's batch, and a specification that teaches everything."""

from __future__ import annotations

from dataclasses import replace

from sam3slim.data.batch import Batch
from sam3slim.data.tokenizer import clip_tokenizer, encode
from sam3slim.distill import DistillSpec
from tests.tiny import SPEC, tiny_batch

# Fresh models are sure of nothing; with this threshold they have detections.
EVERYTHING = DistillSpec(
    "x", min_score=0.02, fpn=1.0, memory=1.0, presence=1.0, scores=1.0, bbox=1.0, giou=1.0, mask=1.0, dice=1.0,
    semantic=1.0,
)  # fmt: skip


def phrase_batch(seed: int = 0) -> Batch:
    """``tiny_batch`` with the tokens of its phrases, because a teacher reads the phrases themselves."""
    batch = tiny_batch(seed)
    ids, mask = encode(clip_tokenizer(SPEC.text.vocab_size, SPEC.text.context_length), batch.phrases)
    return replace(batch, input_ids=ids, attention_mask=mask)
