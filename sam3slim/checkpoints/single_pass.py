"""Weights and hashes out of one read of the source.

A memory-mapped tensor costs a page fault every 4 KiB, and hashing reads the file a second time. Both need the same
bytes in the same order, so the files go by once: what belongs to a tensor is copied out, everything is hashed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from sam3slim.disk import HashingReader

MAPS = Path("/proc/self/maps")  # Linux; elsewhere tensors are read through their mapping
WORTHWHILE = 1 << 16  # bytes


class SinglePass:
    """Reads ``files`` once while their tensors are written; a context manager.

    Args:
        files: what tensors were mapped from, before.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._files, self._readers = list(files), dict[Path, HashingReader]()
        self._maps = _mapped(files)
        self._buffer = bytearray()
        self._rest: list[Future[str]] | None = None

    def __enter__(self) -> SinglePass:
        self._stack = ExitStack()
        # Left after the readers, which it may still be using.
        self._pool = self._stack.enter_context(ThreadPoolExecutor(1))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def in_order(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``tensors`` as they follow each other in the files; what is in none of them comes last."""
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
        if found is None or self._rest is not None or not part.is_contiguous():
            return part
        file, start = found
        if len(self._buffer) < part.nbytes:
            self._buffer = bytearray(part.nbytes)
        with memoryview(self._buffer) as view, view[: part.nbytes] as target:
            if not self._opened(file).take(start, target):
                return part
        return torch.frombuffer(self._buffer, dtype=part.dtype, count=part.numel()).view(part.shape)

    def hash_rest(self) -> None:
        """Nothing more will be fetched from the pass: what has not gone by is hashed, on a thread of its own."""
        if self._rest is None:
            readers = [self._opened(file) for file in self._files]
            self._rest = [self._pool.submit(reader.hexdigest) for reader in readers]

    def hashes(self) -> dict[str, str]:
        """File name → SHA-256; waits until everything has gone by. Raises OSError."""
        self.hash_rest()
        assert self._rest is not None
        return {file.name: found.result() for file, found in zip(self._files, self._rest, strict=True)}

    def _opened(self, file: Path) -> HashingReader:
        if file not in self._readers:
            self._readers[file] = self._stack.enter_context(HashingReader(file))
        return self._readers[file]

    def _place(self, tensor: Tensor) -> tuple[Path, int] | None:
        """The file a tensor is mapped from, and where it begins in it."""
        first = tensor.data_ptr() if tensor.device.type == "cpu" else 0
        for start, end, offset, file in self._maps:
            if start <= first and first + tensor.nbytes <= end:
                return file, first - start + offset
        return None


def _mapped(files: Sequence[Path]) -> list[tuple[int, int, int, Path]]:
    """First and last address, place in the file, and file of every mapping of ``files``."""
    if not MAPS.is_file():
        return []
    wanted = {str(file.resolve()): file for file in files}
    found = []
    for line in MAPS.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        addresses, _, offset, _, _, *name = line.split(maxsplit=5)
        if name and name[0] in wanted:
            start, end = (int(address, 16) for address in addresses.split("-"))
            found.append((start, end, int(offset, 16), wanted[name[0]]))
    return found
