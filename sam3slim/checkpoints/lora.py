"""LoRA adapters (Hu et al., 2021, arXiv:2106.09685) read and merged into the weights they were trained beside."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sam3slim.checkpoints.layout import Layout, find_layout
from sam3slim.checkpoints.load_report import CheckpointError
from sam3slim.checkpoints.locating import ADAPTER_CONFIG, locate, read_metadata, weight_files
from sam3slim.checkpoints.names import LORA, SAVED, WRAPPERS
from sam3slim.checkpoints.reference_keys import place_of
from sam3slim.checkpoints.storage import tensors_of
from sam3slim.data.values import short
from sam3slim.files import at_home

WEIGHT_FILES = ("adapter_model.safetensors", "adapter_model.bin")
# peft's ways to begin that change the base as well: the adapter alone fits another base than the released one.
CHANGES_BASE = ("pissa", "olora", "loftq", "corda", "lora_ga")
# What peft may set that a product of two matrices does not say.
MORE = (
    "use_dora",
    "use_qalora",
    "layer_replication",
    "trainable_token_indices",
    "target_parameters",
    "alora_invocation_tokens",
)
_HALVES = {"down": "A", "up": "B"}


@dataclass(frozen=True)
class Adapter:
    """LoRA matrices and how strongly they count: W + alpha / rank · B A.

    Attributes:
        path: where it was read.
        tensors: by the file's names.
        alpha: None where the file does not tell.
        rslora: alpha / √rank instead (Kalajdzievski, 2023, arXiv:2312.03732).
        alphas: pattern of a module's name → its own alpha.
    """

    path: Path
    tensors: dict[str, Tensor]
    alpha: float | None = None
    rslora: bool = False
    alphas: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of_training(cls, path: Path, tensors: dict[str, Tensor], hyper: Mapping[str, Any]) -> Adapter | None:
        """The adapter in a checkpoint of a training of ours, which states its settings; None if it does not."""
        settings = hyper.get("lora")
        if not isinstance(settings, dict) or not isinstance(settings.get("alpha"), float):
            return None
        return cls(path, tensors, settings["alpha"], bool(settings.get("rslora")))

    def scale(self, module: str, rank: int, own: float | None) -> float:
        """What B A is multiplied by; ``own`` is the alpha beside this module's matrices."""
        alpha = own if own is not None else self.alpha
        for pattern, value in self.alphas.items():
            if re.fullmatch(rf"(.*\.)?({pattern})", module):
                alpha = float(value)
        if alpha is None:
            raise CheckpointError(
                f"adapter {self.path} does not state its alpha; give what it was trained with, e.g. --lora-alpha {rank}"
            )
        return alpha / (math.sqrt(rank) if self.rslora else rank)


def read_config(folder: Path) -> dict[str, Any]:
    """``adapter_config.json`` of peft.

    Raises:
        CheckpointError: an adapter that is more than two matrices a module (what it is is named).
    """
    config = read_metadata(folder / ADAPTER_CONFIG)
    kind, start = str(config.get("peft_type", "LORA")), str(config.get("init_lora_weights")).lower()
    odd = [key for key in MORE if config.get(key)] or [start for name in CHANGES_BASE if start.startswith(name)]
    if kind != "LORA" or odd:
        raise CheckpointError(
            f"adapter {folder} is {kind}{f' with {odd[0]}' if odd else ''}; sam3slim merges plain LoRA, peft merges "
            "it: PeftModel.from_pretrained(Sam3Model.from_pretrained(BASE), ADAPTER).merge_and_unload()"
            ".save_pretrained(OUT)"
        )
    if not _is_factor(config.get("lora_alpha")):
        raise CheckpointError(
            f"{folder / ADAPTER_CONFIG} has no lora_alpha that is a number; copy the file again, or add it"
        )
    patterns = config.get("alpha_pattern") or {}
    if not (isinstance(patterns, dict) and all(map(_is_pattern, patterns)) and all(map(_is_factor, patterns.values()))):
        raise CheckpointError(
            f"{folder / ADAPTER_CONFIG} has alpha_pattern {short(patterns)}, expected {{module: number}}; copy the "
            "file again"
        )
    return config


