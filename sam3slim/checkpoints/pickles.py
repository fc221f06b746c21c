"""Files of ``torch.save``, read for their tensors alone: no code in them is run, whatever else they hold."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sam3slim.checkpoints.load_report import CheckpointError

# What runs programs, opens files or imports code where it is unpickled. Not here, where it is only a name, but no
# training writes it.
DANGEROUS = (
    "builtins.__import__", "builtins.compile", "builtins.eval", "builtins.exec", "builtins.open", "code.",
    "commands.", "ctypes.", "importlib.", "io.open", "nt.", "os.", "posix.", "pty.", "runpy.", "shutil.", "socket.",
    "subprocess.", "sys.", "webbrowser.",
)  # fmt: skip
SHARDED = (
    "checkpoint {path} holds DTensors, of which every process of an FSDP training keeps a part; save whole weights: "
    "torch.save(get_model_state_dict(model, options=StateDictOptions(full_state_dict=True)), PATH), both from "
    "torch.distributed.checkpoint.state_dict"
)
_GLOBAL = re.compile(r"GLOBAL (\S+) (?:was not|whose module)")
DAMAGE = (
    RuntimeError, EOFError, ValueError, OSError, LookupError, AttributeError, TypeError, OverflowError, MemoryError,
    AssertionError, zipfile.BadZipFile,
)  # fmt: skip
_FILLED = re.compile(r"Can only (?:SETITEMS?|append).* but got <class '([^']+)'>")


class Stub(list[Any]):
    """Stands for an object whose class is not loaded; its attributes are there, its methods are not."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Stub:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    __hash__ = object.__hash__  # type: ignore[assignment]
    __eq__ = object.__eq__

    def __repr__(self) -> str:
        return f"an object of {type(self).__name__}"

    def __setstate__(self, state: Any) -> None:
        for part in state if isinstance(state, tuple) else (state,):
            if isinstance(part, Mapping):
                self.__dict__.update({str(key): value for key, value in part.items()})


class _Filled:
    """Stands for a class of dicts: its items are there."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return OrderedDict()


def torch_load(path: Path) -> tuple[Any, list[str]]:
    """The content of a file of ``torch.save``, tensors on the CPU and memory-mapped where the format allows.

    Returns:
        The content, in which ``Stub`` stands for every object that is no tensor, number, text or container; and the
        names of the classes that stubs stand for.

    Raises:
        CheckpointError: damaged, or it holds something that runs code where it is unpickled (its name is told).
    """
    stubs = {name: _stub(name) for name in _foreign_names(path)}
    for _ in range(1000):
        for name in sorted(stubs):
            _refuse_dangerous(path, name)
        try:
            with torch.serialization.safe_globals([(stub, name) for name, stub in stubs.items()]):
                # Files older than the zip format cannot be mapped.
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
            return content, sorted(stubs)
        except pickle.UnpicklingError as error:
            if not _learn(path, str(error), stubs):
                raise CheckpointError(_refusal(path, str(error))) from error
        except DAMAGE as error:
            raise CheckpointError(
                f"checkpoint {path} is truncated or damaged ({one_line(error)}); copy it again"
            ) from error
    raise CheckpointError(f"checkpoint {path} names too many classes; save only its state_dict")


def module_state(value: Any) -> dict[str, Tensor]:
    """The ``state_dict`` of a pickled ``nn.Module`` that a ``Stub`` stands for; empty for anything else."""
    found: dict[str, Tensor] = {}

    def collect(module: Any, prefix: str, depth: int) -> None:
        if not isinstance(module, Stub) or depth > 50:
            return
        held = vars(module)
        for kind in ("_parameters", "_buffers"):
            for name, tensor in dict(held.get(kind) or {}).items():
                if isinstance(tensor, Tensor) and name not in (held.get("_non_persistent_buffers_set") or ()):
                    found[f"{prefix}{name}"] = tensor
        for name, child in dict(held.get("_modules") or {}).items():
            collect(child, f"{prefix}{name}.", depth + 1)

    collect(value, "", 0)
    return found


def one_line(error: BaseException | str) -> str:
    """The first sentence of an error, without escape codes, cut between words."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()
    line = text.splitlines()[0] if text else type(error).__name__
    if len(line) <= 160:
        return line.rstrip(".")
    return f"{line[:160].rpartition(' ')[0] or line[:160]} …"


def _foreign_names(path: Path) -> list[str]:
    """Full names of the classes that only a stub can stand for, of a zip; the older format tells them one by one."""
    try:
        return torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # what is wrong is told by loading
        return []


def _stub(name: str) -> type:
    return type(name, (Stub,), {"__module__": "stub"})


def _learn(path: Path, problem: str, stubs: dict[str, type]) -> bool:
    """Make a stub for the class a refusal names, or another one if items are put into it; False if that is no help."""
    if found := _GLOBAL.search(problem):
        # torch leaves the module of builtins out.
        name = found[1] if "." in found[1] else f"builtins.{found[1]}"
        _refuse_dangerous(path, name)
        new, stubs[name] = name not in stubs, _stub(name)
        return new
    if found := _FILLED.search(problem):
        name = found[1].removeprefix("stub.")
        if name in stubs and not issubclass(stubs[name], _Filled):
            stubs[name] = type(name, (_Filled,), {"__module__": "stub"})
            return True
    return False


def _refuse_dangerous(path: Path, name: str) -> None:
    if name.startswith(DANGEROUS):
        raise CheckpointError(
            f"checkpoint {path} holds {name}, pickled code, which is never run here; no training writes it: do not "
            "open this file elsewhere, and ask whoever made it for safetensors"
        )


def _refusal(path: Path, problem: str) -> str:
    if "torch.distributed.tensor" in problem:
        return SHARDED.format(path=path)
    reason = one_line(problem.partition("WeightsUnpickler error:")[2] or problem)
    if called := re.match(r"Trying to call reduce for unrecognized function (.*)", reason):
        return (
            f"checkpoint {path} holds pickled code, which is never run (it calls {called[1]}); save only its state_dict"
        )
    if "persistent_load" in reason:
        return (
            f"checkpoint {path} holds a pickled module in the format from before PyTorch 1.6, which is never run; save "
            "only its state_dict: torch.save(model.state_dict(), PATH)"
        )
    return f"checkpoint {path} cannot be read for its tensors alone ({reason}); save only its state_dict"
