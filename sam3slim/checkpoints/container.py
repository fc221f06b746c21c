"""Where a file of ``torch.save`` keeps the weights: in the dict whose names fit SAM 3, whatever it is called."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from sam3slim.checkpoints.layout import sets_of
from sam3slim.checkpoints.load_report import CheckpointError
from sam3slim.checkpoints.names import LORA
from sam3slim.checkpoints.pickles import SHARDED, Stub, module_state

# Of several dicts that fit equally well, what trainers call the weights goes first.
NAMES = ("state_dict", "model", "model_state_dict", "model_state", "module", "net", "network", "weights", "params")
DEPTH = 4  # dicts in dicts


@dataclass(frozen=True)
class Container:
    """The weights of a file.

    Attributes:
        path: keys that lead to them; () for the content itself.
        tensors: name → tensor.
        other: what lies beside them → bytes.
        rivals: other dicts that fit as well, by their dotted keys.
    """

    path: tuple[str, ...]
    tensors: dict[str, Tensor]
    other: dict[str, int] = field(default_factory=dict)
    rivals: tuple[str, ...] = ()


def find_weights(content: Any, file: Path, chosen: str | None = None) -> tuple[Container, str | None]:
    """The dict of ``content`` of which most names are tensors of SAM 3.

    Args:
        content: what ``torch_load`` returned.
        chosen: dotted keys of the dict to take, or what the names of the tensors to take start with.

    Returns:
        The dict, and ``chosen`` if it is no dict.

    Raises:
        CheckpointError: no tensors.
    """
    found = dict(_dicts(content, ()))
    if not found:
        raise CheckpointError(f"checkpoint {file} {_held(content)}; expected a state_dict of SAM 3")
    for path, tensors in found.items():
        if chosen is not None and ".".join(path) == chosen:
            return Container(path, tensors, _beside(content, path)), None
    if any(hasattr(tensor, "_local_tensor") for tensors in found.values() for tensor in tensors.values()):
        raise CheckpointError(SHARDED.format(path=file))
    votes = {path: max(map(len, sets_of(tensors).values()), default=0) for path, tensors in found.items()}
    most = max(votes.values())
    if not most:  # an adapter, or something else: its names are told
        votes = {path: sum(map(bool, map(LORA.match, tensors))) or 0 for path, tensors in found.items()}
        most = max(votes.values())
    best = [path for path, count in votes.items() if count == most]
    path, *rivals = sorted(best, key=_preference) if most else sorted(best, key=lambda path: -len(found[path]))
    return Container(path, found[path], _beside(content, path), tuple(map(".".join, rivals)) if most else ()), chosen


def _dicts(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """Every dict with tensors, from the outside in, also those of pickled modules."""
    if isinstance(value, Stub):
        state = module_state(value)
        if state:
            yield path, state
            return
        value = vars(value)
    if not isinstance(value, Mapping) or len(path) > DEPTH:
        return
    tensors = {str(name): item for name, item in value.items() if isinstance(item, Tensor)}
    if tensors:
        yield path, tensors
    for name, item in value.items():
        if isinstance(name, str) and isinstance(item, Mapping | Stub):
            yield from _dicts(item, (*path, name))


def _preference(path: tuple[str, ...]) -> tuple[bool, int, int]:
    known = [NAMES.index(name) for name in path if name in NAMES]
    return len(known) < len(path), len(path), min(known, default=0)


def _beside(content: Any, path: tuple[str, ...]) -> dict[str, int]:
    """Dotted key → bytes of everything that is not on the way to ``path``."""
    sizes: dict[str, int] = {}
    items = _items(content)
    for depth, step in enumerate(path):
        rest = {name: item for name, item in items.items() if name != step}
        sizes |= {".".join([*path[:depth], str(name)]): nested_bytes(item) for name, item in rest.items()}
        items = _items(items[step])
    if not path:
        sizes = {str(name): nested_bytes(item) for name, item in items.items() if not isinstance(item, Tensor)}
    return sizes


def _items(value: Any) -> Mapping[Any, Any]:
    if isinstance(value, Stub):
        return vars(value)
    return value if isinstance(value, Mapping) else {}


def nested_bytes(value: Any) -> int:
    """Bytes of all tensors in a nest of dicts, lists and pickled objects, which may be circular."""
    total, waiting, seen = 0, [value], set()
    while waiting:
        item = waiting.pop()
        if isinstance(item, Tensor):
            total += item.numel() * item.element_size()
        elif isinstance(item, Mapping | list | tuple | set) and id(item) not in seen:
            seen.add(id(item))
            waiting += item.values() if isinstance(item, Mapping) else item
            if isinstance(item, Stub):
                waiting.append(vars(item))
    return total


def _held(content: Any) -> str:
    if isinstance(content, Stub):
        return f"holds an object of class {type(content).__name__} without weights"
    if not isinstance(content, Mapping):
        return f"holds a {type(content).__name__}"
    if not content:
        return "holds an empty dict"
    arrays = " as numpy arrays, which torch.from_numpy makes tensors of" if _has_arrays(content) else ""
    return f"has no tensors (it holds {', '.join(map(str, list(content)[:4]))}{arrays})"


def _has_arrays(content: Mapping[Any, Any]) -> bool:
    values = list(content.values())
    values += [item for value in values if isinstance(value, Mapping) for item in value.values()]
    return any(isinstance(value, Stub) and type(value).__name__.endswith("._reconstruct") for value in values)
