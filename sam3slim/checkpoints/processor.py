"""The processor and tokenizer files that let ``transformers.Sam3Processor`` open an artifact."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sam3slim.specs import ModelSpec

PROCESSOR = "Sam3Processor"


def save_processor(spec: ModelSpec, folder: Path) -> None:
    """Write image processor (size, mask size) and tokenizer of ``spec`` into ``folder``.

    They are the files of ``Sam3Processor.save_pretrained``, byte for byte; a test compares. Importing that class loads
    torchvision and takes longer than a gigabyte of weights.
    """
    from sam3slim.data.phrases import tokenizer_of

    tokenizer_of(spec.text).save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    values = json.loads(file.read_text(encoding="utf-8")) | {"processor_class": PROCESSOR}
    _write(values, file)
    _write(_processor(spec), folder / "processor_config.json")


def _processor(spec: ModelSpec) -> dict[str, Any]:
    size, mask = spec.vit.image_size, 4 * spec.vit.grid_size
    images = {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": "Sam3ImageProcessor",
        "image_std": [0.5, 0.5, 0.5],
        "mask_size": {"height": mask, "width": mask},
        "resample": 2,
        "rescale_factor": 1 / 255,
        "size": {"height": size, "width": size},
    }
    return {"image_processor": images, "point_pad_value": -10, "processor_class": PROCESSOR, "target_size": size}


def _write(values: dict[str, Any], file: Path) -> None:
    file.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
