"""Checkpoints that are broken at random, always the same for the same number: names, tensors, containers, pickles,
bytes, and the JSON files beside them.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import pickle
import re
import shutil
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save, save_file
from torch import Tensor, nn

from sam3slim.artifacts import extract, write_artifact
from sam3slim.artifacts.reference_file import reference_tensors
from sam3slim.checkpoints import inspect, load
from sam3slim.errors import UserError
from tests.fuzz.odd import broken_bytes, odd_value, spoiled
from tests.small import small_model
from tests.tiny import SPEC

Rng = np.random.Generator
State = dict[str, Any]
HEADS = {"text.num_heads": 2}
WORDS = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module", "module", "x", "", "layers", "0")
STARTS = ("", "detector.", "model.", "module.", "ema.", "a.b.", "_orig_mod.", "sam3_model.", "é.", ".")
KEYS = ("model", "state_dict", "ema", "net", "optimizer", "x", "", "0", "é", "params", "model_state_dict")


@cache
def sound() -> dict[str, Tensor]:
    """The tiny model under the reference's names."""
    return reference_tensors(SPEC, small_model(SPEC).state_dict())


def pick(rng: Rng, options: Any) -> Any:
    return options[int(rng.integers(len(options)))]


class Foreign:
    """Is pickled as whatever class ``name`` says, with a state."""

    def __init__(self, module: str, name: str, state: Any) -> None:
        self.module, self.name, self.state = module, name, state


class _Pickler(pickle._Pickler):  # type: ignore[name-defined]  # the one in Python, whose opcodes can be chosen
    def save(self, obj: Any, *args: Any, **kwargs: Any) -> None:
        if not isinstance(obj, Foreign):
            super().save(obj, *args, **kwargs)
            return
        self.write(b"c" + f"{obj.module}\n{obj.name}\n".encode() + b")R")  # GLOBAL, (), REDUCE
        super().save(obj.state)
        self.write(b"b")  # BUILD


def odd_tensor(rng: Rng, tensor: Tensor) -> Any:
    plain = tensor.real if tensor.is_complex() else tensor
    options: list[Callable[[], Any]] = [
        lambda: tensor.T.contiguous() if tensor.ndim == 2 else tensor[None],
        lambda: tensor.flatten(),
        lambda: tensor[..., :0],
        lambda: plain.half(),
        lambda: plain.to(torch.float8_e4m3fn),
        lambda: plain.to(torch.int64),
        lambda: plain.to(torch.complex64),
        lambda: plain > 0,
        lambda: torch.full_like(plain, float("nan")) if plain.is_floating_point() else plain,
        lambda: torch.zeros(1).expand(10**6, 10**6),
        lambda: torch.zeros(()),
        lambda: torch.zeros([0] * 8),
        lambda: torch.empty(tensor.shape, device="meta"),
        lambda: plain.to_sparse() if plain.ndim else plain,
        lambda: torch.quantize_per_tensor(plain.float(), 0.1, 0, torch.qint8),
        lambda: tensor.numpy(),
        lambda: nn.Parameter(plain, requires_grad=plain.is_floating_point()),
        lambda: tensor.tolist() if tensor.numel() < 1000 else None,
        lambda: odd_value(rng),
    ]
    return pick(rng, options)()


def odd_object(rng: Rng) -> Any:
    options: list[Callable[[], Any]] = [
        lambda: np.float64(0.5), lambda: np.arange(3), lambda: argparse.Namespace(a=argparse.Namespace()),
        lambda: Path("x"), lambda: OrderedDict(a=1), lambda: torch.Size([1, 2]), lambda: torch.device("cpu"),
        lambda: torch.float32, lambda: {1: 2, None: 3}, lambda: {"a": {"b": {"c": {"d": {"e": torch.zeros(2)}}}}},
        lambda: [torch.zeros(2)] * 3, lambda: re.compile("x"), lambda: range(3), lambda: 10**400, lambda: "\ud800",
        lambda: bytearray(b"x"), lambda: {frozenset((1,))}, lambda: slice(1), lambda: odd_value(rng),
        lambda: torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.1).state_dict(),
    ]  # fmt: skip
    return pick(rng, options)()


