"""Quantised weights on disk. INT8: torchao's safetensors layout, so that transformers' TorchAO loader reads it too.

A quantised ``X.weight`` [rows, columns] is stored as ``X._weight_qdata`` (int8, same shape) and
``X._weight_scale`` (float32 [rows, 1]); the weight is ``qdata · scale`` (symmetric, one scale per row).
The layout is written by torchao and read here, because six lines outlive a prototype module. INT4 and FP8 have layouts
of their own, see ``int4`` and ``float8``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sam3slim.checkpoints import float8, int4
from sam3slim.checkpoints.float8 import StoredFloat8
from sam3slim.checkpoints.int4 import StoredInt4
from sam3slim.checkpoints.load_report import CheckpointError
from sam3slim.checkpoints.scaled import Scaled
from sam3slim.errors import UserError


class StoredInt8(Scaled):
    """A weight that is INT8 on disk and float in memory."""

    ENDS = ("qdata", "scale")


# In the safetensors header: keys, as JSON. No dot in the name: transformers takes dotted ones for tensors.
DYNAMIC_METADATA = "sam3slim_dynamic_activations"
STORED = re.compile(
    r"^(?P<module>.+)\._(?P<name>\w+?)_(?P<part>int4|int4_scale|int4_zero|float8|float8_scale|qdata|scale)$"
)
QDATA = re.compile(r"^(?P<module>.+)\._(?P<name>\w+)_qdata$")
# Layouts of our own: the key of the codes, what messages call them, what they stand for, ends of the keys beside them.
OWN: tuple[tuple[re.Pattern[str], str, Any, tuple[str, ...]], ...] = (
    (int4.KEY, "INT4", StoredInt4, ("_scale", "_zero")),
    (float8.KEY, "FP8", StoredFloat8, ("_scale",)),
)


def stored_part(tensors: Mapping[str, Any], key: str) -> Tensor:
    """The tensor that ``flatten`` calls ``key``, out of the tensors before flattening."""
    match = STORED.match(key)
    name = f"{match['module']}.{match['name']}" if match else key
    if match is None or name not in tensors:
        plain: Tensor = tensors[key]
        return plain
    tensor = in_own_layout(tensors[name]) or tensors[name]
    part: Tensor = tensor.parts[match["part"]] if hasattr(tensor, "parts") else getattr(tensor, match["part"])
    return part


def in_own_layout(tensor: Any) -> StoredInt4 | StoredFloat8 | None:
    """``tensor`` as it is stored, if it is INT4 or FP8."""
    return int4.stored(tensor) or float8.stored(tensor)


def is_quantised(tensor: Any) -> bool:
    """True for torchao's tensors of INT8, INT4 and FP8 (also inside a Parameter) and those that stand for them on disk.

    torchao need not be installed.
    """
    return isinstance(tensor, StoredInt4) or (hasattr(tensor, "qdata") and hasattr(tensor, "scale"))


def stored_type(tensor: Any) -> str:
    """``int8``, ``int4``, ``float8_e4m3fn``, or torch's name of a plain tensor's type."""
    if isinstance(tensor, StoredInt4) or getattr(tensor, "target_dtype", None) is torch.int4:  # type: ignore[attr-defined]
        return "int4"
    if float8.is_float8(tensor):
        return str(float8.DTYPE).removeprefix("torch.")
    return "int8" if is_quantised(tensor) else str(tensor.dtype).removeprefix("torch.")


def is_ours_alone(tensors: Mapping[str, Any]) -> bool:
    """Whether transformers' loader has no words for one of ``tensors``: an INT8 kernel, or an INT4 or FP8 weight."""
    return any(isinstance(t, StoredInt8) or in_own_layout(t) is not None for t in tensors.values())


def is_dynamic(tensor: Any) -> bool:
    """True for an INT8 weight whose products are INT8 as well: activations are quantised as they come."""
    return getattr(tensor, "act_quant_kwargs", None) is not None and not float8.is_float8(tensor)


