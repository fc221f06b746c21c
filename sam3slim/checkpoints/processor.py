"""The processor and tokenizer files that let ``transformers.Sam3Processor`` open an artifact."""

from __future__ import annotations

from pathlib import Path

from sam3slim.specs import ModelSpec


def save_processor(spec: ModelSpec, folder: Path) -> None:
    """Write image processor (size, mask size) and tokenizer of ``spec`` into ``folder``."""
    # A second of imports, which reading checkpoints has no use for.
    from transformers import Sam3ImageProcessor, Sam3Processor

    from sam3slim.data.phrases import tokenizer_of

    size, mask = spec.vit.image_size, 4 * spec.vit.grid_size
    images = Sam3ImageProcessor(size={"height": size, "width": size}, mask_size={"height": mask, "width": mask})
    Sam3Processor(image_processor=images, tokenizer=tokenizer_of(spec.text), target_size=size).save_pretrained(folder)
