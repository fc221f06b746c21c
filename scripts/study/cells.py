"""What the study trains: every cell is ``train.py experiment=nano_study`` with a few overrides."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

SOURCE = "assets/nano"
SEEDS = (0, 1)
# Where the first weights come from; random-kept is the control of the importances.
INITS = {
    "scratch": ("init=scratch",),
    "random-kept": ("init.importance=random",),
    "magnitude": ("init.importance=magnitude",),
    "Taylor": ("init.importance=taylor",),
    "fitted": ("init.importance=magnitude", "init.fit_batches=4"),
}
TEACHINGS = {
    "no distillation": ("distill=none",),
    "features": ("distill=nano_features", f"distill.teacher={SOURCE}"),
    "full": ("distill=full", f"distill.teacher={SOURCE}"),
}
SIZES = {
    "half": ("model=nano_half", "vocabulary=data"),
    "tiny": ("model=nano_tiny", "vocabulary=data"),
    "quarter": ("model=nano_quarter", "vocabulary=data"),
}
# One axis at a time, everything else as in nano; inherited by magnitude, features distilled.
AXES = {
    "depth": (("model.vit.depth=3",), ("model.vit.depth=2",)),
    "width": (
        ("model.vit.embed_dim=96", "model.vit.num_heads=3"),
        ("model.vit.embed_dim=64", "model.vit.num_heads=2"),
    ),
    "text": (("model.text.layers=1",), ("model.text.layers=1", "model.text.width=32", "model.text.num_heads=1")),
    "encoder": (("model.encoder.num_layers=2",), ("model.encoder.num_layers=1",)),
    "decoder": (("model.decoder.num_layers=2",), ("model.decoder.num_layers=1",)),
}


@dataclass(frozen=True)
class Cell:
    """One training run.

    Attributes:
        name: its folder.
        group: (size, init, teaching) in the table; (axis, step) on a curve.
        seed: of the draw, the data order and the fresh weights.
        overrides: of ``train.py``, after ``experiment=nano_study``.
    """

    name: str
    group: tuple[str, ...]
    seed: int
    overrides: tuple[str, ...]


def table_cells() -> list[Cell]:
    """Inits x teachings x sizes x seeds: first seed first, so that an unfinished study has every group once."""
    return [
        Cell(_name(size, init, teaching, str(seed)), (size, init, teaching), seed,
             (*SIZES[size], *INITS[init], *TEACHINGS[teaching], f"seed={seed}"))
        for seed, size, teaching, init in product(SEEDS, SIZES, TEACHINGS, INITS)
        if _planned(size, init, teaching)
    ]  # fmt: skip


def _planned(size: str, init: str, teaching: str) -> bool:
    """Every first weights are tried at every size; teachings on two sizes, with cuts as they are."""
    return teaching == "full" or (size != "tiny" and init != "fitted")


def axis_cells() -> list[Cell]:
    """Two steps down every axis, one seed."""
    return [
        Cell(_name("axis", axis, str(step + 1)), (axis, str(step + 1)), 0,
             ("model=nano", *overrides, *INITS["magnitude"], *TEACHINGS["features"], "seed=0"))
        for axis, steps in AXES.items()
        for step, overrides in enumerate(steps)
    ]  # fmt: skip


def all_cells() -> list[Cell]:
    """In the order they are run: the first seed, the curves, the other seeds."""
    table = table_cells()
    first = [cell for cell in table if cell.seed == SEEDS[0]]
    return [*first, *axis_cells(), *(cell for cell in table if cell.seed != SEEDS[0])]


def _name(*parts: str) -> str:
    return "_".join(part.lower().replace(" ", "-") for part in parts)
