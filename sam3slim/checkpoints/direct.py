"""Tensors of mapped files, read past the mapping.

A memory-mapped tensor costs a page fault every 4 KiB. Where it is known which bytes of which file a tensor is, reading
them with a few large requests is several times faster.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from sam3slim.disk import BlockReader

MAPS = Path("/proc/self/maps")  # Linux; elsewhere tensors are read through their mapping
WORTHWHILE = 1 << 16  # bytes


class DirectReader:
    """Reads tensors that are mapped from ``files``; a context manager.

    Args:
        files: what the tensors given to it may be mapped from, when they are given.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._files, self._readers = list(files), dict[Path, BlockReader]()
        self._buffer = bytearray()

    def __enter__(self) -> DirectReader:
        self._stack = ExitStack()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def in_order(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``tensors`` as they follow each other in the files, which is how reading ahead pays; others come last."""
        order = {file: number for number, file in enumerate(self._files)}

        def place(key: str) -> tuple[int, int]:
            found = self._place(tensors[key])
            return (order[found[0]], found[1]) if found else (len(order), 0)

        return {key: tensors[key] for key in sorted(tensors, key=place)}

    def fetch(self, part: Tensor) -> Tensor:
        """The content of a contiguous tensor, good until the next call; of the same shape and type.

        Raises:
            OSError: the file cannot be read.
        """
        found = self._place(part) if part.nbytes >= WORTHWHILE else None
        if found is None or not part.is_contiguous():
            return part
        file, start = found
        if len(self._buffer) < part.nbytes:
            self._buffer = bytearray(part.nbytes)
        if file not in self._readers:
            self._readers[file] = self._stack.enter_context(BlockReader(file))
        with memoryview(self._buffer) as view, view[: part.nbytes] as target:
            self._readers[file].take(start, target)
        return torch.frombuffer(self._buffer, dtype=part.dtype, count=part.numel()).view(part.shape)

    def _place(self, tensor: Tensor) -> tuple[Path, int] | None:
        """The file a tensor is mapped from, and where it begins in it."""
        first = tensor.data_ptr() if tensor.device.type == "cpu" else 0
        for start, end, offset, file in self._mapped:
            if start <= first and first + tensor.nbytes <= end:
                return file, first - start + offset
        return None

    @cached_property
    def _mapped(self) -> list[tuple[int, int, int, Path]]:
        """First and last address, place in the file, and file of every mapping of the files."""
        if not MAPS.is_file():
            return []
        wanted = {str(file.resolve()): file for file in self._files}
        found = []
        for line in MAPS.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
            addresses, _, offset, _, _, *name = line.split(maxsplit=5)
            if name and name[0] in wanted:
                start, end = (int(address, 16) for address in addresses.split("-"))
                found.append((start, end, int(offset, 16), wanted[name[0]]))
        return found
