"""``python -m scripts.photographs --photos DIR``: what every way to make ``photo`` smaller costs on photographs.

Runs what is missing, then writes docs/photographs.md's tables and docs/photographs.csv from the records.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sam3slim.errors import UserError, one_line_exits
from sam3slim.files import write_csv
from sam3slim.results.metrics import METRICS
from sam3slim.results.record import Drop, RunRecord, read_record
from sam3slim.results.samples import paired_bootstrap
from sam3slim.runs.reference import load_samples
from scripts.page import put_between
from scripts.steps import Step, run_steps

SETS = ("carparts", "facades", "coco609")
METHODS = ("weights_only", "fp16", "bf16", "int8_weight", "int8_dynamic", "int8_onnx", "int4_weight")
COMPENSATED = ("int8_weight", "int4_weight")  # rounding that makes up for itself, on training images
FIT = "init.fit_batches=12"
FIT_LONG = "init.fit_batches=48"
LONG_HOW = "fitted on 192 images"
STEPS = 800
TAUGHT = ("distill=fitted_full", f"trainer.max_steps={STEPS}", f"trainer.val_check_interval={STEPS}",
          "optim.lr=2e-4", "optim.lr_vision=3e-4", "optim.layer_decay=0.8", "optim.layer_decay_start=5",
          "trainer.precision=bf16-mixed")  # fmt: skip
TAUGHT_HOW = f"fitted, {STEPS} steps taught"
RULES = {
    "even": ("init.depth=even",),
    "importance": ("init.depth=importance", "init.importance=taylor"),
    "greedy": ("init.depth=greedy",),
}
SLIM = {
    "slim": ("photo_slim", ("model=photo_slim",)),
    "w320": ("tower's width -17 %", ("model=photo", "model/vit=photo_w320")),
    "w256": ("tower's width -33 %", ("model=photo", "model/vit=photo_w256")),
    "mlp": ("tower's MLPs -25 %", ("model=photo", "model.vit.mlp_ratio=3")),
    "encoder": ("encoder 3 -> 2 layers", ("model=photo", "model/encoder=l2")),
    "decoder": ("decoder 3 -> 2 layers", ("model=photo", "model/decoder=l2")),
    "text": ("text 2 -> 1 layers", ("model=photo", "model.text.layers=1")),
}
RETRAINED = ("w320",)
DEPTHS = (10, 9, 8, 6)
DEPTHS_TAUGHT = (9,)
SIZES = (168, 112)  # pixels; photo's own is 224


@dataclass(frozen=True)
class Row:
    """A line of a table.

    Attributes:
        table: its name between the page's markers.
        cells: what stands in front of the numbers.
        step: what measures it.
    """

    table: str
    cells: tuple[str, ...]
    step: Step


HEADS = {
    "full": ("prompts",),
    "precisions": ("method",),
    "cuts": ("cut", "how"),
    "depth": ("blocks", "removed by", "how"),
    "resolution": ("pixels", "how"),
}


def data_of(photos: Path, *names: str) -> tuple[str, ...]:
    """Overrides that train on carparts and the sets ``names``, and measure each of them."""
    carparts = (
        f"carparts:{{root:{photos}/carparts,mirror:false,"
        "annotations:{train:trainingset/annotations.json,test:testset/annotations.json},"
        "images:{train:trainingset/JPEGImages,test:testset/JPEGImages}}"
    )
    others = [f"{name}:{{root:{photos}/{name},weight:0.5}}" for name in names]
    return "data=coco_mix", f"data.sets={{{','.join([carparts, *others])}}}"


def all_rows(photos: Path, full: Path, out: Path) -> Iterator[Row]:
    """The rows, in the tables' order; the full model is measured first, everything else counts drops against it."""
    both = data_of(photos, "facades")
    given = (f"checkpoint={full}", "device=cpu", "latency=false")
    for name in SETS:
        where = (*data_of(photos, *SETS[1:]), f"data.set={name}")
        yield Row("full", (f"{name}: phrases",), Step(f"full_{name}", "evaluate", (*given, *where)))
    for prompts in ("box", "text+box"):
        where = (*both, "data.set=carparts", "data.protocol=present", f"data.prompts={prompts}")
        yield Row("full", (f"carparts: {prompts}",), Step(f"full_{prompts}", "evaluate", (*given, *where)))
    for method in METHODS:
        where = (*both, "data.set=carparts", f"reference={out / 'full_carparts'}", f"compress=[{method}]")
        yield Row("precisions", (method,), Step(f"precision_{method}", "compress", (*given, *where), method))
        if method in COMPENSATED:
            asked = (*given, *where, f"compress.{method}.compensate=gptq")
            name = f"precision_{method}_gptq"
            yield Row("precisions", (f"{method}, compensated",), Step(name, "compress", asked, method))
    cut = ("init=pruned", f"init.checkpoint={full}", *both, "loss=nano", "trainer=cpu", "logger=csv",
           "data.batch_size=4", "data.max_prompts=6", "data.negatives=2", "data.num_workers=0",
           "data.validate=[facades]", "schedule.warmup_steps=20", "trainer.enable_progress_bar=false")  # fmt: skip
    untrained = "trainer.max_steps=0"
    for name, (title, sizes) in SLIM.items():
        yield Row("cuts", (title, "as cut"), Step(f"cut_{name}", "train", (*cut, *sizes, untrained)))
        yield Row("cuts", (title, "fitted"), Step(f"cut_{name}_fitted", "train", (*cut, *sizes, FIT, untrained)))
        if name == "slim":
            yield Row("cuts", (title, LONG_HOW), Step(f"cut_{name}_long", "train", (*cut, *sizes, FIT_LONG, untrained)))
            roots = [f"data.sets.{one}.root={photos / one}" for one in SETS[:2]]
            recipe = ("experiment=photo_slim", f"init.checkpoint={full}", *roots, "logger=csv")
            yield Row("cuts", (title, "experiment=photo_slim"), Step(f"cut_{name}_taught", "train", recipe))
        if name in RETRAINED:
            yield Row("cuts", (title, TAUGHT_HOW), Step(f"cut_{name}_taught", "train", (*cut, *sizes, FIT, *TAUGHT)))
    for depth in DEPTHS:
        for rule, chosen in RULES.items():
            step = (*cut, "model=photo", f"model.vit.depth={depth}", *chosen, untrained)
            cells, name = (str(depth), rule), f"depth{depth}_{rule}"
            if rule != "greedy":  # which refits while it chooses
                yield Row("depth", (*cells, "as cut"), Step(name, "train", step))
            yield Row("depth", (*cells, "fitted"), Step(f"{name}_fitted", "train", (*step, FIT)))
            if depth in DEPTHS_TAUGHT and rule == "even":
                taught = Step(f"{name}_taught", "train", (*step[:-1], FIT, *TAUGHT))
                yield Row("depth", (*cells, TAUGHT_HOW), taught)
                yield Row("depth", (*cells, LONG_HOW), Step(f"{name}_long", "train", (*step, FIT_LONG)))
                taught = Step(f"{name}_long_taught", "train", (*step[:-1], FIT_LONG, *TAUGHT))
                yield Row("depth", (*cells, f"{LONG_HOW}, {STEPS} steps taught"), taught)
    for size in SIZES:
        step = (*cut, "model=photo", f"model.vit.image_size={size}")
        yield Row("resolution", (str(size), "as it is"), Step(f"r{size}", "train", (*step, untrained)))
        yield Row(
            "resolution", (str(size), f"{STEPS} steps taught"), Step(f"r{size}_taught", "train", (*step, *TAUGHT))
        )