def renamed(rng: Rng) -> State:
    """Names with starts and words in them, some lost, some twice."""
    found: State = {}
    start, word, share = pick(rng, STARTS), pick(rng, WORDS), rng.random()
    for name, tensor in sound().items():
        steps = name.split(".")
        if rng.random() < share:
            steps.insert(int(rng.integers(len(steps))), word)
        found[start + ".".join(steps)] = tensor
    how = rng.random()
    if how < 0.3:
        other = pick(rng, STARTS)
        change = pick(rng, (0.0, 0.0, 1.0))
        found |= {other + name: tensor + change for name, tensor in sound().items()}
    elif how < 0.7:
        names = list(found)
        for _ in range(int(rng.integers(1, 6))):
            name = pick(rng, names)
            tensor = found.pop(name, torch.zeros(1))
            if rng.random() < 0.5:
                found[name[: int(rng.integers(len(name)))] + pick(rng, ("", "x", ".", "1"))] = tensor
    return found


def odd_tensors(rng: Rng) -> State:
    found: State = dict(sound())
    names = list(found)
    for _ in range(int(rng.integers(1, 5))):
        name = pick(rng, names)
        found[name] = odd_tensor(rng, sound()[name])
    if rng.random() < 0.2:
        found[pick(rng, (1, None, ("a", 1), True, b"x"))] = torch.zeros(2)
    return found


def nested(rng: Rng) -> Any:
    """The weights some levels down, beside anything."""
    content: Any = dict(sound())
    for _ in range(int(rng.integers(1, 6))):
        beside = {pick(rng, KEYS): odd_object(rng) for _ in range(int(rng.integers(0, 4)))}
        how = rng.random()
        if how < 0.1:
            content = [content, odd_object(rng)]
        elif how < 0.2:
            content = argparse.Namespace(**{"model": content, **{f"a{key}": item for key, item in beside.items()}})
        else:
            content = {**beside, pick(rng, KEYS): content}
    if rng.random() < 0.05 and isinstance(content, dict):
        content["itself"] = content
    return content


def saved(rng: Rng, content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=bool(rng.random() < 0.8))
    return buffer.getvalue()


def pickled(rng: Rng) -> bytes:
    """A sound file whose pickle names other classes, or is another pickle."""
    modules = ("torch", "os", "numpy", "builtins", "a.b", "collections", "torch._utils", "", "posix", "é")
    names = ("x", "system", "dtype", "eval", "OrderedDict", "_rebuild_tensor_v2", "", "a.b", "getattr", "FloatStorage")
    source = zipfile.ZipFile(io.BytesIO(saved(np.random.default_rng(0), {"model": sound(), "args": odd_object(rng)})))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as target:
        for item in source.infolist():
            data = source.read(item)
            if item.filename.endswith("data.pkl"):
                how = rng.random()
                if how < 0.4:
                    old = pick(rng, (b"torch._utils", b"collections", b"FloatStorage", b"_rebuild_tensor_v2", b"cpu"))
                    data = data.replace(old, pick(rng, (*modules, *names)).encode())
                elif how < 0.7:
                    held = io.BytesIO()
                    foreign = Foreign(pick(rng, modules), pick(rng, names), {"a": odd_value(rng)})
                    with contextlib.suppress(RecursionError):  # the pickler's own
                        _Pickler(held, 2).dump({"model": {"x": 1}, "args": [foreign, odd_value(rng)]})
                        data = held.getvalue()
                else:
                    data = broken_bytes(rng, data, 0.2)
            elif rng.random() < 0.02:
                continue  # a storage is lost
            target.writestr(item.filename if rng.random() < 0.99 else f"x/{item.filename}", data)
    return buffer.getvalue()


def tampered_header(rng: Rng) -> bytes:
    """A safetensors file whose header says something else."""
    data = save({name: tensor.contiguous() for name, tensor in sound().items() if not tensor.is_complex()})
    length = int.from_bytes(data[:8], "little")
    how = rng.random()
    if how < 0.6:
        header = json.dumps(spoiled(rng, json.loads(data[8 : 8 + length]))).encode()
        return len(header).to_bytes(8, "little") + header + data[8 + length :]
    if how < 0.8:
        return int(pick(rng, (0, 1, length - 1, length + 1, 2**31, 2**63))).to_bytes(8, "little") + data[8:]
    return broken_bytes(rng, data[: 8 + length], 0.3) + data[8 + length :]


