"""Which prompts a model was trained on: phrases, or boxes too. Kept in ``sam3slim.json``, told by model cards."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sam3slim.checkpoints.locating import ARTIFACT_FILE, locate, read_metadata
from sam3slim.errors import UserError
from sam3slim.files import at_home

TEXT, TEXT_AND_BOXES = "text", "text and boxes"
KEY = "trained_prompts"
SENTENCES = {
    TEXT: "It was trained on phrases only: box prompts are accepted, and mean little to it.",
    TEXT_AND_BOXES: "It was trained on phrases and on box prompts, positive and negative.",
    None: "Which prompts it was trained on is not known (SAM 3 itself: phrases and boxes).",
}


def told_prompts(metadata: Mapping[str, Any]) -> str | None:
    """What the facts of an artifact say; None: not known.

    An older artifact of a training from scratch does not say it, and had no boxes.
    """
    if KEY in metadata:
        value = metadata[KEY]
        return value if value in (TEXT, TEXT_AND_BOXES) else None
    from_scratch = metadata.get("parent") is None and "training_seconds" in (metadata.get("extra") or {})
    return TEXT if from_scratch else None


def inherited_prompts(parent: Any) -> str | None:
    """What the checkpoint ``parent`` was trained on; None: not known, or it is gone."""
    if parent is None or not at_home(str(parent)).exists():  # a hub id is not downloaded for this
        return None
    try:
        located = locate(str(parent))
        if located.kind == "artifact":
            return told_prompts(read_metadata(located.path / ARTIFACT_FILE))
        return _of_training(located.path) if located.path.suffix == ".ckpt" else None
    except UserError:
        return None


def trained_prompts(parent: Any, *, boxes: bool) -> str | None:
    """Of a training that started from ``parent`` (None: from scratch): boxes once learnt are not taken back."""
    if boxes:
        return TEXT_AND_BOXES
    return TEXT if parent is None else inherited_prompts(parent)


def _of_training(path: Path) -> str | None:
    """A run's checkpoint knows its configuration."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, pickle.UnpicklingError):  # another trainer's
        return None
    hyper = content.get("hyper_parameters") if isinstance(content, dict) else None
    config = hyper.get("config") if isinstance(hyper, dict) else None
    if not config:
        return None
    boxes = (config.get("data") or {}).get("boxes") or {}
    parent = (config.get("init") or {}).get("checkpoint")
    return trained_prompts(parent, boxes=bool(boxes.get("share")))