@dataclass(frozen=True)
class Numbers:
    """What a row says of one data set: percent, and the drop against the full model where there is one."""

    record: RunRecord
    drop: Drop | None = None

    def percent(self, metric: str) -> float | None:
        value = self.record.metrics.value(METRICS[metric])
        return None if value is None else round(100 * value, 3)

    def cells(self) -> list[str]:
        value = self.percent("segm")
        return ["–" if value is None else f"{value:.2f}", "–" if self.drop is None else self.drop.text()]

    def columns(self, name: str) -> dict[str, Any]:
        found = {f"{name}_{metric}": self.percent(metric) for metric in ("segm", "bbox", "cgf1")}
        if self.drop is not None:
            found |= {f"{name}_drop": self.drop.points, f"{name}_low": self.drop.low, f"{name}_high": self.drop.high}
        return found


def numbers(folder: Path, reference: Path) -> Numbers:
    """Of the record in ``folder``, against the one in ``reference`` where both were asked the same."""
    record = read_record(folder)
    if folder == reference or read_record(reference).data.identity != record.data.identity:
        return Numbers(record)
    full, mine = load_samples(reference)["segm"], load_samples(folder)["segm"]
    return Numbers(record, paired_bootstrap(METRICS["segm"], full, mine))


def tables(rows: Sequence[Row], out: Path) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """Markdown by table's name, and the lines of the CSV; a row without a finished record is left out of both."""
    pages: dict[str, list[str]] = {}
    lines = []
    for row in rows:
        page = pages.setdefault(row.table, _heading(HEADS[row.table]))
        folder = out / row.step.name / row.step.part
        if not folder.is_dir() or row.step.composed(out).finished() is None:
            continue
        first = numbers(folder, out / "full_carparts")
        other = folder / "sets/facades"
        second = numbers(other, out / "full_facades") if (other / "record.json").is_file() else None
        params = int(first.record.model.params or 0)
        shown = [*row.cells, f"{params / 1e6:.2f} M", *first.cells(), *(second.cells() if second else ("–", "–"))]
        page.append("| " + " | ".join(shown) + " |")
        line = {"table": row.table, "row": ", ".join(row.cells), "parameters": params}
        line |= {"bytes": first.record.artifact.bytes, "commit": first.record.git.sha, **first.columns("first")}
        lines.append(line | (second.columns("facades") if second else {}))
    return {name: "\n".join(page) + "\n" for name, page in pages.items()}, lines


