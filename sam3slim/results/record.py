"""RunRecord <-> record.json: what a run did, on what, and what came out, also when it failed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, get_args

from sam3slim.errors import UserError
from sam3slim.files import read_json_value, write_json

if TYPE_CHECKING:
    from sam3slim.results.metrics import Metric

SCHEMA = 1
FILE_NAME = "record.json"
Status = Literal["finished", "failed", "interrupted"]
Kind = Literal["train", "evaluate", "compress"]


@dataclass(frozen=True)
class Part:
    """A part of a record. One in which nothing is known is false, and null in the file."""

    def __bool__(self) -> bool:
        return bool(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """What is known, as in the file."""
        known = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in known.items() if value is not None and value != {}}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """What ``to_dict`` gave; keys of other versions are passed over."""
        return cls(**{f.name: values[f.name] for f in fields(cls) if values.get(f.name) is not None})


@dataclass(frozen=True)
class Code(Part):
    """The commit whose code ran, and whether files differed from it."""

    sha: str | None = None
    dirty: bool | None = None

    def __str__(self) -> str:
        return f"{self.sha}{' with uncommitted changes' if self.dirty else ''}" if self.sha else "unknown"


@dataclass(frozen=True)
class ModelSummary(Part):
    """The model's name and sizes.

    Attributes:
        flops: {"image", "phrase", "prompt"} → part → operations, see ``models.flops``.
        image_size: side of the square input, in pixels.
    """

    name: str | None = None
    params: int | None = None
    params_by_part: Mapping[str, int] = field(default_factory=dict)
    flops: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    image_size: int | None = None


@dataclass(frozen=True)
class TrainingSummary(Part):
    """Of trainings only.

    Attributes:
        image_sizes: sides of the images that were drawn from, in pixels, where there were several.
        retrained: false where ``trainer.max_steps=0`` has kept the initial weights.
        not_trained: part → why.
    """

    retrained: bool | None = None
    trained_params: int | None = None
    not_trained: Mapping[str, str] = field(default_factory=dict)
    image_sizes: list[int] | None = None


@dataclass(frozen=True)
class Artifact(Part):
    """The weights that were measured or written.

    Attributes:
        overrides: sizes that loading it takes.
        arithmetic: what it was computed in.
        runtime: what ran it, where one was named.
        evaluated_with: an emulation, in words.
        images_used: unlabelled images that making it took.
        making_seconds: wall time of making it on those images, without writing and measuring.
    """

    path: str | None = None
    bytes: int | None = None
    format: str | None = None
    precision: str | None = None
    bytes_by_part: Mapping[str, int] = field(default_factory=dict)
    overrides: Mapping[str, Any] = field(default_factory=dict)
    arithmetic: str | None = None
    runtime: str | None = None
    evaluated_with: str | None = None
    images_used: int | None = None
    making_seconds: float | None = None


@dataclass(frozen=True)
class Data(Part):
    """What a run was measured on.

    Attributes:
        data_set: its name among the several of a training (``data.sets``).
        prompt_kind, box_noise: of an evaluation with boxes.
        max_detections: kept per image, where that is not COCO's or LVIS' own number.
        files: {"annotations", "images"} where they were not searched for.
        prompts_file, phrases_sha256: where categories were asked for with other phrases than their names.
        labels_sha256: of what the full model found, where that is the ground truth (``data.agreement``).
        read: split → what was read of it, changed and left out, and why (``DataReport``).
    """

    name: str | None = None
    root: str | None = None
    split: str | None = None
    protocol: str | None = None
    images: int | None = None
    prompts: int | None = None
    data_set: str | None = None
    prompt_kind: str | None = None
    box_noise: list[float] | None = None
    max_detections: int | None = None
    files: Mapping[str, Any] = field(default_factory=dict)
    prompts_file: str | None = None
    phrases_sha256: str | None = None
    labels_sha256: str | None = None
    read: Mapping[str, Any] = field(default_factory=dict)

    @property
    def identity(self) -> Data:
        """What must be equal where numbers are compared; the same data may lie anywhere."""
        return replace(self, root=None, files={}, data_set=None, prompts_file=None, read={})

    @property
    def boxes(self) -> dict[str, Any]:
        """``DataSpec.given_boxes``: {} where phrases alone were asked."""
        return {} if self.prompt_kind is None else {"prompt_kind": self.prompt_kind, "box_noise": self.box_noise}


@dataclass(frozen=True)
class Metrics(Part):
    """What was measured.

    Attributes:
        values: {metric: {number: value}}, e.g. {"segm": {"map": 0.83, …}}; see ``results.metrics``.
        calibration: see ``evaluation.ScoreCalibration``.
    """

    values: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    calibration: Mapping[str, float | None] = field(default_factory=dict)

    def value(self, metric: Metric) -> float | None:
        """The metric's headline number; None where it was not measured or nothing defines it."""
        value = self.values.get(metric.name, {}).get(metric.headline)
        return None if value is None else float(value)

    def to_dict(self) -> dict[str, Any]:
        return {**self.values, **({"calibration": self.calibration} if self.calibration else {})}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        kinds = {name: value for name, value in values.items() if isinstance(value, Mapping) and name != "calibration"}
        return cls(kinds, values.get("calibration") or {})


