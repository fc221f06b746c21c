"""A whole export: what lies in the folder, what was checked, and what stops it with nothing written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Sam3Model

from sam3slim.checkpoints import load
from sam3slim.cli import main
from sam3slim.errors import UserError
from sam3slim.export.run import Exported, export
from sam3slim.export.verify import Opening, verify_export
from sam3slim.graphs import load_runnable
from sam3slim.launch.compose import compose_plain
from sam3slim.results.record import read_record
from tests import running as commands
from tests.tiny import SPEC
from tests.tiny_runs import data


def contents(out: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((out / "export.json").read_text())
    return values


def untouched(folder: Path) -> bool:
    """Nothing is left of an export that failed."""
    return not [path for path in folder.iterdir() if path.name not in ("runs",)]


def test_export__in_fresh_processes(measured: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["export", str(measured / "runs"), "--max-drop", "5", "--out", str(out)]) == 0
    said = capfd.readouterr().out
    assert "runs that were looked at" in said
    assert "the smallest as hf of 4 runs that keep --max-drop 5" in said
    assert "plain transformers opens it" in said
    assert "evaluated again on all 4 images" in said
    metadata = contents(out)
    assert metadata["checks"]["outputs_max_difference"].keys() >= {
        "pred_logits",
        "pred_masks",
        "fpn_0",
        "text_features",
    }
    assert max(metadata["checks"]["outputs_max_difference"].values()) == 0.0
    assert metadata["checks"]["transformers_max_difference"] < 1e-5
    assert metadata["checks"]["sample"]["before"] == metadata["checks"]["sample"]["after"]
    assert metadata["checks"]["sample"]["images"] == 4
    picked = measured / "runs" / metadata["runs"][0]["run"].rpartition("/")[2]
    ours, theirs = load_file(out / "model.safetensors"), load_file(picked / "artifact/model.safetensors")
    assert all(torch.equal(ours[key], value) for key, value in theirs.items())


@pytest.mark.parametrize("format", ["hf", "reference"])
def test_export__weights(measured: Path, tmp_path: Path, same_process: list[str], format: str) -> None:
    done = export([measured / "runs/fp16"], tmp_path / "out", format=format, best="map")
    assert len(same_process) == 2
    assert done.selection.chosen.run.folder == measured / "runs/fp16"
    wanted, _ = load(measured / "runs/fp16/artifact")
    found, report = load(done.made.path, overrides=done.made.overrides)
    assert report.precision == "fp16"
    for key, value in wanted.state_dict().items():
        assert torch.equal(found.state_dict()[key], value), key
    if format == "hf":
        plain = Sam3Model.from_pretrained(tmp_path / "out", dtype=torch.float32)
        assert torch.equal(plain.text_projection.weight, wanted.text_projection.weight)


@pytest.mark.parametrize("format", ["onnx", pytest.param("torch-export", marks=pytest.mark.slow)])
def test_export__graphs(measured: Path, tmp_path: Path, same_process: list[str], format: str) -> None:
    done = export([measured / "runs/int8_weight"], tmp_path / "out", format=format, best="map")
    assert load_runnable(tmp_path / "out")[1].kind == format
    assert 0 < max(done.verified.differences.values()) < 1e-3
    assert "INT8 weights are stored as the FP32 numbers" in done.made.notes[0]
    metadata = json.loads((tmp_path / "out/sam3slim.json").read_text())
    assert metadata["parent"] == str(measured / "runs/int8_weight/artifact")
    assert metadata["metrics"]["bbox"].keys() >= {"map"}
    card = (tmp_path / "out/README.md").read_text()
    assert "INT8 weights are stored as the FP32 numbers" in card
    assert ("onnxruntime.InferenceSession" if format == "onnx" else "torch.export.load") in card
    # A graph is exported as it is.
    record = measured_again(tmp_path, measured)
    again = export([record], tmp_path / "again", format=format, best="map")
    assert again.made.weights == done.made.weights
    with pytest.raises(UserError, match="cannot be turned into hf"):
        export([record], tmp_path / "no", format="hf", best="map")


def measured_again(folder: Path, measured: Path) -> Path:
    """A record of the graphs in ``folder/out``."""
    given = [f"checkpoint={folder / 'out'}", *data(measured), "latency=false"]
    config = compose_plain("evaluate", given, folder / "eval")
    commands.evaluate(config, folder / "eval", {}, "python evaluate.py")
    return folder / "eval"


def test_export__int8_weights_become_numbers_for_the_reference(
    measured: Path, tmp_path: Path, same_process: list[str]
) -> None:
    done = export([measured / "runs/int8_weight"], tmp_path / "out", format="reference", best="map")
    wanted, _ = load(measured / "runs/int8_weight/artifact", dequantize=True)
    found, report = load(done.made.path, overrides=done.made.overrides)
    assert report.precision == "mixed"  # what was FP16 stays so
    for key, value in wanted.state_dict().items():
        assert torch.equal(found.state_dict()[key], value), key
    assert done.made.notes
    estimate = done.selection.chosen.bytes
    assert estimate is not None
    assert 0 < done.made.bytes - estimate < 150_000  # names, rotary tables, point projections


def test_export__int8_products_stay_in_their_folder(measured: Path, tmp_path: Path, same_process: list[str]) -> None:
    done = export([measured / "runs/int8_dynamic"], tmp_path / "out", best="map")
    assert any("opens it with the two lines that its card shows" in line for line in done.verified.lines())
    assert done.verified.transformers is not None
    assert done.verified.transformers < 1e-5


def test_export__a_training_checkpoint_leaves_its_optimizer(
    measured: Path, tmp_path: Path, same_process: list[str]
) -> None:
    model, _ = load(measured / "model")
    state = {f"model.{key}": value for key, value in model.state_dict().items()}
    content = {"state_dict": state, "hyper_parameters": {"model": SPEC.to_dict()}, "optimizer_states": [torch.zeros(9)]}
    torch.save(content, tmp_path / "best.ckpt")
    given = [f"checkpoint={tmp_path / 'best.ckpt'}", *data(measured), "latency=false"]
    commands.evaluate(compose_plain("evaluate", given, tmp_path / "run"), tmp_path / "run", {}, "python evaluate.py")
    done = export([tmp_path / "run"], tmp_path / "out", best="map")
    assert read_record(tmp_path / "run").artifact.format == "lightning"
    metadata = json.loads((tmp_path / "out/sam3slim.json").read_text())
    assert metadata["source"]["kind"] == "lightning"
    assert max(done.verified.differences.values()) == 0.0


def test_export__data_that_are_gone_are_said_to_be(
    copied: Path, tmp_path: Path, same_process: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = copied / "fp16/record.json"
    values = json.loads(path.read_text())
    there = values["data"]["root"]
    values["data"]["root"] = str(tmp_path / "gone")
    path.write_text(json.dumps(values))
    assert main(["export", str(copied / "fp16"), "--best", "map", "--out", str(tmp_path / "a")]) == 0
    assert f"not evaluated again: data set {tmp_path / 'gone'} is not there" in capsys.readouterr().out
    assert f"- not evaluated again: data set {tmp_path / 'gone'}" in (tmp_path / "a/README.md").read_text()
    done = export([copied / "fp16"], tmp_path / "b", best="map", data=there, check_images=2)
    assert done.verified.sample is not None
    assert (done.verified.sample["images"], done.verified.whole) == (2, False)
    none = export([copied / "fp16"], tmp_path / "c", best="map", data=there, check_images=0)
    assert none.verified.not_evaluated == "not asked for"


def test_export__a_model_that_does_not_reproduce_its_record(
    copied: Path, tmp_path: Path, same_process: list[str]
) -> None:
    path = copied / "fp16/record.json"
    values = json.loads(path.read_text())
    values["metrics"]["segm"]["map"] += 0.1
    path.write_text(json.dumps(values))
    with pytest.raises(
        UserError, match=r"the picked run's model has mask mAP .* %, its record says .*--check-images 0"
    ):
        export([copied / "fp16"], tmp_path / "out", best="map")
    assert untouched(tmp_path)


def test_export__weights_that_changed(copied: Path, tmp_path: Path, same_process: list[str]) -> None:
    path = copied / "fp16/artifact/model.safetensors"
    tensors = load_file(path)
    tensors["text_projection.bias"] += 1
    save_file(tensors, path)
    with pytest.raises(UserError, match=r"is not what .*record\.json measured: its weights have .* bytes, the record"):
        export([copied / "fp16"], tmp_path / "out", best="map")
    content = bytearray((copied / "int8_weight/artifact/model.safetensors").read_bytes())
    content[-1] ^= 1
    (copied / "int8_weight/artifact/model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"its SHA-256 differs from the one in sam3slim\.json"):
        export([copied / "int8_weight"], tmp_path / "out", best="map")
    assert untouched(tmp_path)


def test_verify__another_model_is_found_out(measured: Path, tmp_path: Path, same_process: list[str]) -> None:
    record = read_record(measured / "runs/fp16")
    other = load(measured / "model")[0]
    with torch.no_grad():
        other.mask_decoder.instance_projection.bias += 0.01
    from sam3slim.artifacts import write_artifact

    write_artifact(other, tmp_path / "other")
    before = Opening(measured / "runs/fp16/artifact")
    with pytest.raises(UserError, match=r"outputs differ from the picked run's: .*pred_masks by .*allowed: 1e-05"):
        verify_export(before, Opening(tmp_path / "other"), record, "hf", tmp_path)


def test_verify__a_process_that_dies(measured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    monkeypatch.setattr("sam3slim.export.verify.subprocess.run", lambda *_, **__: SimpleNamespace(returncode=-9))
    with pytest.raises(UserError, match=r"ended with status -9 .*9 for lack of memory\); nothing was written"):
        export([measured / "runs/fp16"], tmp_path / "out", best="map")
    assert untouched(tmp_path)


def test_export__a_moved_run_folder_is_found(copied: Path, tmp_path: Path, same_process: list[str]) -> None:
    path = copied / "fp16/record.json"
    values = json.loads(path.read_text())
    values["artifact"]["path"] = "/elsewhere/artifact"
    path.write_text(json.dumps(values))
    done = export([copied / "fp16"], tmp_path / "out", best="map", check_images=0)
    assert contents(done.path)["artifact"] == str(copied / "fp16/artifact")


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of an export that ends with status 2."""
    assert main(["export", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


def test_cli__bad_input_is_one_line(copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs, out = str(copied), str(tmp_path / "out")
    assert "nothing says which run to take" in refused([runs, "--out", out], capsys)
    assert "--out DIR is missing" in refused([runs, "--best", "map"], capsys)
    assert "--max-bytes 500XB: expected a number" in refused([runs, "--max-bytes", "500XB", "--out", out], capsys)
    line = refused([runs, "--max-bytes", "10kB", "--out", out], capsys)
    assert "no run keeps --max-bytes 10,000 as hf; the nearest is tiny int8_weight" in line
    assert "no record.json" in refused([str(copied / "fp16/artifact"), "--best", "map", "--out", out], capsys)
    (tmp_path / "file").write_text("")
    assert "is a file" in refused([runs, "--best", "map", "--out", str(tmp_path / "file")], capsys)
    assert "cannot write to output folder" in refused(
        [runs, "--best", "map", "--out", str(tmp_path / "file/out")], capsys
    )
    assert "holds files that are not an export" in refused([runs, "--best", "map", "--out", runs], capsys)
    shutil.rmtree(copied / "fp16/artifact")
    line = refused([str(copied / "fp16"), "--best", "map", "--out", out], capsys)
    assert "the artifact of" in line
    assert "is gone" in line
    assert "run `python compress.py` again" in line
    assert untouched(copied.parent) or sorted(p.name for p in copied.parent.iterdir()) == ["file", "runs"]


@pytest.mark.slow
def test_cli__the_export_itself_may_be_too_large(
    measured: Path, tmp_path: Path, same_process: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Names and constants of graphs come on top of the estimate, so the file itself is measured."""
    size = 4 * read_record(measured / "runs/fp16").model.params
    given = [str(measured / "runs/fp16"), "--format", "onnx", "--out", str(tmp_path / "out")]
    line = refused([*given, "--max-bytes", str(size)], capsys)
    assert "with names and constants, more than --max-bytes" in line
    assert untouched(tmp_path)
    assert same_process == []


def test_cli__only_an_export_is_replaced_and_only_when_asked(
    measured: Path, tmp_path: Path, same_process: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(measured / "runs/fp16"), "--best", "map", "--out", str(tmp_path / "out"), "--check-images", "0"]
    assert main(["export", *given]) == 0
    capsys.readouterr()
    assert "holds an export; choose another folder or give --overwrite" in refused(given, capsys)
    assert main(["export", *given, "--format", "reference", "--overwrite"]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md", "export.json", "model.pt", "model.pt.sam3slim.json",
    ]  # fmt: skip


def test_cli__dry_run_says_and_writes_nothing(
    measured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(measured / "runs"), "--best", "size", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "picked tiny int8_weight" in said
    assert "larger" in said
    assert not list(tmp_path.iterdir())


def test_card__tells_what_was_asked_for(measured: Path, tmp_path: Path, same_process: list[str]) -> None:
    done: Exported = export(
        [measured / "runs"], tmp_path / "out", format="reference", max_drop=50, command="sam3slim export …"
    )
    card = (tmp_path / "out/README.md").read_text()
    record = done.selection.chosen.run.record
    for text in (
        "embed_dim 32, depth 2, heads 2", "layers 1 and 2", "global blocks 1", "Measured on shapes, split test",
        "4 images, 92 prompts", "| mask mAP, % |", "Drop in mask mAP: ", done.selection.why, "SAM License",
        "Apache-2.0",
        f"| this export, weights | {done.made.bytes:,} |", "– its vision", f"`{record.command}`",
        str(record.config_hash),
        f"`{measured / 'model'}`", "evaluated again on all 4 images", done.made.weights["model.pt"],
        "build_sam3_image_model", "strict=True", "'embed_dim': 32", "`sam3slim export …`",
    ):  # fmt: skip
        assert text in card, text
    for candidate in done.selection.candidates:
        assert candidate.verdict in card
