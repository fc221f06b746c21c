"""A teacher's answers on disk: one file per view of an image, in a folder named after all they depend on.

    DIR/<key>/cache.json                 what the key was made of, and the teacher's sizes
    DIR/<key>/<nn>/<image id>[m].safetensors    m: the mirrored view

Files appear under their name only when they are whole, so a cache that was interrupted is simply incomplete.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from sam3slim.data.batch import Sample
from sam3slim.data.soft import SoftTargets
from sam3slim.distill.losses import PRESENT
from sam3slim.errors import UserError
from sam3slim.files import atomic_path, ensure_writable_dir, read_json, write_json

SCHEMA = 1
FACTS_FILE = "cache.json"
FOLDERS = 256  # so that no folder holds all the files


class TeacherStore:
    """The folder of one key.

    Args:
        folder: ``distill.cache``.
        metadata: everything the answers depend on; JSON types only.

    Raises:
        UserError: the key's folder was written from other facts.
    """

    def __init__(self, folder: Path, metadata: Mapping[str, Any]) -> None:
        self.metadata = {"schema": SCHEMA, **metadata}
        text = json.dumps(self.metadata, sort_keys=True)
        self.path = folder / hashlib.sha256(text.encode()).hexdigest()[:16]
        if (self.path / FACTS_FILE).is_file() and read_cache_metadata(self.path)["facts"] != json.loads(text):
            raise UserError(
                f"{self.path / FACTS_FILE} belongs to another teacher, data set or transform: the folder was renamed "
                "or copied; remove it, or choose another distill.cache"
            )

    def create(self, teacher: Mapping[str, Any]) -> None:
        """Make the folder, with the teacher's sizes (``ModelSpec.to_dict``)."""
        ensure_writable_dir(self.path)
        write_json(self.path / FACTS_FILE, {"facts": self.metadata, "teacher": dict(teacher)})

    def teacher(self) -> dict[str, Any] | None:
        """The sizes that ``create`` was told; None without a folder."""
        return dict(read_cache_metadata(self.path)["teacher"]) if (self.path / FACTS_FILE).is_file() else None

    def file(self, image_id: int, mirrored: bool) -> Path:
        """Where a view is kept."""
        return self.path / f"{image_id % FOLDERS:02x}" / f"{image_id}{'m' if mirrored else ''}.safetensors"

    def missing(self, views: Iterable[tuple[int, bool]]) -> list[tuple[int, bool]]:
        """Those of (image id, mirrored) that are not there yet."""
        there = {entry.name for folder in _folders(self.path) for entry in os.scandir(folder)}
        return [view for view in views if self.file(*view).name not in there]

    def write(self, image_id: int, mirrored: bool, categories: Sequence[int], predictions: SoftTargets) -> int:
        """Keep the answers to a view's prompts, maps in FP16; returns the bytes.

        Raises:
            UserError: a map does not fit FP16; the disk is full.
        """
        data = save(pack(categories, predictions))
        path = self.file(image_id, mirrored)
        with atomic_path(path) as temporary:
            temporary.write_bytes(data)
        return len(data)

    def read(self, image_id: int, mirrored: bool, categories: Sequence[int]) -> SoftTargets:
        """The answers to some of a view's prompts.

        Raises:
            UserError: the view or a prompt is not in the cache, or its file is damaged.
        """
        path = self.file(image_id, mirrored)
        try:
            with safe_open(path, "pt") as file:
                return _unpack(file, categories, path)
        except FileNotFoundError as error:
            raise UserError(f"{path} is missing from the teacher cache; start again, it will be completed") from error
        except SafetensorError as error:
            raise UserError(f"{path} is damaged ({error}); delete it and start again") from error

    def look_up(self, samples: Sequence[Sample]) -> SoftTargets:
        """The answers to the prompts of training samples, as ``Collate`` wants them."""
        return SoftTargets.join([self.read(s.info.image_id, s.info.mirrored, s.category_ids) for s in samples])


