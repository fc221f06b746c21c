"""Which run is taken: groups, drops of different references, limits, ties, and who is nearest."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sam3slim.environment import describe_device
from sam3slim.errors import UserError
from sam3slim.results.select import ExportCriteria, Selection, choose, common_folder
from tests.report.compare_runs import add_failed, add_newer, add_run

FULL_MAP = 0.8


def drop(points: float, half: float = 0.2) -> dict[str, Any]:
    return {"segm": {"points": points, "ci95": [points - half, points + half]}}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A full model and three smaller ones whose drops are counted against it."""
    add_run(tmp_path, "full", segm=FULL_MAP, bytes=10_000_000, drop=None)
    add_run(tmp_path, "fp16", segm=0.799, bytes=5_000_000, precision="fp16", drop=drop(0.1))
    add_run(tmp_path, "int8", segm=0.79, bytes=2_500_000, precision="int8_weight", drop=drop(1.0))
    add_run(tmp_path, "slim", segm=0.76, bytes=1_000_000, family="nano_slim", drop=drop(4.0))
    return tmp_path


def taken(pick: Selection) -> str:
    return pick.chosen.run.folder.name


def verdicts(pick: Selection) -> dict[str, str]:
    return {candidate.run.folder.name: candidate.verdict for candidate in pick.candidates}


def test_choose__smallest_within_the_drop(runs: Path) -> None:
    pick = choose([runs], ExportCriteria(max_drop=1.0))
    assert taken(pick) == "int8"
    assert verdicts(pick) == {"int8": "picked", "fp16": "larger", "full": "larger", "slim": "drop 4.00 > 1"}
    assert pick.why.startswith(f"picked nano int8_weight ({runs / 'int8'}): the smallest as hf of 3 runs that keep")
    assert "mask mAP 79.00 %, drop 1.00 (0.80 to 1.20), 2.5 MB" in pick.why
    # The limit is on the estimate; that the interval reaches beyond is said.
    assert pick.warnings == ["the drop's 95 % interval reaches 1.20 points, beyond --max-drop 1"]


def test_choose__best_within_the_bytes(runs: Path) -> None:
    pick = choose([runs], ExportCriteria(max_bytes=6_000_000))
    assert taken(pick) == "fp16"
    assert verdicts(pick)["full"] == "10 MB > 6 MB"
    assert verdicts(pick)["int8"] == "mask mAP 79.00 < 79.90 %"
    assert pick.warnings == []


def test_choose__both_limits_and_best(runs: Path) -> None:
    wish = ExportCriteria(max_drop=1.0, max_bytes=6_000_000)
    assert taken(choose([runs], wish)) == "fp16"
    assert taken(choose([runs], ExportCriteria(max_drop=1.0, max_bytes=6_000_000, best="size"))) == "int8"
    assert taken(choose([runs], ExportCriteria(best="map"))) == "full"
    assert taken(choose([runs], ExportCriteria(best="size"))) == "slim"


def test_choose__nobody_keeps_the_limits_and_the_nearest_is_named(runs: Path) -> None:
    with pytest.raises(
        UserError, match=r"no run keeps --max-bytes 500,000 as hf; the nearest is nano_slim fp32 \(.*sl"
    ):
        choose([runs], ExportCriteria(max_bytes=500_000))
    (runs / "full" / "record.json").unlink()
    with pytest.raises(UserError, match=r"no run keeps --max-drop 0\.05 as hf; the nearest is nano fp16.*drop 0\.10"):
        choose([runs], ExportCriteria(max_drop=0.05))
    # Nearest is who breaks fewer limits, then who is least beyond them.
    with pytest.raises(UserError, match=r"--max-drop 0\.5 and --max-bytes 2,000,000 as hf; the nearest is nano fp16"):
        choose([runs], ExportCriteria(max_drop=0.5, max_bytes=2_000_000))


