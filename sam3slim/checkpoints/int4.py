"""INT4 weights on disk: this project's layout, which is that of ONNX Runtime's ``MatMulNBits``, unrolled.

A quantised ``X.weight`` [rows, columns] is cut into groups of ``columns / groups`` neighbours in a row. It is stored as

* ``X._weight_int4``: uint8 [rows, columns / 2], two codes of 0..15 a byte, the even column in the low four bits;
* ``X._weight_int4_scale``: float16 [rows, groups];
* ``X._weight_int4_zero``: uint8 [rows, ceil(groups / 2)], packed like the codes; absent where every zero is 8.

The weight is ``(code - zero) · scale``. In memory it is torchao's ``IntxUnpackedToInt8Tensor``: a byte per value, and
FP32 while a Linear multiplies with it. torchao's own files for INT4 belong to one kernel each, and none is a CPU's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sam3slim.errors import UserError

MIDDLE = 8  # the zero of symmetric codes
CODES = 16
KEY = re.compile(r"^(?P<module>.+)\._(?P<name>\w+?)_int4$")


@dataclass(frozen=True)
class StoredInt4:
    """A weight [rows, columns] in the layout above; what it loads as is float32.

    Attributes:
        packed: uint8 [rows, columns / 2].
        scale: float16 [rows, groups].
        zero: uint8 [rows, ceil(groups / 2)], or None where all are 8.
    """

    packed: Tensor
    scale: Tensor
    zero: Tensor | None = None

    @property
    def shape(self) -> torch.Size:
        return torch.Size((self.packed.shape[0], 2 * self.packed.shape[1]))

    @property
    def dtype(self) -> torch.dtype:
        """What it is loaded as."""
        return torch.float32

    @property
    def group(self) -> int:
        """Columns that share a scale."""
        return self.shape[1] // self.scale.shape[1]

    @property
    def parts(self) -> dict[str, Tensor]:
        """End of the key on disk → tensor."""
        zero = {} if self.zero is None else {"int4_zero": self.zero}
        return {"int4": self.packed, "int4_scale": self.scale, **zero}

    def numel(self) -> int:
        return self.shape.numel()

    def to(self, device: torch.device | str) -> StoredInt4:
        return StoredInt4(*(None if part is None else part.to(device) for part in (self.packed, self.scale, self.zero)))  # type: ignore[arg-type]

    def codes(self) -> Tensor:
        """uint8 [rows, columns]."""
        return unpack(self.packed)

    def zeros(self) -> Tensor:
        """uint8 [rows, groups]."""
        if self.zero is None:
            return torch.full(self.scale.shape, MIDDLE, dtype=torch.uint8, device=self.packed.device)
        return unpack(self.zero)[:, : self.scale.shape[1]]

    def dequantize(self) -> Tensor:
        """float32 [rows, columns]."""
        codes = self.codes().unflatten(1, (-1, self.group)).float()
        return ((codes - self.zeros().float()[..., None]) * self.scale.float()[..., None]).flatten(1)

    def running(self) -> Tensor:
        """torchao's tensor of the same values, whose products are FP32. Raises UserError without torchao."""
        try:
            from torchao.quantization import IntxUnpackedToInt8Tensor
        except ImportError as error:
            raise UserError(
                "INT4 weights run on torchao, which is not installed; pip install torchao, or load with dequantize=True"
            ) from error
        int4: Any = torch.int4  # type: ignore[attr-defined]
        codes, zeros = signed(self.codes()), signed(self.zeros())
        made: Tensor = IntxUnpackedToInt8Tensor(
            codes, self.scale.float(), zeros, int4, (1, self.group), torch.float32, None
        )
        return made


def store(codes: Tensor, scale: Tensor, zeros: Tensor | None) -> StoredInt4:
    """Codes of 0..15 [rows, columns] (any type), scales [rows, groups], zeros [rows, groups] or None, packed.

    Raises:
        ValueError: an odd number of columns.
    """
    if codes.shape[1] % 2:
        raise ValueError(f"{codes.shape[1]} columns cannot be packed two a byte")
    return StoredInt4(pack(codes), scale.half().contiguous(), None if zeros is None else pack(zeros))


def stored(tensor: Any) -> StoredInt4 | None:
    """``tensor`` as it is stored, if it is INT4, in memory or on disk; else None."""
    if isinstance(tensor, StoredInt4):
        return tensor
    if getattr(tensor, "target_dtype", None) is not torch.int4:  # type: ignore[attr-defined]
        return None
    zeros = unsigned(tensor.zero_point)
    plain = None if zeros.device.type == "meta" or bool((zeros == MIDDLE).all()) else zeros
    return store(unsigned(tensor.qdata), tensor.scale, plain)


def pack(values: Tensor) -> Tensor:
    """0..15 [rows, n] → uint8 [rows, ceil(n / 2)]; the even one in the low four bits, 0 beside an odd last one."""
    values = values.to(torch.uint8)
    if values.shape[1] % 2:
        values = torch.nn.functional.pad(values, (0, 1))
    pairs = values.unflatten(1, (-1, 2))
    return pairs[..., 0] | pairs[..., 1] << 4


def unpack(packed: Tensor) -> Tensor:
    """Inverse of ``pack``: uint8 [rows, n] → uint8 [rows, 2 n]."""
    return torch.stack([packed & 15, packed >> 4], dim=-1).flatten(1)


def signed(codes: Tensor) -> Tensor:
    """0..15 → int8 -8..7."""
    return codes.to(torch.int8) - MIDDLE


def unsigned(codes: Tensor) -> Tensor:
    """int8 -8..7 → uint8 0..15."""
    return (codes + MIDDLE).to(torch.uint8)