def _heading(cells: Sequence[str]) -> list[str]:
    heads = [*cells, "parameters", "mask mAP", "drop, points (95 %)", "facades", "drop (95 %)"]
    return ["| " + " | ".join(heads) + " |", "|" + "---|" * len(cells) + "---:|" * (len(heads) - len(cells))]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m scripts.photographs", description=__doc__)
    parser.add_argument("--photos", type=Path, required=True, help=f"the folder with {', '.join(SETS)}")
    parser.add_argument("--full", type=Path, default=Path("outputs/photo_reference"), help="the full model's run")
    parser.add_argument("--out", type=Path, default=Path("outputs/photographs"), help="a folder per row")
    parser.add_argument("--jobs", type=int, default=2, help="rows at a time, a thread each")
    parser.add_argument("--only", default="", help="rows whose folder's name contains this")
    parser.add_argument("--table", action="store_true", help="run nothing, write the tables of what there is")
    arguments = parser.parse_args()
    with one_line_exits():
        out = arguments.out.resolve()
        rows = list(all_rows(arguments.photos.resolve(), arguments.full.resolve(), out))
        chosen = [row.step for row in rows if arguments.only in row.step.name]
        if not chosen:
            raise UserError(f"--only {arguments.only}: no row's folder contains it")
        failed: dict[str, str] = {}
        if not arguments.table:
            # What drops are counted against comes first.
            for first in (True, False):
                part = [step for step in chosen if (step.program == "evaluate") == first]
                failed |= run_steps(part, out, jobs=arguments.jobs, title="photographs")
        pages, lines = tables(rows, out)
        for name, text in pages.items():
            put_between(Path("docs/photographs.md"), name, text)
        columns = list(dict.fromkeys(key for line in lines for key in line))
        write_csv(Path("docs/photographs.csv"), lines, columns)
        print("written: docs/photographs.md, docs/photographs.csv")
        if failed:
            raise UserError(f"{len(failed)} rows failed: {', '.join(failed)}; their records say why")


if __name__ == "__main__":
    main()
