"""train.py with a slimmer model: what it inherits, and what it is taught."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

from sam3slim.checkpoints import load
from sam3slim.errors import UserError
from sam3slim.launch.compose import compose_plain
from sam3slim.results.record import RunRecord, read_record
from sam3slim.runs.initial import data_scores
from sam3slim.runs.specs import TrainSpec
from sam3slim.runs.teacher import training_data
from sam3slim.runs.vocabulary import with_vocabulary
from sam3slim.strict import spec_from_dict
from tests import running as runs
from tests.tiny import OVERRIDES
from tests.tiny_runs import QUICK, SLIMMER, data, root, train, trained

__all__ = ["root", "trained"]


def test_train__pruned_and_distilled(trained: tuple[RunRecord, Path], root: Path) -> None:
    slimmer = [*SLIMMER, "init=pruned", f"init.checkpoint={trained[1]}", "distill=features"]
    record, out = train(root, "slim", *slimmer)
    assert record.model.params < trained[0].model.params
    content = torch.load(out / "checkpoints/last.ckpt", weights_only=True)
    assert len(content["state_dict"]) == len(load(out)[0].state_dict())
    assert "distill_fpn" in (out / "csv/metrics.csv").read_text().splitlines()[0]
    assert json.loads((out / "slimming_plan.json").read_text())["importance"] == "magnitude"


def test_train__cut_and_fitted(trained: tuple[RunRecord, Path], root: Path) -> None:
    narrow = ["model.vit.embed_dim=16", "model.vit.num_heads=1"]
    _, out = train(
        root, "fitted", *SLIMMER, *narrow, "init=pruned", f"init.checkpoint={trained[1]}", "init.fit_batches=2"
    )
    fit = json.loads((out / "slimming_plan.json").read_text())["fit"]
    assert 0 < fit["variance"] < 1
    assert all(after < before for before, after in zip(fit["before"], fit["after"], strict=True))
    made = json.loads((out / "artifact/sam3slim.json").read_text())["extra"]["slimming"]
    assert made["fit_images"] == fit["images"] > 0


def test_train__at_another_image_size(
    trained: tuple[RunRecord, Path], root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    size = "model.vit.image_size=24"
    _, out = train(root, "smaller_images", *SLIMMER, "init=pruned", f"init.checkpoint={trained[1]}", size)
    assert "image size: 24 px instead of the 32 px that the weights were trained at" in capsys.readouterr().out
    assert load(out)[0].spec.vit.image_size == 24


def test_train__taught_everything_with_and_without_labels(trained: tuple[RunRecord, Path], root: Path) -> None:
    given = [*SLIMMER, "init=pruned", f"init.checkpoint={trained[1]}", "distill=full", "distill.min_score=0.02"]
    _, out = train(root, "full_distill", *given)
    columns = (out / "csv/metrics.csv").read_text().splitlines()[0]
    assert {"train/distill_scores", "train/distill_mask", "train/loss_cls"} <= set(columns.split(","))
    _, out = train(root, "no_labels", *given, "distill.labels=false", "init.importance=activation")
    columns = (out / "csv/metrics.csv").read_text().splitlines()[0]
    assert "train/distill_scores" in columns
    assert "train/loss_cls" not in columns
    assert read_record(out).status == "finished"


def test_train__pictures_without_annotations(trained: tuple[RunRecord, Path], root: Path) -> None:
    """A COCO file without annotations; pictures and phrases; and no labelled split at all."""
    source = root / "shapes/annotations"
    others = ",".join(f"{split}:{source}/instances_{split}.json" for split in ("val", "test"))
    bare = json.loads((source / "instances_train.json").read_text()) | {"annotations": []}
    (root / "bare_train.json").write_text(json.dumps(bare))
    given = [f"init.checkpoint={trained[1]}", "distill=full", "distill.min_score=0.02"]
    files = f"data.annotations={{train:{root}/bare_train.json,{others}}}"
    record, _ = train(root, "bare", "init=checkpoint", *given, files, "distill.labels=false")
    assert record.status == "finished"
    with pytest.raises(UserError, match=r"bare_train.json has no usable target .*distill.labels=false"):
        train(root, "bare_labels", "init=checkpoint", *given, files)
    (root / "phrases.txt").write_text("red circle\n\nblue square\nred  circle\n")
    pictures = [f"data.phrases={root / 'phrases.txt'}", "data.images={train: train}"]
    record, _ = train(root, "pictures", "init=checkpoint", *given, *pictures, "distill.labels=false")
    assert record.status == "finished"
    # Nothing labelled anywhere: the last weights are the result, and nothing is measured.
    alone = ["data=coco", f"data.root={root / 'shapes/train'}", "data.num_workers=0", "data.batch_size=2"]
    alone += [f"data.phrases={root / 'phrases.txt'}", "trainer.limit_val_batches=0", "eval_at_end=false"]
    out = root / "alone"
    config = compose_plain(
        "train", [*OVERRIDES, *QUICK, *alone, "init=checkpoint", *given, "distill.labels=false"], out
    )
    assert not runs.train(config, out, {}, "python train.py").metrics
    assert (out / "artifact/model.safetensors").is_file()
    assert not (out / "checkpoints/best.ckpt").exists()
    with pytest.raises(UserError, match=r"data\.phrases=.*set distill=full distill\.labels=false"):
        train(root, "pictures_labels", "init=checkpoint", *given, *pictures)


def test_train__taught_from_a_cache(
    trained: tuple[RunRecord, Path], root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [*SLIMMER, "init=pruned", f"init.checkpoint={trained[1]}", "distill=full", "distill.min_score=0.02"]
    live = train(root, "live", *given)[1]
    cache = [f"distill.cache={root / 'cache'}"]
    first = train(root, "cached", *given, *cache)[1]
    assert "teacher cache in" in capsys.readouterr().out
    # The second run needs no teacher in memory.
    monkeypatch.setattr("sam3slim.runs.teacher._asked", lambda *_: pytest.fail("the teacher was loaded again"))
    second = train(root, "cached_again", *given, *cache)[1]
    assert "all 16 views are there" in capsys.readouterr().out

    def losses(out: Path) -> list[float]:
        with (out / "csv/metrics.csv").open() as file:
            return [float(row["train/loss"]) for row in csv.DictReader(file) if row.get("train/loss")]

    assert losses(first) == losses(second)
    assert losses(first) == pytest.approx(losses(live), rel=2e-3)
    with pytest.raises(UserError, match=r"distill\.cache needs pictures that come again"):
        train(root, "bad_cache", *given, *cache, "data.augment.photometric=0.5")
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"distill\.cache_limit_gb=1e-06"):
        train(root, "bad_cache", *given, f"distill.cache={root / 'small'}", "distill.cache_limit_gb=0.000001")
    assert not list((root / "small").rglob("*.safetensors"))


@pytest.mark.parametrize("importance", ["activation", "taylor"])
def test_train__pruned_by_data(trained: tuple[RunRecord, Path], root: Path, importance: str) -> None:
    given = [f"init.importance={importance}", "init.depth=importance", "init.importance_batches=2"]
    _, out = train(root, f"by_{importance}", *SLIMMER, "init=pruned", f"init.checkpoint={trained[1]}", *given)
    plan = json.loads((out / "slimming_plan.json").read_text())
    metadata = {"importance": importance, "depth": "importance", "batches": 2, "seed": 0}
    assert metadata.items() <= plan.items()
    assert plan["axes"]["vit[0].neurons"]["how"] == importance
    assert plan["axes"]["vit.blocks"]["how"] == "block influence, kind with kind"
    assert json.loads((out / "artifact/sam3slim.json").read_text())["extra"]["slimming"] == metadata
    again = train(root, f"by_{importance}_again", *SLIMMER, "init=pruned", f"init.checkpoint={trained[1]}", *given)[1]
    assert json.loads((again / "slimming_plan.json").read_text()) == plan


@pytest.mark.parametrize("importance", ["taylor", "activation"])
def test_data_scores__of_the_phrases_whatever_their_tokens(
    trained: tuple[RunRecord, Path], root: Path, importance: str
) -> None:
    """A student with a trimmed vocabulary has other token ids than the model whose units are scored."""
    source, _ = load(trained[1])
    found = []
    for more in ([], ["vocabulary=data"]):
        given = ["init=pruned", f"init.checkpoint={trained[1]}", f"init.importance={importance}", *SLIMMER, *more]
        config = compose_plain("train", [*OVERRIDES, *QUICK, *data(root), *given], root / "scores")
        spec = with_vocabulary(spec_from_dict(TrainSpec, config, ""))
        torch.manual_seed(0)
        before = torch.get_rng_state()
        found.append(data_scores(source, spec, training_data(spec)))
        assert torch.equal(torch.get_rng_state(), before)
    assert found[0].units.keys() == found[1].units.keys()
    for axis, scores in found[0].units.items():
        assert torch.equal(scores, found[1].units[axis]), axis