def test_choose__equal_runs_without_conversion_and_by_name(tmp_path: Path) -> None:
    for name in ("b", "a"):
        add_run(tmp_path, name)
    pick = choose([tmp_path], ExportCriteria(best="map"))
    assert taken(pick) == "a"
    assert verdicts(pick)["b"] == "as good; the first of equals is taken"
    artifact = {"path": "c", "bytes": 10_000_000, "format": "lightning", "precision": "fp32"}
    add_run(tmp_path, "0", artifact=artifact, model={"name": "nano", "params": 2_500_000})
    assert taken(choose([tmp_path], ExportCriteria(best="map"))) == "a"


def test_choose__what_cannot_be_taken_says_why(runs: Path) -> None:
    add_failed(runs, "failed", error="out of memory")
    add_run(runs, "boxes", metrics={"bbox": {"map": 0.9}})
    add_run(runs, "bare", artifact=None)
    graphs = {"path": "g", "bytes": 9, "format": "onnx", "precision": "int8_onnx"}
    add_run(runs, "graphs", artifact=graphs, segm=0.9, drop=None)
    found = verdicts(choose([runs], ExportCriteria(best="map")))
    assert found["boxes"] == "no mask mAP"
    assert found["bare"] == "no artifact recorded"
    assert found["graphs"] == "its ONNX graphs cannot be turned into hf"
    assert taken(choose([runs], ExportCriteria("onnx", best="map"))) == "graphs"
    assert "failed" not in found  # it measured nothing, so it is in no group with the others


def test_choose__none_can_become_the_format(tmp_path: Path) -> None:
    add_run(tmp_path, "a", artifact={"path": "g", "bytes": 9, "format": "onnx", "precision": "onnx"})
    with pytest.raises(UserError, match=r"none of 1 runs can become reference .*cannot be turned into reference"):
        choose([tmp_path], ExportCriteria("reference", best="map"))


def test_choose__sizes_are_those_of_the_format(runs: Path) -> None:
    # Graphs hold FP32: 1.6 M parameters whatever the artifact stores, so the best of equals is taken.
    assert {c.bytes for c in choose([runs], ExportCriteria("onnx", max_drop=1.0)).candidates} == {6_400_000}
    assert taken(choose([runs], ExportCriteria("torch-export", max_drop=1.0))) == "full"
    # INT8 weights become FP32 numbers in the reference's format, FP16 ones stay.
    pick = choose([runs], ExportCriteria("reference", max_drop=1.0))
    assert taken(pick) == "fp16"
    assert {c.run.folder.name: c.bytes for c in pick.candidates}["int8"] == 6_400_000
    with pytest.raises(UserError, match=r"no run keeps --max-bytes 3,000,000 as onnx"):
        choose([runs], ExportCriteria("onnx", max_bytes=3_000_000))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ({"vocabulary": {"merges": []}}, "its vocabulary is trimmed"),
        ({"bank": {"phrases": ["dog"]}}, "it has a prompt bank instead of the text tower"),
    ],
)
def test_choose__text_that_the_reference_cannot_read(tmp_path: Path, text: dict[str, Any], reason: str) -> None:
    artifact = tmp_path / "artifact"
    artifact.mkdir()
    (artifact / "sam3slim.json").write_text(json.dumps({"spec": {"text": text}}))
    metadata = {"path": str(artifact), "bytes": 9, "format": "hf", "precision": "fp32"}
    add_run(tmp_path / "runs", "a", artifact=metadata)
    assert taken(choose([tmp_path / "runs"], ExportCriteria(best="map"))) == "a"
    with pytest.raises(UserError, match=reason):
        choose([tmp_path / "runs"], ExportCriteria("reference", best="map"))


def test_choose__int8_products_have_no_other_format(tmp_path: Path) -> None:
    add_run(tmp_path, "a", precision="int8_dynamic")
    assert taken(choose([tmp_path], ExportCriteria(best="map"))) == "a"
    for format in ("reference", "onnx", "torch-export"):
        with pytest.raises(UserError, match="its INT8 products cannot be written as"):
            choose([tmp_path], ExportCriteria(format, best="map"))  # type: ignore[arg-type]


