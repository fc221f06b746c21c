"""``make demo``: the whole story on two CPU cores.

Draw the shapes set, measure ``nano``, cut ``nano_slim`` out of it and retrain it, compress both, measure
every result as it was written, and put the cost of each step into one table, one plot and one picture.
Started again, it keeps what is finished and goes on with the rest.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from sam3slim.checkpoints import load
from sam3slim.data.spec import DataSpec
from sam3slim.errors import UserError, one_line_exits
from sam3slim.evaluation import ground_truths, predict_batch
from sam3slim.launch.compose import compose_plain, compose_run
from sam3slim.report import map_vs_size, picture_grid, table_row, to_markdown, write_table
from sam3slim.results.record import Artifact, Kind, RunRecord, read_record
from sam3slim.results.recording import forget_made_from, forget_other
from sam3slim.runs import COMMANDS
from sam3slim.runs.compress import compress_unfinished
from sam3slim.runs.specs import CompressSpec
from sam3slim.strict import spec_from_dict

REFERENCE = Path("assets/nano")
METHODS = ("weights_only", "fp16", "int8_weight")
PICTURES = 6  # val images in the comparison


def demo(out: Path, overrides: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Run all stages into ``out`` and return the rows of the table.

    Args:
        out: gets ``table.csv``, ``table.md``, ``map_vs_size.png``, ``predictions.png`` and a folder per stage.
        overrides: Hydra overrides; ``data.…`` goes to every stage (``data.shapes.test_images=50`` for a quick
            look), everything else to the training (``trainer.max_steps=100``).

    Raises:
        UserError: no reference model, or ``out`` is not writable.
    """
    if not (REFERENCE / "sam3slim.json").is_file():
        raise UserError(f"no reference model at {REFERENCE}; run from the repository, or `make reference` (hours)")
    training = ["experiment=nano_slim", f"init.checkpoint={REFERENCE}", "resume=auto", *overrides]
    data = [text for text in overrides if text.startswith("data")]
    checkpoint = [f"checkpoint={REFERENCE}", "latency=false"]
    full = _stage("evaluate", out / "nano", [*checkpoint, *data])
    slim = _stage("train", out / "nano_slim", training)
    rows = [table_row(full, full, retrained=False)]
    given = [f"reference={out / 'nano'}", *data]
    rows += _compressed(str(REFERENCE), out / "nano_compressed", full, False, given)
    rows.append(table_row(_training_checkpoint(slim, out / "nano_slim"), full, retrained=True))
    rows += _compressed(str(out / "nano_slim/artifact"), out / "nano_slim_compressed", full, True, given)

    csv_path, _ = write_table(rows, out)
    plot = map_vs_size(rows, out / "map_vs_size.png", title="What each step costs: nano on the shapes test split")
    picture = _pictures(out, data)
    print("\n" + to_markdown(rows))
    print(f"written: {csv_path}, {csv_path.with_suffix('.md')}, {plot}, {picture}")
    return rows


def _stage(name: Kind, folder: Path, overrides: Sequence[str]) -> RunRecord:
    """Run one command into ``folder``, unless its record says that just this has been done."""
    run = compose_run(name, overrides, folder)
    record = run.finished()
    if record is None:
        print(f"\n== {folder.name}: {run.command}", flush=True)
        if name == "train":
            forget_other(folder, run.config)
            forget_made_from(folder.with_name(f"{folder.name}_compressed"))
        COMMANDS[name].prepare(run)()
        record = read_record(folder)
    return record


def _compressed(
    checkpoint: str, folder: Path, full: RunRecord, retrained: bool, overrides: Sequence[str]
) -> list[dict[str, Any]]:
    """One row per method; they are measured again only when their settings changed."""
    given = [f"checkpoint={checkpoint}", f"compress=[{','.join(METHODS)}]", "latency=false", *overrides]
    run = compose_run("compress", given, folder)
    records, _ = compress_unfinished(spec_from_dict(CompressSpec, run.config, ""), run)
    return [table_row(record, full, retrained=retrained) for record in records]


def _training_checkpoint(record: RunRecord, folder: Path) -> RunRecord:
    """The record with the file that training leaves (weights, optimiser state, counters) as its artifact."""
    path = folder / "checkpoints/best.ckpt"
    record.artifact = Artifact(str(path), path.stat().st_size, "lightning", "training checkpoint")
    return record


def _pictures(out: Path, overrides: Sequence[str]) -> Path:
    """Val images: ground truth beside full, slim and INT8 predictions of the most specific phrases."""
    config = compose_plain("evaluate", [f"checkpoint={REFERENCE}", *overrides], out)
    sources = {
        "nano": REFERENCE,
        "nano_slim": out / "nano_slim/artifact",
        "nano_slim INT8": out / "nano_slim_compressed/int8_weight/artifact",
    }
    models = {title: load(path)[0] for title, path in sources.items()}
    data = spec_from_dict(DataSpec, config["data"], "data").build(models["nano"].spec)
    data.prepare_data()
    dataset = data.dataset("val")
    batch = data.collate([dataset[index] for index in range(PICTURES)])
    columns: dict[str, Any] = {"ground truth": ground_truths(batch)}
    for title, model in models.items():
        columns[title] = predict_batch(model, batch)
    names = {int(category): phrase for category, phrase in zip(batch.category_ids, batch.phrases, strict=True)}
    images = [Image.open(dataset.folder / info.file_name).convert("RGB") for info in batch.images]
    # "red circle": every object has exactly one phrase of two words.
    specific = {category for category, phrase in names.items() if len(phrase.split()) == 2}
    return picture_grid(images, columns, names, out / "predictions.png", categories=specific)


def main() -> None:
    """Command line: ``python -m scripts.demo [--out DIR] [OVERRIDES…]``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs/demo"))
    parser.add_argument("overrides", nargs="*", help="Hydra overrides for every stage")
    arguments = parser.parse_args()
    with one_line_exits("interrupted; the same command goes on from here"):
        demo(arguments.out, arguments.overrides)


if __name__ == "__main__":
    main()
