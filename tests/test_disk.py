"""Files are read, written and hashed whole, whatever their length and file system."""

import errno
import hashlib
import os
from pathlib import Path

import pytest

from sam3slim import disk
from sam3slim.disk import PAGE, HashingReader, HashingWriter, file_sha256


@pytest.mark.parametrize("size", [0, 1, PAGE, 3 * PAGE - 1, 4 * PAGE, 4 * PAGE + 1, 9 * PAGE + 5])
def test_file_sha256__any_length(size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "BLOCK", 2 * PAGE)
    path = tmp_path / "file"
    path.write_bytes(bytes(i * 7 % 251 for i in range(size)))
    assert file_sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("direct", [True, False])
def test_file_sha256__short_reads(direct: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "BLOCK", 2 * PAGE)
    if not direct:
        monkeypatch.setattr(disk, "DIRECT", 0)
    whole, real = tmp_path / "file", disk.os.preadv

    def short(descriptor: int, buffers: list, place: int) -> int:
        # What a network file system may do: fewer bytes than asked for.
        return (
            real(descriptor, [memoryview(buffers[0])[:1000]], place) if place == 0 else real(descriptor, buffers, place)
        )

    content = bytes(range(256)) * 100
    whole.write_bytes(content)
    monkeypatch.setattr(disk.os, "preadv", short if not direct else real)
    assert file_sha256(whole) == hashlib.sha256(content).hexdigest()


def test_file_sha256__file_that_shrinks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(3 * PAGE))
    monkeypatch.setattr(disk.os, "preadv", lambda *_: 0)
    with pytest.raises(OSError, match="changed while it was read"):
        file_sha256(path)


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("sizes", [[], [1], [PAGE], [2 * PAGE], [5, 3 * PAGE, 0, 7], [9 * PAGE]])
def test_hashing_writer__what_was_written(
    sizes: list[int], direct: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "BLOCK", 2 * PAGE)
    if not direct:
        monkeypatch.setattr(disk, "DIRECT", 0)
    pieces = [bytes((i * 7 + size) % 251 for i in range(size)) for size in sizes]
    with HashingWriter(tmp_path / "file") as file:
        for piece in pieces:
            file.write(piece)
    whole = b"".join(pieces)
    assert (tmp_path / "file").read_bytes() == whole
    assert file.size == len(whole)
    assert file.hexdigest() == hashlib.sha256(whole).hexdigest()


def test_hashing_writer__disk_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "BLOCK", PAGE)
    real = os.pwrite

    def full(descriptor: int, data: memoryview, place: int) -> int:
        if place:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, data, place)

    monkeypatch.setattr(disk.os, "pwrite", full)
    with pytest.raises(OSError, match="No space"), HashingWriter(tmp_path / "file") as file:
        file.write(bytes(4 * PAGE))


@pytest.mark.parametrize("direct", [True, False])
def test_hashing_reader__takes_what_goes_by_and_hashes_all(
    direct: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "BLOCK", 2 * PAGE)
    if not direct:
        monkeypatch.setattr(disk, "DIRECT", 0)
    path = tmp_path / "file"
    content = bytes(i * 7 % 251 for i in range(41 * PAGE + 5))
    path.write_bytes(content)
    with HashingReader(path) as file:
        # Inside a block, over several, an odd piece, nothing, and a gap of many blocks.
        for start, count in ((10, 100), (500, 9 * PAGE), (11 * PAGE + 1, 1), (11 * PAGE + 2, 0), (40 * PAGE, PAGE + 5)):
            piece = bytearray(count)
            assert file.take(start, memoryview(piece))
            assert piece == content[start : start + count]
        assert file.hexdigest() == hashlib.sha256(content).hexdigest()


def test_hashing_reader__what_has_gone_by_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "BLOCK", PAGE)
    path = tmp_path / "file"
    path.write_bytes(bytes(8 * PAGE))
    piece = bytearray(b"kept")
    with HashingReader(path) as file:
        assert file.take(5 * PAGE, memoryview(bytearray(4)))
        assert not file.take(PAGE, memoryview(piece))
        assert piece == b"kept"
        with pytest.raises(OSError, match="were wanted"):
            file.take(8 * PAGE, memoryview(piece))
