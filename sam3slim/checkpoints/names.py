"""What trainers add to the names of tensors, taken off again: wrappers, a second copy, LoRA matrices."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from sam3slim.checkpoints.layout import Layout, sets_of
from sam3slim.checkpoints.load_report import CheckpointError

# Modules that others are wrapped in by torch.compile, activation checkpointing, FSDP, DDP, Fabric, Opacus, and peft.
WRAPPERS = frozenset(
    ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module", "module", "_forward_module", "_module",
     "base_layer", "original_module")
)  # fmt: skip
FLAT = re.compile(r"(^|\.)(_flat_param|flat_param)(_\d+)?$")
# peft's names and those of others: lora_A.weight, lora_A.default.weight, lora.lora_A, lora_down.weight.
LORA = re.compile(
    r"^(?P<module>.+?)\.(?:lora\.)?lora_(?P<half>A|B|embedding_A|embedding_B|down|up|magnitude_vector)"
    r"(?:\.(?P<name>(?!weight$)[\w-]+))?(?:\.weight)?$"
)
SAVED = re.compile(r"^(?P<module>.+)\.modules_to_save\.(?P<name>[\w-]+)\.(?P<tensor>\w+)$")
MOST_EXPANDED = 2**34  # bytes that a tensor may have of a storage that has fewer
ENOUGH = 0.5  # of the tensors of the largest set: from here on a second one is no accident


@dataclass(frozen=True)
class Named:
    """A file's tensors by names without wrappers.

    Attributes:
        tensors: one set, under ``layout``, and what belongs to none.
        written: name → how the file writes it.
        adapter: what belongs to LoRA, by the file's names.
        copies: bytes of tensors that are there a second time.
        others: bytes of sets that were not chosen.
    """

    tensors: dict[str, Tensor]
    layout: Layout
    written: dict[str, str]
    adapter: dict[str, Tensor] = field(default_factory=dict)
    copies: int = 0
    others: int = 0


def named(tensors: Mapping[str, Tensor], file: Path, prefix: str | None = None) -> Named:
    """Take off what wraps the names, choose the set of weights, and put LoRA matrices aside.

    Args:
        prefix: of the set to take, where the file has several that differ.

    Raises:
        CheckpointError: no tensor of SAM 3; a LoRA adapter alone; several sets that differ, or none of that prefix;
            a tensor that holds no plain values.
    """
    for name, tensor in tensors.items():
        if odd := _odd(tensor):
            raise CheckpointError(f"checkpoint {file}: {name} is {odd}")
    adapter = {name: tensor for name, tensor in tensors.items() if LORA.match(name) or SAVED.match(name)}
    if prefix is not None:
        start = f"{prefix.rstrip('.')}."
        chosen = {name: tensor for name, tensor in tensors.items() if name.startswith(start)}
        if not chosen:
            raise CheckpointError(
                f"weights={prefix}: {file} has no tensors whose names start with {start}; leave it out"
            )
        found = named(chosen, file)
        rest = sum(tensor.nbytes for name, tensor in tensors.items() if name not in chosen)
        return Named(found.tensors, found.layout, found.written, found.adapter, found.copies, rest)
    clean, written, copies = _unwrapped({name: t for name, t in tensors.items() if name not in adapter}, file)
    sets = sets_of(clean)
    if not sets:
        raise CheckpointError(_nothing(file, tensors, adapter))
    layout, most = max(sets.items(), key=lambda item: len(item[1]))
    for other, names in sets.items():
        if other == layout or len(names) < ENOUGH * len(most):
            continue
        twins = {name: layout.prefix + name.removeprefix(other.prefix) for name in names}
        if other.format != layout.format or not all(_equal(clean[a], clean.get(b)) for a, b in twins.items()):
            raise CheckpointError(
                f"checkpoint {file} has several sets of weights that differ: {len(most)} tensors under "
                f"{_shown(layout)} and {len(names)} under {_shown(other)}; choose one with the override "
                f"weights={(layout.prefix or other.prefix).rstrip('.')}"
            )
        for name in names:
            copies += clean.pop(name).nbytes
    return Named(clean, layout, written, adapter, copies)


def _unwrapped(tensors: Mapping[str, Tensor], file: Path) -> tuple[dict[str, Tensor], dict[str, str], int]:
    clean: dict[str, Tensor] = {}
    written: dict[str, str] = {}
    copies = 0
    for name, tensor in tensors.items():
        if FLAT.search(name):
            raise CheckpointError(
                f"checkpoint {file} holds {name}, FSDP's flattened weights of one process; save them with "
                "StateDictType.FULL_STATE_DICT (Lightning: state_dict_type='full')"
            )
        short = ".".join(step for step in name.split(".") if step not in WRAPPERS)
        if short in clean:
            if not _equal(tensor, clean[short]):
                raise CheckpointError(
                    f"checkpoint {file} has several sets of weights that differ: {written[short]} and {name} are one "
                    f"tensor of SAM 3; choose one with the override weights={_start(name, written[short])}"
                )
            copies += tensor.nbytes
            continue
        clean[short], written[short] = tensor, name
    return clean, written, copies


def _odd(tensor: Tensor) -> str | None:
    """What a tensor is that no weight can be, and what to do about it."""
    if tensor.is_meta:
        return "a tensor without values (device meta); save the model after its weights are there"
    if tensor.layout != torch.strided:
        return "a sparse tensor; save tensor.to_dense()"
    if tensor.is_quantized:
        return "a quantised tensor; save tensor.dequantize()"
    if tensor.nbytes > MOST_EXPANDED and tensor.nbytes > tensor.untyped_storage().nbytes():
        return f"a tensor of {tensor.nbytes:,} bytes, of which the file holds {tensor.untyped_storage().nbytes():,}"
    return None


def _start(*names: str) -> str:
    """The words that the longest of ``names`` begins with and the others do not."""
    longest = max(names, key=len).split(".")
    shortest = min(names, key=len).split(".")
    return ".".join(longest[: len(longest) - len(shortest)]) or longest[0]


def _equal(one: Tensor, other: Tensor | None) -> bool:
    """Whether two tensors have the same values; those in the same memory are not read."""
    if other is None or one.shape != other.shape or one.dtype != other.dtype:
        return False
    return (one.data_ptr() == other.data_ptr() and one.stride() == other.stride()) or torch.equal(one, other)


def _shown(layout: Layout) -> str:
    return f"'{layout.prefix}'" if layout.prefix else "no prefix"


def _nothing(file: Path, tensors: Mapping[str, Tensor], adapter: Mapping[str, Tensor]) -> str:
    if adapter:
        return f"checkpoint {file} is {lora_text(adapter)}, no model; {merge_advice(file, alone=True)}"
    names = ", ".join(list(tensors)[:3]) + (", …" if len(tensors) > 3 else "")
    found = f"its {len(tensors)} tensors are called {names}" if tensors else "it has no tensors"
    return f"checkpoint {file}: not one tensor fits SAM 3 ({found}); choose another file"


def lora_text(adapter: Mapping[str, Tensor]) -> str:
    """A LoRA adapter in words: how many pairs, of which rank."""
    halves = [(match, tensor) for name, tensor in adapter.items() if (match := LORA.match(name))]
    first = [tensor for match, tensor in halves if match["half"] in ("A", "embedding_A", "down") and tensor.ndim > 1]
    ranks = sorted({min(tensor.shape[:2]) for tensor in first})
    rank = f", rank {' and '.join(map(str, ranks[:3]))}" if ranks else ""
    return f"a LoRA adapter ({len(first)} pairs of matrices{rank})"


def merge_advice(file: Path, *, alone: bool) -> str:
    """The command that merges ``file``: into its base if it is ``alone``, else in itself."""
    if alone:
        return f"merge it into the checkpoint it was trained on: sam3slim extract BASE OUT --lora {file}"
    return f"merge it: sam3slim extract {file} OUT --lora {file} --lora-alpha ALPHA"
