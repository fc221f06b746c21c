"""Writing safetensors tensor by tensor: memory stays at one tensor, whatever the model's size.

The format is eight bytes of header length, a JSON header, and the
tensors' bytes one after another. The package's own writer wants all tensors in memory at once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sam3slim.artifacts.lazy import described

CHUNK = 1_000_000  # elements that are written at once
ALIGNMENT = 8  # the header is padded so that tensors start aligned
DTYPES = {
    torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64", torch.int8: "I8",
    torch.uint8: "U8", torch.int16: "I16", torch.int32: "I32", torch.int64: "I64", torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip


@dataclass(frozen=True)
class Written:
    """A written weights file: its size in bytes and its SHA-256."""

    bytes: int
    sha256: str


def write_safetensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    *,
    metadata: Mapping[str, str] | None = None,
    advance: Callable[[int], object] = lambda count: None,
) -> Written:
    """Write ``tensors``, of any strides, to ``path``.

    Args:
        metadata: texts for the header.
        advance: called with the number of elements just written.
    """
    head = _header(described(tensors), metadata)
    digest = hashlib.sha256(head)
    with path.open("wb") as file:
        file.write(head)
        for tensor in tensors.values():
            for part in chunks(tensor):
                data = bytes_of(part)
                file.write(data)
                digest.update(data)
                advance(part.numel())
        return Written(file.tell(), digest.hexdigest())


def safetensors_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> int:
    """Bytes of the file that ``write_safetensors`` would write."""
    plan = described(tensors)
    content = sum(tensor.numel() * tensor.element_size() for tensor in plan.values())
    return len(_header(plan, metadata)) + content


def bytes_of(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor of any type, without a copy."""
    return memoryview(tensor.view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]


def chunks(tensor: Tensor) -> Iterator[Tensor]:
    """Flat pieces of at most ``CHUNK`` elements; a tensor that is not contiguous is copied once."""
    yield from tensor.detach().contiguous().view(-1).split(CHUNK)


def _header(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None) -> bytes:
    """Header length and header."""
    entries: dict[str, object] = {"__metadata__": {**(metadata or {}), "format": "pt"}}
    start = 0
    for key, tensor in tensors.items():
        end = start + tensor.numel() * tensor.element_size()
        entries[key] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    size = len(text) + -len(text) % ALIGNMENT
    return size.to_bytes(8, "little") + text.ljust(size)
