"""Every record below some folders: read, freed of repeats, and grouped by what may share an axis."""

from __future__ import annotations

import csv
import json
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from sam3slim.errors import UserError
from sam3slim.results.metrics import METRICS
from sam3slim.results.record import FILE_NAME, Data, RunRecord, plain, read_record

CURVE_FILES = ("metrics.csv", "csv/metrics.csv")
CURVE_POINTS = 80  # enough for a line of some 300 pixels
Curves = dict[str, list[tuple[float, float]]]


@dataclass
class Run:
    """A record and where it was found.

    Attributes:
        folder: of the record.
        copies: records with the same configuration and the same numbers; this is the last started of them.
        conflict: another run of the same configuration has other numbers.
    """

    folder: Path
    record: RunRecord
    copies: int = 1
    conflict: bool = False


@dataclass
class Group:
    """Runs measured on the same images with the same prompts; ``data`` is empty where nothing was measured."""

    data: Data
    runs: list[Run] = field(default_factory=list)

    @property
    def title(self) -> str:
        """``shapes, test, protocol all: 300 images, 6,900 prompts``."""
        data = self.data
        if not data:
            return "nothing measured"
        named = [value for value in (data.name, data.split) if value is not None]
        if data.protocol is not None:
            named.append(f"protocol {data.protocol}")
        if data.prompt_kind is not None:
            named.append(f"prompts {data.prompt_kind}, box noise {data.box_noise}")
        counts = [f"{n:,} {what}" for n, what in ((data.images, "images"), (data.prompts, "prompts")) if n is not None]
        return ", ".join(named) + (": " + ", ".join(counts) if counts else "")


@dataclass
class Collected:
    """What ``collect`` found: groups, the largest first, and a line for each record that could not be read."""

    groups: list[Group]
    unread: list[str]

    @property
    def runs(self) -> list[Run]:
        """Of all groups."""
        return [run for group in self.groups for run in group.runs]


def collect(paths: Sequence[str | Path]) -> Collected:
    """Read every ``record.json`` in and below ``paths``.

    Raises:
        UserError: a path is missing, there is no record below them, or none can be read.
    """
    runs, unread = [], []
    for file in _record_files(paths):
        try:
            runs.append(Run(file.parent, read_record(file)))
        except UserError as error:
            unread.append(str(error))
    if not runs:
        if unread:
            raise UserError(f"none of {len(unread)} records can be read; the first: {unread[0]}")
        where = ", ".join(map(str, paths))
        raise UserError(
            f"no {FILE_NAME} in or below {where}; give folders that train.py, evaluate.py or compress.py wrote"
        )
    return Collected(_grouped(_without_repeats(runs)), unread)


def learning_curves(folder: Path) -> Curves:
    """{column: [(step, value), …]} of the run's ``metrics.csv``, thinned; {} without one or where it is broken."""
    path = next((folder / name for name in CURVE_FILES if (folder / name).is_file()), None)
    if path is None:
        return {}
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        reader = csv.reader(file)
        heads = next(reader, [])
        wanted = ("step", "train/loss", *(f"val/{metric.column}" for metric in METRICS.values()))
        places = {column: heads.index(column) for column in wanted if column in heads}
        step = places.pop("step", None)
        if step is None or not places:
            return {}
        # Cells as text: a curve keeps a few of thousands, and only those are worth making numbers of.
        cells: dict[str, list[tuple[str, str]]] = {column: [] for column in places}
        for row in reader:
            for column, place in places.items():
                if place < len(row) and row[place]:  # the logger leaves cells empty
                    cells[column].append((row[step], row[place]))
    curves = {column: list(_numbers(_thinned(found))) for column, found in cells.items()}
    return {column: points for column, points in curves.items() if points}


def _numbers(cells: Sequence[tuple[str, str]]) -> Iterator[tuple[float, float]]:
    for step, value in cells:
        with suppress(ValueError):  # a run that was killed left half a line
            yield float(step), float(value)


def machine(record: RunRecord) -> str | None:
    """What a latency is true for: device, threads, batch and prompts. Others share no axis with it."""
    latency = record.latency_ms
    if latency.p50 is None:
        return None
    device = record.device or "unknown device"
    words = [] if latency.threads is None or "threads" in device else [f"{latency.threads} threads"]
    words += [f"{key} {n}" for key, n in (("batch", latency.batch), ("prompts", latency.prompts)) if n is not None]
    return ", ".join([device, *words])


def _record_files(paths: Sequence[str | Path]) -> Iterator[Path]:
    seen = set()
    for path in map(Path, paths):
        if not path.exists():
            raise UserError(f"{path} does not exist; give folders with runs in them")
        for file in [path] if path.is_file() else _walk(path):
            resolved = file.resolve()
            if resolved not in seen:
                seen.add(resolved)
                yield file


def _walk(folder: Path) -> Iterator[Path]:
    for root, folders, files in os.walk(folder):
        # Hidden folders hold half-written artifacts (see ``atomic_path``) and Hydra's own files.
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if FILE_NAME in files:
            yield Path(root) / FILE_NAME


def _without_repeats(runs: Sequence[Run]) -> list[Run]:
    """Merge runs of equal configuration and numbers; mark those of equal configuration and other numbers."""
    kept: dict[tuple[str, str], Run] = {}
    single: list[Run] = []
    for run in sorted(runs, key=lambda run: run.record.started or ""):
        if run.record.config_hash is None:
            single.append(run)
            continue
        key = (run.record.config_hash, numbers(run.record))
        run.copies = kept[key].copies + 1 if key in kept else 1
        kept[key] = run
    by_hash = defaultdict(list)
    for (config, _), run in kept.items():
        if run.record.status == "finished":
            # A compress.py of one method measures the full model, too, with the same configuration.
            by_hash[config, run.record.kind].append(run)
    for same in by_hash.values():
        for run in same:
            run.conflict = len(same) > 1
    return sorted([*single, *kept.values()], key=lambda run: str(run.folder))


def numbers(record: RunRecord) -> str:
    """What must be equal for two runs to count as one; time and memory differ from run to run by themselves."""
    artifact = record.artifact
    stored = [artifact.bytes, artifact.format, artifact.precision]
    done = [record.status, record.error, record.kind, record.model, stored]
    return json.dumps(plain([*done, record.data.identity, record.metrics, record.drop]), sort_keys=True)


def _grouped(runs: Sequence[Run]) -> list[Group]:
    groups: dict[str, Group] = {}
    for run in runs:
        data = run.record.data.identity if run.record.metrics else Data()
        groups.setdefault(json.dumps(plain(data)), Group(data)).runs.append(run)
    # What was measured first, then by number of runs.
    return sorted(groups.values(), key=lambda group: (not group.data, -len(group.runs), group.title))


def _thinned(points: list[tuple[str, str]]) -> list[tuple[str, str]]:
    step = max(1, -(-len(points) // CURVE_POINTS))
    thin = points[::step]
    return thin if not points or thin[-1] == points[-1] else [*thin, points[-1]]
