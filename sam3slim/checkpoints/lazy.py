"""Tensors that are described at once and made one at a time, so that converting a model needs no second copy of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

from sam3slim.checkpoints.int8 import StoredInt8, int8_tensor, is_dynamic, is_quantised
from sam3slim.environment import release_memory

RELEASE_EVERY = 20_000_000  # elements


class LazyTensors(Mapping[str, Any]):
    """Key → tensor, made when it is asked for; only the last one is remembered.

    Attributes:
        described: the same tensors on the meta device: shapes and types, no content (see ``describe``).

    Args:
        make: called again for every pass, so it must give the same tensor each time.
    """

    def __init__(self, described: Mapping[str, Any], make: Callable[[str], Any]) -> None:
        self.described, self._make = described, make
        self._last: tuple[str, Any] | None = None
        self._made = 0

    def __getitem__(self, key: str) -> Any:
        if key not in self.described:
            raise KeyError(key)
        if self._last is None or self._last[0] != key:
            self._last = None  # two at once would be one too many
            self._last = (key, self._make(key))
            self._made += self._last[1].numel()
            if self._made > RELEASE_EVERY:
                self._made = 0
                release_memory()
        return self._last[1]

    def __iter__(self) -> Iterator[str]:
        return iter(self.described)

    def __len__(self) -> int:
        return len(self.described)


def describe(tensor: Any) -> Any:
    """``tensor`` without its content, INT8 ones too."""
    if isinstance(tensor, StoredInt8):
        return StoredInt8(tensor.qdata.to("meta"), tensor.scale.to("meta"))
    if is_quantised(tensor):
        return int8_tensor(tensor.qdata.to("meta"), tensor.scale.to("meta"), dynamic=is_dynamic(tensor))
    return tensor.to("meta")


def described(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """What can be asked for shapes, types and bytes without making a tensor."""
    return tensors.described if isinstance(tensors, LazyTensors) else tensors
