"""Files of gigabytes, read and written past the page cache, with their SHA-256.

Copying through the page cache costs more than hashing does (in a virtual machine several times more), and pushes out
pages that are needed again. Direct reads and writes cost almost nothing; where the file system has none (tmpfs, some
networks, not Linux) the same code goes through the cache.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

BLOCK = 2 << 20  # bytes
DEPTH = 4  # reads under way: a disk with a queue is several times faster than with one request at a time
PAGE = mmap.PAGESIZE
DIRECT = getattr(os, "O_DIRECT", 0)


def file_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of the file, hashed while other threads read ahead.

    Raises:
        OSError: the file cannot be read.
    """
    digest, size = hashlib.sha256(), path.stat().st_size
    starts = iter(range(0, size, BLOCK))
    free = _blocks(DEPTH)
    with _reading(path) as read, ThreadPoolExecutor(DEPTH) as pool:
        ahead: deque[tuple[mmap.mmap, Future[int]]] = deque()
        while True:
            while free and (start := next(starts, None)) is not None:
                block = free.pop()
                ahead.append((block, pool.submit(read, block, start)))
            if not ahead:
                return digest.hexdigest()
            block, reading = ahead.popleft()
            with memoryview(block) as view, view[: reading.result()] as content:
                digest.update(content)
            free.append(block)


class HashingWriter:
    """A new file, written from front to back; blocks are hashed and written on threads of their own.

    Used as a context manager; ``size`` and ``hexdigest()`` hold once it is left.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._blocks, self._filled = path, _blocks(2), 0
        self._digest = hashlib.sha256()
        self._pool = ThreadPoolExecutor(2)
        self._pending: list[Future[None]] = []
        self.size = 0

    def __enter__(self) -> HashingWriter:
        self._descriptor = os.open(self._path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | DIRECT)
        if DIRECT:
            try:
                with mmap.mmap(-1, PAGE) as page:
                    os.pwrite(self._descriptor, page, 0)
            except OSError:
                os.close(self._descriptor)
                self._descriptor = os.open(self._path, os.O_WRONLY)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self._flush()
                self._wait()
                os.ftruncate(self._descriptor, self.size)
        finally:
            self._pool.shutdown(wait=True)
            os.close(self._descriptor)

    def write(self, data: bytes | memoryview) -> None:
        """Append ``data``. Raises OSError, also for an earlier block."""
        with memoryview(data) as view:
            start = 0
            while start < len(view):
                count = min(BLOCK - self._filled, len(view) - start)
                self._blocks[0][self._filled : self._filled + count] = view[start : start + count]
                self._filled, start = self._filled + count, start + count
                if self._filled == BLOCK:
                    self._flush()

    def hexdigest(self) -> str:
        """Hexadecimal SHA-256 of all that was written."""
        return self._digest.hexdigest()

    def _flush(self) -> None:
        self._wait()
        if self._filled:
            block, count = self._blocks[0], self._filled
            self._pending = [
                self._pool.submit(self._hash, block, count),
                self._pool.submit(self._put, block, count, self.size),
            ]
            self.size += self._filled
            self._blocks.reverse()
            self._filled = 0

    def _wait(self) -> None:
        for future in self._pending:
            future.result()

    def _hash(self, block: mmap.mmap, count: int) -> None:
        with memoryview(block) as view:
            self._digest.update(view[:count])

    def _put(self, block: mmap.mmap, count: int, place: int) -> None:
        with memoryview(block) as view:
            # Direct writes come in whole pages; what is too much at the end is cut off in the end.
            count, done = count + -count % PAGE, 0
            while done < count:
                done += os.pwrite(self._descriptor, view[done:count], place + done)


def _blocks(count: int) -> list[mmap.mmap]:
    """Anonymous maps are aligned to pages, as direct reads and writes want it."""
    return [mmap.mmap(-1, BLOCK) for _ in range(count)]


@contextmanager
def _reading(path: Path) -> Iterator[Callable[[mmap.mmap, int], int]]:
    """A function (block, place) that fills the block from there, to the file's end at most → bytes read."""
    with ExitStack() as stack:

        def opened(flags: int) -> int:
            descriptor = os.open(path, os.O_RDONLY | flags)
            stack.callback(os.close, descriptor)
            return descriptor

        plain = direct = opened(0)
        size = os.fstat(plain).st_size
        if DIRECT:
            try:
                direct = opened(DIRECT)
                with mmap.mmap(-1, PAGE) as page:
                    os.preadv(direct, [page], 0)
            except OSError:
                direct = plain

        def read(block: mmap.mmap, place: int) -> int:
            wanted, done = min(BLOCK, size - place), 0
            with memoryview(block) as view:
                while done < wanted:
                    # After a short read the place is uneven, which direct reads refuse.
                    count = os.preadv(plain if done % PAGE else direct, [view[done:]], place + done)
                    if count == 0:
                        raise OSError(f"{path} changed while it was read ({place + done} of {size} bytes)")
                    done += count
            return wanted

        yield read
