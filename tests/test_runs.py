"""train.py on real files, with a model of milliseconds."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import CLIPTokenizer, Sam3Model

from sam3slim.checkpoints import load
from sam3slim.data.shapes import ShapesSpec
from sam3slim.errors import UserError
from sam3slim.launch.compose import compose_plain
from sam3slim.results.collect import machine
from sam3slim.results.record import RunRecord, read_record
from sam3slim.runs.specs import TrainSpec
from sam3slim.runs.vocabulary import data_phrases
from sam3slim.specs import TextSpec
from sam3slim.strict import spec_from_dict
from sam3slim.text.phrases import encode_phrases, tokenizer_of
from sam3slim.text.vocabulary import kept_tokens, trim
from tests import running as runs
from tests.distill.lessons import EVERYTHING
from tests.tiny import OVERRIDES
from tests.tiny_runs import QUICK, SLIMMER, data, evaluate, root, segm, train, trained

__all__ = ["root", "trained"]


def test_train__leaves_what_a_user_needs(trained: tuple[RunRecord, Path]) -> None:
    record, out = trained
    assert read_record(out).status == "finished"
    assert record.latency_ms.p50 is None  # trials may run side by side
    assert (out / "csv/metrics.csv").stat().st_size > 0
    for name in ("best", "last"):
        content = torch.load(out / f"checkpoints/{name}.ckpt", weights_only=True)
        assert {"state_dict", "optimizer_states", "hyper_parameters"} <= content.keys()
    metadata = json.loads((out / "artifact/sam3slim.json").read_text())
    assert metadata["metrics"]["segm"]["map"] == segm(record)["map"]
    assert metadata["extra"]["training_seconds"] >= 0
    plain = Sam3Model.from_pretrained(out / "artifact")
    assert sum(p.numel() for p in plain.parameters()) == record.model.params


def test_train__compress_after_counts_drops_from_the_training_itself(root: Path) -> None:
    given = ["trainer.max_steps=0", "compress_after=[fp16]", "latency=true"]
    config = compose_plain("train", [*OVERRIDES, *QUICK, *data(root), *given], root / "after")
    full, half = runs.train_and_compress(config, root / "after").records
    assert not (root / "after/compressed/full").exists()  # the model is not measured again
    lost = 100 * (segm(full)["map"] - segm(half)["map"])
    assert half.drop["segm"].points == pytest.approx(lost, abs=1e-4)
    assert full.latency_ms.p50 is not None
    assert machine(full) == machine(half)  # measured too, and comparable


def test_train__averaged_weights_are_measured_and_exported(root: Path) -> None:
    record, out = train(root, "averaged", "callbacks=ema", "callbacks.ema.decay=0.5")
    content = torch.load(out / "checkpoints/best.ckpt", weights_only=True)
    average, current = content["state_dict"], content["current_model_state"]
    assert any(not torch.equal(average[name], current[name]) for name in average)
    exported = load(out / "artifact")[0].state_dict()
    for name, value in exported.items():
        assert torch.equal(value, average[f"model.{name}"]), name
    assert segm(evaluate(out, root, "eval_averaged")) == segm(record)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["init=checkpoint", "init.checkpoint=nowhere"], "nowhere does not exist"),
        (["init=checkpoint", "init.checkpoint={full}", "model.vit.depth=1"], "another architecture"),
        (["init=pruned", "init.checkpoint={full}", "model.vit.depth=3"], "model.vit.depth"),
        (["init=pruned", "init.checkpoint="], "init.checkpoint is missing"),
        (["init=pruned", "init.checkpoint=x", "init.allow_fresh=[text]"], "allow_fresh=.* is for init=checkpoint"),
        (["init=scratch", "init.fit_batches=4"], "init.fit_batches=4 is for init=pruned; init=scratch cuts nothing"),
        (
            ["init=checkpoint", "init.checkpoint=x", "init.importance=taylor"],
            "init.importance=taylor is for init=pruned",
        ),
        (["init=pruned", "init.checkpoint=x", "init.importance_batches=0"], "importance_batches=0 must be at least 1"),
        (["init=pruned", "init.checkpoint=x", "init.fit_batches=-1"], "fit_batches=-1 must be at least 0"),
        (
            ["init=pruned", "init.checkpoint=x", "init.importance=uniform", "init.depth=importance"],
            "init.importance=uniform ranks nothing",
        ),
        (
            ["init=pruned", "init.checkpoint={full}", "init.importance=taylor", "distill=full", "distill.labels=false"],
            "init.importance=taylor needs the loss against labels",
        ),
        (["distill=full", "distill.teacher=nowhere"], "distill.teacher: .*nowhere does not exist"),
        (["distill=full", "distill.teacher={full}", "distill.cache={list}"], "distill.cache=.* is a file"),
        (["distill=full", "distill.teacher={full}", "distill.cache_limit_gb=0"], "cache_limit_gb=0 must be above 0"),
        (["distill=full", "distill.teacher=assets/nano"], "distill.teacher has model.d_model=64, the student 32"),
        (["distill.labels=false"], "distill.teacher is missing"),
        (["resume=nowhere.ckpt"], "resume=nowhere.ckpt is not a file"),
        (["resume={full}/checkpoints/last.ckpt", "vocabulary=data"], "another architecture: text.vocab_size is 600"),
        (["resume={full}/checkpoints/last.ckpt", "trainer.max_steps=1"], "max_steps=1 is less than the . steps that"),
        (["resume={full}/artifact/model.safetensors"], "holds weights .*, no training to go on with"),
        (["resume={full}/checkpoints/last.ckpt", "optim.freeze=[text]"], r"optim.freeze is \[\] in .* \['text'\] here"),
        (["resume={full}/checkpoints/last.ckpt", "optim=adamw8bit"], "optim.kind is adamw in .* and adamw8bit here"),
        (["resume={full}/checkpoints/last.ckpt", "optim.layer_decay=0.8"], "layer_decay is 1.0 in .* and 0.8 here"),
        (["resume={full}/checkpoints/last.ckpt", "optim.lr_geometry=0.1"], "lr_geometry is None in .* and 0.1 here"),
        (["resume={full}/checkpoints/last.ckpt", "optim.decay_too=[x]"], r"optim.decay_too is \[\] in .* \['x'\] here"),
        (["vocabulary=nowhere.txt"], "cannot read nowhere.txt"),
        (
            ["distill=features", "distill.teacher={full}", "distill.labels=false"],
            "distill.labels=false with init=scratch, but nothing teaches some outputs",
        ),
        (["vocabulary={list}"], "phrase 'triangle': 'triangle' is not in the model's vocabulary"),
        (["init=checkpoint", "init.checkpoint={full}", "vocabulary=data"], "text.vocab_size is 600 in"),
        (["data.split=tset"], "data.split=tset"),
        (["data=coco", "data.root=nowhere"], "nowhere"),
    ],
)
def test_train__bad_input_is_one_line(
    trained: tuple[RunRecord, Path], root: Path, overrides: list[str], message: str
) -> None:
    (root / "phrases.txt").write_text("Red  circle\n\nsquare\nRed circle\n")
    given = [text.format(full=trained[1], list=root / "phrases.txt") for text in overrides]
    base = [*OVERRIDES, *QUICK] if "data=coco" in given else [*OVERRIDES, *QUICK, *data(root)]
    out = root / "bad"
    with pytest.raises(UserError, match=message) as caught:
        runs.train(compose_plain("train", [*base, *given], out), out, {}, "python train.py")
    assert "\n" not in str(caught.value)
    assert not (out / "checkpoints").exists()


def test_train__vocabulary_of_the_data(trained: tuple[RunRecord, Path], root: Path) -> None:
    given = ["vocabulary=data", "init=pruned", f"init.checkpoint={trained[1]}"]
    record, out = train(root, "trimmed", *given)
    full, spec = load(trained[1])[0], load(out)[0].spec
    assert spec.text == trim([c["name"] for c in ShapesSpec().categories()], full.spec.text)
    assert spec.text.vocab_size < 560
    saved = trained[0].model.params - record.model.params
    assert saved == 32 * (600 - spec.text.vocab_size)
    plan = json.loads((out / "slimming_plan.json").read_text())
    assert plan["axes"]["text.tokens"]["kept"] == list(kept_tokens(full.spec.text, spec.text))
    tokenizer = CLIPTokenizer.from_pretrained(out / "artifact")
    assert tokenizer("small red circle").input_ids == tokenizer_of(spec.text)("small red circle").input_ids
    assert segm(evaluate(out / "artifact", root, "eval_trimmed")) == segm(record)
    again, _ = train(root, "trimmed", *given, "trainer.max_steps=6", "resume=auto")
    assert (again.status, again.model) == ("finished", record.model)


def test_train__vocabulary_of_a_list_from_scratch(root: Path) -> None:
    names = [category["name"] for category in ShapesSpec().categories()]
    (root / "names.txt").write_text("\n".join([*names, "", "yellow bus"]))
    _, out = train(root, "listed", f"vocabulary={root / 'names.txt'}", "eval_at_end=false")
    text = load(out)[0].spec.text
    assert text.vocabulary == trim([*names, "yellow bus"], TextSpec(vocab_size=600)).vocabulary
    with pytest.raises(UserError, match=r"phrase 'green bust': 'bust' is not in the model's vocabulary"):
        encode_phrases(text, ["green bust"])


def test_data_phrases__every_split_that_is_read(root: Path) -> None:
    folder = root / "three"
    folder.mkdir()
    for split, name in (("train", "red_Circle"), ("val", "cup"), ("test", "dog")):
        categories = [{"id": 1, "name": name}, {"id": 2, "name": "tree"}]
        content = {"images": [{"id": 1}], "annotations": [], "categories": categories}
        (folder / f"instances_{split}.json").write_text(json.dumps(content))
    config = compose_plain("train", ["data=coco", f"data.root={folder}", "vocabulary=data"], root)
    spec = spec_from_dict(TrainSpec, config, "")
    assert data_phrases(spec) == ["red circle", "tree", "cup", "dog"]
    assert data_phrases(replace(spec, eval_at_end=False)) == ["red circle", "tree", "cup"]
    # Pictures without annotations bring their own list.
    (root / "list.txt").write_text("Green  Star\ncup\n")
    soft = replace(EVERYTHING, labels=False)
    data = replace(spec.data, phrases=str(root / "list.txt"))
    listed = replace(spec, data=data, distill=soft, eval_at_end=False)
    assert data_phrases(listed)[:2] == ["green star", "cup"]
    assert data_phrases(replace(listed, trainer={**listed.trainer, "limit_val_batches": 0})) == ["green star", "cup"]


def test_train__resume_goes_on_and_tells_what_differs(
    trained: tuple[RunRecord, Path], root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, out = trained
    given = ["trainer.max_steps=6", "optim.lr=1e-5", "logger=none", f"resume={out / 'checkpoints/last.ckpt'}"]
    record, _ = train(root, "full_longer", *given)
    told = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("going on from"))
    assert "other settings than it was saved with: logger.csv._target_ " in told
    assert "optim.lr 0.0003 → 1e-05" in told
    assert "trainer.max_steps 4 → 6" in told
    assert "dirpath" not in told
    content = torch.load(root / "full_longer/checkpoints/last.ckpt", weights_only=True)
    assert content["global_step"] == 6
    assert record.status == "finished"


@pytest.mark.parametrize("listed", [True, False])
def test_train__resume_with_other_trained_parameters_is_one_line(
    trained: tuple[RunRecord, Path], root: Path, listed: bool
) -> None:
    content = torch.load(trained[1] / "checkpoints/last.ckpt", weights_only=True)
    if not listed:  # as checkpoints were before their list was kept
        del content["hyper_parameters"]["unused"]
    torch.save(content, root / "other.ckpt")
    given = ["data.boxes.share=0.5", "trainer.max_steps=6", f"resume={root / 'other.ckpt'}"]
    with pytest.raises(UserError, match=r"optimiser state of \d+ parameters.*data.boxes.share went to or from 0"):
        train(root, f"boxes_later_{listed}", *given)


def test_train__begins_in_no_folder_of_an_earlier_run(trained: tuple[RunRecord, Path], root: Path) -> None:
    before = (trained[1] / "checkpoints/best.ckpt").read_bytes()
    with pytest.raises(UserError, match=r"full/checkpoints is an earlier run's: go on with resume=auto, choose"):
        train(root, "full", "seed=1")
    assert (trained[1] / "checkpoints/best.ckpt").read_bytes() == before
    assert read_record(trained[1]) == trained[0]


def test_train__without_validation_the_last_weights_are_the_result(root: Path) -> None:
    _, out = train(root, "half_validated", "eval_at_end=false")
    given = ["trainer.limit_val_batches=0", "trainer.max_steps=6", "eval_at_end=false", "resume=auto"]
    train(root, "half_validated", *given)
    last = torch.load(out / "checkpoints/last.ckpt", weights_only=True)
    assert last["global_step"] == 6
    for name, value in load(out / "artifact")[0].state_dict().items():
        assert torch.equal(value, last["state_dict"][f"model.{name}"]), name


def test_train__teaching_is_checked_before_anything_is_cut(
    trained: tuple[RunRecord, Path], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("cut first")

    monkeypatch.setattr(sys.modules["sam3slim.runs.train"], "initial_model", never)
    cut = [*SLIMMER, "init=pruned", f"init.checkpoint={trained[1]}", "distill=full"]
    with pytest.raises(UserError, match="nowhere"):
        train(root, "unchecked", *cut, "distill.teacher=nowhere")
    with pytest.raises(UserError, match="needs pictures that come again"):
        train(root, "unchecked", *cut, f"distill.cache={root / 'predictions'}", "data.augment.photometric=0.5")


def test_train__is_measured_where_it_was_trained(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["sam3slim.runs.train"]
    moved = []

    def to_device(model: Any, device: torch.device, precision: str) -> Any:
        moved.append((device.type, precision))
        return model

    monkeypatch.setattr(module, "training_device", lambda spec: torch.device("cuda", 1))
    monkeypatch.setattr(module, "to_device", to_device)
    train(root, "elsewhere", "trainer.max_steps=1", "trainer.val_check_interval=1")
    assert moved == [("cuda", "fp32")]


def test_train__a_split_to_measure_is_looked_for_before_training(root: Path) -> None:
    folder = root / "no_test_split"
    folder.mkdir()
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 8, "width": 8}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 4, 4], "area": 16, "iscrowd": 0}],
        "categories": [{"id": 1, "name": "cup"}],
    }
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    for split in ("train", "val"):
        (folder / f"instances_{split}.json").write_text(json.dumps(content))
    plain = compose_plain("train", [*OVERRIDES, *QUICK, "data=coco", f"data.root={folder}"], root / "unmeasured")
    with pytest.raises(UserError, match=r"no file fits the test split .* or another split with data\.split"):
        runs.train(plain, root / "unmeasured", {}, "python train.py")