def in_folder(rng: Rng, folder: Path) -> None:
    """An artifact or a folder of transformers' with odd JSON files."""
    write_artifact(small_model(SPEC), folder)
    if rng.random() < 0.4:
        (folder / "sam3slim.json").unlink()
        if rng.random() < 0.5:
            (folder / "model.safetensors").unlink()
            torch.save(small_model(SPEC).state_dict(), folder / "pytorch_model-1.bin")
            names = dict.fromkeys(small_model(SPEC).state_dict(), "pytorch_model-1.bin")
            index = spoiled(rng, {"metadata": {"total_size": 1}, "weight_map": names})
            (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
            return
    present = sorted(path for path in folder.glob("*.json") if path.name in ("config.json", "sam3slim.json"))
    file = pick(rng, present)
    file.write_bytes(json.dumps(spoiled(rng, json.loads(file.read_text()))).encode())
    if rng.random() < 0.1:
        file.write_bytes(broken_bytes(rng, file.read_bytes(), 0.5))


def adapter_in(rng: Rng, folder: Path) -> None:
    """A LoRA adapter, as peft writes one, with odd settings or matrices."""
    folder.mkdir()
    config = {
        "peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "use_rslora": False, "bias": "none",
        "rank_pattern": {}, "alpha_pattern": {}, "use_dora": False, "modules_to_save": None, "init_lora_weights": True,
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(spoiled(rng, config) if rng.random() < 0.7 else config))
    state: State = {}
    for name, tensor in small_model(SPEC).state_dict().items():
        if name.endswith("q_proj.weight"):
            stem = f"base_model.model.{name.removesuffix('.weight')}"
            state |= {f"{stem}.lora_A.weight": torch.ones(2, tensor.shape[1])}
            state |= {f"{stem}.lora_B.weight": torch.ones(tensor.shape[0], 2)}
    for name in list(state):
        if rng.random() < 0.05:
            found = odd_tensor(rng, state.pop(name))
            if isinstance(found, Tensor) and found.layout == torch.strided and found.numel() < 10**6 and (
                found.device.type == "cpu" and not found.is_quantized
            ):  # fmt: skip
                state[pick(rng, (name, name.replace("lora_A", "lora_C"), f"x.{name}"))] = found.detach().contiguous()
    save_file(state, folder / "adapter_model.safetensors")


FILES: tuple[Callable[[Rng], bytes], ...] = (
    lambda rng: saved(rng, renamed(rng)),
    lambda rng: saved(rng, odd_tensors(rng)),
    lambda rng: saved(rng, {"model": odd_tensors(rng), "args": odd_object(rng)}),
    lambda rng: saved(rng, nested(rng)),
    lambda rng: broken_bytes(rng, saved(rng, {"model": sound()}), 0.5),
    pickled,
    tampered_header,
)


def read_checkpoint(number: int, folder: Path) -> str:
    """``read`` or ``refused``, whatever the checkpoint; anything else escapes."""
    rng = np.random.default_rng((3, number))
    kind = int(rng.integers(len(FILES) + 2))
    path, overrides = folder / f"{number}.pt", HEADS
    if kind < len(FILES):
        path.write_bytes(FILES[kind](rng))
    elif kind == len(FILES):
        path, overrides = folder / str(number), {}
        in_folder(rng, path)
    else:
        path = folder / str(number)
        adapter_in(rng, path)
        base = folder / "base"
        if not base.is_dir():
            write_artifact(small_model(SPEC), base)
    outcomes = []
    for look in (inspect, load):
        try:
            if kind > len(FILES):
                extract(base, folder / "out", lora=path, overwrite=True)
            else:
                look(path, overrides=overrides)
            outcomes.append("read")
        except UserError as error:
            told = str(error)
            assert "\n" not in told, told
            assert "\x1b" not in told, told
            assert len(told) < 3000, told[:300]
            assert str(number) in told, told
            told.encode()
            outcomes.append("refused")
    (shutil.rmtree if path.is_dir() else Path.unlink)(path)
    return outcomes[-1]
