"""The processor and tokenizer files that let ``transformers.Sam3Processor`` open an artifact."""

from __future__ import annotations

from pathlib import Path

from sam3slim.specs import ModelSpec


def save_processor(spec: ModelSpec, folder: Path) -> None:
    """Write image processor (size, mask size) and tokenizer of ``spec`` into ``folder``."""
    # A second of imports, which reading checkpoints has no use for.
    from transformers import Sam3ImageProcessor, Sam3Processor

    from sam3slim.data.tokenizer import clip_tokenizer

    size, mask = spec.vit.image_size, 4 * spec.vit.grid_size
    images = Sam3ImageProcessor(size={"height": size, "width": size}, mask_size={"height": mask, "width": mask})
    tokenizer = clip_tokenizer(spec.text.vocab_size, spec.text.context_length)
    Sam3Processor(image_processor=images, tokenizer=tokenizer, target_size=size).save_pretrained(folder)