@dataclass(frozen=True)
class Drop(Part):
    """How much worse than a reference, in the metric's points, with a 95 % interval over the choice of images.

    Attributes:
        points: on the images as they are.
        ci95: 2.5th and 97.5th percentile over resampled images.
        repeats: resamples drawn.
    """

    points: float = 0.0
    ci95: tuple[float, float] | None = None
    repeats: int | None = None

    @property
    def low(self) -> float | None:
        return self.ci95 and self.ci95[0]

    @property
    def high(self) -> float | None:
        return self.ci95 and self.ci95[1]

    def text(self, digits: int = 2) -> str:
        """``0.01 (0.00 to 0.04)``; without an interval ``0.01``."""

        def shown(value: float) -> str:
            return f"{round(value, digits) + 0.0:.{digits}f}"  # no "-0.00"

        bounds = f" ({shown(self.ci95[0])} to {shown(self.ci95[1])})" if self.ci95 else ""
        return shown(self.points) + bounds

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        low, high = values.get("ci95") or (None, None)
        bounds = None if low is None or high is None else (float(low), float(high))
        return cls(float(values["points"]), bounds, values.get("repeats"))


@dataclass(frozen=True)
class Budget(Part):
    """Of a searched precision plan: its limits, what was found, and whether the artifact keeps them."""

    max_drop: float | None = None
    max_bytes: int | None = None
    groups: Mapping[str, str] = field(default_factory=dict)
    searched_on: str | None = None
    searched_drop: float | None = None
    kept: bool | None = None


@dataclass(frozen=True)
class Latency(Part):
    """Of one forward, in milliseconds; see ``evaluation.measure_latency``."""

    p50: float | None = None
    p90: float | None = None
    memory_bytes: int | None = None
    parts: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    batch: int | None = None
    prompts: int | None = None
    threads: int | None = None
    compile: str | bool | None = None


