"""The study's tables, CSV and curves, made from results alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean

from sam3slim.files import atomic_path
from sam3slim.results.record import RunRecord
from scripts.page import put_between
from scripts.study.cells import AXES, INITS, SEEDS, SIZES, TEACHINGS, Cell, axis_cells, table_cells
from scripts.study.results import Result, mask_map, write_results

NOT_RUN = "not run"
Find = Callable[[Cell], Result | None]


def study_markdown(find: Find, full: RunRecord) -> str:
    """Both tables; a cell that has not been run says so."""
    return "\n".join([*_grid(find, full), "", *_axes(find, full)]) + "\n"


def _grid(find: Find, full: RunRecord) -> list[str]:
    heads, sizes = ["first weights", "taught by"], {}
    for size in SIZES:
        params = [r.params for c in table_cells() if c.group[0] == size and (r := find(c))]
        sizes[size] = params[0] if params else None
        count = f"{sizes[size]:,} parameters" if sizes[size] else NOT_RUN
        heads += [f"{size} ({count})", "of nano's"]
    lines = ["| " + " | ".join(heads) + " |", "|---|---|" + "---:|---:|" * len(SIZES)]
    for teaching in TEACHINGS:
        for init in INITS:
            row = [init, teaching]
            for size in SIZES:
                group = [c for c in table_cells() if c.group == (size, init, teaching)]
                found = [r.mask_map for c in group if (r := find(c)) is not None]
                row += [
                    _spread(found) if group else "–",
                    f"{100 * mean(found) / mask_map(full):.1f} %" if found else "–",
                ]
            if set(row[2:]) != {"–"}:  # planned for some size
                lines.append("| " + " | ".join(row) + " |")
    return lines


def _spread(values: Sequence[float]) -> str:
    """``71.3 (70.9 to 71.7)``; one seed has no spread."""
    if not values:
        return NOT_RUN
    if len(values) == 1:
        return f"{values[0]:.1f} (1 seed of {len(SEEDS)})"
    return f"{mean(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def _axes(find: Find, full: RunRecord) -> list[str]:
    total = int(full.model.params or 0)
    lines = ["| axis | cut to | parameters | of nano's | mask mAP | drop, points |", "|---|---|---:|---:|---:|---:|"]
    for cell in axis_cells():
        cut = ", ".join(text.removeprefix("model.") for text in AXES[cell.group[0]][int(cell.group[1]) - 1])
        result = find(cell)
        if result is None:
            lines.append(f"| {cell.group[0]} | {cut} | {NOT_RUN} | – | – | – |")
            continue
        lines.append(
            f"| {cell.group[0]} | {cut} | {result.params:,} | {100 * result.params / total:.1f} % | "
            f"{result.mask_map:.1f} | {mask_map(full) - result.mask_map:.1f} |"
        )
    return lines


def write_study(find: Find, full: RunRecord, page: Path, table: Path, plot: Path) -> None:
    """Put the tables between the page's markers, and write a CSV of all cells and the plot of the curves.

    Args:
        find: the result of a finished cell, or None.
        full: the evaluation of the full model.

    Raises:
        ValueError: the page has no markers.
    """
    put_between(page, "study", study_markdown(find, full))
    write_results(table, [result for cell in (*table_cells(), *axis_cells()) if (result := find(cell)) is not None])
    _plot(find, full, plot)


def _plot(find: Find, full: RunRecord, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    start = (int(full.model.params or 0) / 1e6, mask_map(full))
    for axis, marker in zip(AXES, "osD^v", strict=True):
        found = [result for cell in axis_cells() if cell.group[0] == axis and (result := find(cell)) is not None]
        points = [start, *((result.params / 1e6, result.mask_map) for result in found)]
        if found:
            axes.plot(*zip(*points, strict=True), marker=marker, label=axis)
    axes.set(xlabel="parameters, millions", ylabel="mask mAP, %", title="nano, one axis cut at a time")
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)
