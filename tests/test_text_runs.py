"""A trimmed vocabulary and a prompt bank through evaluate.py, compress.py, train.py and predict."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sam3slim.artifacts import write_artifact
from sam3slim.artifacts.cut import cut_text
from sam3slim.data.shapes import ShapesSpec
from sam3slim.errors import UserError
from sam3slim.launch.compose import compose_plain
from sam3slim.models import build_model, init_for_training
from sam3slim.predict import BoxPrompt, Predictor, PredictSpec, predict_files
from sam3slim.results.record import RunRecord, read_record
from tests import running as runs
from tests.tiny import OVERRIDES, SPEC
from tests.tiny_runs import QUICK, data, evaluate, segm

PHRASES = [category["name"] for category in ShapesSpec().categories()]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``full``, and ``vocabulary`` and ``bank`` made of it."""
    folder = tmp_path_factory.mktemp("text")
    write_artifact(init_for_training(build_model(SPEC)), folder / "full")
    for name in ("vocabulary", "bank"):
        cut_text(folder / "full", folder / name, PHRASES, bank=name == "bank")
    return folder


@pytest.fixture(scope="module")
def full(root: Path) -> RunRecord:
    return evaluate(root / "full", root, "eval_full")


@pytest.mark.parametrize("name", ["vocabulary", "bank"])
def test_evaluate__drop_is_zero(full: RunRecord, root: Path, name: str) -> None:
    record = evaluate(root / name, root, f"eval_{name}", f"reference={root / 'eval_full'}", "latency=true")
    assert segm(record) == segm(full)
    drop = record.drop["segm"]
    assert (drop.points, drop.ci95) == (0.0, (0.0, 0.0))
    before, after = (r.model.params_by_part for r in (full, record))
    assert after["text"] < before["text"]
    assert {part: count for part, count in after.items() if part != "text"} == {
        part: count for part, count in before.items() if part != "text"
    }


@pytest.mark.parametrize("name", ["vocabulary", "bank"])
def test_evaluate__unread_category_stops_before_the_first_image(root: Path, name: str) -> None:
    other = [f"data.root={root / 'other'}", "+data.shapes.colors=[red,orange]"]
    given = [f"checkpoint={root / name}", *data(root), *other]
    out = root / f"eval_other_{name}"
    message = {"vocabulary": r"'orange' is not in the model's vocab", "bank": r"not one of the 24 in .* prompt bank"}
    with pytest.raises(UserError, match=message[name]) as caught:
        runs.evaluate(compose_plain("evaluate", [*given], out), out, {}, "python evaluate.py")
    assert "\n" not in str(caught.value)
    assert read_record(out).status == "failed"


def test_compress__a_bank_in_every_precision(full: RunRecord, root: Path) -> None:
    out = root / "compressed"
    given = [f"checkpoint={root / 'bank'}", *data(root), "latency=false", f"reference={root / 'eval_full'}"]
    methods = "compress=[weights_only,fp16,int8_weight,int8_dynamic,sensitivity]"
    records = runs.compress(compose_plain("compress", [*given, methods], out), out, {}, "python compress.py")
    assert [record.status for record in records] == ["finished"] * 4
    assert segm(records[0]) == segm(full)
    rows = (out / "sensitivity" / "sensitivity.csv").read_text().splitlines()
    groups = [row.split(",")[0] for row in rows[1:]]
    assert "embeddings" in groups
    assert "text" not in groups


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["init=checkpoint", "init.checkpoint={bank}"], "has a prompt bank instead of a text tower, and nothing to tr"),
        (["init=pruned", "init.checkpoint={bank}"], "the full model has a prompt bank instead of a text tower"),
        (["+model.text.bank={{phrases:[a],tokens:[[1]]}}"], "a prompt bank has no text tower to train"),
        (["init=pruned", "init.checkpoint={vocabulary}"], "tokens are not among the 5.. of the full model's trimmed"),
    ],
)
def test_train__not_from_a_bank(root: Path, overrides: list[str], message: str) -> None:
    given = [text.format(bank=root / "bank", vocabulary=root / "vocabulary") for text in overrides]
    out = root / "bad"
    with pytest.raises(UserError, match=message) as caught:
        runs.train(compose_plain("train", [*OVERRIDES, *QUICK, *data(root), *given], out), out, {}, "python train.py")
    assert "\n" not in str(caught.value)


def test_train__goes_on_from_a_trimmed_checkpoint(root: Path) -> None:
    given = ["vocabulary=data", "init=checkpoint", f"init.checkpoint={root / 'vocabulary'}", "eval_at_end=false"]
    out = root / "trained"
    record = runs.train(compose_plain("train", [*OVERRIDES, *QUICK, *data(root), *given], out), out, {}, "train.py")
    assert record.status == "finished"


@pytest.mark.parametrize("name", ["vocabulary", "bank"])
def test_predictor__same_detections(root: Path, name: str) -> None:
    picture = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    boxes = [[BoxPrompt((5, 5, 20, 20))]]  # goes with "visual"
    found = [
        Predictor(root / model, "cpu")(picture, ["red circle", "Square"], threshold=0.0, boxes=boxes)[0]
        for model in ("full", name)
    ]
    assert found[1].labels.tolist() == found[0].labels.tolist()
    assert found[1].scores.tolist() == pytest.approx(found[0].scores.tolist(), abs=1e-5)


def test_predict__unread_phrase_stops_before_the_first_image(root: Path, full: RunRecord) -> None:
    images = [str(root / "shapes" / "test")]
    for name, message in (
        ("vocabulary", "'ring' is not in the model's vocabulary"),
        ("bank", "phrase 'ring' is not"),
    ):
        spec = PredictSpec(str(root / name), images, str(root / f"predicted_{name}"), prompts=["ring"], device="cpu")
        with pytest.raises(UserError, match=message):
            predict_files(spec, progress=False)
    spec = PredictSpec(str(root / "bank"), images, str(root / "predicted"), prompts=["red circle"], device="cpu")
    assert predict_files(spec, progress=False).images == 4


def test_inspect__json_of_a_bank(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from sam3slim.cli import main

    assert main(["inspect", str(root / "bank")]) == 0
    assert "bank of 24 phrases instead of a tower" in capsys.readouterr().out
    assert main(["inspect", str(root / "vocabulary")]) == 0
    assert "trimmed from 600" in capsys.readouterr().out
