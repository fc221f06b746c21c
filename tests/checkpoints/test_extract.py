"""Every reader × writer pair gives the same model back; half precision, refusals, other people's code."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import Sam3Model, Sam3VideoConfig

from sam3slim.artifacts import Extracted, extract, write_artifact
from sam3slim.artifacts import stream as stream_module
from sam3slim.artifacts.reference_file import reference_tensors, write_reference
from sam3slim.artifacts.stream import write_safetensors
from sam3slim.checkpoints import inspect, load, spec_difference
from sam3slim.cli import main
from sam3slim.compression import Int8Weight, compress
from sam3slim.errors import UserError
from sam3slim.models import Sam3, build_model
from sam3slim.models.build import state_shapes
from sam3slim.specs import ModelSpec
from tests.checkpoints.test_load import lightning_checkpoint

HEADS = {"text.num_heads": 2}


def released(model: Sam3, folder: Path) -> Path:
    """As Meta's sam3.pt: ``detector.*`` with a tracker beside it."""
    write_reference(folder / "plain.pt", reference_tensors(model.spec, model.state_dict()))
    state = torch.load(folder / "plain.pt", weights_only=True)
    torch.save({**state, "tracker.maskmem_tpos_enc": torch.ones(7, 1, 1, 4)}, folder / "sam3.pt")
    return folder / "sam3.pt"


def trainer(model: Sam3, folder: Path) -> Path:
    write_reference(folder / "plain.pt", reference_tensors(model.spec, model.state_dict()), prefix="module.")
    state = torch.load(folder / "plain.pt", weights_only=True)
    moments = {"state": {0: {"exp_avg": torch.zeros(10), "exp_avg_sq": torch.zeros(10)}}, "param_groups": []}
    torch.save({"model": state, "optimizer": moments, "epoch": 2, "scaler": {"scale": 1.0}}, folder / "checkpoint.pt")
    return folder / "checkpoint.pt"


def transformers_folder(model: Sam3, folder: Path) -> Path:
    plain = Sam3Model(model.config)
    plain.load_state_dict(model.state_dict())
    plain.save_pretrained(folder / "hf", max_shard_size="300KB")
    return folder / "hf"


def video_folder(model: Sam3, folder: Path) -> Path:
    """The layout of facebook/sam3: a video model whose detector we want."""
    config = Sam3VideoConfig(detector_config=model.config.to_dict()).to_dict()
    (folder / "video").mkdir()
    (folder / "video" / "config.json").write_text(json.dumps({**config, "model_type": "sam3_video"}, default=str))
    state = {f"detector_model.{key}": value for key, value in model.state_dict().items()}
    write_safetensors(folder / "video" / "model.safetensors", {**state, "tracker_model.x": torch.ones(3)})
    return folder / "video"


READERS: dict[str, Callable[[Sam3, Path], Path]] = {
    "released": released,
    "trainer": trainer,
    "transformers": transformers_folder,
    "video": video_folder,
    "lightning": lambda model, folder: lightning_checkpoint(model, folder / "x.ckpt"),
    "artifact": lambda model, folder: write_artifact(model, folder / "artifact").path,
}
WRITERS = {"hf": "out", "safetensors": "out.safetensors", "reference": "out.pt"}


def overrides_for(path: Path) -> dict[str, int]:
    """What a file in the reference's format does not tell."""
    return HEADS if path.suffix == ".pt" else {}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("reader", READERS)
