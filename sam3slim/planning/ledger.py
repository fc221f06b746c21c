"""Which tensors are alive, and who made them: a running account of storages."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

CPU = torch.device("cpu")
DEVICE = torch.ops.prim.device.default  # asked of fake tensors, more often than anything is computed


def tensors_in(values: Any) -> Iterator[Tensor]:
    """The tensors among an operator's arguments or results, lists of them included."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors_in(value)


class Ledger(TorchDispatchMode):
    """Counts the bytes of every storage that is alive, by a label, and remembers the greatest total.

    A storage is entered when an operator returns it, and leaves when the last tensor or graph node that holds it is
    gone: real tensors, and fake ones, which hold no data but know their size. What kernels use inside themselves is
    not seen.

    Attributes:
        label: of what is made now.
        live: bytes by label; their sum is ``total``.
        peak: the greatest total so far, ``at_peak`` the bytes by label then, ``peak_label`` what was being made.
    """

    def __init__(self, label: str) -> None:
        super().__init__()
        self.label = label
        self.live: Counter[str] = Counter()
        self.total = 0
        self._known: dict[int, tuple[weakref.ref[Any], int, str]] = {}
        self.forget_peak()

    def forget_peak(self) -> None:
        """The peak is what is alive now."""
        self.peak, self.at_peak, self.peak_label = self.total, dict(self.live), self.label

    @contextmanager
    def labelled(self, label: str) -> Iterator[None]:
        """What the body makes is ``label``'s."""
        before, self.label = self.label, label
        try:
            yield
        finally:
            self.label = before

    def relabel(self, tensors: Iterable[Tensor], label: str) -> None:
        """Move storages to another label, and enter those that no operator made under this mode."""
        for tensor in tensors:
            self._enter(tensor, label)

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is DEVICE:
            return CPU
        with torch._C.DisableTorchFunction():  # modes of functions have had their say
            out = func(*args, **(kwargs or {}))
            for tensor in tensors_in((out,)):
                self._enter(tensor, None)
        return out

    def _enter(self, tensor: Tensor, label: str | None) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            if label is None and self._known[key][1] == size:
                return
            self._leave(key)
        label = label or self.label
        self._known[key] = (weakref.ref(storage, lambda _: self._leave(key)), size, label)
        self.live[label] += size
        self.total += size
        if self.total > self.peak:
            self.forget_peak()

    def _leave(self, key: int) -> None:
        found = self._known.pop(key, None)
        if found is not None:
            self.live[found[2]] -= found[1]
            self.total -= found[1]
