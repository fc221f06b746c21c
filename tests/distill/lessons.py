"""A teacher's batch, and a specification that teaches everything."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sam3slim.data.batch import Batch
from sam3slim.data.module import ConceptData
from sam3slim.data.sampling import PromptSpec
from sam3slim.data.shapes import ShapesSpec
from sam3slim.data.transforms import AugmentSpec
from sam3slim.distill import DistillSpec
from sam3slim.text.phrases import encode_phrases
from tests.tiny import SPEC, tiny_batch

# Fresh models are sure of nothing; with this threshold they have detections.
EVERYTHING = DistillSpec(
    "x", min_score=0.02, fpn=1.0, memory=1.0, presence=1.0, scores=1.0, bbox=1.0, giou=1.0, mask=1.0, dice=1.0,
    semantic=1.0,
)  # fmt: skip


def shapes(root: Path, *, pool: int | None = 32, augment: AugmentSpec | None = None, seed: int = 0) -> ConceptData:
    """Six pictures of 32 px with 23 categories, two to a batch."""
    data = ConceptData(
        root / "shapes",
        image_size=32,
        text=SPEC.text,
        batch_size=2,
        prompts=PromptSpec(max_prompts=4, negatives=2, pool=pool),
        augment=augment or AugmentSpec(),
        shapes=ShapesSpec(image_size=32, train_images=6, val_images=1, test_images=1),
        seed=seed,
    )
    data.prepare_data()
    return data


def phrase_batch(seed: int = 0) -> Batch:
    """``tiny_batch`` with the tokens of its phrases, because a teacher reads the phrases themselves."""
    batch = tiny_batch(seed)
    ids, mask = encode_phrases(SPEC.text, batch.phrases)
    return replace(batch, input_ids=ids, attention_mask=mask)