def test_choose__records_of_other_data_need_a_choice(runs: Path) -> None:
    add_run(runs, "val", data={"split": "val"}, segm=0.99)
    with pytest.raises(UserError) as error:
        choose([runs], ExportCriteria(best="map"))
    text = str(error.value)
    assert "2 kinds of data or protocol, whose numbers do not compare: 1) shapes, test" in text
    assert "; 2) shapes, val, protocol all: 300 images, 6,900 prompts (1 runs); choose one with --group" in text
    assert taken(choose([runs], ExportCriteria(best="map"), group="2")) == "val"
    assert taken(choose([runs], ExportCriteria(best="map"), group="test,")) == "full"
    with pytest.raises(UserError, match="--group 3: there is no such group"):
        choose([runs], ExportCriteria(best="map"), group="3")
    with pytest.raises(UserError, match="--group 'shapes' fits 2 of the groups"):
        choose([runs], ExportCriteria(best="map"), group="shapes")


def test_choose__drops_against_several_models_need_the_full_one(runs: Path) -> None:
    # The slim model's own compression counts against the slim model: 0.1 points there, 4.1 against the full one.
    add_run(runs, "slim_fp16", segm=0.759, bytes=500_000, precision="fp16", drop=drop(0.1))
    with pytest.raises(UserError, match=r"drop against 2 models \(mask mAP 80\.00, 76\.00 %\).*--reference RUN"):
        choose([runs], ExportCriteria(max_drop=1.0))
    pick = choose([runs], ExportCriteria(max_drop=1.0), reference=runs / "full")
    assert taken(pick) == "int8"
    found = {c.run.folder.name: (c.drop.points, c.drop.ci95) for c in pick.candidates}
    assert found["slim_fp16"] == (pytest.approx(4.1), None)  # its interval is that of another drop
    assert found["int8"][1] == pytest.approx((0.8, 1.2))
    # Without a limit on the drop nothing needs to be settled.
    assert taken(choose([runs], ExportCriteria(best="size"))) == "slim_fp16"


def test_choose__reference_must_fit(runs: Path, tmp_path: Path) -> None:
    other = add_run(tmp_path / "elsewhere", "val", data={"split": "val"})
    with pytest.raises(UserError, match=r"--reference .*val was measured on other data or with another protocol"):
        choose([runs / "fp16"], ExportCriteria(max_drop=1.0), reference=other)
    boxes = add_run(tmp_path / "elsewhere", "boxes", metrics={"bbox": {"map": 0.9}})
    with pytest.raises(UserError, match="has no mask mAP"):
        choose([runs / "fp16"], ExportCriteria(max_drop=1.0), reference=boxes)


def test_choose__no_drop_recorded(tmp_path: Path) -> None:
    add_run(tmp_path, "a", drop=None)
    with pytest.raises(UserError, match="no record here states a drop; name the full model's run with --reference RUN"):
        choose([tmp_path], ExportCriteria(max_drop=1.0))
    pick = choose([tmp_path], ExportCriteria(best="map"))
    assert (pick.against, pick.chosen.drop) == (None, None)


def test_choose__boxes_alone(tmp_path: Path) -> None:
    metrics = [{"bbox": {"map": value}} for value in (0.5, 0.6)]
    add_run(tmp_path, "a", metrics=metrics[0], drop={"bbox": {"points": 10.0, "ci95": [9.0, 11.0]}})
    add_run(tmp_path, "b", metrics=metrics[1], drop=None)
    pick = choose([tmp_path], ExportCriteria(max_drop=20.0, best="map"))
    assert (taken(pick), pick.metric.name) == ("b", "bbox")
    assert pick.against is not None
    assert pick.against.where == str(tmp_path / "b")


def test_choose__contradicting_runs_are_warned_of(tmp_path: Path) -> None:
    add_run(tmp_path, "a", config_hash="x", segm=0.8)
    add_run(tmp_path, "b", config_hash="x", segm=0.7)
    assert choose([tmp_path], ExportCriteria(best="map")).warnings == [
        "another run of the same configuration has other numbers"
    ]


def test_choose__a_record_that_cannot_be_read_is_warned_of(runs: Path) -> None:
    add_newer(runs, "newer")
    (warning,) = choose([runs], ExportCriteria(best="map")).warnings
    assert warning.startswith("not read: ")
    assert "newer/record.json has schema 99" in warning


