"""evaluate.py and compress.py on real files, with a model of milliseconds."""

from __future__ import annotations

import csv
import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sam3slim.checkpoints import load
from sam3slim.data.spec import DataSpec
from sam3slim.errors import UserError
from sam3slim.launch.compose import compose_plain
from sam3slim.results.record import RunRecord, read_record
from sam3slim.runs.reference import fill_drop, load_reference
from tests import running as runs
from tests.tiny_runs import data, evaluate, root, segm, trained

__all__ = ["root", "trained"]


def test_evaluate__a_checkpoint_scores_what_it_was_saved_with(trained: tuple[RunRecord, Path], root: Path) -> None:
    record, out = trained
    from_file = evaluate(out / "checkpoints/best.ckpt", root, "eval_file")
    from_run, from_artifact = evaluate(out, root, "eval_run"), evaluate(out / "artifact", root, "eval_artifact")
    assert segm(from_file) == segm(from_run) == segm(from_artifact) == segm(record)
    assert from_file.artifact.bytes > 2 * from_artifact.artifact.bytes
    assert (from_file.data.images, from_file.data.prompts, from_file.data.protocol) == (4, 92, "all")


def test_evaluate__splits_and_latency(trained: tuple[RunRecord, Path], root: Path) -> None:
    record = evaluate(trained[1], root, "eval_val", "data.split=val", "latency=true", "limit=2")
    assert record.data.images == 2
    assert record.latency_ms.p50 > 0


def test_compress__one_measured_artifact_per_method(
    trained: tuple[RunRecord, Path], root: Path, caplog: pytest.LogCaptureFixture, request: pytest.FixtureRequest
) -> None:
    source, out = trained
    # Not through the root logger, which in whole runs was seen without pytest's handlers; by what was not found.
    log = logging.getLogger("sam3slim.runs.compress")
    log.addHandler(caplog.handler)
    request.addfinalizer(lambda: log.removeHandler(caplog.handler))
    given = [f"checkpoint={out}", *data(root), "latency=false", "compress=[weights_only,fp16,int8_weight]"]
    config = compose_plain("compress", given, root / "compressed")
    records = runs.compress(config, root / "compressed", {}, "python compress.py")
    sizes = {r.artifact.precision: r.artifact.bytes for r in records}
    assert sizes["weights_only"] > sizes["fp16"] > sizes["int8_weight"]
    # Hardly trained, it says that there is nothing to lose, rather than that nothing was lost; rounding of another
    # processor may leave it a little more.
    assert ("a drop cannot be seen here" in caplog.text) == (segm(source)["map"] <= 0.01)
    full, _ = load(out)
    for record in records:
        folder = root / "compressed" / record.artifact.precision
        assert read_record(folder).metrics == record.metrics
        reloaded, _ = load(folder / "artifact", expect=full.spec, dequantize=True)
        for key, value in full.state_dict().items():
            # Half an INT8 step of the largest value, or half of FP16's smallest number.
            limit = max(float(value.abs().max()) / 250, 2.0**-25)
            assert (reloaded.state_dict()[key] - value).abs().max() <= limit, key


def test_compress__table_with_drops_against_the_source(trained: tuple[RunRecord, Path], root: Path) -> None:
    folder = root / "compressed"
    with (folder / "compression.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows] == ["full", "weights_only", "fp16", "int8_weight"]
    full = read_record(folder / "full")
    for row in rows[1:]:
        drop = read_record(folder / row["method"]).drop["segm"]
        assert float(row["segm_drop"]) == pytest.approx(drop.points, abs=1e-5)
        assert drop.points == pytest.approx(100 * (segm(full)["map"] - float(row["segm_map"])), abs=1e-4)
        assert drop.low <= drop.points <= drop.high or drop.points == 0
    assert "mask drop, points (95 %)" in (folder / "compression.md").read_text()
    # The same reference for another command.
    again = evaluate(folder / "fp16/artifact", root, "eval_fp16", f"reference={folder / 'full'}")
    assert again.drop == read_record(folder / "fp16").drop


def test_compress__a_failed_method_is_a_row(
    trained: tuple[RunRecord, Path], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules["sam3slim.runs.compress"]  # the package's name for it is the function
    real = module.compress_model

    def fails(model: Any, method: Any) -> Any:
        if method.name == "bf16":
            raise UserError("bf16 cannot do this today")
        return real(model, method)

    monkeypatch.setattr(module, "compress_model", fails)
    out = root / "half_failed"
    given = [f"checkpoint={trained[1]}", *data(root), "latency=false", "limit=2", "compress=[bf16,fp16]"]
    config = compose_plain("compress", given, out)
    with pytest.raises(UserError, match=r"1 of 2 methods failed \(bf16: bf16 cannot do this today\)"):
        runs.compress(config, out, {}, "python compress.py")
    with (out / "compression.csv").open() as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert rows["bf16"]["error"] == "bf16 cannot do this today"
    assert rows["bf16"]["bytes"] == ""
    assert float(rows["fp16"]["segm_map"]) >= 0
    assert read_record(out / "bf16").status == "failed"


def test_evaluate__reference_of_other_images(trained: tuple[RunRecord, Path], root: Path) -> None:
    evaluate(trained[1], root, "eval_two", "limit=2")
    with pytest.raises(UserError, match="a drop needs the same images: 2 and 4 were evaluated"):
        evaluate(trained[1], root, "eval_four", f"reference={root / 'eval_two'}")
    with pytest.raises(UserError, match=r"has no matches of its detections"):
        evaluate(trained[1], root, "eval_four", f"reference={root}")


def test_evaluate__reference_of_other_prompts(trained: tuple[RunRecord, Path], root: Path) -> None:
    full = root / "compressed/full"
    given = [f"reference={full}", "data.protocol=present"]
    with pytest.raises(UserError, match=r"full was measured with data\.protocol=all, this run with present"):
        evaluate(trained[1], root, "eval_present", *given)
    assert not (root / "eval_present/matches_segm.npz").exists()
    reference = load_reference(full, DataSpec("coco", "anywhere"))
    record = read_record(full)
    record.data = replace(record.data, prompts=5)
    with pytest.raises(UserError, match=r"was asked 92 prompts, this run 5; a drop needs the same"):
        fill_drop(record, reference, reference.found)


def test_compress__no_place_for_a_record(trained: tuple[RunRecord, Path], root: Path) -> None:
    out = root / "blocked"
    out.mkdir()
    (out / "fp16").write_text("in the way")
    given = [f"checkpoint={trained[1]}", *data(root), "latency=false", "limit=1", "compress=[fp16]"]
    with pytest.raises(UserError, match=r"cannot write to output folder .*blocked/fp16"):
        runs.compress(compose_plain("compress", given, out), out, {}, "python compress.py")


def test_evaluate__storage_and_arithmetic_are_told(
    trained: tuple[RunRecord, Path], root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the CPU half arithmetic is an emulation of a GPU's, by the same code."""
    plain = evaluate(trained[1], root, "arithmetic_auto", "limit=1")
    half = evaluate(trained[1], root, "arithmetic_bf16", "limit=1", "arithmetic=bf16")
    told = [(record.artifact.precision, record.artifact.arithmetic) for record in (plain, half)]
    assert told == [("fp32", "fp32"), ("fp32", "bf16")]
    assert "stored in fp32, computes in bf16 on cpu" in capsys.readouterr().out
    assert half.metrics != plain.metrics
