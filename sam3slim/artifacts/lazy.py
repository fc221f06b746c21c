"""Tensors that are described at once and made one at a time, so that converting a model needs no second copy of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

from sam3slim.checkpoints.int8 import StoredInt8, in_own_layout, int8_tensor, is_dynamic, is_quantised
from sam3slim.environment import release_memory
from sam3slim.precisions import Rounding, Stored

RELEASE_EVERY = 20_000_000  # elements
Convert = Callable[[str, Tensor], Stored]  # (key, tensor on the CPU) → stored tensor


class LazyTensors(Mapping[str, Any]):
    """Key → tensor, made when it is asked for; only the last one is remembered.

    Attributes:
        described: the same tensors on the meta device: shapes and types, no content.
        rounding: what making them loses.

    Args:
        make: called again for every pass, so it must give the same tensor each time.
    """

    def __init__(
        self, described: Mapping[str, Any], make: Callable[[str], Any], rounding: Rounding | None = None
    ) -> None:
        self.described, self.rounding, self._make = described, rounding or Rounding(), make
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


def converted(tensors: Mapping[str, Tensor], convert: Convert) -> LazyTensors:
    """``tensors`` as ``convert`` stores them.

    Two passes: a file's header names every tensor's type and place before the first byte of content, and whether a
    tensor overflows FP16 is known only once it has been rounded. So each is made now, described and thrown away, and
    made again when it is written.
    """
    rounding = Rounding()

    def first(key: str) -> Any:
        stored = convert(key, tensors[key])
        rounding.add(key, stored)
        return stored.tensor

    plan = {key: _describe(tensor) for key, tensor in LazyTensors(tensors, first).items()}
    return LazyTensors(plan, lambda key: convert(key, tensors[key]).tensor, rounding)


def described(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """What can be asked for shapes, types and bytes without making a tensor."""
    return tensors.described if isinstance(tensors, LazyTensors) else tensors


def rounding_of(tensors: Mapping[str, Tensor]) -> Rounding:
    """What making ``tensors`` loses; nothing where they are stored as they are."""
    return tensors.rounding if isinstance(tensors, LazyTensors) else Rounding()


def _describe(tensor: Any) -> Any:
    """``tensor`` without its content, quantised ones too."""
    packed = in_own_layout(tensor)
    if packed is None and is_quantised(tensor) and not isinstance(tensor, StoredInt8):
        return int8_tensor(tensor.qdata.to("meta"), tensor.scale.to("meta"), dynamic=is_dynamic(tensor))
    return (tensor if packed is None else packed).to("meta")
