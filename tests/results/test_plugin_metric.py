"""A metric of a user's own, registered once, is in records, tables, plots, page, choice and search."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from sam3slim.cli import main
from sam3slim.data.batch import GroundTruth
from sam3slim.data.detections import Detections
from sam3slim.errors import UserError
from sam3slim.launch.trial import Done, values_of
from sam3slim.report.rows import compression_rows, compression_shown
from sam3slim.report.table import to_markdown
from sam3slim.results.collect import learning_curves
from sam3slim.results.metrics import METRICS, Measured, Metric, main_metric, measure_all, register
from sam3slim.results.record import Artifact, Metrics, RunRecord, read_record
from sam3slim.results.samples import Samples, paired_bootstrap
from sam3slim.results.select import ExportCriteria, choose
from sam3slim.runs.reference import load_samples, save_samples
from tests.report.compare_runs import add_run

from .test_coco import random_set


@dataclass(frozen=True)
class Counts(Samples):
    """[I] objects that were missed and objects in all."""

    missed: NDArray[np.int64]
    objects_in_all: NDArray[np.int64]

    def values(self, counts: NDArray[np.int64]) -> NDArray[np.float64]:
        share: NDArray[np.float64] = (self.missed @ counts) / (self.objects_in_all @ counts)
        return share


def miss_rate(detections: Sequence[Detections], truths: Sequence[GroundTruth]) -> Measured:
    """Share of objects that an image has more of than detections: a toy, of which less is better."""
    there = np.array([len(truth.labels) for truth in truths])
    missed = np.maximum(there - np.array([int((found.scores > 0.5).sum()) for found in detections]), 0)
    samples = Counts(np.array([found.image_id for found in detections]), missed, there)
    return Measured({"rate": samples.value(), "objects": int(there.sum())}, samples)


@pytest.fixture
def metric() -> Iterator[Metric]:
    yield register(
        Metric(
            "miss", "miss rate", "miss", miss_rate, Counts.load, headline="rate", logged=("objects",),
            higher_is_better=False,
        )
    )  # fmt: skip
    del METRICS["miss"]


@pytest.fixture
def runs(metric: Metric, tmp_path: Path) -> Path:
    """The run of higher mAP misses more."""
    for name, rate, segm in (("a", 0.3, 0.8), ("b", 0.2, 0.7)):
        values = {"miss": {"rate": rate, "objects": 40}, "bbox": {"map": segm}, "segm": {"map": segm}}
        drop = {"miss": {"points": 100 * (rate - 0.1), "ci95": [1.0, 30.0]}}
        add_run(tmp_path / "runs", name, metrics=values, drop=drop, bytes=5_000_000)
    (tmp_path / "runs/a/metrics.csv").write_text("step,val/miss_rate\n1,0.5\n2,0.3\n")
    return tmp_path / "runs"


def test_plugin__is_measured_saved_and_dropped(metric: Metric, tmp_path: Path) -> None:
    detections, truths = random_set(0)
    measured = measure_all(detections, truths)
    assert list(measured) == ["bbox", "segm", "cgf1_bbox", "cgf1", "miss"]
    full = measured["miss"].samples
    worse = miss_rate([replace(item, scores=item.scores / 2) for item in detections], truths).samples
    assert full is not None
    assert worse is not None
    save_samples({"miss": full}, tmp_path)
    drop = paired_bootstrap(metric, load_samples(tmp_path)["miss"], worse, repeats=50)
    assert drop.points == pytest.approx(100 * (worse.value() - full.value()))  # type: ignore[operator]
    assert drop.points > 10
    assert drop.low < drop.points < drop.high  # type: ignore[operator]


def test_plugin__is_in_records_tables_plots_page_and_curves(runs: Path, tmp_path: Path) -> None:
    assert read_record(runs / "a").metrics.value(METRICS["miss"]) == 0.3
    out = tmp_path / "out"
    assert main(["compare", str(runs), "--out", str(out)]) == 0
    with (out / "compare.csv").open() as file:
        rows = {Path(row["run"]).name: row for row in csv.DictReader(file)}
    assert (rows["a"]["miss_rate"], rows["b"]["miss_drop"], rows["b"]["miss_drop_high"]) == ("0.3", "10.0", "30.0")
    assert "| miss rate % |" in (out / "compare.md").read_text()
    with Image.open(out / "compare_1.png") as picture:
        assert picture.size == (1300, 1050)  # a third row
    embedded = re.search(r'type="application/json">(.*?)</script>', (out / "compare.html").read_text(), re.DOTALL)
    assert embedded is not None
    page = json.loads(embedded[1])
    assert page["metrics"][-1] == {
        "name": "miss", "column": "miss_rate", "title": "miss rate", "short": "miss", "unit": "%", "scale": 100.0,
        "sign": -1,
    }  # fmt: skip
    assert learning_curves(runs / "a") == {"val/miss_rate": [(1.0, 0.5), (2.0, 0.3)]}


def test_plugin__decides_where_it_is_named(runs: Path) -> None:
    assert choose([runs], ExportCriteria(best="map")).chosen.run.folder.name == "a"
    selection = choose([runs], ExportCriteria(best="map", metric="miss"))
    assert selection.chosen.run.folder.name == "b"
    assert "the lowest miss rate of 2 runs; miss rate 20.00 %, drop 10.00 (1.00 to 30.00)" in selection.why
    assert selection.candidates[1].verdict == "miss rate 30.00 > 20.00 %"
    with pytest.raises(UserError, match=r"metric=mis is not known; choose from bbox, segm, .*, miss$"):
        choose([runs], ExportCriteria(best="map", metric="mis"))


def test_plugin__decides_alone_and_in_a_search(metric: Metric) -> None:
    def record(rate: float) -> RunRecord:
        return RunRecord("compress", "c", metrics=Metrics({"miss": {"rate": rate}}), artifact=Artifact(bytes=1000))

    assert main_metric(record(0.3)) is metric
    # A search maximises.
    assert values_of(Done((record(0.3),))) == (-0.3, 1000.0)
    assert values_of(Done((record(0.3),), metric="segm")) is None
    rows = compression_rows(record(0.1), [("int8", record(0.3))], metric)
    assert "| 30.0 |" in to_markdown(rows, compression_shown(metric, rows))


def test_register__a_name_is_given_once(metric: Metric) -> None:
    with pytest.raises(ValueError, match="already a metric miss"):
        register(metric)
