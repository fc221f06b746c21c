"""Config type → handler, as torchao does it: a new method is one dataclass and one decorated function."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import torch

from sam3slim.artifacts import ArtifactInfo, write_artifact
from sam3slim.artifacts.lazy import Convert, LazyTensors, converted
from sam3slim.artifacts.stream import safetensors_bytes
from sam3slim.checkpoints.int8 import dtype_shares, flatten, is_quantised, stored_type
from sam3slim.data.batch import Batch
from sam3slim.environment import release_memory
from sam3slim.errors import UserError
from sam3slim.models import Sam3
from sam3slim.strict import spec_from_dict


class Method(Protocol):
    """A frozen dataclass of options whose ``name`` is what a user types.

    It may have a method ``check(model)``, which raises UserError where it cannot work on a model like this one (its
    ``spec`` and the names and shapes of its weights); see ``check_methods``.
    """

    name: ClassVar[str]


class Compressed(Protocol):
    """What a handler returns: facts to print, and an artifact to write.

    Attributes:
        precision: how the weights are stored.
        method: the options used, plain values.
        model: whose weights they are, where that is another architecture than the one given; None: the same.
        images_used: unlabelled images that were looked at.
    """

    method: dict[str, Any]

    @property
    def precision(self) -> str: ...

    @property
    def model(self) -> Sam3 | None: ...

    @property
    def images_used(self) -> int: ...

    def describe(self) -> str: ...

    def write(self, model: Sam3, folder: str | Path, **metadata: Any) -> ArtifactInfo: ...


@dataclass
class CompressedTensors:
    """What an artifact will store.

    Attributes:
        precision: the method's name.
        tensors: the model's keys → tensors in their stored type, made anew whenever one is asked for, so that no more
            than one is in memory.
        method: the options used, plain values.
    """

    precision: str
    tensors: LazyTensors
    method: dict[str, Any] = field(default_factory=dict)
    model: None = None

    @property
    def images_used(self) -> int:
        """Of compensated rounding, or annotated ones of ``recalibrated``."""
        return max(int(self.method.get(key, {}).get("images", 0)) for key in ("compensated", "recalibrated"))

    @property
    def bytes(self) -> int:
        """Bytes of all tensors, scales included, without the file's header."""
        return sum(row["bytes"] for row in dtype_shares(self.tensors.described).values())

    @property
    def file_bytes(self) -> int:
        """Bytes of the file of weights."""
        return safetensors_bytes(*flatten(self.tensors.described))

    def metadata(self) -> dict[str, Any]:
        """JSON-able account for ``sam3slim.json`` and the record."""
        return {
            "method": self.method,
            "dtypes": dtype_shares(self.tensors.described),
            **self.tensors.rounding.metadata(),
        }

    def describe(self) -> str:
        """One line per fact a user should know."""
        shares = dtype_shares(self.tensors.described)
        total = sum(row["params"] for row in shares.values())
        parts = [f"{name} {100 * row['params'] / total:.1f} %" for name, row in shares.items()]
        size = f"{self.precision}: {self.bytes / 1e6:.2f} MB; parameters in " + ", ".join(parts)
        return "\n".join([size, *self.tensors.rounding.describe()])

    def write(self, model: Sam3, folder: str | Path, **metadata: Any) -> ArtifactInfo:
        """``write_artifact`` with these tensors; ``metadata`` are its other keywords."""
        extra = {**self.metadata(), **(metadata.pop("extra", None) or {})}
        return write_artifact(model, folder, precision=self.precision, tensors=self.tensors, extra=extra, **metadata)


# From what a method's handler rounds with data: how many batches, of unlabelled images and their phrases → those.
Batches = Callable[[int], Iterable[Batch]]
Handler = Callable[..., Convert | Compressed]
NONE = "none"  # compensate: plain rounding
_HANDLERS: dict[type, Handler] = {}
HandlerT = TypeVar("HandlerT", bound=Callable[..., Any])


def register(config_type: type) -> Callable[[HandlerT], HandlerT]:
    """Decorate the handler of ``config_type``: (model, options) → how each tensor is stored, or the whole result."""

    def decorate(handler: HandlerT) -> HandlerT:
        _HANDLERS[config_type] = handler
        return handler

    return decorate


def compress(model: Sam3, method: Any, batches: Batches | None = None) -> Any:
    """Convert the weights of ``model`` (left untouched) by ``method``, a registered config object.

    Args:
        batches: what a method looks at that ``needs_batches``.

    Returns:
        What the method's handler makes: ``CompressedTensors``, or ``OnnxGraphs``.

    Raises:
        UserError: the model is already quantised, a weight is NaN or infinite, ``method`` cannot work on it, or there
            are no ``batches`` for a method that needs some.
        TypeError: ``method`` has no handler.
    """
    handler = handler_of(method)
    check_methods(model, {method.name: method})
    state = model.state_dict()
    release_memory()
    made = handler(model, method, batches) if needs_batches(method) else handler(model, method)
    options = {"name": method.name, **asdict(method)}
    if callable(made):
        options |= getattr(made, "facts", {})
        sources = LazyTensors(state, lambda key: state[key].detach().to("cpu", torch.float32))
        return CompressedTensors(getattr(method, "precision", method.name), converted(sources, made), options)
    made.method = options
    return made


def handler_of(method: Any) -> Handler:
    """What works as ``method`` says. Raises TypeError where nothing is registered for it."""
    handler = _HANDLERS.get(type(method))
    if handler is None:
        raise TypeError(f"no compression handler for {type(method).__name__}")
    return handler


def check_methods(model: Sam3, methods: Mapping[str, Any]) -> None:
    """Refuse what cannot be compressed, for one line before minutes of work.

    Args:
        methods: what a user has typed → its config object; None: it works on whatever has numbers in it.

    Raises:
        UserError: weights that are quantised, NaN or infinite, or a method that cannot work on this model.
    """
    name = ",".join(methods)
    for key, tensor in model.state_dict().items():
        if is_quantised(tensor):
            raise UserError(
                f"compress={name}: the model is already {stored_type(tensor).upper()} ({key}); start from its FP32 or "
                "FP16 parent"
            )
        if not tensor.isfinite().all():
            raise UserError(f"compress={name}: {key} holds NaN or infinity; the checkpoint is broken")
    for method in methods.values():
        if (check := getattr(method, "check", None)) is not None:
            check(model)


def needs_batches(method: Any) -> bool:
    """Whether ``method`` looks at images: its handler then takes ``batches`` too."""
    return bool(getattr(method, "needs_batches", getattr(method, "compensate", NONE) != NONE))


def needs_labels(method: Any) -> bool:
    """Whether those images must be annotated: they are the search split's, asked as in an evaluation."""
    return bool(getattr(method, "needs_labels", False))


def method_names() -> list[str]:
    """What a user may write after ``compress=``."""
    return [config_type.name for config_type in _HANDLERS]  # type: ignore[attr-defined]


def method_from_name(name: str, **options: Any) -> Any:
    """The config object called ``name``. Raises UserError for an unknown name, an unknown option or a wrong value."""
    for config_type in _HANDLERS:
        if config_type.name == name:  # type: ignore[attr-defined]
            return spec_from_dict(config_type, options, f"compress.{name}")
    near = get_close_matches(name, method_names(), 1)
    hint = f"did you mean {near[0]}?" if near else f"methods: {', '.join(method_names())}"
    raise UserError(f"compress={name} is not a method; {hint}")
