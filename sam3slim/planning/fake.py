"""A training step without its data: large tensors are fake, the small integers that decide on shapes are real."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd.graph import _engine_run_backward
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from sam3slim.environment import before_fake_tensors
from sam3slim.planning.ledger import CPU, DEVICE, tensors_in
from sam3slim.planning.memo import Memo

LARGE = 1 << 20  # elements from which integers and booleans are fake, too
CHOSEN = 4  # of a row of scores, as the one-to-many matcher does
aten = torch.ops.aten


@contextmanager
def without_data(chosen: int = CHOSEN) -> Iterator[None]:
    """Floats made in the body have shapes and types but no data, and nothing is computed with them.

    Integers and booleans keep their values (token ids, image and prompt indices, matched pairs), so that code whose
    shapes depend on them runs as it does in training. What depends on a float is guessed: a condition is true, costs
    are equal, a comparison of scores holds for the first ``chosen`` of every row, all phrases differ.
    """
    before_fake_tensors()
    mode = _FakeMode(allow_non_fake_inputs=True)
    with mode, _Fakes(chosen, Memo(mode)), _Answers():
        yield


class _FakeMode(FakeTensorMode):
    """Without looking for GPUs at every operator: all fake tensors are the CPU's."""

    avoid_device_init = True  # type: ignore[assignment]


class _Fakes(TorchDispatchMode):
    """Computes with real tensors, hands what has a fake one to the FakeTensorMode below, guesses where that cannot."""

    def __init__(self, chosen: int, memo: Memo) -> None:
        super().__init__()
        self.chosen, self.memo = chosen, memo

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is DEVICE:
            return CPU
        kwargs = kwargs or {}
        given = list(tensors_in((*args, *kwargs.values())))
        if not any(isinstance(tensor, FakeTensor) for tensor in given):
            return _real(func, args, kwargs) if given else self._made(func, args, kwargs)
        if func is aten._local_scalar_dense.default:
            return True if args[0].dtype == torch.bool else 1.0 if args[0].is_floating_point() else 1
        if func is aten.nonzero.default:
            return _real(func, (self._guess(args[0]),))
        if func is aten.index.Tensor and any(_is_mask(index) for index in args[1]):
            args = (args[0], list(self._indices(args[1])))
            if not any(isinstance(tensor, FakeTensor) for tensor in tensors_in(args)):
                return _real(func, args, kwargs)
        out = self.memo(func, args, kwargs)
        return _ranked(args[0], *out) if func is aten.topk.default else out

    def _made(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Of no tensor: filled or random ones."""
        out = self.memo(func, args, kwargs)
        small = all(not tensor.is_floating_point() and tensor.numel() < LARGE for tensor in tensors_in((out,)))
        return _real(func, args, kwargs) if small else out

    def _indices(self, indices: Any) -> Iterator[Any]:
        for index in indices:
            yield from _real(aten.nonzero_numpy, (self._guess(index),)) if _is_mask(index) else (index,)

    def _guess(self, mask: Tensor) -> Tensor:
        """[..., n] bool to a real one: a row's first ``chosen`` are true, of a single row all."""
        if not isinstance(mask, FakeTensor):
            return mask
        with torch._C._DisableTorchDispatch():
            guess = torch.zeros(mask.shape, dtype=torch.bool)
            guess[..., : self.chosen if mask.dim() > 1 else None] = True
        return guess


class _Answers(TorchFunctionMode):
    """What operators without data cannot answer."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is Tensor.backward:
            return backward_under(self, *args, **(kwargs or {}))
        if func is Tensor.numpy and isinstance(args[0], FakeTensor):
            return np.zeros(args[0].shape, dtype=np.float32)
        return func(*args, **(kwargs or {}))


def backward_under(mode: TorchFunctionMode, loss: Tensor, **options: Any) -> None:
    """``loss.backward()`` with ``mode``, which PyTorch takes away while the mode handles a function.

    Layers that are computed a second time must be computed as they were the first time. The engine is called below
    ``torch.autograd.backward``, which would ask the mode again.
    """
    assert not any(options.values())  # a training step needs none
    start = torch.ones_like(loss)
    with mode:
        _engine_run_backward((loss,), (start,), False, False, (), allow_unreachable=True, accumulate_grad=True)


def _is_mask(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dtype == torch.bool


def _ranked(scores: Tensor, best: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """The best of fake [..., n] scores with real places [..., k], which differ from row to row as far as they can."""
    with torch._C._DisableTorchDispatch():
        return best, torch.arange(places.numel()).remainder_(scores.shape[-1]).view(places.shape)


def _real(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Any:
    with torch._C._DisableTorchDispatch():
        return func(*args, **(kwargs or {}))
