"""Every recipe takes its first steps in its own precision and strategy, through ``train.py``'s own path.

A recipe that cannot be rehearsed is a failing test. Those of two processes are rehearsed beside the experiments.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sam3slim.errors import UserError
from sam3slim.launch.compose import compose_plain
from tests import running as runs
from tests.rehearsal.pairs import all_pairs, pairs_of
from tests.rehearsal.running import SHAPES_SIZES, SHORT, check_result, make_data, watch
from tests.tiny import OVERRIDES

CLIP = 0.05
AXES: dict[str, dict[str, list[str]]] = {
    "precision": {name: [f"trainer.precision={name}"] for name in ("32-true", "bf16-mixed", "16-mixed")},
    "processes": {
        "one": ["trainer=cpu"],
        "ddp": ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"],
        "fsdp": ["trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=2"],
    },
    "lesson": {
        "masks": [],
        "boxes": ["data=coco", "data.root=BOXES"],
        "features": ["distill=features", "init=pruned", "init.checkpoint=TEACHER", "distill.labels=false"],
        "full": ["distill=full", "distill.teacher=TEACHER", "distill.labels=false", "distill.min_score=0.01"],
        "cached": ["distill=full", "distill.teacher=TEACHER", "distill.labels=false", "distill.cache=CACHE",
                   "data.augment.flip=0", "distill.min_score=0.01"],
    },
    "extra": {
        "clip": [f"optim.clip={CLIP}"],
        "accumulation": ["trainer.accumulate_grad_batches=2"],
        "ema": ["callbacks=ema"],
        "checkpointing": ["activation_checkpointing=true"],
    },
}  # fmt: skip
REFUSED = (("processes", "fsdp"), ("extra", "ema"))  # in one line, by WeightAverage
STEPS, STEPS_OF_SCALE = 3, 10  # FP16's loss scale starts so high that the first steps are skipped
SCALE = 1024.0  # skips none: in two processes the steps count
QUICK = [*SHORT, "schedule=constant", "schedule.warmup_steps=0"]


def cells() -> list[dict[str, str]]:
    """Without the pair that the product refuses."""
    return all_pairs({axis: list(values) for axis, values in AXES.items()}, [REFUSED])


def test_cells__every_pair_that_is_not_refused() -> None:
    met = set().union(*(pairs_of(cell) for cell in cells()))
    wanted = set().union(*(pairs_of(cell) for cell in all_pairs({a: list(v) for a, v in AXES.items()})))
    assert wanted - met == {REFUSED}
    assert len(cells()) < 30


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("rehearsal"))


def config_of(root: Path, cell: dict[str, str]) -> dict[str, Any]:
    """The recipe, composed for the folder of its name."""
    shapes = [f"data.root={root / 'shapes'}", *SHAPES_SIZES]
    chosen = [item for axis, value in cell.items() for item in AXES[axis][value]]
    data = [] if cell["lesson"] == "boxes" else shapes
    steps = STEPS_OF_SCALE if cell["precision"] == "16-mixed" and cell["processes"] == "one" else STEPS
    clip = [f"optim.clip={CLIP}"] if cell["extra"] != "clip" else []
    places = {"BOXES": root / "boxes", "TEACHER": root / "teacher", "CACHE": root / "cache"}
    groups = sorted(chosen, key=lambda item: item.split("=")[0].count("."))  # group options first
    given = [*OVERRIDES, *groups, *QUICK, *data, *clip, f"trainer.max_steps={steps}",
             f"trainer.val_check_interval={steps}"]  # fmt: skip
    placed = [item.replace(f"={name}", f"={place}") for item in given for name, place in [_place(item, places)]]
    config = compose_plain("train", placed, root / name_of(cell))
    config["callbacks"]["watch"] = watch(CLIP, None if steps == STEPS_OF_SCALE else SCALE)
    return config


def _place(item: str, places: dict[str, Path]) -> tuple[str, Any]:
    value = item.split("=", 1)[1]
    return (value, places[value]) if value in places else ("\0", "")


def name_of(cell: dict[str, str]) -> str:
    return "_".join(cell.values())


@pytest.mark.parametrize("cell", [cell for cell in cells() if cell["processes"] == "one"], ids=name_of)
def test_recipe__one_process(root: Path, cell: dict[str, str]) -> None:
    folder = root / name_of(cell)
    runs.train(config_of(root, cell), folder, {}, "rehearsal")
    check_result(folder)


def test_refused__average_of_shares(root: Path) -> None:
    cell = {"precision": "32-true", "processes": "fsdp", "lesson": "masks", "extra": "ema"}
    config = config_of(root, cell)
    config["trainer"]["devices"] = 1
    try:
        with pytest.raises(UserError, match="use trainer=ddp"):
            runs.train(config, root / name_of(cell), {}, "rehearsal")
    finally:  # Lightning leaves the group of processes behind, which later tests would start with
        torch.distributed.destroy_process_group()
