"""What a run says of the data it reads: at its top, in its record, and in what it refuses."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from sam3slim.data.opening import open_annotated
from sam3slim.data.spec import recorded_data
from sam3slim.errors import UserError
from sam3slim.launch.compose import compose_plain
from sam3slim.results.record import RunRecord, plain, read_record
from tests import running as runs
from tests.data.plain_set import Content, written
from tests.data.plain_set import plain as plain_set
from tests.tiny import OVERRIDES

QUICK = [
    "trainer=cpu", "trainer.enable_progress_bar=false", "trainer.max_steps=2", "trainer.val_check_interval=2",
    "trainer.log_every_n_steps=1", "schedule.warmup_steps=1", "logger=none", "data=coco", "data.batch_size=2",
    "data.num_workers=0",
]  # fmt: skip


def train(out: Path, root: Path, *overrides: str) -> RunRecord:
    config = compose_plain("train", [*OVERRIDES, *QUICK, f"data.root={root}", *overrides], out)
    return runs.train(config, out)


def evaluate(out: Path, root: Path, checkpoint: Path, *overrides: str) -> RunRecord:
    given = [f"checkpoint={checkpoint}", "data=coco", f"data.root={root}", "latency=false", "data.num_workers=0"]
    return runs.evaluate(compose_plain("evaluate", [*given, *overrides], out), out)


def odd_set() -> Content:
    content = plain_set()
    content["annotations"][0]["area"] = -1
    content["annotations"][1]["bbox"] = []
    return content


def test_train__lists_what_it_read_before_it_starts_and_records_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = written(tmp_path / "set", odd_set())
    (tmp_path / "p.yaml").write_text("cup: [mug, beaker]\n")
    with caplog.at_level(logging.INFO, "sam3slim"):
        record = train(tmp_path / "run", root, f"data.prompts={tmp_path / 'p.yaml'}")
    told = [line for line in caplog.messages if "read: 3 images" in line]
    assert len(told) == 3  # val and test as soon as train
    assert all("changed: 1 areas are not positive" in line for line in told)
    kept = read_record(tmp_path / "run").data
    assert list(kept.read) == ["val", "test", "train"]
    changed = kept.read["test"]["changed"]
    assert {name: item["count"] for name, item in changed.items()} == {
        "boxes_from_masks": 1, "areas_from_masks": 1, "phrases_replaced": 1,
    }  # fmt: skip
    assert changed["boxes_from_masks"]["first"] == "annotation 2, []"
    assert kept.prompts_file == str(tmp_path / "p.yaml")
    assert recorded_data(plain(record.data)).prompts == str(tmp_path / "p.yaml")
    other = evaluate(tmp_path / "eval", root, tmp_path / "run")
    assert other.data.identity != kept.identity  # asked with other phrases
    same = evaluate(tmp_path / "eval2", root, tmp_path / "run", f"data.prompts={tmp_path / 'p.yaml'}")
    assert same.data.identity == kept.identity


def test_train__a_broken_test_split_stops_it_before_its_first_step(tmp_path: Path) -> None:
    root = written(tmp_path / "set", odd_set())
    (root / "instances_test.json").write_text(json.dumps({**odd_set(), "categories": []}))
    (root / "instances_val.json").write_text(json.dumps(odd_set()))
    with pytest.raises(UserError, match=r"instances_test\.json lists no categories"):
        train(tmp_path / "run", root)
    assert not (tmp_path / "run/checkpoints").exists()


def test_train__tells_of_images_that_it_measures_and_trains_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = written(tmp_path / "set", plain_set())  # one file for all splits
    train(tmp_path / "run", root)
    seen = [line for line in caplog.messages if "are trained on as well" in line]
    assert [line.partition(" split of")[0] for line in seen] == [
        f"3 of the 3 images of the {split}" for split in ("val", "test")
    ]
    caplog.clear()
    for split, kept in (("train", [1, 2]), ("val", [3]), ("test", [3])):
        content = plain_set()
        content["images"] = [image for image in content["images"] if image["id"] in kept]
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] in kept]
        (root / f"instances_{split}.json").write_text(json.dumps(content))
    train(tmp_path / "other", root)
    assert not [line for line in caplog.messages if "are trained on as well" in line]


def test_missing_pictures__leaving_them_out_is_advice_only_if_some_are_there(tmp_path: Path) -> None:
    root = written(tmp_path / "set", plain_set())
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"3 of 3 images .* are not in .*; add them, or set data\.images$"):
        open_annotated(root, "train", images=tmp_path / "empty")
    (root / "images/2.png").unlink()
    with pytest.raises(UserError, match=r"1 of 3 images .*, or set data\.on_unreadable=skip$"):
        open_annotated(root, "train")


def test_runs__a_folder_of_another_command_keeps_its_record(tmp_path: Path) -> None:
    root = written(tmp_path / "set", plain_set())
    train(tmp_path / "run", root, "trainer.max_steps=0")
    before = (tmp_path / "run/record.json").read_bytes()
    with pytest.raises(UserError, match="holds the record of a run of train, which evaluate would replace; choose"):
        evaluate(tmp_path / "run", root, tmp_path / "run")
    assert (tmp_path / "run/record.json").read_bytes() == before
    evaluate(tmp_path / "evaluated", root, tmp_path / "run")
    evaluate(tmp_path / "evaluated", root, tmp_path / "run")  # once more is the same command's business
    with pytest.raises(UserError, match="a run of evaluate, which train would replace"):
        runs.train_and_compress(
            compose_plain("train", [*OVERRIDES, *QUICK, f"data.root={root}"]), tmp_path / "evaluated"
        )


@pytest.mark.parametrize("command", ["evaluate", "compress"])
def test_runs__a_wrong_data_root_is_told_before_weights_are_read(tmp_path: Path, command: str) -> None:
    (tmp_path / "checkpoint").mkdir()  # which would be refused as well
    given = [f"checkpoint={tmp_path / 'checkpoint'}", "data=coco", f"data.root={tmp_path}"]
    config = compose_plain(command, given, tmp_path / "run")
    with pytest.raises(UserError, match=f"data.root={tmp_path} holds no annotations of the test split"):
        getattr(runs, command)(config, tmp_path / "run")


def test_evaluate__a_limit_without_objects_is_told_before_the_model_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = plain_set()
    content["annotations"] = [item for item in content["annotations"] if item["image_id"] == 3]
    root = written(tmp_path / "set", content)
    train(tmp_path / "run", root, "trainer.max_steps=0", "eval_at_end=false")
    with pytest.raises(UserError, match=r"limit=2: no object is in the first 2 images .* set limit=3 or more"):
        evaluate(tmp_path / "eval", root, tmp_path / "run", "limit=2")
    record = evaluate(tmp_path / "eval", root, tmp_path / "run", "limit=3")  # as the message says
    assert record.metrics.values["bbox"]["map"] is not None
