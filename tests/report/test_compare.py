"""``sam3slim compare``: what is collected, grouped, merged, marked and written."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from sam3slim.cli import main
from sam3slim.errors import UserError
from sam3slim.report.gallery import gallery_runs
from sam3slim.report.page import script_json, write_page
from sam3slim.report.rows import comparison_rows
from sam3slim.results.collect import collect, learning_curves, machine
from sam3slim.results.costs import COSTS
from sam3slim.results.record import Latency

from .compare_runs import add_failed, add_newer, add_run


def test_collect__groups_by_data_but_not_by_its_folder(tmp_path: Path) -> None:
    add_run(tmp_path, "a")
    add_run(tmp_path, "deep/er/b", data={"root": "/elsewhere"})
    add_run(tmp_path, "c", data={"protocol": "present"})
    add_run(tmp_path, "d", data={"images": 8})
    groups = collect([tmp_path]).groups
    assert sorted(len(group.runs) for group in groups) == [1, 1, 2]
    assert groups[0].title == "shapes, test, protocol all: 300 images, 6,900 prompts"


def test_collect__same_run_reached_twice_is_read_once(tmp_path: Path) -> None:
    run = add_run(tmp_path, "a")
    assert len(collect([tmp_path, run, run / "record.json"]).runs) == 1


def test_collect__equal_configuration_and_numbers_merge(tmp_path: Path) -> None:
    add_run(tmp_path, "a", config_hash="x")
    add_run(tmp_path, "b", config_hash="x", seconds=9.0, started="2026-01-02T00:00:00+00:00")
    (run,) = collect([tmp_path]).runs
    assert (run.folder.name, run.copies, run.conflict) == ("b", 2, False)


def test_collect__equal_configuration_and_other_numbers_are_both_marked(tmp_path: Path) -> None:
    add_run(tmp_path, "a", config_hash="x", segm=0.8)
    add_run(tmp_path, "b", config_hash="x", segm=0.7)
    add_run(tmp_path, "c", config_hash="y")
    assert {run.folder.name: run.conflict for run in collect([tmp_path]).runs} == {"a": True, "b": True, "c": False}


def test_collect__the_full_model_beside_its_one_method_is_no_conflict(tmp_path: Path) -> None:
    add_run(tmp_path, "full", config_hash="x", kind="evaluate", segm=0.8)
    add_run(tmp_path, "fp16", config_hash="x", kind="compress", segm=0.7)
    assert [run.conflict for run in collect([tmp_path]).runs] == [False, False]


def test_collect__without_a_hash_nothing_merges(tmp_path: Path) -> None:
    add_run(tmp_path, "a", config_hash=None)
    add_run(tmp_path, "b", config_hash=None)
    assert [run.conflict for run in collect([tmp_path]).runs] == [False, False]


def test_collect__bad_input(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no record\.json in or below .*give folders"):
        collect([tmp_path])
    with pytest.raises(UserError, match="gone does not exist"):
        collect([tmp_path / "gone"])
    add_newer(tmp_path, "newer")
    with pytest.raises(UserError, match=r"newer/record\.json has schema 99.*update sam3slim"):
        collect([tmp_path])


def test_machine__latency_says_where(tmp_path: Path) -> None:
    add_run(tmp_path, "a")
    (run,) = collect([tmp_path]).runs
    assert machine(run.record) == "a processor, 1 threads, batch 1, prompts 23"
    run.record.latency_ms = Latency()
    assert machine(run.record) is None


def test_learning_curves__sparse_thinned_and_cut_short(tmp_path: Path) -> None:
    lines = [f"{step},{1 / (step + 1)}," for step in range(1000)] + ["1000,,0.5", "10"]
    (tmp_path / "csv").mkdir()
    (tmp_path / "csv" / "metrics.csv").write_text("\n".join(["step,train/loss,val/segm_map", *lines]))
    curves = learning_curves(tmp_path)
    assert curves["val/segm_map"] == [(1000.0, 0.5)]
    assert 70 <= len(curves["train/loss"]) <= 82
    assert curves["train/loss"][0] == (0.0, 1.0)
    assert curves["train/loss"][-1] == (999.0, 0.001)
    assert learning_curves(tmp_path / "csv" / "none") == {}


def test_rows__front_drop_and_failure(tmp_path: Path) -> None:
    add_run(tmp_path, "small", bytes=1_000_000, segm=0.7)
    add_run(tmp_path, "worse", bytes=2_000_000, segm=0.6)
    add_run(tmp_path, "large", bytes=9_000_000, segm=0.9)
    add_failed(tmp_path, "failed")
    measured, other = collect([tmp_path]).groups
    rows = {Path(row["run"]).name: row for row in comparison_rows(measured)}
    assert {name for name, row in rows.items() if row["pareto"]} == {"small", "large"}
    assert rows["small"]["segm_drop_interval"] == "1.00 (0.50 to 1.50)"
    (failed,) = comparison_rows(other)
    assert not other.data
    assert failed["note"] == "failed: steps=0 must be at least 1"


def test_rows__front_of_latency_is_one_per_machine(tmp_path: Path) -> None:
    for name, segm, p50, device in (
        ("fast", 0.6, 10.0, "here"), ("slow", 0.8, 20.0, "here"), ("worse", 0.7, 30.0, "here"),
        ("elsewhere", 0.5, 15.0, "there"), ("unmeasured", 0.9, None, "here"),
    ):  # fmt: skip
        add_run(tmp_path, name, segm=segm, device=device, latency_ms={"p50": p50, "batch": 1})
    (group,) = collect([tmp_path]).groups
    rows = {Path(row["run"]).name: row for row in comparison_rows(group, cost=COSTS["latency"])}
    assert {name for name, row in rows.items() if row["pareto"]} == {"fast", "slow", "elsewhere"}
    assert [run.folder.name for run in gallery_runs(group, cost=COSTS["latency"])][1:] == ["slow", "fast"]


def test_compare__by_latency(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs, out = tmp_path / "runs", tmp_path / "out"
    add_run(runs, "a", segm=0.8, bytes=1, latency_ms={"p50": 20.0})
    add_run(runs, "b", segm=0.7, bytes=2, latency_ms={"p50": 10.0})
    command = ["compare", str(runs), "--out", str(out)]
    for flags, column, front in (([], "bytes", {"a"}), (["--cost", "latency"], "latency_p50_ms", {"a", "b"})):
        assert main([*command, *flags]) == 0
        with (out / "compare.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert {Path(row["run"]).name for row in rows if row["pareto"] == "true"} == front
        assert f'{{"cost":"{column}",' in (out / "compare.html").read_text()
    assert main([*command, "--cost", "flops"]) == 2
    assert "--cost=flops is not known; choose from bytes, latency" in capsys.readouterr().err
    add_run(tmp_path / "none", "c", latency_ms=None)
    assert main(["compare", str(tmp_path / "none"), "--out", str(out), "--cost", "latency"]) == 2
    assert "--cost latency: none of the runs has measured it; evaluate.py measures" in capsys.readouterr().err


def test_compare__writes_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs, out = tmp_path / "runs", tmp_path / "out"
    add_run(runs, "a", segm=0.8)
    add_run(runs, "b", config_hash="a", segm=0.7)
    add_run(runs, "c", data={"split": "val"}, metrics={"bbox": {"map": 0.5}}, latency_ms=None)
    add_failed(runs, "failed")
    add_newer(runs, "newer")
    assert main(["compare", str(runs), "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert "4 runs in 3 groups of equal data and protocol, 1 not finished" in said.out
    assert "other numbers" in said.out
    assert "newer/record.json has schema 99" in said.err
    with (out / "compare.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sorted(Path(row["run"]).name for row in rows) == ["a", "b", "c", "failed"]
    assert {Path(row["run"]).name for row in rows if row["conflict"] == "true"} == {"a", "b"}
    assert len({row["group"] for row in rows}) == 3
    markdown = (out / "compare.md").read_text()
    assert markdown.count("\n## ") == 4
    assert "numbers of different sections do not compare" in markdown
    assert "update sam3slim" in markdown
    assert "1.00 (0.50 to 1.50)" in markdown
    for number, metrics in ((1, 2), (2, 1)):
        with Image.open(out / f"compare_{number}.png") as picture:
            assert picture.size == (1300, 350 * metrics)
    assert not (out / "compare_3.png").exists()
    page = (out / "compare.html").read_text()
    embedded = re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.DOTALL)
    assert embedded is not None
    data = json.loads(embedded[1])
    assert [len(group["runs"]) for group in data["groups"]] == [2, 1, 1]
    assert "schema 99" in data["unread"][0]
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "").replace("http-equiv", "")


def test_compare__needs_no_torch(tmp_path: Path) -> None:
    add_run(tmp_path / "runs", "a")
    code = (
        "import sys; from sam3slim.cli import main; main(['compare', sys.argv[1], '--out', sys.argv[2]]); "
        "print([m for m in ('torch', 'transformers', 'lightning', 'hydra') if m in sys.modules])"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "runs"), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("\n[]")
    assert (tmp_path / "out/compare.html").is_file()


def test_compare__galleries_need_a_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(add_run(tmp_path / "runs", "a"))
    for given, message in (
        (["--gallery-of", run], "--gallery-of needs --gallery N"),
        (["--gallery", "-1"], "--gallery -1: expected a number of images"),
        (["--gallery", "2", "--gallery-of", str(tmp_path)], "is none of the runs; give the folder of one of them"),
    ):
        assert main(["compare", run, "--out", str(tmp_path / "out"), *given]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out/compare.html").exists()


def test_compare__unwritable_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add_run(tmp_path, "a")
    (tmp_path / "file").write_text("")
    assert main(["compare", str(tmp_path), "--out", str(tmp_path / "file" / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: cannot write to output folder")
    assert error.count("\n") == 1


def test_script_json__cannot_end_its_script() -> None:
    nasty = {"a": "</script><script>alert(1)</script><!-- & \u2028"}
    text = script_json(nasty)
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == nasty


def test_page__data_that_look_like_a_place_in_the_template(tmp_path: Path) -> None:
    path = write_page({"groups": [], "unread": ["/*SCRIPT*/ /*STYLE*/ /*DATA*/"]}, tmp_path / "page.html")
    assert path.read_text().count('"use strict"') == 1
