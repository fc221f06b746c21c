"""How weights can be stored: the one table of precisions, and rounding with an account of what it loses.

Command lines and reports read the table, so torch is imported only where numbers are rounded.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class Precision:
    """One way to store a number.

    Attributes:
        name: what a user types, and how the names of precisions of whole artifacts begin (``int8_weight``).
        dtype: torch's name of the stored type, as ``sam3slim.json`` has it.
        bytes: of one number in memory; two INT4 share one on disk.
        color: in plots.
        cast: a plain cast of FP32 numbers, which every format of an export keeps; otherwise only sam3slim's own folder
            does, and the others get the FP32 numbers that it stands for.
        computes: ``arithmetic`` and ``predict --dtype`` may name it.
        only: formats of an export that an artifact can become at all; empty: every one.
    """

    name: str
    dtype: str
    bytes: int
    color: str
    cast: bool = True
    computes: bool = True
    only: tuple[str, ...] = ()

    @property
    def torch_dtype(self) -> torch.dtype:
        import torch

        found: torch.dtype = getattr(torch, self.dtype)
        return found

    @property
    def lossy(self) -> bool:
        """Whether a cast of FP32 numbers rounds them."""
        return self.cast and self.bytes < 4

    def store(self, tensor: Tensor) -> Stored:
        """A finite floating tensor rounded to this type, or as it is where a value overflows; other types are kept."""
        if not tensor.is_floating_point() or tensor.dtype == self.torch_dtype:
            return Stored(tensor)
        return to_half(tensor, self.torch_dtype) if self.lossy else Stored(tensor.to(self.torch_dtype))


# Colours are Okabe and Ito's: told apart with every common colour blindness.
PRECISIONS: dict[str, Precision] = {}


def register_precision(precision: Precision) -> Precision:
    """Add ``precision`` to the table."""
    PRECISIONS[precision.name] = precision
    return precision


FP32 = register_precision(Precision("fp32", "float32", 4, "#0072B2"))
FP16 = register_precision(Precision("fp16", "float16", 2, "#009E73"))
BF16 = register_precision(Precision("bf16", "bfloat16", 2, "#56B4E9"))
# One byte per number and an FP32 scale per row, see ``checkpoints.int8``.
INT8 = register_precision(Precision("int8", "int8", 1, "#D55E00", cast=False, computes=False))
# Two values a byte and an FP16 scale per group of a row, see ``checkpoints.int4``.
INT4 = register_precision(Precision("int4", "int4", 1, "#CC79A7", cast=False, computes=False))
# The products are INT8 too, which no other format can say.
INT8_DYNAMIC = register_precision(
    Precision("int8_dynamic", "int8", 1, "#D55E00", cast=False, computes=False, only=("hf",))
)
# An FP32 scale per row, see ``checkpoints.float8``; FP8 products.
FP8_DYNAMIC = register_precision(
    Precision("fp8_dynamic", "float8_e4m3fn", 1, "#E69F00", cast=False, computes=False, only=("hf",))
)


def precision_named(name: str) -> Precision | None:
    """Of an artifact's precision (``int8_weight`` is INT8's); None: ``mixed``, or not known."""
    return PRECISIONS.get(name) or PRECISIONS.get(name.split("_")[0].split("-")[0].lower())


def casts() -> tuple[str, ...]:
    """What ``extract --dtype`` offers."""
    return tuple(name for name, precision in PRECISIONS.items() if precision.cast)


def arithmetics() -> tuple[str, ...]:
    """What ``predict --dtype`` and ``arithmetic`` offer."""
    return tuple(name for name, precision in PRECISIONS.items() if precision.computes)


def halves() -> dict[str, torch.dtype]:
    """Types below FP32 that a model can compute in."""
    return {name: p.torch_dtype for name, p in PRECISIONS.items() if p.computes and p.lossy}


def name_of(dtypes: Iterable[str]) -> str:
    """The precision of weights of these types (torch's names): ``mixed`` where there are several."""
    found = set(dtypes)
    # Of several with one type, a plain cast, then the first.
    known = sorted(reversed(PRECISIONS.values()), key=lambda precision: precision.cast)
    names = {precision.dtype: precision.name for precision in known}
    return names.get(dtype := found.pop(), dtype) if len(found) == 1 else "mixed"


@dataclass(frozen=True)
class Stored:
    """A tensor as it will be stored (torchao ``Int8Tensor``, ``StoredInt8`` or ``StoredInt4`` where quantised).

    Attributes:
        overflowed: left as it was, because a value lies beyond the type's range (65,504 in FP16).
        underflowed: how many of its non-zero values became zero.
    """

    tensor: Any
    overflowed: bool = False
    underflowed: int = 0


@dataclass
class Rounding:
    """What rounding did to a checkpoint's tensors.

    Attributes:
        overflowed: keys left as they were.
        underflowed: key → how many of its non-zero values became zero, where there are any.
    """

    overflowed: list[str] = field(default_factory=list)
    underflowed: dict[str, int] = field(default_factory=dict)

    def add(self, key: str, stored: Stored) -> None:
        """Account for one tensor."""
        if stored.overflowed:
            self.overflowed.append(key)
        if stored.underflowed:
            self.underflowed[key] = stored.underflowed

    def describe(self) -> list[str]:
        """One line per kind of loss; none where nothing was lost."""
        lines = []
        if self.overflowed:
            names = ", ".join(self.overflowed[:3]) + (", …" if len(self.overflowed) > 3 else "")
            lines.append(f"{len(self.overflowed)} tensors overflow FP16 and stay FP32: {names} (bf16 would hold them)")
        if self.underflowed:
            worst = max(self.underflowed, key=lambda key: self.underflowed[key])
            total = sum(self.underflowed.values())
            lines.append(f"{total:,} values became zero ({self.underflowed[worst]:,} of them in {worst})")
        return lines

    def metadata(self) -> dict[str, object]:
        """JSON-able account for ``sam3slim.json``."""
        return {
            "overflowed": list(self.overflowed),
            "underflowed": {"tensors": len(self.underflowed), "values": sum(self.underflowed.values())},
        }


def to_half(tensor: Tensor, dtype: torch.dtype) -> Stored:
    """``tensor`` rounded to a smaller floating type, or as it is where a value overflows it."""
    import numpy as np
    import torch

    half = tensor.to(dtype)
    if not tensor.numel():
        return Stored(half)
    if dtype.itemsize != 2:  # torch saturates 8 bits, and knows no minimum of them
        lost = int(torch.count_nonzero(tensor)) - int(torch.count_nonzero(half.float()))
        fits = bool(tensor.abs().amax() <= torch.finfo(dtype).max)
        return Stored(half, underflowed=lost) if fits else Stored(tensor, overflowed=True)
    # aminmax hands NaN on, and is 20 times faster than isfinite on half precision; so are bits without their sign.
    low, high = half.aminmax()
    if not (low.isfinite() and high.isfinite()):
        return Stored(tensor, overflowed=True)
    nonzero = int(np.count_nonzero(half.view(torch.int16).numpy() << 1))
    return Stored(half, underflowed=int(torch.count_nonzero(tensor)) - nonzero)