def _is_factor(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9  # NaN is not


def _is_pattern(text: Any) -> bool:
    try:
        re.compile(text)
    except (re.error, TypeError, RecursionError, OverflowError):
        return False
    return True


def merged(tensors: Mapping[str, Tensor], adapter: Adapter) -> dict[str, Tensor]:
    """``tensors`` (our keys) with the adapter added in FP32, in the types they have.

    Raises:
        CheckpointError: a module the model does not have, other shapes, no alpha.
    """
    pairs, alphas, whole = _pairs(adapter)
    layout = find_layout([*(f"{module}.weight" for module in pairs), *whole])
    if layout is None or not (pairs or whole):
        names = ", ".join(list(adapter.tensors)[:3])
        raise CheckpointError(f"adapter {adapter.path}: not one name fits SAM 3 ({names}); choose another file")
    result, used = dict(tensors), set()
    for key, tensor in tensors.items():
        name = layout.name_of(key)
        module = name.removesuffix(".weight")
        if name in whole:
            result[key] = _piece(layout, key, whole[name], tensor, adapter).to(tensor.dtype)
            used.add(name)
        elif module != name and module in pairs:
            delta = _delta(pairs[module], adapter, module, alphas.get(module))
            change = _piece(layout, key, delta, tensor, adapter)
            result[key] = (tensor.float() + change).to(tensor.dtype)
            used.add(module)
    foreign = [module for module in (*pairs, *whole) if module not in used]
    if foreign:
        raise CheckpointError(
            f"adapter {adapter.path} is for {len(foreign)} modules that the checkpoint lacks (first {foreign[0]}); "
            "choose the checkpoint it was trained on"
        )
    return result


def rank_of(adapter: Adapter) -> int:
    """The largest rank of its matrices."""
    return max((min(pair["B"].shape[:2]) for pair in _pairs(adapter)[0].values() if "B" in pair), default=0)


def _pairs(adapter: Adapter) -> tuple[dict[str, dict[str, Tensor]], dict[str, float], dict[str, Tensor]]:
    """Module → its two matrices; module → its alpha; name → tensor that replaces the base's."""
    pairs: dict[str, dict[str, Tensor]] = {}
    alphas: dict[str, float] = {}
    whole: dict[str, Tensor] = {}
    names = set()
    for name, tensor in adapter.tensors.items():
        if match := LORA.match(name):
            half = _HALVES.get(match["half"], match["half"])
            if half == "magnitude_vector":
                raise CheckpointError(
                    f"adapter {adapter.path} is DoRA ({name}), and sam3slim merges plain LoRA; merge it with peft's "
                    "merge_and_unload"
                )
            pairs.setdefault(_bare(match["module"]), {})[half] = tensor.float()
            names.add(match["name"])
        elif match := SAVED.match(name):
            whole[_bare(f"{match['module']}.{match['tensor']}")] = tensor
            names.add(match["name"])
        elif name.endswith(".alpha") and tensor.numel() == 1:
            alphas[_bare(name.removesuffix(".alpha"))] = float(tensor)
        else:
            whole[_bare(name)] = tensor
    if len(names - {None}) > 1:
        raise CheckpointError(
            f"adapter {adapter.path} holds several ({', '.join(sorted(names - {None}))}); save one of them with peft's "
            " save_pretrained(selected_adapters=[…])"
        )
    return pairs, alphas, whole


def _bare(module: str) -> str:
    return ".".join(step for step in module.split(".") if step not in WRAPPERS)


def _delta(pair: Mapping[str, Tensor], adapter: Adapter, module: str, alpha: float | None) -> Tensor:
    """alpha / rank · B A, of the shape of the weight."""
    left, right = pair.get("B"), pair.get("A")
    if "embedding_A" in pair and "embedding_B" in pair:
        left, right = pair["embedding_A"].mT, pair["embedding_B"].mT
    if left is None or right is None:
        raise CheckpointError(f"adapter {adapter.path} has only one of the two matrices of {module}; copy it again")
    try:
        # Some write A [inputs, rank] and B [rank, outputs], which are multiplied the other way round.
        turned = left.ndim == right.ndim == 2 and left.shape[0] < left.shape[1] and left.shape[0] == right.shape[1]
        rank = right.shape[1] if turned else right.shape[0]
        if turned:
            product = (right @ left).mT
        elif right.ndim == 4:
            product = torch.einsum("or,rikl->oikl", left[:, :, 0, 0], right)
        else:
            product = left @ right
    except (RuntimeError, IndexError) as error:
        raise CheckpointError(
            f"adapter {adapter.path}: the matrices of {module} do not fit each other "
            f"({list(left.shape)}, {list(right.shape)}); copy it again"
        ) from error
    return product * adapter.scale(module, rank, alpha)


def _piece(layout: Layout, key: str, value: Tensor, wanted: Tensor, adapter: Adapter) -> Tensor:
    """Our tensor's part of ``value``, which is of the shape the adapter's names mean."""
    try:
        piece = place_of(key).take(value) if layout.format == "reference" else value
    except ValueError:
        piece = value
    if piece.shape != wanted.shape:
        raise CheckpointError(
            f"adapter {adapter.path} is for {key} of shape {list(piece.shape)}, and the checkpoint's is "
            f"{list(wanted.shape)}; choose the checkpoint it was trained on"
        )
    return piece


def adapter_files(path: Path) -> list[Path]:
    """The files of an adapter: peft's two, those of a model that holds one, or the one."""
    if not path.is_dir():
        return [path]
    if not (path / ADAPTER_CONFIG).is_file():
        return weight_files(locate(path))
    weights = next((path / name for name in WEIGHT_FILES if (path / name).is_file()), None)
    if weights is None:
        raise CheckpointError(f"adapter folder {path} has no {WEIGHT_FILES[0]}; copy the whole folder")
    return [path / ADAPTER_CONFIG, weights]


def read_adapter(source: str | Path, alpha: float | None = None) -> Adapter:
    """An adapter: a folder of peft's, or a file or folder with LoRA matrices, alone or beside the weights.

    Args:
        alpha: where the file does not state it; else it must not be given.

    Raises:
        CheckpointError: no adapter, one of another kind than plain LoRA, or a broken file.
    """
    path = at_home(source)
    if path.name in (*WEIGHT_FILES, ADAPTER_CONFIG) and (path.parent / ADAPTER_CONFIG).is_file():
        path = path.parent
    if not path.exists():
        raise CheckpointError(f"adapter {path} does not exist; give a folder of peft's, or a file")
    config = read_config(path) if path.is_dir() and (path / ADAPTER_CONFIG).is_file() else {}
    tensors: dict[str, Tensor] = {}
    for file in adapter_files(path):
        if file.name != ADAPTER_CONFIG:
            tensors |= tensors_of(file)
    tensors = _of_adapter(tensors, path)
    if not config:
        return Adapter(path, tensors, alpha)
    if alpha is not None:
        raise CheckpointError(
            f"--lora-alpha {alpha:g}: {path / ADAPTER_CONFIG} states {config['lora_alpha']}; leave it out"
        )
    patterns = config.get("alpha_pattern") or {}
    return Adapter(path, tensors, float(config["lora_alpha"]), bool(config.get("use_rslora")), patterns)


def _of_adapter(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """What of ``tensors`` belongs to an adapter; beside whole weights only the matrices do."""
    modules = {match["module"] for name in tensors if (match := LORA.match(name))}
    if not modules:
        names = ", ".join(list(tensors)[:3])
        raise CheckpointError(
            f"adapter {path} holds no LoRA matrices (its tensors are called {names}); choose another file"
        )
    if not any(f"{module}.{name}" in tensors for module in modules for name in ("weight", "base_layer.weight")):
        return tensors
    return {name: t for name, t in tensors.items() if LORA.match(name) or SAVED.match(name) or name.endswith(".alpha")}
