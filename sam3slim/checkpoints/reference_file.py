"""Writing a checkpoint that the reference implementation loads strictly, tensor by tensor."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from sam3slim.checkpoints.reference_keys import CLASS_TOKEN, FREQS_CIS, POINTS, freqs_cis, place_of
from sam3slim.checkpoints.rounding import HALVES, Rounding, round_values
from sam3slim.checkpoints.stream import Written, chunks, write_bytes
from sam3slim.disk import file_sha256
from sam3slim.environment import before_fake_tensors
from sam3slim.errors import UserError
from sam3slim.models.shapes import state_shapes
from sam3slim.specs import CLIP_VOCAB_SIZE, ModelSpec

PREFIX = "detector."  # the reference's loader takes only keys that contain it
_DESCRIPTOR, _DIRECTORY = b"PK\x07\x08", b"PK\x01\x02"


@dataclass(frozen=True)
class Pending:
    """A tensor of the reference's file: its shape and type, and how to make it (when its turn comes)."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], Tensor]


def reference_tensors(
    spec: ModelSpec, tensors: Mapping[str, Tensor], originals: Mapping[str, Tensor] | None = None
) -> dict[str, Pending]:
    """Our tensors under the reference's keys: queries, keys and values joined, the text projection transposed.

    What ``transformers`` drops is taken from ``originals`` (the point projections under the reference's names, the
    position table's first row as ``class_token`` [1, 1, C]) or is zero: the image model's outputs do not depend on it.

    Args:
        tensors: all of ``state_shapes(spec)``.

    Raises:
        UserError: a trimmed vocabulary, which the reference's tokenizer knows nothing of, or a bank instead of a tower.
    """
    if spec.text.bank is not None:
        raise UserError(
            "format=reference: this model has a prompt bank instead of the text tower that the reference needs; use "
            "format=hf, or the checkpoint it was made from"
        )
    if spec.text.vocabulary is not None:
        raise UserError(
            f"format=reference: the reference splits phrases by its own {CLIP_VOCAB_SIZE} tokens, and this model's "
            f"vocabulary is trimmed to {spec.text.vocab_size}; use format=hf, or the checkpoint it was trimmed from"
        )
    kept = originals or {}
    groups: dict[str, dict[str, str]] = {}
    for key in state_shapes(spec):
        place = place_of(key)
        groups.setdefault(place.key, {})[place.piece] = key
    result = {name: _joined(pieces, tensors, kept.get(CLASS_TOKEN)) for name, pieces in groups.items()}
    vit = spec.vit
    for block in range(vit.depth):
        sees_all = block in vit.global_blocks
        side = vit.grid_size if sees_all else vit.window_size
        scale = vit.window_size / vit.grid_size if sees_all else 1.0
        result[FREQS_CIS.replace("*", str(block))] = Pending(
            (side * side, vit.head_dim // 2),
            torch.complex64,
            lambda side=side, scale=scale: freqs_cis(vit.head_dim, side, scale),  # type: ignore[misc]
        )
    for name in POINTS:
        result[name] = _point_projection(name, spec.d_model, kept)
    return result


def write_reference(
    path: Path,
    pending: Mapping[str, Pending],
    *,
    dtype: torch.dtype | None = None,
    prefix: str = PREFIX,
    advance: Callable[[int], object] = lambda count: None,
) -> Written:
    """Write a ``torch.save`` file of ``{prefix + key: tensor}`` that ``torch.load(weights_only=True)`` reads.

    The archive is laid out with empty tensors first and filled afterwards, so that memory stays at one tensor.
    """
    rounding = Rounding()
    types = {}
    for key, item in pending.items():
        types[key] = dtype if dtype is not None and item.dtype.is_floating_point else item.dtype
        if types[key] in HALVES and item.dtype != types[key]:
            lost = [round_values(part, types[key]) for part in chunks(item.make())]
            if any(half is None for half, _ in lost):
                rounding.overflowed.append(key)
                types[key] = item.dtype
            elif zeros := sum(count for _, count in lost):
                rounding.underflowed[key] = zeros
    before_fake_tensors()
    with FakeTensorMode():
        empty = {prefix + key: torch.empty(item.shape, dtype=types[key]) for key, item in pending.items()}
    with torch.serialization.skip_data(materialize_fake_tensors=True):
        torch.save(empty, path)
    reader = torch._C.PyTorchFileReader(str(path))
    places = [reader.get_record_offset(f"data/{number}") for number in range(len(pending))]  # type: ignore[attr-defined]
    del reader
    checksums: dict[str, int] = {}
    with path.open("r+b") as file:
        for number, (key, item) in enumerate(pending.items()):
            file.seek(places[number])
            checksums[f"data/{number}"] = _fill(file, item.make(), types[key], advance)
            _write_checksum_after(file, checksums[f"data/{number}"])
    _write_directory(path, checksums)
    return Written(path.stat().st_size, file_sha256(path), rounding)


def _joined(pieces: Mapping[str, str], tensors: Mapping[str, Tensor], class_token: Tensor | None) -> Pending:
    parts = {piece: tensors[key] for piece, key in pieces.items()}
    first = next(iter(parts.values()))
    rows, *rest = first.shape
    if "q" in parts:
        return Pending((3 * rows, *rest), first.dtype, lambda: torch.cat([parts["q"], parts["k"], parts["v"]]))
    if "transposed" in parts:
        return Pending((rest[0], rows), first.dtype, lambda: first.mT.contiguous())
    if "without_class_token" in parts:
        row = class_token if class_token is not None else first.new_zeros(1, 1, first.shape[2])
        shape = (1, 1 + first.shape[1], first.shape[2])
        return Pending(shape, first.dtype, lambda: torch.cat([row.to(first.dtype), first], dim=1))
    return Pending(tuple(first.shape), first.dtype, lambda: first)


def _point_projection(name: str, width: int, kept: Mapping[str, Tensor]) -> Pending:
    inputs = 2 if "direct" in name else width
    shape = (width,) if name.endswith("bias") else (width, inputs)
    original = kept.get(name)
    if original is None:
        return Pending(shape, torch.float32, lambda: torch.zeros(shape))
    return Pending(tuple(original.shape), original.dtype, lambda: original)


def _fill(file: BinaryIO, tensor: Tensor, dtype: torch.dtype, advance: Callable[[int], object]) -> int:
    """Write the tensor at the file's place; returns its CRC-32."""
    checksum = 0
    for part in chunks(tensor):
        data = write_bytes(part.to(dtype))
        file.write(data)
        checksum = zlib.crc32(data, checksum)
        advance(part.numel())
    return checksum


def _write_checksum_after(file: BinaryIO, checksum: int) -> None:
    """Into the zip data descriptor that follows a record."""
    place = file.tell()
    if file.read(4) == _DESCRIPTOR:
        file.write(struct.pack("<I", checksum))
    file.seek(place)


def _write_directory(path: Path, checksums: Mapping[str, int]) -> None:
    """Into the zip's central directory: readers other than torch refuse a record whose checksum is wrong."""
    with zipfile.ZipFile(path) as archive:
        place, count = archive.start_dir, len(archive.filelist)
    with path.open("r+b") as file:
        for _ in range(count):
            file.seek(place)
            head = file.read(46)
            assert head[:4] == _DIRECTORY, "torch.save wrote an unknown zip directory"
            name_size, extra_size, comment_size = struct.unpack("<HHH", head[28:34])
            record = file.read(name_size).decode().partition("/")[2]
            if record in checksums:
                file.seek(place + 16)
                file.write(struct.pack("<I", checksums[record]))
            place += 46 + name_size + extra_size + comment_size
