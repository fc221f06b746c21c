"""mAP against size, on one page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Annotation
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from sam3slim.errors import UserError
from sam3slim.files import atomic_path
from sam3slim.report.looks import GREY, INK, MARKERS, cycle, precision_colors

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
    points = [row for row in rows if row.get("bytes") and row.get(metric) is not None]
    if not points:
        raise UserError(f"nothing to plot in {path}: no row has both bytes and {metric}")
    families = list(dict.fromkeys(_family(row) for row in points))
    colors = precision_colors([str(row["precision"]) for row in points])
    figure = Figure(figsize=(8, 5), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for family, marker in zip(families, cycle(MARKERS, len(families)), strict=True):
        members = sorted((row for row in points if _family(row) == family), key=lambda row: row["bytes"])
        xs, ys = [row["bytes"] / 1e6 for row in members], [100 * row[metric] for row in members]
        axes.plot(xs, ys, color=GREY, linewidth=1, alpha=0.6, zorder=1)
        for x, y, row in zip(xs, ys, members, strict=True):
            color = colors[str(row["precision"])]
            axes.scatter([x], [y], s=80, marker=marker, color=color, edgecolors="white", linewidths=1, zorder=3)
    _style(axes, points, metric, title)
    _legend(axes, families, colors)
    labels = [(row["bytes"] / 1e6, 100 * row[metric], f"{row['name']} {row['precision']}") for row in points]
    _label(figure, axes, labels)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", facecolor="white")
    return Path(path)


def _style(axes: Axes, points: Sequence[Mapping[str, Any]], metric: str, title: str | None) -> None:
    sizes = [row["bytes"] / 1e6 for row in points]
    values = [100 * row[metric] for row in points]
    axes.set_xscale("log")
    # Room for the labels, which stand beside the points.
    axes.set_xlim(min(sizes) / 1.5, max(sizes) * 1.5)
    pad = max(0.35 * (max(values) - min(values)), 1.0)
    axes.set_ylim(max(min(values) - pad, -1.0), min(max(values) + pad, 103.0))
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    what = {"segm_map": "mask mAP", "bbox_map": "box mAP"}.get(metric, metric)
    axes.set_xlabel("size on disk, MB (log scale)", color=INK)
    axes.set_ylabel(f"{what}, %", color=INK)
    axes.set_title(title or f"{what} against size", color=INK, loc="left", fontweight="bold")
    axes.grid(color="#e3e3e3", linewidth=0.8, which="major")
    axes.set_axisbelow(True)
    axes.tick_params(which="both", colors=INK, length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GREY)


def _legend(axes: Axes, families: Sequence[str], colors: Mapping[str, str]) -> None:
    blank: dict[str, Any] = {"linestyle": "none", "markersize": 8}
    handles = [Line2D([], [], marker="o", color=color, label=name, **blank) for name, color in colors.items()]
    handles += [
        Line2D([], [], marker=marker, color=GREY, label=family, **blank)
        for family, marker in zip(families, cycle(MARKERS, len(families)), strict=True)
    ]
    axes.figure.legend(handles=handles, loc="outside right upper", frameon=False, labelcolor=INK)


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