def flatten(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(plain tensors, safetensors metadata); without quantised tensors both are what they were."""
    if not any(is_quantised(t) for t in tensors.values()):
        return dict(tensors), {}
    stored: dict[str, Tensor] = {}
    others: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        ours = tensor if isinstance(tensor, StoredInt8) else in_own_layout(tensor)
        if ours is None:
            others[key] = tensor
            continue
        module, _, name = key.rpartition(".")
        stored |= {f"{module}._{name}_{end}": part for end, part in ours.parts.items()}
    tensors = others
    if not any(is_quantised(t) for t in tensors.values()):
        return {**tensors, **stored}, {}
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict

    # Only the quantised tensors are described: a line per plain tensor is a tenth of a small file.
    quantised = {key: tensor.detach() for key, tensor in tensors.items() if is_quantised(tensor)}
    flat, metadata = flatten_tensor_state_dict(quantised)
    dynamic = [key for key, tensor in quantised.items() if is_dynamic(tensor)]
    metadata |= {DYNAMIC_METADATA: json.dumps(dynamic)} if dynamic else {}
    plain = {key: tensor for key, tensor in tensors.items() if key not in quantised}
    return {**plain, **stored, **flat}, metadata


def quantization_config(tensors: Mapping[str, Tensor]) -> Any:
    """The ``transformers.TorchAoConfig`` for config.json: which modules stay float. None if nothing is INT8."""
    quantised = {k.rsplit(".", 1)[0] for k, t in tensors.items() if is_quantised(t)}
    if not quantised:
        return None
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    # Which weight is dynamic is told by the header, tensor by tensor; here only that some are.
    dynamic = any(map(is_dynamic, tensors.values()))
    scheme = Int8DynamicActivationInt8WeightConfig() if dynamic else Int8WeightOnlyConfig()
    floats = sorted({k.rsplit(".", 1)[0] for k in tensors} - quantised)
    return TorchAoConfig(scheme, modules_to_not_convert=floats, include_input_output_embeddings=True)


def dtype_shares(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, int]]:
    """Storage type → parameters and bytes; a quantised weight's scales are counted in its bytes."""
    shares: dict[str, dict[str, int]] = {}
    for tensor in tensors.values():
        if (packed := in_own_layout(tensor)) is not None:
            size = sum(part.nbytes for part in packed.parts.values())
        elif is_quantised(tensor):
            size = tensor.numel() + tensor.scale.numel() * tensor.scale.element_size()  # type: ignore[attr-defined]
        else:
            size = tensor.numel() * tensor.element_size()
        row = shares.setdefault(stored_type(tensor), {"params": 0, "bytes": 0})
        row["params"] += tensor.numel()
        row["bytes"] += size
    return shares


def unflatten(
    flat: Mapping[str, Tensor],
    source: object,
    *,
    dequantize: bool,
    dynamic: Collection[str] = (),
    as_stored: bool = False,
) -> dict[str, Any]:
    """Inverse of ``flatten``: stored tensors under model keys, quantised ones as torchao's tensors or FP32.

    Args:
        dynamic: keys whose activations are quantised too.
        as_stored: leave them as ``StoredInt8`` and ``StoredInt4``, for what only counts; nothing is copied.

    Raises:
        CheckpointError: a quantised weight without its scale.
        UserError: torchao is needed but not installed.
    """
    tensors: dict[str, Any] = dict(flat)
    for key in flat:
        for pattern, what, kind, ends in OWN:
            if match := pattern.match(key):
                if f"{key}_scale" not in flat:
                    raise CheckpointError(
                        f"checkpoint {source}: {what} weight {key} has no {key}_scale; write it again"
                    )
                ours = kind(tensors.pop(key), *(tensors.pop(f"{key}{end}", None) for end in ends))
                name = f"{match['module']}.{match['name']}"
                tensors[name] = ours if as_stored else ours.dequantize() if dequantize else ours.running()
        match = QDATA.match(key)
        if match is None:
            continue
        stem = f"{match['module']}._{match['name']}_"
        if f"{stem}scale" not in flat:
            raise CheckpointError(f"checkpoint {source}: INT8 weight {key} has no {stem}scale; write it again")
        qdata, scale = tensors.pop(key), tensors.pop(f"{stem}scale")
        tensors.pop(f"{stem}zero_point", None)  # all zeros: the scheme is symmetric
        key = f"{match['module']}.{match['name']}"
        stored = StoredInt8(qdata, scale)
        tensors[key] = (
            stored
            if as_stored
            else stored.dequantize()
            if dequantize or qdata.ndim != 2
            else int8_tensor(qdata, scale, dynamic=key in dynamic)
        )
    return tensors


def int8_tensor(qdata: Tensor, scale: Tensor, *, dynamic: bool = False) -> Tensor:
    """torchao's tensor that gives FP32 results: qdata int8 [rows, columns], scale [rows, 1].

    Args:
        dynamic: also quantise activations, symmetric, one scale per token; otherwise they stay float.
    """
    try:
        from torchao.quantization import Int8Tensor, PerRow
        from torchao.quantization.quantize_.workflows.int8.int8_tensor import QuantizeTensorToInt8Kwargs
    except ImportError as error:
        raise UserError(
            "INT8 weights run on torchao, which is not installed; pip install torchao, or load with dequantize=True"
        ) from error
    activations = QuantizeTensorToInt8Kwargs(granularity=PerRow()) if dynamic else None
    tensor: Tensor = Int8Tensor(qdata, scale, [1, qdata.shape[1]], torch.float32, act_quant_kwargs=activations)
    return tensor


def set_weight(model: nn.Module, key: str, tensor: Tensor) -> None:
    """Replace parameter ``key`` of ``model`` by a tensor that ``load_state_dict`` could not copy."""
    module, name = key.rsplit(".", 1)
    setattr(model.get_submodule(module), name, nn.Parameter(tensor, requires_grad=False))
