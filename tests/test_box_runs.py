"""Box prompts through the commands: training, evaluation, drops, compression, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sam3slim.checkpoints import load
from sam3slim.data.spec import DataSpec, recorded_data
from sam3slim.errors import UserError
from sam3slim.launch.compose import compose_plain
from sam3slim.models import build_model, init_for_training
from sam3slim.results.record import RunRecord, plain, read_record
from sam3slim.runs.reference import load_reference
from tests import running as runs
from tests.tiny import OVERRIDES
from tests.tiny_runs import QUICK, data, evaluate, train

BOXES = ["data.boxes.share=0.8", "trainer.val_check_interval=4"]
BOX = ["data.prompts=box", "data.protocol=present"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("boxes")


@pytest.fixture(scope="module")
def trained(root: Path) -> tuple[RunRecord, Path]:
    return train(root, "boxes", *BOXES)


@pytest.fixture(scope="module")
def alone(trained: tuple[RunRecord, Path], root: Path) -> RunRecord:
    return evaluate(trained[1], root, "eval_box", *BOX)


def scores(record: RunRecord) -> dict[str, float]:
    """Mean presence and best score: they differ where the mAP of a model that has learnt nothing does not."""
    return {key: value or 0.0 for key, value in record.metrics.calibration.items()}


def test_train__boxes_change_what_is_learnt(trained: tuple[RunRecord, Path], root: Path) -> None:
    record, _ = trained
    plain, _ = train(root, "plain", "trainer.val_check_interval=4")
    assert record.data.prompt_kind is None
    assert scores(record) != scores(plain)
    learnt, left = (load(root / run / "artifact")[0].geometry_encoder.label_embed.weight for run in ("boxes", "plain"))
    start = init_for_training(build_model(load(root / "plain/artifact")[0].spec), 0).geometry_encoder.label_embed.weight
    assert torch.equal(left, start)
    assert (learnt != start).all()


def test_evaluate__box_alone_is_recorded_and_differs_from_text(
    trained: tuple[RunRecord, Path], alone: RunRecord, root: Path
) -> None:
    text = evaluate(trained[1], root, "eval_text", "data.protocol=present")
    both = evaluate(trained[1], root, "eval_both", "data.prompts=text+box", "data.protocol=present")
    assert (alone.data.prompt_kind, alone.data.box_noise) == ("box", [0.1, 0.02])
    assert alone.data.prompts == text.data.prompts
    assert len({str(scores(record)) for record in (alone, text, both)}) == 3
    again = evaluate(trained[1], root, "eval_again", *BOX, "seed=3")
    assert again.metrics == alone.metrics


def test_evaluate__drops_between_equal_prompts_only(
    trained: tuple[RunRecord, Path], alone: RunRecord, root: Path
) -> None:
    given = [f"reference={root / 'eval_box'}", "data.protocol=present"]
    same = evaluate(trained[1], root, "eval_same", *given, "data.prompts=box")
    assert same.drop["segm"].points == 0
    for other in ("data.prompts=text", "data.prompts=text+box"):
        with pytest.raises(UserError, match=r"eval_box was measured with data\.prompts=box, box noise .*this run with"):
            evaluate(trained[1], root, "eval_other", *given, other)
    with pytest.raises(UserError, match=r"box noise \[0\.1, 0\.02\], this run with .*box noise \[0\.3, 0\.02\]"):
        evaluate(trained[1], root, "eval_other", *given, "data.prompts=box", "data.boxes.noise=0.3")


def test_recorded_data__asks_again_what_was_asked(alone: RunRecord) -> None:
    spec = recorded_data(plain(replace(alone.data, box_noise=[0.2, 0.5])))
    assert (spec.prompts, spec.protocol, spec.boxes.noise, spec.boxes.noise_limit) == ("box", "present", 0.2, 0.5)
    assert recorded_data(plain(replace(alone.data, prompt_kind=None, box_noise=None))).prompts == "text"


def test_load_reference__a_record_older_than_boxes_was_asked_phrases(alone: RunRecord, root: Path) -> None:
    spec = DataSpec("coco", "anywhere", protocol="present")
    with pytest.raises(UserError, match=r"data\.prompts=box"):
        load_reference(root / "eval_box", spec)
    path = root / "eval_box" / "record.json"
    text = path.read_text()
    try:
        path.write_text(text.replace('"prompt_kind"', '"former_1"').replace('"box_noise"', '"former_2"'))
        assert load_reference(root / "eval_box", spec).boxes == {}
    finally:
        path.write_text(text)


def test_compress__measures_boxes(trained: tuple[RunRecord, Path], root: Path) -> None:
    out = root / "compressed"
    given = [f"checkpoint={trained[1]}", *data(root), *BOX, "latency=false", "compress=[fp16]"]
    (record,) = runs.compress(compose_plain("compress", given, out), out, {}, "python compress.py")
    assert record.data.prompt_kind == "box"
    assert record.drop
    assert read_record(out / "full").data == record.data


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.boxes.share=1.5"], r"data\.boxes\.share=1\.5: expected a share"),
        (["data.boxes.noise=0.7"], r"data\.boxes\.noise=0\.7: expected 0\.\.0\.5"),
        (["data.boxes.noise_limit=0"], r"data\.boxes\.noise_limit=0"),
        (["data.boxes.max_boxes=0"], r"data\.boxes\.max_boxes=0: expected at least 1"),
        (["data.prompts=box"], r"data\.prompts=box with data\.protocol=all.*set data\.protocol=present"),
        (["data.prompts=boxes"], r"data\.prompts=boxes: expected text, box, text\+box"),
        (["data.protocol=some"], r"data\.protocol=some: expected"),
        (
            ["data.boxes.share=0.5", "distill=full", "distill.teacher=assets/nano", "distill.labels=false"],
            r"data\.boxes\.share=0\.5: boxes are drawn from annotations.*set distill\.labels=true",
        ),
        (
            ["data.boxes.share=0.5", "distill=full", "distill.teacher=assets/nano", "distill.cache=x"],
            r"data\.boxes\.share=0\.5: distill\.cache keeps .*set distill\.cache=null",
        ),
    ],
)
def test_train__box_settings_that_cannot_be(root: Path, overrides: list[str], message: str) -> None:
    out = root / "bad"
    with pytest.raises(UserError, match=message) as caught:
        runs.train(compose_plain("train", [*OVERRIDES, *QUICK, *data(root), *overrides], out), out, {}, "x")
    assert "\n" not in str(caught.value)
