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
TRAIL = 8  # blocks that may wait to be hashed
PAGE = mmap.PAGESIZE
DIRECT = getattr(os, "O_DIRECT", 0)


def file_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of the file, hashed while other threads read ahead.

    Raises:
        OSError: the file cannot be read.
    """
    with HashingReader(path) as file:
        return file.hexdigest()


class HashingReader:
    """A file that goes by once, from front to back: all of it is hashed, and what is wanted is copied out on the way.

    Used as a context manager. Reading and hashing run on threads of their own, a few blocks ahead and behind.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._size = path, path.stat().st_size
        self._starts = iter(range(0, self._size, BLOCK))
        self._free = _blocks(DEPTH + TRAIL)
        self._ahead: deque[tuple[mmap.mmap, int, Future[int]]] = deque()
        self._behind: deque[tuple[mmap.mmap, Future[None]]] = deque()
        self._digest = hashlib.sha256()
        # The block that is going by: its memory, where it begins and ends.
        self._block: mmap.mmap | None = None
        self._start = self._end = 0

    def __enter__(self) -> HashingReader:
        self._stack = ExitStack()
        self._read = self._stack.enter_context(_reading(self._path))
        self._readers = self._stack.enter_context(ThreadPoolExecutor(DEPTH))
        self._hasher = self._stack.enter_context(ThreadPoolExecutor(1))
        self._read_ahead()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def take(self, place: int, target: memoryview) -> bool:
        """Fill ``target`` with the file's bytes from ``place`` on; False, and nothing is read, if they have gone by.

        Raises:
            OSError: the file cannot be read, or ends before.
        """
        if place < self._start:
            return False
        done = 0
        while done < len(target):
            while place + done >= self._end:
                if not self._next():
                    raise OSError(f"{self._path} has {self._size} bytes, {place + len(target)} were wanted")
            assert self._block is not None
            first = place + done - self._start
            count = min(self._end - self._start - first, len(target) - done)
            with memoryview(self._block) as view:
                target[done : done + count] = view[first : first + count]
            done += count
        return True

    def hexdigest(self) -> str:
        """Hexadecimal SHA-256 of the whole file; what has not gone by yet is read."""
        while self._next():
            pass
        for _, hashing in self._behind:
            hashing.result()
        return self._digest.hexdigest()

    def _next(self) -> bool:
        """The next block goes by; False at the end."""
        if not self._ahead:
            return False
        block, start, reading = self._ahead.popleft()
        count = reading.result()
        self._block, self._start, self._end = block, start, start + count
        self._behind.append((block, self._hasher.submit(self._hash, block, count)))
        self._read_ahead()
        return True

    def _read_ahead(self) -> None:
        # The last block behind is the one going by; the others are free once they are hashed.
        while len(self._behind) > 1 and (self._behind[0][1].done() or (not self._free and not self._ahead)):
            block, hashing = self._behind.popleft()
            hashing.result()
            self._free.append(block)
        while self._free and len(self._ahead) < DEPTH and (start := next(self._starts, None)) is not None:
            block = self._free.pop()
            self._ahead.append((block, start, self._readers.submit(self._read, block, start)))

    def _hash(self, block: mmap.mmap, count: int) -> None:
        with memoryview(block) as view:
            self._digest.update(view[:count])


class HashingWriter:
    """A new file, filled from front to back; blocks are hashed and written on threads of their own.

    Used as a context manager; ``size`` and ``hexdigest()`` hold once it is left.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._blocks, self._filled = path, _blocks(1 + DEPTH), 0
        self._digest = hashlib.sha256()
        self._hasher, self._writers = ThreadPoolExecutor(1), ThreadPoolExecutor(DEPTH)
        self._pending: deque[tuple[mmap.mmap, Future[None], Future[None]]] = deque()
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
                while self._pending:
                    self._wait()
                os.ftruncate(self._descriptor, self.size)
        finally:
            self._hasher.shutdown(wait=True)
            self._writers.shutdown(wait=True)
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
        if self._filled:
            block, count = self._blocks.pop(0), self._filled
            hashing = self._hasher.submit(self._hash, block, count)
            self._pending.append((block, hashing, self._writers.submit(self._put, block, count, self.size)))
            self.size += self._filled
            self._filled = 0
        if not self._blocks:
            self._wait()

    def _wait(self) -> None:
        """The oldest block is written and hashed, and free again."""
        block, *work = self._pending.popleft()
        for future in work:
            future.result()
        self._blocks.append(block)

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
