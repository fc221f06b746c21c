"""What an operator makes of which shapes is worked out once.

PyTorch's fake tensors take half a millisecond for every call. A step at full size makes a hundred thousand calls, but
only a few thousand different ones: layers are alike, and so are the parts that memory is saved with.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, in_kernel_invocation_manager

from sam3slim.planning.ledger import CPU, tensors_in

# Shapes depend on values, or an argument gets another shape.
UNSURE = {torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output, torch.Tag.inplace_view}
INDEX = torch.ops.aten.index.Tensor  # has the first tag for masks, which come as numbers here


@dataclass(frozen=True)
class _Made:
    """One result: like which tensor it lies in memory, and whose memory it shares.

    Attributes:
        of: number of the argument whose storage it is a view of; None: has its own.
        itself: it is that argument.
    """

    shape: torch.Size
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype
    of: int | None
    itself: bool


class Memo:
    """Calls operators under ``mode``, and makes their results itself when this process has seen the same call."""

    _known: ClassVar[dict[Any, tuple[type, list[_Made | None]] | None]] = {}

    def __init__(self, mode: FakeTensorMode) -> None:
        self.mode = mode

    def __call__(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        try:
            key = (func, _layouts(args), tuple(kwargs), _layouts(kwargs.values()))
            known = self._known.get(key)
        except TypeError:  # an argument that cannot be compared
            return func(*args, **kwargs)
        if known is None:
            out = func(*args, **kwargs)
            if key not in self._known:
                self._known[key] = _described(func, list(tensors_in((*args, *kwargs.values()))), out)
            return out
        kind, found = known
        given = list(tensors_in((*args, *kwargs.values())))
        made = [None if one is None else self._make(one, given) for one in found]
        return made[0] if kind is FakeTensor else kind(made)

    def _make(self, one: _Made, given: list[Tensor]) -> Tensor:
        if one.of is None:
            with torch._C._DisableTorchDispatch():
                meta = torch.empty_strided(one.shape, one.stride, dtype=one.dtype, device="meta")
        elif one.itself:
            return given[one.of]
        else:
            storage = given[one.of].untyped_storage()
            with in_kernel_invocation_manager(self.mode):
                meta = torch.empty(0, dtype=one.dtype, device="meta")
                meta.set_(storage, one.offset, one.shape, one.stride)  # type: ignore[call-overload]
        return FakeTensor(self.mode, meta, CPU)


def _layouts(values: Iterable[Any]) -> tuple[Any, ...]:
    """Tensors by how they lie in memory, anything else by value and type: 1 and 1.0 give other results."""
    found: list[Any] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append((value.shape, value.stride(), value.storage_offset(), value.dtype))
        elif isinstance(value, list | tuple):
            found.append(_layouts(value))
        else:
            found.append((value.__class__, value))
    return tuple(found)


def _described(func: Any, given: list[Tensor], out: Any) -> tuple[type, list[_Made | None]] | None:
    """What is remembered of a call; None: nothing, it must be asked again."""
    kind = FakeTensor if isinstance(out, FakeTensor) else type(out)
    unsure = UNSURE & set(func.tags) and func is not INDEX
    if unsure or kind not in (FakeTensor, tuple, list):
        return None
    results: list[Any] = [out] if kind is FakeTensor else list(out)
    if not all(one is None or (isinstance(one, FakeTensor) and not one.dtype.is_complex) for one in results):
        return None
    owners = {tensor.untyped_storage()._cdata: number for number, tensor in enumerate(given)}
    same = {id(tensor): number for number, tensor in enumerate(given)}
    made: list[_Made | None] = []
    for one in results:
        if one is None:  # a gradient that nobody asks for
            made.append(None)
            continue
        storage, itself = one.untyped_storage(), id(one) in same
        owner = same[id(one)] if itself else owners.get(storage._cdata)
        if owner is None and (one.storage_offset() or storage.nbytes() != _bytes(one)):
            return None  # a part of something that nobody else has
        if func._schema.is_mutable and not itself:
            return None
        made.append(_Made(one.shape, one.stride(), one.storage_offset(), one.dtype, owner, itself))
    return kind, made


def _bytes(tensor: Tensor) -> int:
    """From its first to its last element."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size() if tensor.numel() else 0