@dataclass
class RunRecord:
    """One run. mAP in 0..1, drop in points (mAP × 100), bytes, milliseconds, seconds.

    Attributes:
        kind: what ran.
        command: the command line.
        config_hash: sha256 of the composed configuration without output paths (see ``config_hash``).
        choices: {hydra group: option}.
        parent: record or artifact this run started from, as a path.
        drop: metric → drop.
        started: ISO 8601 with time zone.
        error: first line of what went wrong.
    """

    PARTS: ClassVar[dict[str, type[Part]]] = {
        "git": Code, "model": ModelSummary, "training": TrainingSummary, "artifact": Artifact, "data": Data,
        "metrics": Metrics, "budget": Budget, "latency_ms": Latency,
    }  # fmt: skip

    kind: Kind
    command: str
    status: Status = "finished"
    error: str | None = None
    config_hash: str | None = None
    git: Code = field(default_factory=Code)
    versions: dict[str, str | None] = field(default_factory=dict)
    device: str | None = None
    choices: dict[str, Any] = field(default_factory=dict)
    model: ModelSummary = field(default_factory=ModelSummary)
    training: TrainingSummary = field(default_factory=TrainingSummary)
    parent: str | None = None
    artifact: Artifact = field(default_factory=Artifact)
    data: Data = field(default_factory=Data)
    metrics: Metrics = field(default_factory=Metrics)
    drop: Mapping[str, Drop] = field(default_factory=dict)
    budget: Budget = field(default_factory=Budget)
    latency_ms: Latency = field(default_factory=Latency)
    peak_memory_bytes: int | None = None
    seconds: float | None = None
    started: str | None = None
    schema: int = SCHEMA

    @property
    def name(self) -> str | None:
        """The model's name."""
        return self.model.name or self.choices.get("model")

    @property
    def title(self) -> str:
        """``nano fp16``."""
        return f"{self.name or 'a model'} {self.artifact.precision or ''}".strip()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; NaN and infinity, which JSON lacks, become None."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values |= {key: values[key].to_dict() or None for key in self.PARTS}
        values["drop"] = {name: drop.to_dict() for name, drop in self.drop.items()} or None
        for key in ("budget", "training"):  # only searches and trainings have one
            if values[key] is None:
                del values[key]
        first = {key: values.pop(key) for key in ("schema", "status", "error")}
        return {key: plain(value) for key, value in {**first, **values}.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunRecord:
        """What ``to_dict`` gave. Raises ValueError for parts that are none."""
        given = {key: value for key, value in values.items() if value is not None}
        for key in (*cls.PARTS, "drop"):
            if not isinstance(given.get(key, {}), Mapping):
                raise ValueError(f"{key} is {given[key]!r}, not an object")
        parts = {key: part.from_dict(given[key]) for key, part in cls.PARTS.items() if key in given}
        drops = {
            name: Drop.from_dict(drop)
            for name, drop in given.get("drop", {}).items()
            if drop and drop.get("points") is not None
        }
        return cls(**{**given, **parts, "drop": drops})

    def write(self, path: str | Path) -> Path:
        """Write atomically to ``path`` (a file, or a folder that gets ``record.json``)."""
        return write_json(record_file(path), self.to_dict())


def read_record(path: str | Path) -> RunRecord:
    """The record in ``path`` (a file, or a folder that holds ``record.json``).

    Raises:
        UserError: missing, not JSON, not a record, or written by a newer version.
    """
    file = record_file(path)
    if not file.exists():
        raise UserError(f"no record at {file}; give a run folder or its {FILE_NAME}")
    values = read_json_value(file, "delete it and run again")
    schema = values.get("schema") if isinstance(values, dict) else None
    if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
        raise UserError(f"{file} is not a run record: it has no integer schema")
    if schema > SCHEMA:
        raise UserError(f"{file} has schema {schema}, this version reads up to {SCHEMA}; update sam3slim or run again")
    known = {f.name for f in fields(RunRecord)}
    unknown, missing = sorted(values.keys() - known), sorted({"kind", "command", "status"} - values.keys())
    if unknown or missing:
        what = f"unknown keys {', '.join(unknown)}" if unknown else f"no {', '.join(missing)}"
        raise UserError(f"{file} is not a run record of schema {schema}: it has {what}")
    for key, allowed in (("status", get_args(Status)), ("kind", get_args(Kind))):
        if values[key] not in allowed:
            raise UserError(f"{file}: {key}={values[key]!r} must be one of {', '.join(allowed)}")
    try:
        return RunRecord.from_dict(values)
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{file} is not a run record of schema {schema} ({error}); delete it and run again") from error


def record_file(path: str | Path) -> Path:
    """The record's file in a run's folder, or ``path`` itself where it names one."""
    path = Path(path)
    return path if path.suffix == ".json" else path / FILE_NAME


def plain(value: Any) -> Any:
    """``value`` as JSON values: paths and unknown objects as text, scalars of numpy or torch as numbers."""
    if isinstance(value, Part | RunRecord):
        return plain(value.to_dict())
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        items: Iterable[Any] = sorted(value, key=repr) if isinstance(value, set | frozenset) else value
        return [plain(item) for item in items]
    if value is None or isinstance(value, bool | int | str):
        return value
    if not isinstance(value, float) and hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        return plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return plain(value.tolist()) if hasattr(value, "tolist") else str(value)
