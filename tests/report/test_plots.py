from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from sam3slim.errors import UserError
from sam3slim.precisions import INT8
from sam3slim.report import plots
from sam3slim.report.plots import map_vs_size
from sam3slim.report.style import precision_colors

ROWS = [
    {"name": name, "precision": precision, "bytes": size, "segm_map": value, "bbox_map": value}
    for name, precision, size, value in [
        ("nano", "fp32", 8.8e6, 0.62), ("nano", "fp16", 4.4e6, 0.62), ("nano", "int8", 2.4e6, 0.617),
        ("nano_slim", "fp32", 4.9e6, 0.58), ("nano_slim", "fp16", 2.45e6, 0.58),
        ("nano_slim", "int8", 1.3e6, 0.576),
    ]
]  # fmt: skip


def test_map_vs_size__writes_a_picture(tmp_path: Path) -> None:
    path = map_vs_size(ROWS, tmp_path / "map_vs_size.png")
    with Image.open(path) as image:
        assert image.size == (1280, 800)
        assert len(image.convert("RGB").getcolors(10**6)) > 20  # more than an empty frame


def test_map_vs_size__labels_do_not_cover_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    boxes: list[tuple[float, ...]] = []
    original = plots._label

    def watched(figure, axes, labels) -> None:  # type: ignore[no-untyped-def]
        original(figure, axes, labels)
        boxes.extend(note.get_window_extent().extents for note in axes.texts)
        assert {note.get_text() for note in axes.texts} == {f"{r['name']} {r['precision']}" for r in ROWS}

    monkeypatch.setattr(plots, "_label", watched)
    map_vs_size(ROWS, tmp_path / "p.png")
    assert len(boxes) == 6
    assert not any(plots._overlap(tuple(a), tuple(b)) for i, a in enumerate(boxes) for b in boxes[:i])


def test_map_vs_size__rows_without_numbers_are_left_out(tmp_path: Path) -> None:
    gap = {"name": "failed", "precision": "fp32", "bytes": None, "segm_map": None}
    assert map_vs_size([*ROWS[:1], gap], tmp_path / "one.png").exists()
    with pytest.raises(UserError, match="nothing to plot"):
        map_vs_size([gap], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_precision_colors__kinds_and_variants_differ() -> None:
    colors = precision_colors(["fp32", "int8_weight", "int8_dynamic", "nf4"])
    assert colors["int8_weight"] == INT8.color
    assert len(set(colors.values())) == 4
