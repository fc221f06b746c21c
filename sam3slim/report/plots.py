"""Metrics against costs: one labelled plot, and a grid of them with Pareto fronts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Annotation
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from sam3slim.errors import UserError
from sam3slim.files import atomic_path
from sam3slim.report.pareto import pareto_front
from sam3slim.report.style import GREY, INK, MARKERS, cycle, precision_colors
from sam3slim.results.metrics import METRICS, Metric

Row = Mapping[str, Any]
COSTS = {"bytes": (1e6, "size on disk, MB"), "params": (1e6, "parameters, M"), "latency_p50_ms": (1.0, "latency, ms")}
PANEL, DPI = (13, 3.5), 100  # a row of the grid, inches
# Shares of the grid's picture. Fixed, because matplotlib's own layout draws everything twice.
PLACES = {"left": 0.05, "bottom": 0.09, "top": 0.92, "wspace": 0.22, "hspace": 0.27}
FRONT = "Pareto front"
# Places to try for a label, in points from its marker: (x, y, horizontal alignment).
OFFSETS = (
    (0, 10, "center"), (0, -18, "center"), (9, 8, "left"), (-9, 8, "right"), (9, -15, "left"),
    (-9, -15, "right"), (0, 22, "center"), (0, -30, "center"), (9, 20, "left"), (-9, 20, "right"),
)  # fmt: skip


def map_vs_size(
    rows: Sequence[Mapping[str, Any]], path: str | Path, *, metric: str = "segm_map", title: str | None = None
) -> Path:
    """Write a PNG: size in MB (log) against mAP in %, one labelled point per row.

    Colour tells precision, marker the family (``row["family"]``, else ``row["name"]``), and a line joins the
    points of a family. Rows without size or mAP are left out.

    Args:
        rows: with "name", "precision", "bytes" and ``metric`` (0..1), as in the demo's table.
        path: of the PNG.
        metric: column on the vertical axis.
        title: above the plot.

    Raises:
        UserError: no row has both values, or the folder cannot be written to.
    """
    shown = next(m for m in METRICS.values() if m.column == metric)
    points = [row for row in rows if row.get("bytes") and row.get(metric) is not None]
    if not points:
        raise UserError(f"nothing to plot in {path}: no row has both bytes and {metric}")
    families = list(dict.fromkeys(_family(row) for row in points))
    markers = dict(zip(families, cycle(MARKERS, len(families)), strict=True))
    colors = precision_colors([str(row["precision"]) for row in points])
    figure = _figure((8, 5), 160, layout="constrained")
    axes = figure.add_subplot()
    for family in families:
        members = sorted((row for row in points if _family(row) == family), key=lambda row: row["bytes"])
        axes.plot(*zip(*(_point(row, "bytes", shown) for row in members), strict=True), color=GREY, lw=1, alpha=0.6)
    _scatter(axes, [(_point(row, "bytes", shown), row) for row in points], colors, markers, 80)
    _style(axes, [_point(row, "bytes", shown) for row in points], shown, title)
    figure.legend(handles=_handles(colors, markers), loc="outside right upper", frameon=False, labelcolor=INK)
    _label(figure, axes, [(*_point(row, "bytes", shown), f"{row['name']} {row['precision']}") for row in points])
    return _save(figure, path)


def plot_fronts(rows: Sequence[Row], path: str | Path, *, title: str) -> Path:
    """Write a PNG: every measured metric (rows) against bytes, parameters and latency (columns).

    Colour tells precision, marker the model. Latency is shown for the machine with most runs, which its axis names.

    Raises:
        UserError: the folder cannot be written to.
    """
    measured = [m for m in METRICS.values() if any(row[m.column] is not None for row in rows)] or [METRICS["bbox"]]
    families = list(dict.fromkeys(_family(row) for row in rows))
    markers = dict(zip(families, cycle(MARKERS, len(families)), strict=True))
    colors = precision_colors([str(row["precision"]) for row in rows])
    figure = _figure((PANEL[0], PANEL[1] * len(measured)), DPI)
    # The legend takes 7.5 pixels a letter, and the marker.
    right = 1 - (55 + 7.5 * max(map(len, [*colors, *families, FRONT]))) / (PANEL[0] * DPI)
    grid = figure.subplots(len(measured), len(COSTS), squeeze=False, gridspec_kw={**PLACES, "right": right})
    common = Counter(row["machine"] for row in rows if row["machine"]).most_common(1)
    for i, metric in enumerate(sorted(measured, key=lambda metric: -metric.priority)):
        for j, cost in enumerate(COSTS):
            shown = [row for row in rows if row[cost] and row[metric.column] is not None]
            if cost == "latency_p50_ms":
                shown = [row for row in shown if row["machine"] == common[0][0]]
            _panel(grid[i][j], shown, cost, metric, colors, markers)
    if common:
        grid[-1][-1].set_xlabel(f"latency, ms (log scale)\n{common[0][0]}", color=INK, fontsize=9)
    handles = [*_handles(colors, markers), Line2D([], [], color=INK, linewidth=1, label=FRONT)]
    places: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (right + 0.005, 0.94)}
    figure.legend(handles=handles, frameon=False, labelcolor=INK, **places)
    figure.suptitle(title, color=INK, fontweight="bold")
    return _save(figure, path)


def _panel(
    axes: Axes, rows: Sequence[Row], cost: str, metric: Metric, colors: Mapping[str, str], markers: Mapping[str, str]
) -> None:
    points = [(_point(row, cost, metric), row) for row in rows]
    _scatter(axes, points, colors, markers, 50)
    front = [points[i][0] for i in pareto_front([(x, metric.score(y)) for (x, y), _ in points])]
    if front:
        axes.plot(*zip(*front, strict=True), color=INK, linewidth=1, drawstyle="steps-post", zorder=2)
        _log_axis(axes)
    else:
        axes.text(0.5, 0.5, "not measured", ha="center", va="center", color=GREY, transform=axes.transAxes)
        axes.set(xticks=[], yticks=[])
    axes.set_xlabel(f"{COSTS[cost][1]} (log scale)", color=INK, fontsize=9)
    axes.set_ylabel(f"{metric.title}, {metric.unit}", color=INK, fontsize=9)
    axes.grid(color="#e3e3e3", linewidth=0.8)
    axes.set_axisbelow(True)


def _figure(size: tuple[float, float], dpi: int, **options: Any) -> Figure:
    figure = Figure(figsize=size, dpi=dpi, **options)
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: str | Path) -> Path:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", facecolor="white")
    return Path(path)


def _point(row: Row, cost: str, metric: Metric) -> tuple[float, float]:
    return row[cost] / COSTS[cost][0], metric.scale * row[metric.column]


def _scatter(
    axes: Axes,
    points: Sequence[tuple[tuple[float, float], Row]],
    colors: Mapping[str, str],
    markers: Mapping[str, str],
    size: float,
) -> None:
    """Colour by precision, marker by family; one call per pair of them, which is much quicker than one per point."""
    pairs: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for point, row in points:
        pairs.setdefault((str(row["precision"]), _family(row)), []).append(point)
    for (precision, family), same in pairs.items():
        style: dict[str, Any] = {"marker": markers[family], "color": colors[precision]}
        xs, ys = zip(*same, strict=True)
        axes.scatter(xs, ys, s=size, edgecolors="white", linewidths=0.8, zorder=3, **style)


def _handles(colors: Mapping[str, str], markers: Mapping[str, str]) -> list[Line2D]:
    """Of the legend."""
    blank: dict[str, Any] = {"linestyle": "none", "markersize": 8}
    handles = [Line2D([], [], marker="o", color=color, label=name, **blank) for name, color in colors.items()]
    return handles + [Line2D([], [], marker=mark, color=GREY, label=name, **blank) for name, mark in markers.items()]


def _log_axis(axes: Axes) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.xaxis.set_minor_locator(NullLocator())


def _style(axes: Axes, points: Sequence[tuple[float, float]], metric: Metric, title: str | None) -> None:
    sizes, values = zip(*points, strict=True)
    _log_axis(axes)
    # Room for the labels, which stand beside the points.
    axes.set_xlim(min(sizes) / 1.5, max(sizes) * 1.5)
    pad = max(0.35 * (max(values) - min(values)), 1.0)
    axes.set_ylim(max(min(values) - pad, -1.0), min(max(values) + pad, 1.03 * metric.scale))
    axes.set_xlabel("size on disk, MB (log scale)", color=INK)
    axes.set_ylabel(f"{metric.title}, {metric.unit}", color=INK)
    axes.set_title(title or f"{metric.title} against size", color=INK, loc="left", fontweight="bold")
    axes.grid(color="#e3e3e3", linewidth=0.8, which="major")
    axes.set_axisbelow(True)
    axes.tick_params(which="both", colors=INK, length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GREY)


def _label(figure: Figure, axes: Axes, labels: Sequence[tuple[float, float, str]]) -> None:
    """Write each label at the first place where it covers neither a marker nor another label."""
    figure.draw_without_rendering()
    taken = []
    for x, y, _ in labels:
        px, py = axes.transData.transform((x, y))
        taken.append((px - 10, py - 10, px + 10, py + 10))
    for x, y, text in labels:
        best: tuple[int, Annotation, tuple[float, float, float, float]] | None = None
        for dx, dy, align in OFFSETS:
            note = axes.annotate(
                text,
                (x, y),
                (dx, dy),
                textcoords="offset points",
                ha=align,
                fontsize=8.5,
                color=INK,
                zorder=4,
            )
            extent = note.get_window_extent()
            box = (extent.x0, extent.y0, extent.x1, extent.y1)
            hits = sum(_overlap(box, other) for other in taken) + 2 * (not _inside(axes, box))
            if best is not None and best[0] <= hits:
                note.remove()
                continue
            if best is not None:
                best[1].remove()
            best = (hits, note, box)
            if hits == 0:
                break
        assert best is not None
        taken.append(best[2])


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _inside(axes: Axes, box: tuple[float, ...]) -> bool:
    area = axes.get_window_extent()
    return area.x0 <= box[0] and box[2] <= area.x1 and area.y0 <= box[1] and box[3] <= area.y1


def _family(row: Mapping[str, Any]) -> str:
    return str(row.get("family") or row["name"])
