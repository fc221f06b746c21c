"""The files beside the weights are those that transformers would write."""

from pathlib import Path

import pytest
from transformers import Sam3ImageProcessor, Sam3Processor

from sam3slim.checkpoints.processor import save_processor
from sam3slim.data.phrases import tokenizer_of
from sam3slim.launch.compose import compose_model


@pytest.mark.parametrize("name", ["full", "nano"])
def test_save_processor__as_transformers_writes_it(name: str, tmp_path: Path) -> None:
    spec = compose_model([f"model={name}"])
    size, mask = spec.vit.image_size, 4 * spec.vit.grid_size
    images = Sam3ImageProcessor(size={"height": size, "width": size}, mask_size={"height": mask, "width": mask})
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    Sam3Processor(image_processor=images, tokenizer=tokenizer_of(spec.text), target_size=size).save_pretrained(theirs)
    ours.mkdir()
    save_processor(spec, ours)
    assert sorted(p.name for p in ours.iterdir()) == sorted(p.name for p in theirs.iterdir())
    for file in ours.iterdir():
        assert file.read_text(encoding="utf-8") == (theirs / file.name).read_text(encoding="utf-8"), file.name
