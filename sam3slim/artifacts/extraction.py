"""The weights out of any checkpoint, streamed: no optimiser, no tracker, in the precision and format asked for."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from torch import Tensor

from sam3slim.artifacts.lazy import converted, described, rounding_of
from sam3slim.artifacts.metadata import check_target
from sam3slim.artifacts.reference_file import reference_tensors, write_reference
from sam3slim.artifacts.stream import write_safetensors
from sam3slim.artifacts.write import write_folder
from sam3slim.checkpoints import int8
from sam3slim.checkpoints.account import require_all
from sam3slim.checkpoints.load_report import by_part
from sam3slim.checkpoints.locating import ARTIFACT_FILE, Located, locate, weight_files
from sam3slim.checkpoints.lora import Adapter, adapter_files, merged, rank_of, read_adapter
from sam3slim.checkpoints.readers import SPEC_METADATA, Overrides, RawCheckpoint, read
from sam3slim.errors import UserError
from sam3slim.files import at_home, atomic_path, ensure_writable_dir, file_sha256, require_space, write_json
from sam3slim.models.count import part_of
from sam3slim.precisions import PRECISIONS, Rounding, casts

WeightFormat = Literal["hf", "safetensors", "reference"]


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
    format: WeightFormat = "hf",
    overrides: Overrides | None = None,
    overwrite: bool = False,
    lora: str | Path | None = None,
    lora_alpha: float | None = None,
    advance: Callable[[int, int], object] = lambda done, total: None,
) -> Extracted:
    """Write the weights of ``source`` to ``target``, whole or not at all.

    Args:
        source: what ``load`` takes.
        target: a folder for ``hf`` (transformers opens it), a file for ``safetensors`` and ``reference``.
        dtype: ``fp32``, ``fp16`` or ``bf16``; None keeps each tensor's own (INT8 ones become FP32).
        overrides: as for ``load``.
        overwrite: replace what is at ``target``.
        lora: an adapter to merge, see ``read_adapter``; ``source`` itself where it holds one beside its weights.
        lora_alpha: what B A counts times its rank, where the adapter does not tell.
        advance: called with elements just written and elements in all.

    Raises:
        CheckpointError: the source is damaged, or lacks a tensor.
        UserError: the target is there or cannot be written to, or an option that does not exist.
    """
    located, path = locate(source), at_home(target)
    check_options(located, path, dtype, format, overwrite)
    if lora is None and lora_alpha is not None:
        raise UserError(f"--lora-alpha {lora_alpha:g} is for an adapter; give --lora ADAPTER as well, or leave it out")
    adapter = None if lora is None else read_adapter(lora, lora_alpha)
    raw = read(located, overrides)
    tensors = int8.unflatten(raw.tensors, raw.path, dequantize=True)
    if adapter is not None:
        if adapter.path.resolve() in {path.resolve() for path in (raw.path, *weight_files(located))}:
            raw.adapter = {}
        tensors = merged(tensors, adapter)
    require_all(raw, tensors).tell()
    total = sum(tensor.numel() for tensor in tensors.values())
    size = total * PRECISIONS[dtype].bytes if dtype else sum(part_bytes(tensors).values())
    require_space(ensure_writable_dir(path.parent), size)
    stored = tensors if dtype is None else converted(tensors, lambda key, tensor: PRECISIONS[dtype].store(tensor))
    rounding, files = rounding_of(stored), weight_files(located)

    def done(count: int) -> None:
        advance(count, total)

    with ThreadPoolExecutor(1) as pool:
        # The source is hashed while its weights are written: as many seconds as the files have GB.
        source_metadata = pool.submit(provenance, raw, files, adapter)
        if format == "hf":
            precision, parent = dtype or raw.precision, str(raw.path)
            size = write_folder(
                path, raw.spec, stored, precision=precision, parent=parent, source=source_metadata.result, advance=done
            ).bytes
        else:
            with atomic_path(path) as temporary:
                if format == "safetensors":
                    header = {SPEC_METADATA: json.dumps(raw.spec.to_dict())}
                    written = write_safetensors(temporary, stored, metadata=header, advance=done)
                else:
                    written = write_reference(temporary, reference_tensors(raw.spec, stored, raw.originals))
                    done(total)
            size = written.bytes
            # Beside a single file, what ``sam3slim.json`` is in a folder.
            metadata = {
                "spec": raw.spec.to_dict(),
                "precision": dtype or raw.precision,
                "bytes": size,
                "sha256": written.sha256,
                "source": source_metadata.result(),
                **rounding.metadata(),
            }
            write_json(path.with_name(f"{path.name}.{ARTIFACT_FILE}"), metadata)
    return Extracted(
        path,
        part_bytes(tensors) | {name: size for name, size in {**raw.ignored, **raw.other}.items() if size},
        part_bytes(described(stored)),
        sum(file.stat().st_size for file in files),
        size,
        rounding,
    )


def provenance(raw: RawCheckpoint, files: Sequence[Path], adapter: Adapter | None = None) -> dict[str, Any]:
    """Where weights come from: path, kind, precision, the SHA-256 of ``files``, and the adapter that was merged."""
    hashes = {file.name: file_sha256(file) for file in files}
    source = {"path": str(raw.path), "kind": raw.kind, "precision": raw.precision, "sha256": hashes}
    if adapter is not None:
        hashes = {file.name: file_sha256(file) for file in adapter_files(adapter.path)}
        source["lora"] = {"path": str(adapter.path), "rank": rank_of(adapter), "sha256": hashes}
    return source


def part_bytes(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Part → bytes of its tensors, without their content."""
    sizes = dict.fromkeys(by_part(tensors), 0)
    for key, tensor in tensors.items():
        sizes[part_of(key)] += tensor.numel() * tensor.element_size()
    return sizes


def check_options(located: Located, path: Path, dtype: str | None, format: str, overwrite: bool) -> None:
    if dtype is not None and dtype not in casts():
        raise UserError(f"dtype={dtype}: expected {', '.join(casts())}")
    if format not in get_args(WeightFormat):
        raise UserError(f"format={format}: expected {', '.join(get_args(WeightFormat))}")
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
