"""mAP against size, parameters and latency, with the Pareto front: one picture per group of runs."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from sam3slim.files import atomic_path
from sam3slim.report.looks import GREY, INK, MARKERS, cycle, precision_colors
from sam3slim.report.pareto import pareto_front

Row = dict[str, Any]
SIZE, DPI = (13, 7), 100  # inches
# Shares of the picture. Fixed, because matplotlib's own layout draws everything twice.
PLACES = {"left": 0.05, "bottom": 0.09, "top": 0.92, "wspace": 0.22, "hspace": 0.27}
FRONT = "Pareto front"
METRICS = {"segm_map": "mask mAP, %", "bbox_map": "box mAP, %"}
AXES = {"bytes": (1e6, "size on disk, MB"), "params": (1e6, "parameters, M"), "latency_p50_ms": (1.0, "latency, ms")}


def plot_fronts(rows: Sequence[Row], path: str | Path, *, title: str) -> Path:
    """Write a PNG: mask and box mAP (rows) against bytes, parameters and latency (columns).

    Colour tells precision, marker the model. Latency is shown for the machine with most runs, which its axis names.

    Raises:
        UserError: the folder cannot be written to.
    """
    families = list(dict.fromkeys(str(row["name"]) for row in rows))
    markers = dict(zip(families, cycle(MARKERS, len(families)), strict=True))
    colors = precision_colors([str(row["precision"]) for row in rows])
    figure = Figure(figsize=SIZE, dpi=DPI)
    FigureCanvasAgg(figure)
    right = 1 - _legend_width([*colors, *families, FRONT])
    grid = figure.subplots(len(METRICS), len(AXES), squeeze=False, gridspec_kw={**PLACES, "right": right})
    common = Counter(row["machine"] for row in rows if row["machine"]).most_common(1)
    for i, metric in enumerate(METRICS):
        for j, cost in enumerate(AXES):
            shown = [row for row in rows if row[cost] and row[metric] is not None]
            if cost == "latency_p50_ms":
                shown = [row for row in shown if row["machine"] == common[0][0]]
            _panel(grid[i][j], shown, cost, metric, colors, markers)
    if common:
        grid[-1][-1].set_xlabel(f"latency, ms (log scale)\n{common[0][0]}", color=INK, fontsize=9)
    blank: dict[str, Any] = {"linestyle": "none", "markersize": 8}
    handles = [Line2D([], [], marker="o", color=color, label=name, **blank) for name, color in colors.items()]
    handles += [Line2D([], [], marker=mark, color=GREY, label=name, **blank) for name, mark in markers.items()]
    handles.append(Line2D([], [], color=INK, linewidth=1, label=FRONT))
    figure.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(right + 0.005, 0.94), frameon=False, labelcolor=INK
    )
    figure.suptitle(title, color=INK, fontweight="bold")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", facecolor="white")
    return Path(path)


def _legend_width(labels: Sequence[str]) -> float:
    """Share of the picture that a legend with these words takes: 7.5 pixels a letter, and the marker."""
    return (55 + 7.5 * max(map(len, labels))) / (SIZE[0] * DPI)


def _panel(
    axes: Axes, rows: Sequence[Row], cost: str, metric: str, colors: dict[str, str], markers: dict[str, str]
) -> None:
    scale, label = AXES[cost]
    points = [(row[cost] / scale, 100 * row[metric]) for row in rows]
    looks: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for row, point in zip(rows, points, strict=True):
        looks[str(row["precision"]), str(row["name"])].append(point)
    for (precision, name), same in looks.items():
        look: dict[str, Any] = {"marker": markers[name], "color": colors[precision]}
        xs, ys = zip(*same, strict=True)
        axes.scatter(xs, ys, s=50, edgecolors="white", linewidths=0.8, zorder=3, **look)
    front = [points[index] for index in pareto_front(points)]
    if front:
        axes.plot(*zip(*front, strict=True), color=INK, linewidth=1, drawstyle="steps-post", zorder=2)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.text(0.5, 0.5, "not measured", ha="center", va="center", color=GREY, transform=axes.transAxes)
        axes.set(xticks=[], yticks=[])
    axes.set_xlabel(f"{label} (log scale)", color=INK, fontsize=9)
    axes.set_ylabel(METRICS[metric], color=INK, fontsize=9)
    axes.grid(color="#e3e3e3", linewidth=0.8)
    axes.set_axisbelow(True)