def test_extract__every_reader_and_writer(model: Sam3, tmp_path: Path, reader: str, writer: str) -> None:
    source, target = READERS[reader](model, tmp_path), tmp_path / WRITERS[writer]
    found = extract(source, target, format=writer, overrides=overrides_for(source))  # type: ignore[arg-type]
    again, report = load(target, overrides=overrides_for(target))
    assert report.ok
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key
    assert spec_difference(again.spec, model.spec) == []
    assert sum(found.after.values()) == 4 * sum(value.numel() for value in model.state_dict().values())
    assert not [path for path in tmp_path.iterdir() if ".tmp" in path.name]


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_extract__half_precision(model: Sam3, tmp_path: Path, writer: str, dtype: str) -> None:
    source, target = write_artifact(model, tmp_path / "artifact").path, tmp_path / WRITERS[writer]
    found = extract(source, target, dtype=dtype, format=writer)  # type: ignore[arg-type]
    again, report = load(target, overrides=overrides_for(target))
    assert report.precision == dtype
    half = {"fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    for key, value in model.state_dict().items():
        assert again.state_dict()[key].dtype == torch.float32
        assert torch.equal(again.state_dict()[key], value.to(half).float()), key
    assert 0.45 < found.file_after / found.file_before < 0.6


def test_extract__overflowing_tensor_stays_fp32_and_is_named(model: Sam3, tmp_path: Path) -> None:
    with torch.no_grad():
        model.text_projection.weight[0, 0] = 1e5
        model.text_projection.bias.zero_()
        model.text_projection.bias[:2] = 1e-9
    source = write_artifact(model, tmp_path / "artifact").path
    for writer, name in WRITERS.items():
        found = extract(source, tmp_path / name, dtype="fp16", format=writer)  # type: ignore[arg-type]
        assert [key.split(".")[-2] for key in found.rounding.overflowed] in (["text_projection"], ["resizer"])
        assert 2 in found.rounding.underflowed.values()
        assert "stay FP32" in found.rounding.describe()[0]
        again, report = load(tmp_path / name, overrides=overrides_for(tmp_path / name))
        assert again.text_projection.weight[0, 0] == 1e5
        assert report.precision == "mixed" or writer == "hf"
    assert load_file(tmp_path / "out" / "model.safetensors")["text_projection.weight"].dtype == torch.float32


def test_extract__int8_artifact_becomes_float(model: Sam3, tmp_path: Path) -> None:
    compressed = compress(model, Int8Weight())
    source = compressed.write(model, tmp_path / "int8").path
    extract(source, tmp_path / "out", dtype="fp32")
    wanted, _ = load(source, dequantize=True)
    for key, value in load(tmp_path / "out")[0].state_dict().items():
        assert torch.equal(value, wanted.state_dict()[key]), key


def test_extract__keeps_what_transformers_drops(shared_dir: Path, tmp_path: Path) -> None:
    source = shared_dir / "reference/golden_model/model.pt"
    extract(source, tmp_path / "out.pt", format="reference", overrides=HEADS)
    before, after = torch.load(source, weights_only=True), torch.load(tmp_path / "out.pt", weights_only=True)
    assert after.keys() == {f"detector.{key}" for key in before}
    for key, value in before.items():
        assert torch.equal(after[f"detector.{key}"], value), key


def test_reference_tensors__full_size_keys_and_shapes(shared_dir: Path) -> None:
    spec = ModelSpec()
    meta = {key: torch.empty(shape, device="meta") for key, shape in state_shapes(spec).items()}
    listed = json.loads((shared_dir / "reference/meta_state_dict.json").read_text())
    made = {
        key: [list(item.shape), str(item.dtype).removeprefix("torch.")]
        for key, item in reference_tensors(spec, meta).items()
    }
    assert made == {key: [shape, dtype.removeprefix("torch.")] for key, (shape, dtype) in listed.items()}


def test_write_reference__checksums_are_right(model: Sam3, tmp_path: Path) -> None:
    write_reference(tmp_path / "x.pt", reference_tensors(model.spec, model.state_dict()))
    assert zipfile.ZipFile(tmp_path / "x.pt").testzip() is None


def test_write_safetensors__chunks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(stream_module, "CHUNK", 7)
    tensors = {"a": torch.randn(5, 9).T, "b": torch.arange(20), "c": torch.tensor(2.5), "d": torch.zeros(0, 3)}
    seen = []
    written = write_safetensors(tmp_path / "x", tensors, metadata={"k": "v"}, advance=seen.append)
    for key, value in load_file(tmp_path / "x").items():
        assert torch.equal(value, tensors[key])
    assert sum(seen) == 45 + 20 + 1
    assert written.bytes == (tmp_path / "x").stat().st_size


def test_extract__provenance(model: Sam3, tmp_path: Path) -> None:
    source = lightning_checkpoint(model, tmp_path / "x.ckpt")
    extract(source, tmp_path / "out", dtype="fp16")
    metadata = json.loads((tmp_path / "out" / "sam3slim.json").read_text())
    assert metadata["source"]["kind"] == "lightning"
    assert len(metadata["source"]["sha256"]["x.ckpt"]) == 64
    extract(source, tmp_path / "out.safetensors", format="safetensors")
    beside = json.loads((tmp_path / "out.safetensors.sam3slim.json").read_text())
    assert beside["source"]["sha256"] == metadata["source"]["sha256"]
    assert beside["spec"] == model.spec.to_dict()


def test_extract__optimizer_is_counted(model: Sam3, tmp_path: Path) -> None:
    found: Extracted = extract(trainer(model, tmp_path), tmp_path / "out", overrides=HEADS)
    assert found.before["optimizer"] == 80
    assert "optimizer" not in found.after


def test_extract__refusals(model: Sam3, tmp_path: Path) -> None:
    source = write_artifact(model, tmp_path / "artifact").path
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.txt").write_text("mine")
    for target, options, message in (
        (source, {}, "is the source itself"),
        (tmp_path / "file", {"format": "safetensors"}, "is there; choose another file"),
        (tmp_path / "file", {}, "is a file"),
        (tmp_path / "folder", {}, "is not empty"),
        (tmp_path / "folder", {"overwrite": True}, "not an artifact"),
        (tmp_path / "folder", {"format": "reference"}, "writes one file"),
        (tmp_path / "new", {"dtype": "fp8"}, "dtype=fp8: expected fp32, fp16, bf16"),
        (tmp_path / "new", {"format": "onnx"}, "format=onnx: expected hf, safetensors, reference"),
    ):
        with pytest.raises(UserError, match=message):
            extract(source, target, **options)  # type: ignore[arg-type]
    assert (tmp_path / "file").read_text() == "mine"
    assert not (tmp_path / "new").exists()


def test_extract__a_full_disk_is_told_before_and_while_writing(
    model: Sam3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_artifact(model, tmp_path / "artifact").path
    with monkeypatch.context() as patch:
        patch.setattr("sam3slim.files.shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
        with pytest.raises(UserError, match=r"has 1 kB free, and .* MB are to be written"):
            extract(source, tmp_path / "out")

    def full(_: object) -> Iterator[torch.Tensor]:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(stream_module, "chunks", full)
    with pytest.raises(UserError, match=r"cannot write .*out: No space left on device; free some space"):
        extract(source, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["artifact"]


def test_extract__incomplete_source_writes_nothing(model: Sam3, tmp_path: Path) -> None:
    state = {f"model.{key}": value for key, value in model.state_dict().items()}
    del state["model.detr_decoder.query_embed.weight"]
    source = lightning_checkpoint(model, tmp_path / "x.ckpt", state_dict=state)
    with pytest.raises(UserError, match=r"1 keys missing \(decoder 1; first detr_decoder\.query_embed\.weight\)"):
        extract(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


PLAIN = """
import sys, torch
from transformers import Sam3Model, Sam3Processor
folder = sys.argv[1]
model, info = Sam3Model.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], info
processor = Sam3Processor.from_pretrained(folder)
from PIL import Image
inputs = processor(images=Image.new("RGB", (40, 30)), text="red circle", return_tensors="pt")
with torch.no_grad():
    out = model.eval()(**inputs)
assert out.pred_logits.isfinite().all()
assert "sam3slim" not in sys.modules
print(tuple(out.pred_masks.shape))
"""


def test_extract__plain_transformers_opens_the_folder(spec: ModelSpec, tmp_path: Path) -> None:
    # transformers' processor pads every phrase to SAM 3's 32 tokens.
    model = build_model(replace(spec, text=replace(spec.text, context_length=32)))
    extract(released(model, tmp_path), tmp_path / "out", dtype="fp16", overrides=HEADS)
    done = subprocess.run([sys.executable, "-c", PLAIN, str(tmp_path / "out")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"(1, {model.spec.decoder.num_queries}, 16, 16)"


def test_inspect__trainer_checkpoint(model: Sam3, tmp_path: Path) -> None:
    found = inspect(trainer(model, tmp_path), HEADS)
    assert found.report.kind == "reference_trainer"
    assert found.report.ok
    assert found.params == {part: count for part, count in found.params.items() if count}
    assert sum(found.params.values()) == sum(value.numel() for value in model.state_dict().values())
    assert found.other["optimizer"] == 80
    assert found.to_dict()["complete"] is True


def test_inspect__incomplete_is_told_not_raised(model: Sam3, tmp_path: Path) -> None:
    state = {f"model.{key}": value for key, value in model.state_dict().items()}
    del state["model.text_projection.bias"]
    found = inspect(lightning_checkpoint(model, tmp_path / "x.ckpt", state_dict=state))
    assert not found.report.ok
    assert found.to_dict()["missing"] == ["text_projection.bias"]


def test_cli__inspect_and_extract(model: Sam3, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = str(trainer(model, tmp_path))
    assert main(["inspect", source, "text.num_heads=2"]) == 0
    out = capsys.readouterr().out
    assert "reference_trainer" in out
    assert "every tensor is there" in out
    assert main(["inspect", "--json", source, "text.num_heads=2"]) == 0
    assert json.loads(capsys.readouterr().out)["other_bytes"]["optimizer"] == 80
    assert main(["extract", source, str(tmp_path / "out"), "text.num_heads=2", "--dtype", "fp16"]) == 0
    out = capsys.readouterr().out
    assert "optimizer" in out
    assert "100.0%" in out
    assert main(["extract", source, str(tmp_path / "out"), "text.num_heads=2"]) == 2
    assert "not empty" in capsys.readouterr().err
