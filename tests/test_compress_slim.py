"""compress=[slim]: the cut and fitted model of ``train.py init=pruned trainer.max_steps=0``, as a row of the table."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

from sam3slim.artifacts import write_artifact
from sam3slim.checkpoints import load
from sam3slim.compression import method_from_name
from sam3slim.errors import UserError
from sam3slim.launch.compose import compose_plain
from sam3slim.models import build_model, init_for_training
from sam3slim.results.record import RunRecord, read_record
from tests import running as runs
from tests.tiny import OVERRIDES, SPEC
from tests.tiny_runs import QUICK

SIZES = ["vit.depth=1", "vit.embed_dim=16", "vit.num_heads=1", "decoder.num_layers=1"]
CUT = [text for text in OVERRIDES if text.startswith("model.")] + [f"model.{size}" for size in SIZES]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compress_slim")
    write_artifact(init_for_training(build_model(SPEC), 0).eval(), folder / "full")
    return folder


def data(root: Path, train: int = 8) -> list[str]:
    return [
        f"data.root={root / f'shapes_{train}'}", "data.shapes.image_size=32", f"data.shapes.train_images={train}",
        "data.shapes.val_images=3", "data.shapes.test_images=4", "data.batch_size=2", "data.num_workers=0",
    ]  # fmt: skip


def compress(root: Path, folder: str, *overrides: str, train: int = 8, source: Path | None = None) -> list[RunRecord]:
    slim = ["compress=[slim]", "compress.slim.model=nano", f"compress.slim.overrides=[{','.join(CUT)}]"]
    given = [f"checkpoint={source or root / 'full'}", *data(root, train), "latency=false", *slim, *overrides]
    return runs.compress(compose_plain("compress", given, root / folder), root / folder, {}, "python compress.py")


@pytest.fixture(scope="module")
def made(root: Path) -> list[RunRecord]:
    return compress(root, "made", "compress.slim.fit_batches=2", "compress.slim.then=[fp16,int8_weight]")


def test_slim__is_what_training_starts_from(root: Path, made: list[RunRecord]) -> None:
    """Bit for bit, through the other command: nothing is cut or fitted in a way of its own."""
    given = [*OVERRIDES, *QUICK, *CUT, *data(root), "trainer.max_steps=0", "init=pruned", "init.fit_batches=2"]
    out = root / "trained"
    runs.train(compose_plain("train", [*given, f"init.checkpoint={root / 'full'}"], out), out)
    mine, theirs = (load(folder)[0].state_dict() for folder in (root / "made/slim/artifact", out / "artifact"))
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    plans = [json.loads((folder / "slimming_plan.json").read_text()) for folder in (root / "made/slim", out)]
    assert plans[0] == plans[1]


def test_slim__a_row_for_each_way_to_store_it(root: Path, made: list[RunRecord]) -> None:
    with (root / "made/compression.csv").open() as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["full", "slim", "slim_fp16", "slim_int8_weight"]
    assert {row["retraining_needed"] for row in rows.values()} == {"false"}
    assert [row["images_used"] for row in rows.values()] == ["", "4", "4", "4"]
    assert all(float(rows[name]["making_seconds"]) > 0 for name in rows if name != "full")
    sizes = [int(row["bytes"]) for row in rows.values()]
    assert sizes == sorted(sizes, reverse=True)
    shown = (root / "made/compression.md").read_text().splitlines()[0]
    assert "| retraining needed | images used | seconds |" in shown
    assert [record.artifact.precision for record in made] == ["weights_only", "fp16", "int8_weight"]
    assert all(record.model.params < read_record(root / "made/full").model.params for record in made)
    half, _ = load(root / "made/slim_fp16/artifact")
    whole, _ = load(root / "made/slim/artifact")
    assert all(
        torch.equal(half.state_dict()[key].float(), value.half().float()) for key, value in whole.state_dict().items()
    )


def test_slim__its_artifact_is_a_checkpoint_for_other_methods(root: Path, made: list[RunRecord]) -> None:
    given = [f"checkpoint={root / 'made/slim/artifact'}", *data(root), "latency=false", "compress=[int8_weight]"]
    config = compose_plain("compress", [*given, f"reference={root / 'made/full'}"], root / "again")
    (record,) = runs.compress(config, root / "again")
    assert record.metrics == made[-1].metrics
    assert record.drop == made[-1].drop
    assert record.artifact.bytes == pytest.approx(made[-1].artifact.bytes, rel=1e-3)


def test_slim__cut_and_not_fitted(root: Path) -> None:
    (record,) = compress(root, "cut", "compress.slim.fit_batches=0")
    assert record.artifact.images_used is None
    assert "fit" not in json.loads((root / "cut/slim/slimming_plan.json").read_text())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["compress.slim.model=nano_slm"],
            r"unknown option compress\.slim\.model=nano_slm; did you mean compress\.slim\.model="
            r"nano_slim\? available: ",
        ),
        (["compress.slim.overrides=[model/encoder=l9]"], r"unknown option model/encoder=l9"),
        (["compress.slim.model=full", "compress.slim.overrides=[]"], r"model\.d_model=256: slimming keeps .* 32"),
        (["compress.slim.then=[mixed]"], r"then=mixed must be .*checkpoint=OUTPUT/slim/artifact"),
        (["compress.slim.then=[int8_wieght]"], r"int8_wieght is not a method; did you mean int8_weight"),
        (["compress.slim.fit_batches=-1"], r"fit_batches=-1 must be at least 0"),
        (["compress.calibration_split=test"], r"calibration_split=test is also data\.split"),
    ],
)
def test_slim__bad_input_before_anything_is_measured(root: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        compress(root, "bad", *overrides)
    assert not (root / "bad/full").exists()


def test_slim__too_few_images_says_how_many_are_needed(root: Path) -> None:
    with pytest.raises(
        UserError, match=r"fit_batches=1 gives 2 images of 16 patches.*at least 3 images.*fit_batches=2"
    ):
        compress(root, "few", "compress.slim.fit_batches=1")
    with pytest.raises(UserError, match=r"at least 3 images are needed, and the data have 2: add images"):
        compress(root, "fewer", train=2)
    assert not (root / "few/full").exists()
    assert not (root / "fewer/full").exists()


def test_slim__of_a_quantised_artifact(root: Path, made: list[RunRecord]) -> None:
    with pytest.raises(
        UserError, match=r"compress=slim: the model is already INT8 .* start from its FP32 or FP16 parent"
    ):
        compress(root, "twice", source=root / "made/slim_int8_weight/artifact")


def test_compress__every_method_is_asked_before_anything_is_measured(root: Path, made: list[RunRecord]) -> None:
    """What cannot be is told at once, not after the full model has been measured."""
    model = init_for_training(build_model(SPEC), 0).eval()
    with torch.no_grad():
        model.text_projection.weight[0, 0] = float("nan")
    write_artifact(model, root / "nan")
    narrow = ["compress.int4_weight.group=128", "+compress.int4_weight.rules={parts: [geometry], also: []}"]
    for source, overrides, message in (
        (
            "made/slim_int8_weight/artifact",
            ["compress=[fp16,int8_weight]"],
            r"compress=fp16,int8_weight: .* already INT8",
        ),
        ("made/slim_int8_weight/artifact", ["compress=[sensitivity]"], r"compress=sensitivity: .* already INT8"),
        ("nan", ["compress=[weights_only]"], r"compress=weights_only: text_projection\.weight holds NaN or infinity"),
        ("full", ["compress=[fp16,int4_weight]", *narrow], r"group=128 divides no row"),
    ):
        given = [f"checkpoint={root / source}", *data(root), "latency=false", *overrides]
        with pytest.raises(UserError, match=message):
            runs.compress(compose_plain("compress", given, root / "asked"), root / "asked")
        assert not (root / "asked/full").exists()


def test_slim__activations_that_are_not_finite(root: Path) -> None:
    model = init_for_training(build_model(SPEC), 0).eval()
    with torch.no_grad():
        model.vision_encoder.neck.fpn_layers[0].proj2.weight.fill_(3e38)
    write_artifact(model, root / "broken")
    with pytest.raises(
        UserError, match=r"compress\.slim\.fit_batches: what the model makes of these images is not finite"
    ):
        compress(root, "not_finite", f"reference={root / 'made/full'}", source=root / "broken")


def test_slim__options_without_a_file() -> None:
    assert method_from_name("slim").model == "slim"
