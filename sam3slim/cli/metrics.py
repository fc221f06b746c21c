"""``sam3slim metrics``: the metrics of predictions in files, whatever model they are of."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sam3slim.cli.command import Command, plain_console, plain_progress, quick_imports
from sam3slim.errors import UserError

if TYPE_CHECKING:
    from sam3slim.results.measuring import SetMetrics
    from sam3slim.results.record import Drop

WIDE = 160
Numbers = Mapping[str, Mapping[str, Any]]


def _arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("predictions", metavar="PREDICTIONS", help="COCO or SA-Co results, a detections.json; or a folder of them")
    add("annotations", nargs="+", metavar="ANNOTATIONS", help="COCO, LVIS or SA-Co; several: annotators; or folders")
    add("--iou", choices=("bbox", "segm"), help="compare boxes or masks alone (default: both, where there are both)")
    add(
        "--reference",
        metavar="PREDICTIONS",
        help="a better model's: how much the metrics drop from there, with intervals",
    )
    add("--out", metavar="FILE", help="also write all numbers as JSON")


def _run(arguments: argparse.Namespace) -> None:
    with quick_imports():
        from sam3slim.files import ensure_writable_dir, write_json
        from sam3slim.results.measuring import drops, macro, measure_files
        from sam3slim.results.record import plain

    if arguments.out is not None:
        ensure_writable_dir(Path(arguments.out).parent)
    sets = sets_of(Path(arguments.predictions), [Path(path) for path in arguments.annotations])
    others = {}
    if arguments.reference is not None:
        others = sets_of(Path(arguments.reference), [Path(path) for path in arguments.annotations])
        if others.keys() != sets.keys():
            raise UserError(f"--reference {arguments.reference} has other sets than {arguments.predictions}; give both")
    measured: dict[str, SetMetrics] = {}
    dropped: dict[str, dict[str, Drop]] = {}
    with plain_progress(show=sys.stdout.isatty()) as bar:
        task = bar.add_task("measuring", total=len(sets) + len(others))
        for name, (predictions, annotations) in sets.items():
            bar.update(task, description=f"measuring {name or predictions.name}")
            measured[name] = measure_files(predictions, annotations, arguments.iou)
            bar.advance(task)
            if name in others:
                full = measure_files(*others[name], arguments.iou)
                dropped[name] = drops(full, measured[name])
                bar.advance(task)
    content: dict[str, Any] = {
        "sets": [
            {
                "name": name or None, "predictions": str(sets[name][0]), "annotations": list(map(str, sets[name][1])),
                "images": found.entries, "detections": found.detections, "notes": found.notes,
                "metrics": found.numbers, **({"drop": dropped[name]} if name in dropped else {}),
            }
            for name, found in measured.items()
        ]
    }  # fmt: skip
    if "" in measured:
        (one,) = measured.values()
        _print_one(one)
    else:
        content["mean"] = macro(list(measured.values()))
        _print_sets(measured, content["mean"])
    for name, found in measured.items():
        for note in found.notes:
            print(f"note: {f'{name}: ' if name else ''}{note}")
        for metric, drop in dropped.get(name, {}).items():
            print(f"{f'{name}: ' if name else ''}{metric} drop, points (95 %): {drop.text()}")
    if arguments.out is not None:
        print(f"written: {write_json(arguments.out, plain(content))}")


def sets_of(predictions: Path, annotations: Sequence[Path]) -> dict[str, tuple[Path, list[Path]]]:
    """Name → predictions and annotations; of files one set with the name "", of folders one for each name in all.

    Raises:
        UserError: files beside folders, an empty folder, or a set without its file in another.
    """
    given = [predictions, *annotations]
    for path in given:
        if not path.exists():
            raise UserError(f"{path} does not exist; give a JSON file, or a folder of them")
    if not any(path.is_dir() for path in given):
        return {"": (predictions, list(annotations))}
    if not all(path.is_dir() for path in given):
        raise UserError("folders beside files: give one file each, or folders whose JSON files have the same names")
    found = [{str(file.relative_to(path).with_suffix("")): file for file in path.rglob("*.json")} for path in given]
    if not found[0]:
        raise UserError(f"{predictions} holds no JSON file; give a folder of predictions, one file per set")
    for path, files in zip(given, found, strict=True):
        for other, beside in zip(given, found, strict=True):
            if lacking := sorted(beside.keys() - files.keys()):
                raise UserError(
                    f"{path} has no {lacking[0]}.json, which {other} has; predictions and annotations of a set need "
                    "the same name"
                )
    return {name: (file, [files[name] for files in found[1:]]) for name, file in sorted(found[0].items())}


def _print_one(found: SetMetrics) -> None:
    """A table for the metrics that have the same numbers."""
    from sam3slim.results.metrics import METRICS

    alike: dict[tuple[str, ...], list[str]] = {}
    for name, numbers in found.numbers.items():
        alike.setdefault(tuple(numbers), []).append(name)
    print(f"{found.entries:,} images, {found.detections:,} detections")
    for keys, names in alike.items():
        metrics = [METRICS[name] for name in names]
        rows = [(key, *(_text(metric, found.numbers[metric.name][key]) for metric in metrics)) for key in keys]
        _print_table(("", *(f"{metric.title} {metric.unit}" for metric in metrics)), rows)


def _print_sets(measured: Mapping[str, SetMetrics], mean: Numbers) -> None:
    """A row for each set with the headlines, and their mean."""
    from sam3slim.results.metrics import METRICS

    metrics = [m for m in METRICS.values() if any(m.name in found.measured for found in measured.values())]

    def row(name: str, numbers: Numbers) -> tuple[str, ...]:
        return name, *(_text(metric, numbers.get(metric.name, {}).get(metric.headline)) for metric in metrics)

    rows = [row(name, found.numbers) for name, found in measured.items()]
    rows.append(row(f"mean of {len(measured)} sets", mean))
    _print_table(("set", *(f"{metric.title} {metric.unit}" for metric in metrics)), rows)


def _text(metric: Any, value: float | None) -> str:
    return "–" if value is None else metric.text(value)


def _print_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.table import Table

    shown = Table()
    for i, heading in enumerate(headings):
        shown.add_column(heading, justify="right" if i else "left", overflow="fold")
    for row in rows:
        shown.add_row(*row)
    plain_console(None if sys.stdout.isatty() else WIDE).print(shown)


METRICS_COMMAND = Command(
    "metrics",
    "mAP, cgF1 and LVIS AP of predictions in files, of any model",
    _arguments,
    _run,
    epilog="sam3slim metrics predictions.json annotations/instances_val.json --out metrics.json",
)
