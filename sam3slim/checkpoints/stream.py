"""Writing safetensors tensor by tensor: memory stays at one chunk, whatever the model's size.

The format is eight bytes of header length, a JSON header, and the
tensors' bytes one after another. The package's own writer wants all tensors in memory at once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from sam3slim.checkpoints.lazy import described
from sam3slim.checkpoints.rounding import HALVES, Rounding, round_values
from sam3slim.disk import HashingWriter

CHUNK = 1_000_000  # elements: passes over one stay in the processor's cache
ALIGNMENT = 8  # the header is padded so that tensors start aligned
DTYPES = {
    torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64", torch.int8: "I8",
    torch.uint8: "U8", torch.int16: "I16", torch.int32: "I32", torch.int64: "I64", torch.bool: "BOOL",
}  # fmt: skip
Fetch = Callable[[Tensor], Tensor]


@dataclass
class Written:
    """A written weights file: its size in bytes, its SHA-256, and what rounding lost."""

    bytes: int
    sha256: str
    rounding: Rounding = field(default_factory=Rounding)


def write_safetensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    *,
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
    fetch: Fetch = lambda part: part,
    advance: Callable[[int], object] = lambda count: None,
) -> Written:
    """Write ``tensors`` to ``path``, floating ones rounded to ``dtype`` on the way.

    A tensor that overflows half precision stays as it is; the header is then written a second time.

    Args:
        tensors: any strides; memory-mapped ones are read chunk by chunk.
        dtype: float32, float16 or bfloat16; None keeps every tensor's own.
        metadata: texts for the header.
        fetch: a contiguous piece of a tensor → the same content, from a faster place.
        advance: called with the number of elements just written.
    """
    rounding = Rounding()
    plan = described(tensors)
    types = {key: _stored_type(tensor, dtype) for key, tensor in plan.items()}
    room = len(_header(plan, types, metadata))
    while True:
        head = _header(plan, types, metadata, room)
        with HashingWriter(path) as file:
            file.write(head)
            overflowed = _write_all(file, tensors, types, rounding, fetch, advance)
        if not overflowed:
            return Written(file.size, file.hexdigest(), rounding)
        # Rare: those tensors keep their type, so every later offset moves.
        rounding.overflowed += overflowed
        types |= {key: plan[key].dtype for key in overflowed}
        room += 64 * len(overflowed)


def write_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor of any type, without a copy."""
    return memoryview(tensor.view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]


def chunks(tensor: Tensor) -> Iterator[Tensor]:
    """Flat pieces of at most ``CHUNK`` elements; a tensor that is not contiguous is copied once."""
    yield from tensor.detach().contiguous().view(-1).split(CHUNK)


def _write_all(
    file: HashingWriter,
    tensors: Mapping[str, Tensor],
    types: Mapping[str, torch.dtype],
    rounding: Rounding,
    fetch: Fetch,
    advance: Callable[[int], object],
) -> list[str]:
    overflowed = []
    rounding.underflowed.clear()
    memory: dict[torch.dtype, Tensor] = {}
    for key, tensor in tensors.items():
        lost = 0
        for part in map(fetch, chunks(tensor)):
            stored: Tensor | None = part
            if types[key] in HALVES and part.dtype != types[key]:
                room = memory.setdefault(types[key], torch.empty(CHUNK, dtype=types[key]))
                stored, zeros = round_values(part, types[key], room[: part.numel()])
                lost += zeros
            elif part.dtype != types[key]:
                stored = part.to(types[key])
            if stored is None:
                overflowed.append(key)
                break
            file.write(write_bytes(stored))
            advance(part.numel())
        if lost:
            rounding.underflowed[key] = lost
    return overflowed


def _stored_type(tensor: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    return dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype


def _header(
    tensors: Mapping[str, Tensor],
    types: Mapping[str, torch.dtype],
    metadata: Mapping[str, str] | None,
    room: int = 0,
) -> bytes:
    """Header length and header, padded to at least ``room`` bytes."""
    entries: dict[str, object] = {"__metadata__": {**(metadata or {}), "format": "pt"}}
    start = 0
    for key, tensor in tensors.items():
        end = start + tensor.numel() * types[key].itemsize
        entries[key] = {"dtype": DTYPES[types[key]], "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    size = max(len(text), room - 8)
    size += -size % ALIGNMENT
    return size.to_bytes(8, "little") + text.ljust(size)