class StoresOfSets:
    """The stores of several data sets, by name; image ids are a set's own."""

    def __init__(self, stores: Mapping[str, TeacherStore]) -> None:
        self.stores = dict(stores)

    def look_up(self, samples: Sequence[Sample]) -> SoftTargets:
        """As ``TeacherStore.look_up``, each sample in the store of its set."""
        return SoftTargets.join([self.stores[sample.info.data_set].look_up([sample]) for sample in samples])


def read_cache_metadata(folder: Path) -> dict[str, Any]:
    """``cache.json`` of a key's folder.

    Raises:
        UserError: it is not what ``create`` wrote.
    """
    path, fix = folder / FACTS_FILE, f"remove {folder}, or choose another distill.cache"
    content = read_json(path, fix)
    if not all(isinstance(content.get(key), dict) for key in ("facts", "teacher")):
        raise UserError(f"{path} does not say what the cache was made of; {fix}")
    return {key: content[key] for key in ("facts", "teacher")}


def _folders(path: Path) -> list[str]:
    return [entry.path for entry in os.scandir(path) if entry.is_dir()] if path.is_dir() else []


def pack(categories: Sequence[int], predictions: SoftTargets) -> dict[str, Tensor]:
    """One view's answers as tensors for a file: small ones in FP32, maps in FP16.

    The semantic maps of absent concepts are left out, because no loss looks at them.
    """
    tensors = {
        "categories": torch.tensor(categories, dtype=torch.int64),
        "presence": predictions.presence.float(),
        "rest": predictions.rest.float(),
        "boxes": predictions.boxes.float(),
        "scores": predictions.scores.float(),
        "prompt_index": predictions.prompt_index,
    }
    present = (predictions.presence >= PRESENT).nonzero().squeeze(1)
    halves = {"masks": predictions.masks, "memory": predictions.memory}
    halves |= {f"fpn.{level}": value[0] for level, value in enumerate(predictions.fpn)}
    if predictions.semantic is not None:
        tensors["semantic_rows"] = present
        halves["semantic"] = predictions.semantic[present]
    for name, value in halves.items():
        if value is not None:
            tensors[name] = value.half()
            if not bool(torch.isfinite(tensors[name]).all()):
                raise UserError(
                    f"the teacher's {name.split('.')[0]} does not fit FP16 (up to {float(value.abs().max()):.3g}, "
                    "65504 is the most); use distill.cache=null"
                )
    return {name: value.contiguous().cpu() for name, value in tensors.items()}


def _unpack(file: Any, categories: Sequence[int], path: Path) -> SoftTargets:
    names = set(file.keys())
    known = {category: row for row, category in enumerate(file.get_tensor("categories").tolist())}
    unknown = [category for category in categories if category not in known]
    if unknown:
        raise UserError(f"{path} has no answer for category {unknown[0]}; remove {path.parent.parent}")
    rows = [known[category] for category in categories]
    index = file.get_tensor("prompt_index")
    # Detections in the order of the prompts asked for.
    chosen = [(index == row).nonzero().squeeze(1) for row in rows]
    picked = torch.cat(chosen) if chosen else index[:0]
    memory = semantic = None
    if "memory" in names:
        kept = file.get_slice("memory")
        memory = torch.cat([kept[row : row + 1] for row in rows])
    if "semantic" in names:
        maps = file.get_tensor("semantic")
        places = {row: place for place, row in enumerate(file.get_tensor("semantic_rows").tolist())}
        semantic = maps.new_zeros(len(rows), *maps.shape[1:])
        for prompt, row in enumerate(rows):
            if row in places:
                semantic[prompt] = maps[places[row]]
    return SoftTargets(
        presence=file.get_tensor("presence")[rows],
        rest=file.get_tensor("rest")[rows],
        boxes=file.get_tensor("boxes")[picked],
        scores=file.get_tensor("scores")[picked],
        masks=file.get_tensor("masks")[picked] if "masks" in names else None,
        prompt_index=torch.repeat_interleave(torch.arange(len(rows)), torch.tensor([len(c) for c in chosen])),
        semantic=semantic,
        fpn=tuple(file.get_tensor(f"fpn.{level}")[None] for level in range(sum("fpn." in name for name in names))),
        memory=memory,
    )
