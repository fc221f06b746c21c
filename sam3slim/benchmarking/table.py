"""The rows as CSV, Markdown and on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sam3slim.benchmarking.row import FINISHED
from sam3slim.files import atomic_path, size_text, write_csv
from sam3slim.results.metrics import METRICS

STEM = "benchmark"
BUSY = 1.2  # clock over processor time from which the clock says little


def write_rows(rows: Sequence[dict[str, Any]], out: Path) -> tuple[Path, Path]:
    """Write ``benchmark.csv`` (everything) and ``benchmark.md`` (what is read first); returns both paths."""
    flat = [flat_row(row, rows) for row in rows]
    columns = list(dict.fromkeys(key for row in flat for key in row))
    csv, markdown = out / f"{STEM}.csv", out / f"{STEM}.md"
    write_csv(csv, [{column: row.get(column) for column in columns} for row in flat])
    headings, cells = shown(rows)
    lines = ["| " + " | ".join(line) + " |" for line in [headings, ["---"] * len(headings), *cells]]
    with atomic_path(markdown) as temporary:
        temporary.write_text("\n".join([*lines, "", *notes(rows), ""]), encoding="utf-8")
    return csv, markdown


def flat_row(row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One row of the CSV: milliseconds, bytes, mAP in 0..1, drops in points."""
    asked, machine = row["asked"], row["asked"]["machine"]
    flat: dict[str, Any] = {
        "source": asked["source"], "runtime": asked["runtime"], "arithmetic": asked["arithmetic"],
        "stored_precision": row.get("precision"), "status": row["status"], "bytes": row.get("bytes"),
        "peak_memory_bytes": row.get("peak_memory_bytes"),
    }  # fmt: skip
    for name, taken in row.get("latency_ms", {}).items():
        flat |= {f"{name}_{key}_ms": round(value, 3) for key, value in taken.items()}
    for most in _prompts(row):
        flat[f"speedup_{most}"] = _speedup(row, rows, most)
        flat[f"cpu_speedup_{most}"] = _speedup(row, rows, most, "cpu")
    flat |= {
        f"max_{kind}_{name}": value[f"max_{kind}"]
        for name, value in row.get("parity", {}).items()
        for kind in ("abs", "rel")
    }
    for name, metric in METRICS.items():
        if name in row.get("metrics", {}):
            flat[metric.column] = row["metrics"][name].get(metric.headline)
            drop = row.get("drop", {}).get(name) or {}
            flat[f"{name}_drop"] = drop.get("points")
    return flat | {
        "device": asked["device"], "threads": asked["threads"], "repeats": asked["repeats"],
        "machine": machine.get("device"), "cpu_flags": " ".join(machine.get("flags", ())),
        **{key: value for key, value in machine.get("versions", {}).items() if value}, "error": row.get("error"),
    }  # fmt: skip


def shown(rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Headings and cells of the short table: medians (10th to 90th percentile) in milliseconds."""
    prompts = sorted({count for row in rows for count in _prompts(row)})
    measured = [name for name in METRICS if any(name in row.get("metrics", {}) for row in rows)][:2]
    headings = ["model", "runtime", "arithmetic", "vision, ms", "text, ms", *(f"{n} prompts, ms" for n in prompts)]
    headings += [f"image with {n} prompts" for n in prompts if n == _middle(prompts)]
    headings += ["peak memory", "size", "largest difference", *(f"{METRICS[name].title} (drop)" for name in measured)]
    cells = []
    for row in rows:
        asked, latency = row["asked"], row.get("latency_ms", {})
        line = [Path(asked["source"]).name, asked["runtime"], asked["arithmetic"]]
        if row["status"] != FINISHED:
            cells.append([*line, f"failed: {row['error']}", *[""] * (len(headings) - len(line) - 1)])
            continue
        for name in ("vision", "text", *(f"prompts_{n}" for n in prompts)):
            taken = latency[name]
            line.append(f"{_ms(taken['p50'])} ({_ms(taken['p10'])}–{_ms(taken['p90'])})")
        line += [f"{_speedup(row, rows, n):.2f} × as fast" for n in prompts if n == _middle(prompts)]
        worst = max(row.get("parity", {}).values(), key=lambda value: value["max_rel"], default=None)
        line += [size_text(row["peak_memory_bytes"]), size_text(row["bytes"])]
        line.append("–" if worst is None else f"{worst['max_abs']:.1e} ({worst['max_rel']:.1e} of the largest)")
        for name in measured:
            value = row["metrics"].get(name, {}).get(METRICS[name].headline)
            drop = (row.get("drop", {}).get(name) or {}).get("points")
            line.append(
                "–" if value is None else METRICS[name].text(value) + ("" if drop is None else f" ({drop:.2f})")
            )
        cells.append(line)
    return headings, cells


def notes(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What the numbers are true for."""
    asked = rows[0]["asked"]
    machine = asked["machine"]
    flags = " ".join(machine.get("flags", ())) or "unknown"
    where = str(machine.get("device"))
    where += "" if "threads" in where else f", {asked['threads']} threads"
    lines = [
        f"{where}, CPU flags {flags}; medians of {asked['repeats']} calls (10th to 90th percentile). The first row of "
        "a model is what the others are compared with."
    ]
    taken = [t for row in rows if row["asked"]["device"] == "cpu" for t in row.get("latency_ms", {}).values()]
    clock, own = sum(t["p50"] for t in taken), sum(t["cpu"] for t in taken)
    if taken and clock > BUSY * own:
        lines.append(
            f"warning: the machine was busy, its processes got {own / clock:.0%} of one core; compare processor times "
            "(cpu_speedup in benchmark.csv), or measure again"
        )
    return lines


def _speedup(row: dict[str, Any], rows: Sequence[dict[str, Any]], prompts: int, key: str = "p50") -> float | None:
    """How many times as fast as the source's first row one image with that many prompts is, phrases encoded before."""
    first = next(other for other in rows if other["asked"]["source"] == row["asked"]["source"])
    if row["status"] != FINISHED:
        return None
    times = [sum(r["latency_ms"][name][key] for name in ("vision", f"prompts_{prompts}")) for r in (first, row)]
    return round(times[0] / times[1], 3) if times[1] else None


def _prompts(row: dict[str, Any]) -> list[int]:
    return sorted(
        int(name.removeprefix("prompts_")) for name in row.get("latency_ms", {}) if name.startswith("prompts_")
    )


def _middle(prompts: Sequence[int]) -> int | None:
    return prompts[len(prompts) // 2] if prompts else None


def _ms(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"
