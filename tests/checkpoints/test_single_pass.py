"""One read of a file gives its hash and its tensors, whatever their order."""

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sam3slim.checkpoints import single_pass
from sam3slim.checkpoints.single_pass import SinglePass

LARGE = single_pass.WORTHWHILE // 4 + 3  # elements


def mapped(path: Path) -> dict[str, torch.Tensor]:
    tensors = {name: torch.randn(LARGE) for name in "abcd"} | {"small": torch.randn(3)}
    torch.save(tensors, path)
    return torch.load(path, weights_only=True, mmap=True)


needs_maps = pytest.mark.skipif(not single_pass.MAPS.is_file(), reason="no /proc/self/maps: tensors are read as mapped")


@needs_maps
def test_fetch__in_file_order_nothing_is_read_through_the_mapping(tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    tensors = mapped(path)
    with SinglePass([path]) as source:
        ordered = source.in_order(dict(reversed(tensors.items())))
        assert [name for name in ordered if name != "small"] == list("abcd")
        for name in "abcd":
            found = source.fetch(ordered[name])
            assert found.data_ptr() != tensors[name].data_ptr()
            assert torch.equal(found, tensors[name])
        assert source.hashes() == {"file.pt": hashlib.sha256(path.read_bytes()).hexdigest()}


@pytest.mark.parametrize("maps", [True, False], ids=["maps", "no maps"])
def test_fetch__any_order_any_piece(maps: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not maps:
        monkeypatch.setattr(single_pass, "MAPS", tmp_path / "none")
    path = tmp_path / "file.pt"
    tensors = mapped(path)
    with SinglePass([path]) as source:
        for part in (tensors["c"], tensors["a"], tensors["d"][5:], tensors["b"][::2], tensors["small"], torch.ones(2)):
            assert torch.equal(source.fetch(part).clone(), part)
        assert source.hashes() == {"file.pt": hashlib.sha256(path.read_bytes()).hexdigest()}


def test_fetch__several_files(tmp_path: Path) -> None:
    for name in "ab":
        save_file({name: torch.randn(LARGE)}, tmp_path / f"{name}.safetensors")
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    tensors = {name: tensor for file in reversed(files) for name, tensor in load_file(file).items()}
    with SinglePass(files) as source:
        for tensor in source.in_order(tensors).values():
            assert torch.equal(source.fetch(tensor).clone(), tensor)
        assert source.hashes() == {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
