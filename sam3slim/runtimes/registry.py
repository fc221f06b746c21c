"""The one table of runtimes, and the checks that all of them share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sam3slim.errors import UserError
from sam3slim.precisions import arithmetics as torch_arithmetics

if TYPE_CHECKING:
    import torch

    from sam3slim.checkpoints import LoadReport
    from sam3slim.checkpoints.locating import Located
    from sam3slim.data.batch import Batch
    from sam3slim.specs import ModelSpec

    CalibrationBatches = Callable[[ModelSpec], Iterable[Batch]]

AUTO = "auto"
WEIGHTS = "weights"  # a source that is loaded into a model, other than graphs, which are run
# Products of INT8 weights with floating activations, with activations that become INT8 as they come, and with
# activations whose ranges were measured before.
W8A16, W8A8, W8A8_STATIC = "w8a16", "w8a8", "w8a8_static"


@dataclass(frozen=True)
class Opening:
    """What a runtime is to open.

    Attributes:
        located: the source.
        kind: ``WEIGHTS``, or the format of its graphs.
        device: where it runs.
        arithmetic: one of the runtime's, or ``auto``.
        overrides: those of ``checkpoints.load``.
        expect: the architecture that it must have; None: any.
        dequantize: INT8 weights become the FP32 numbers they stand for.
        calibration: gives batches of a model of this architecture to measure activations on.
    """

    located: Located
    kind: str
    device: torch.device
    arithmetic: str = AUTO
    overrides: Mapping[str, Any] = field(default_factory=dict)
    expect: ModelSpec | None = None
    dequantize: bool = False
    calibration: CalibrationBatches | None = None


@dataclass(frozen=True)
class Runtime:
    """One way to run a model.

    Attributes:
        name: what a user types.
        title: in words.
        open: (opening) → a ``Segmenter`` with its ``spec``, and what was loaded; or "module:function" of one.
        kinds: the sources that it runs, ``WEIGHTS`` or formats of graphs. The first runtime of a kind is its default.
        arithmetics: what it can compute in; ``auto`` follows what is stored.
        packages: modules that it needs.
        extra: of this project, which installs them.
        devices: kinds of devices.
    """

    name: str
    title: str
    open: str | Callable[[Opening], tuple[Any, LoadReport]]
    kinds: tuple[str, ...] = (WEIGHTS,)
    arithmetics: tuple[str, ...] = ("fp32",)
    packages: tuple[str, ...] = ()
    extra: str | None = None
    devices: tuple[str, ...] = ("cpu",)

    def missing(self) -> str | None:
        """The first of ``packages`` that is not installed."""
        return next((name for name in self.packages if find_spec(name) is None), None)


RUNTIMES: dict[str, Runtime] = {}


def register(runtime: Runtime) -> Runtime:
    """Add ``runtime`` to the table. Raises ValueError for a name that is taken."""
    if runtime.name in RUNTIMES:
        raise ValueError(f"there is already a runtime {runtime.name}")
    RUNTIMES[runtime.name] = runtime
    return runtime


register(
    Runtime(
        "eager", "PyTorch", "sam3slim.runtimes.eager:open_eager", kinds=(WEIGHTS, "torch-export"),
        arithmetics=torch_arithmetics(), devices=("cpu", "cuda"),
    )
)  # fmt: skip
register(
    Runtime(
        "compile", "PyTorch, layers compiled by inductor", "sam3slim.runtimes.eager:open_compiled",
        arithmetics=torch_arithmetics(), devices=("cpu", "cuda"),
    )
)  # fmt: skip
register(
    Runtime(
        "onnx", "ONNX Runtime", "sam3slim.runtimes.onnx_sessions:open_onnx", kinds=("onnx", WEIGHTS),
        arithmetics=("fp32", W8A8), packages=("onnx", "onnxscript", "onnxruntime"), extra="onnx",
    )
)  # fmt: skip
register(
    Runtime(
        "openvino", "OpenVINO", "sam3slim.runtimes.openvino_models:open_openvino", kinds=("onnx", WEIGHTS),
        arithmetics=("fp32", "bf16", W8A16, W8A8, W8A8_STATIC), packages=("openvino", "nncf", "onnx", "onnxscript"),
        extra="openvino",
    )
)  # fmt: skip


def all_arithmetics() -> tuple[str, ...]:
    """What any runtime can compute in."""
    return tuple(dict.fromkeys(name for runtime in RUNTIMES.values() for name in runtime.arithmetics))


def runtime_named(name: str) -> Runtime:
    """The runtime called ``name``. Raises UserError for one that is not known."""
    if name not in RUNTIMES:
        near = get_close_matches(name, RUNTIMES, 1)
        hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(RUNTIMES)}"
        raise UserError(f"runtime {name} is not known; {hint}")
    return RUNTIMES[name]


def check_runtime(name: str | None, arithmetic: str = AUTO) -> None:
    """Refuse what cannot be had here, before anything is opened; ``None`` is the default of the source.

    Raises:
        UserError: not known, a package that is not installed (its extra is named), or an arithmetic that the runtime
            does not have.
    """
    runtime = runtime_named(name or "eager")
    if (package := runtime.missing()) is not None:
        how = f"pip install 'sam3slim[{runtime.extra}]'" if runtime.extra else f"pip install {package}"
        raise UserError(f"runtime {runtime.name} needs {package}, which is not installed; {how}")
    if arithmetic != AUTO and arithmetic not in runtime.arithmetics:
        able = [other.name for other in RUNTIMES.values() if arithmetic in other.arithmetics]
        other = f", or the runtime {' or '.join(able)}" if able else ""
        raise UserError(
            f"{runtime.title} cannot compute in {arithmetic}, but in {', '.join(runtime.arithmetics)}; use one of them "
            f"or auto{other}"
        )


def open_runtime(
    source: str | Path,
    name: str | None = None,
    *,
    device: torch.device | str = "cpu",
    arithmetic: str = AUTO,
    overrides: Mapping[str, Any] | None = None,
    expect: ModelSpec | None = None,
    dequantize: bool = False,
    calibration: CalibrationBatches | None = None,
) -> tuple[Any, LoadReport]:
    """Whatever answers prompts for ``source``: a ``Segmenter`` with its ``spec``, ready to run, and what was loaded.

    Args:
        source: a checkpoint of any kind, or an artifact of graphs.
        name: of a runtime; None: the source's own (weights: PyTorch, ONNX graphs: ONNX Runtime).
        device, arithmetic, overrides, expect, dequantize, calibration: see ``Opening``.

    Raises:
        CheckpointError: no checkpoint, a broken one, or another architecture.
        UserError: what ``check_runtime`` refuses; a source, or a device, that the runtime does not run; an arithmetic
            that needs calibration, without any.
    """
    import torch

    from sam3slim.checkpoints import locate
    from sam3slim.checkpoints.locating import graph_format

    located = locate(source)
    kind = graph_format(located) or WEIGHTS
    runtime = runtime_named(name or default_runtime(kind))
    if kind != WEIGHTS and name is None and arithmetic == "fp32":
        arithmetic = AUTO  # a setting for checkpoints, where graphs are only among what is measured
    check_runtime(runtime.name, arithmetic)
    if kind not in runtime.kinds:
        able = ", ".join(other.name for other in RUNTIMES.values() if kind in other.kinds)
        what = "checkpoints" if kind == WEIGHTS else f"{kind} graphs"
        raise UserError(f"{runtime.title} (runtime {runtime.name}) does not run {what} ({source}); use {able}")
    if calibration is None:
        check_calibrated(arithmetic)
    place = torch.device(device)
    if place.type not in runtime.devices:
        raise UserError(
            f"device {device}: {runtime.title} (runtime {runtime.name}) runs on {' and '.join(runtime.devices)}; "
            f"use device {runtime.devices[0]}"
        )
    opening = Opening(located, kind, place, arithmetic, dict(overrides or {}), expect, dequantize, calibration)
    open_it = _function(runtime.open) if isinstance(runtime.open, str) else runtime.open
    return open_it(opening)


def check_calibrated(arithmetic: str) -> None:
    """Refuse what needs pictures to measure activations on, where there are none.

    Raises:
        UserError: such an arithmetic.
    """
    if arithmetic == W8A8_STATIC:
        raise UserError(
            f"{arithmetic} measures activations on training pictures, which only evaluate.py, compress.py and "
            f"sam3slim benchmark with data=… have; use {W8A8}, which measures them as they come"
        )


def default_runtime(kind: str) -> str:
    """The runtime of a source of this kind when none is named."""
    return next(name for name, runtime in RUNTIMES.items() if kind in runtime.kinds)


def _function(path: str) -> Callable[[Opening], tuple[Any, LoadReport]]:
    module, _, name = path.partition(":")
    found: Callable[[Opening], tuple[Any, LoadReport]] = getattr(import_module(module), name)
    return found
