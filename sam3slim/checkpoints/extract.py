"""The weights out of any checkpoint, streamed: no optimiser, no tracker, in the precision and format asked for."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from sam3slim.checkpoints import int8
from sam3slim.checkpoints.account import require_all
from sam3slim.checkpoints.artifact import check_target, write_folder
from sam3slim.checkpoints.locate import ARTIFACT_FILE, Located, locate, weight_files
from sam3slim.checkpoints.readers import SPEC_METADATA, Overrides, RawCheckpoint, read
from sam3slim.checkpoints.reference_file import reference_tensors, write_reference
from sam3slim.checkpoints.report import by_part
from sam3slim.checkpoints.rounding import Rounding
from sam3slim.checkpoints.single_pass import SinglePass
from sam3slim.checkpoints.stream import Written, write_safetensors
from sam3slim.errors import UserError
from sam3slim.files import atomic_path, ensure_writable_dir, require_space, write_json
from sam3slim.models.count import part_of

Format = Literal["hf", "safetensors", "reference"]
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Extracted:
    """What ``extract`` wrote.

    Attributes:
        path: folder (``hf``) or file.
        before, after: bytes by part; ``before`` also has what was left behind (``optimizer``, ``tracker``, …).
        file_before, file_after: bytes of the weights on disk.
        rounding: what half precision lost.
    """

    path: Path
    before: dict[str, int]
    after: dict[str, int]
    file_before: int
    file_after: int
    rounding: Rounding


def extract(
    source: str | Path,
    target: str | Path,
    *,
    dtype: str | None = None,
    format: Format = "hf",
    overrides: Overrides | None = None,
    overwrite: bool = False,
    advance: Callable[[int, int], object] = lambda done, total: None,
) -> Extracted:
    """Write the weights of ``source`` to ``target``, whole or not at all.

    Args:
        source: what ``load`` takes.
        target: a folder for ``hf`` (transformers opens it), a file for ``safetensors`` and ``reference``.
        dtype: ``fp32``, ``fp16`` or ``bf16``; None keeps each tensor's own (INT8 ones become FP32).
        overrides: as for ``load``.
        overwrite: replace what is at ``target``.
        advance: called with elements just written and elements in all.

    Raises:
        CheckpointError: the source is damaged, or lacks a tensor.
        UserError: the target is there or cannot be written to, or an option that does not exist.
    """
    located, path = locate(source), Path(target).expanduser()
    check_options(located, path, dtype, format, overwrite)
    raw = read(located, overrides)
    tensors = int8.unflatten(raw.tensors, raw.path, dequantize=True)
    require_all(raw, tensors)
    total = sum(tensor.numel() for tensor in tensors.values())
    files = weight_files(located)
    width = DTYPES[dtype].itemsize if dtype else None
    require_space(ensure_writable_dir(path.parent), sum(part_bytes(tensors, width).values()))
    write = {"hf": _write_hf, "safetensors": _write_safetensors, "reference": _write_reference}[format]
    with SinglePass(files) as source_pass:
        done = 0

        def advanced(count: int) -> None:
            nonlocal done
            done += count
            advance(count, total)
            if done == total:
                # Most of a training checkpoint lies behind its weights: hashed while the rest is written and imported.
                source_pass.hash_rest()

        size, rounding = write(path, raw, tensors, dtype, source_pass, advanced)
    return Extracted(
        path,
        part_bytes(tensors) | {name: size for name, size in {**raw.ignored, **raw.other}.items() if size},
        part_bytes(tensors, width, set(rounding.overflowed)),
        sum(file.stat().st_size for file in files),
        size,
        rounding,
    )


Advance = Callable[[int], object]


def _write_hf(
    path: Path,
    raw: RawCheckpoint,
    tensors: Mapping[str, Tensor],
    dtype: str | None,
    source: SinglePass,
    advance: Advance,
) -> tuple[int, Rounding]:
    info = write_folder(
        path,
        raw.spec,
        source.in_order(tensors),
        precision=dtype or raw.precision,
        dtype=DTYPES[dtype] if dtype else None,
        parent=str(raw.path),
        source=lambda: provenance(raw, source.hashes()),
        fetch=source.fetch,
        advance=advance,
    )
    return info.bytes, info.rounding


def _write_safetensors(
    path: Path,
    raw: RawCheckpoint,
    tensors: Mapping[str, Tensor],
    dtype: str | None,
    source: SinglePass,
    advance: Advance,
) -> tuple[int, Rounding]:
    metadata = {SPEC_METADATA: json.dumps(raw.spec.to_dict())}
    with atomic_path(path) as temporary:
        written = write_safetensors(
            temporary,
            source.in_order(tensors),
            dtype=DTYPES[dtype] if dtype else None,
            metadata=metadata,
            fetch=source.fetch,
            advance=advance,
        )
    _write_facts(path, raw, dtype, written, source.hashes())
    return written.bytes, written.rounding


def _write_reference(
    path: Path,
    raw: RawCheckpoint,
    tensors: Mapping[str, Tensor],
    dtype: str | None,
    source: SinglePass,
    advance: Advance,
) -> tuple[int, Rounding]:
    with atomic_path(path) as temporary:
        pending = reference_tensors(raw.spec, tensors, raw.originals)
        written = write_reference(temporary, pending, dtype=DTYPES[dtype] if dtype else None, advance=advance)
    _write_facts(path, raw, dtype, written, source.hashes())
    return written.bytes, written.rounding


def _write_facts(path: Path, raw: RawCheckpoint, dtype: str | None, written: Written, hashes: dict[str, str]) -> None:
    """Beside a single file, what ``sam3slim.json`` is in a folder."""
    facts = {
        "spec": raw.spec.to_dict(),
        "precision": dtype or raw.precision,
        "bytes": written.bytes,
        "sha256": written.sha256,
        "source": provenance(raw, hashes),
        **written.rounding.facts(),
    }
    write_json(path.with_name(f"{path.name}.{ARTIFACT_FILE}"), facts)


def provenance(raw: RawCheckpoint, hashes: dict[str, str]) -> dict[str, Any]:
    return {"path": str(raw.path), "kind": raw.kind, "precision": raw.precision, "sha256": hashes}


def part_bytes(tensors: Mapping[str, Tensor], width: int | None = None, kept: set[str] | None = None) -> dict[str, int]:
    sizes = dict.fromkeys(by_part(tensors), 0)
    for key, tensor in tensors.items():
        own = width is None or key in (kept or ())
        sizes[part_of(key)] += tensor.numel() * (tensor.element_size() if own else width)  # type: ignore[operator]
    return sizes


def check_options(located: Located, path: Path, dtype: str | None, format: str, overwrite: bool) -> None:
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"dtype={dtype}: expected {', '.join(DTYPES)}")
    if format not in get_args(Format):
        raise UserError(f"format={format}: expected {', '.join(get_args(Format))}")
    if path.exists() and path.resolve() in (located.path.resolve(), *(p.resolve() for p in weight_files(located))):
        raise UserError(f"{path} is the source itself; choose another target")
    if format == "hf":
        if path.is_dir() and any(path.iterdir()) and not overwrite:
            raise UserError(f"output folder {path} is not empty; choose another one or give --overwrite")
        check_target(path)
    elif path.is_dir():
        raise UserError(f"{path} is a folder; format={format} writes one file, e.g. {path / 'sam3.safetensors'}")
    elif path.exists() and not overwrite:
        raise UserError(f"{path} is there; choose another file or give --overwrite")
