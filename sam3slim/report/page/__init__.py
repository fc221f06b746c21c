"""The comparison of many runs: CSV, Markdown, plots, and one HTML page that needs no network."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from sam3slim.files import atomic_path
from sam3slim.precisions import PRECISIONS
from sam3slim.report.rows import comparison_columns, comparison_rows, comparison_shown, group_metric
from sam3slim.report.style import OTHER_COLORS
from sam3slim.report.table import to_markdown, write_table
from sam3slim.results.collect import Collected, Run, learning_curves
from sam3slim.results.costs import COSTS, Cost
from sam3slim.results.metrics import METRICS, Metric

Tables = Sequence[Sequence[dict[str, Any]]]


def write_comparison(
    found: Collected,
    folder: str | Path,
    galleries: Mapping[int, Mapping[str, Any]] | None = None,
    *,
    metric: str | None = None,
    cost: Cost = COSTS["bytes"],
) -> list[Path]:
    """Write ``compare.csv``, ``compare.md``, ``compare_N.png`` per group with metrics, and ``compare.html``.

    Args:
        galleries: number of a group → its pictures, as ``report.gallery.Gallery.to_dict`` gives them.
        metric: name of the one that decides, in groups that have it.
        cost: of the Pareto front in the tables, and the page's first plot.

    Returns their paths. Raises UserError when the folder cannot be written to.
    """
    from sam3slim.report.plots import plot_fronts

    folder = Path(folder)
    deciding = [group_metric(group, metric) for group in found.groups]
    tables = [comparison_rows(*pair, cost) for pair in zip(found.groups, deciding, strict=True)]
    rows = [row for rows in tables for row in rows]
    csv_path, _ = write_table(rows, folder, columns=comparison_columns(), stem="compare")
    written = [csv_path, _write_markdown(found, tables, deciding, folder / "compare.md")]
    for number, (group, rows) in enumerate(zip(found.groups, tables, strict=True), 1):
        if group.data:
            written.append(plot_fronts(rows, folder / f"compare_{number}.png", title=group.title))
    return [*written, write_page(page_data(found, tables, deciding, galleries or {}, cost), folder / "compare.html")]


def page_data(
    found: Collected,
    tables: Tables,
    deciding: Sequence[Metric],
    galleries: Mapping[int, Mapping[str, Any]],
    cost: Cost = COSTS["bytes"],
) -> dict[str, Any]:
    """What the page shows, as JSON values.

    Returns:
        {"cost": column, "metrics": [{"name", "column", …}, …], "groups": [{"title", "measured", "metric", "runs":
        [row, …], "gallery"}, …], "unread": [line, …]}
    """
    groups = []
    for number, (group, rows) in enumerate(zip(found.groups, tables, strict=True)):
        runs = [row | _details(run) for row, run in zip(rows, group.runs, strict=True)]
        groups.append({
            "title": group.title, "measured": bool(group.data), "metric": deciding[number].column, "runs": runs,
            "gallery": galleries.get(number),
        })  # fmt: skip
    metrics = [
        {
            "name": m.name, "column": m.column, "title": m.title, "short": m.short, "unit": m.unit, "scale": m.scale,
            "sign": 1 if m.higher_is_better else -1,
        }
        for m in METRICS.values()
        if m in deciding or any(row[m.column] is not None for rows in tables for row in rows)
    ]  # fmt: skip
    return {"cost": cost.column, "metrics": metrics, "groups": groups, "unread": found.unread}


def _details(run: Run) -> dict[str, Any]:
    record = run.record
    curves = {
        name: [[int(step), float(f"{value:.4g}")] for step, value in points]
        for name, points in learning_curves(run.folder).items()
    }
    parts = {"params": record.model.params_by_part, "bytes": record.artifact.bytes_by_part}
    return {"command": record.command, "choices": record.choices, "parts": parts, "curves": curves}


def _write_markdown(found: Collected, tables: Tables, deciding: Sequence[Metric], path: Path) -> Path:
    texts = ["# Comparison of runs\n"]
    if len(found.groups) > 1:
        texts.append("Each section has its own data or protocol; numbers of different sections do not compare.\n")
    for group, rows, metric in zip(found.groups, tables, deciding, strict=True):
        texts.append(f"## {group.title}\n\n{to_markdown(rows, comparison_shown(metric, rows))}")
    if found.unread:
        texts.append("## Not read\n\n" + "\n".join(f"- {line}" for line in found.unread) + "\n")
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(texts), encoding="utf-8")
    return path


def write_page(data: dict[str, Any], path: str | Path) -> Path:
    """Write the page of ``page_data`` atomically: style, script and data are inside it.

    Raises:
        UserError: the folder cannot be written to.
        ValueError: a number in ``data`` is not finite.
    """
    colors = {"known": {name: precision.color for name, precision in PRECISIONS.items()}, "other": OTHER_COLORS}
    text = _asset("page.html").replace("/*STYLE*/", _asset("page.css")).replace("/*SCRIPT*/", _asset("page.js"))
    # The data come last, so that nothing in them is taken for one of the places above.
    text = text.replace("/*DATA*/", script_json({**data, "colors": colors}))
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path)


def script_json(value: Any) -> str:
    """JSON that cannot end the ``<script>`` it stands in, nor open a comment there."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _asset(name: str) -> str:
    return (files(__package__) / name).read_text(encoding="utf-8")