def test_choose__bad_records(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no record\.json in or below"):
        choose([tmp_path], ExportCriteria(best="map"))
    add_newer(tmp_path, "newer")
    with pytest.raises(UserError, match=r"none of 1 records can be read; the first: .*schema 99.*update sam3slim"):
        choose([tmp_path], ExportCriteria(best="map"))
    add_failed(tmp_path, "failed")
    with pytest.raises(UserError, match=r"none of the 1 runs has an mAP; run evaluate\.py"):
        choose([tmp_path], ExportCriteria(best="map"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {},
            "nothing says which run to take; give --max-drop 1.0, --max-bytes 500MB, --max-latency 120ms or --best map",
        ),
        ({"format": "tflite", "best": "map"}, "--format tflite: expected hf, reference, onnx, torch-export"),
        ({"best": "latency"}, "--best latency: expected map or size"),
        ({"max_drop": -1.0}, r"--max-drop -1: expected points of mAP in 0\.\.100"),
    ],
)
def test_wish__refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ExportCriteria(**options)


def test_table__folders_without_what_they_share(runs: Path) -> None:
    pick = choose([runs], ExportCriteria(max_drop=1.0))
    assert pick.headings("hf")[0] == f"run below {runs}"
    assert pick.rows()[0] == ("int8", "nano int8_weight", "79.00", "1.00 (0.80 to 1.20)", "2.5 MB", "picked")
    assert common_folder([Path("a/b/c"), Path("a/d")]) == Path("a")
    assert common_folder([Path("a/b")]) == Path("a")


def test_dry_run__needs_no_torch(runs: Path) -> None:
    code = (
        "import sys; from sam3slim.cli import main; main(['export', sys.argv[1], '--best', 'map', '--dry-run']); "
        "print([m for m in ('torch', 'transformers', 'matplotlib', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(runs)], capture_output=True, text=True, check=True)
    assert "picked nano fp32" in done.stdout
    assert done.stdout.strip().endswith("\n[]")


def test_choose__by_latency_of_this_machine(tmp_path: Path) -> None:
    def add(name: str, segm: float, taken: float | None, device: str) -> None:
        latency = None if taken is None else {"p50": taken, "p90": taken, "threads": 2, "batch": 1, "prompts": 23}
        add_run(tmp_path, name, segm=segm, latency_ms=latency, device=device, bytes=int(1000 * segm))

    here = describe_device("cpu", 2)
    add("slow", 0.9, 200.0, here)
    add("fast", 0.7, 90.0, here)
    add("elsewhere", 0.8, 50.0, "Another CPU, 2 threads")
    add("unmeasured", 0.85, None, here)
    chosen = choose([tmp_path], ExportCriteria(max_latency_ms=120, on="cpu"))
    assert chosen.chosen.run.folder.name == "fast"
    assert chosen.why.endswith(", 90 ms")
    assert not chosen.warnings
    verdicts = {candidate.run.folder.name: candidate.verdict for candidate in chosen.candidates}
    assert verdicts["slow"].startswith("200 ms > 120 ms (")
    assert verdicts["unmeasured"] == "no latency recorded"
    assert verdicts["elsewhere"].startswith(
        "its latency was measured on another machine (Another CPU, 2 threads; this is"
    )
    anywhere = choose([tmp_path], ExportCriteria("onnx", max_latency_ms=120, any_machine=True))
    assert anywhere.chosen.run.folder.name == "elsewhere"
    assert anywhere.warnings[0] == "the latency was measured on another machine: Another CPU, 2 threads"
    assert "not of what is written as onnx" in anywhere.warnings[1]
    with pytest.raises(UserError, match=r"no run keeps --max-latency 20ms as hf; .*; 90 ms > 20 ms"):
        choose([tmp_path], ExportCriteria(max_latency_ms=20, on="cpu"))
    with pytest.raises(UserError, match=r"--on and --any-machine are about a latency; give --max-latency 120ms too"):
        ExportCriteria(best="map", on="cpu")
