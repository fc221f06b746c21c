"""``make demo``: the whole story on two CPU cores.

Draw the shapes set, measure ``nano``, cut ``nano_slim`` out of it and retrain it, compress both, measure
every result as it was written, and put the cost of each step into one table, one plot and one picture.
Started again, it keeps what is finished and goes on with the rest.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from sam3slim.checkpoints import load
from sam3slim.data.spec import DataSpec
from sam3slim.errors import UserError, one_line_exits
from sam3slim.evaluation import ground_truths, predict_batch
from sam3slim.files import ensure_writable_dir
from sam3slim.launch.compose import compose_plain, compose_run
from sam3slim.progress import output_to
from sam3slim.report.pictures import picture_grid
from sam3slim.report.plots import map_vs_size
from sam3slim.report.table import table_row, to_markdown, write_table
from sam3slim.results.record import Artifact, Kind, RunRecord, read_record
from sam3slim.results.recording import forget_made_from, forget_other
from sam3slim.runs import COMMANDS
from sam3slim.runs.compress import compress_unfinished
from sam3slim.runs.specs import CompressSpec
from sam3slim.strict import spec_from_dict

REFERENCE = Path("assets/nano")
METHODS = ("fp16", "int8_weight")
LOG = "log.txt"
PICTURES = 6  # val images in the comparison


def demo(out: Path, overrides: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Run all stages into ``out`` and return the rows of the table.

    Args:
        out: gets ``table.csv``, ``table.md``, ``map_vs_size.png``, ``predictions.png``, ``log.txt`` and a folder per
            stage.
        overrides: Hydra overrides; ``data.…`` goes to every stage (``data.shapes.test_images=50`` for a quick
            look), everything else to the training (``trainer.max_steps=100``).

    Raises:
        UserError: no reference model, or ``out`` is not writable.
    """
    if not (REFERENCE / "sam3slim.json").is_file():
        raise UserError(f"no reference model at {REFERENCE}; run from the repository, or `make reference` (hours)")
    print(
        f"Five stages, about ten minutes on two idle cores. Messages go to {ensure_writable_dir(out) / LOG}.",
        flush=True,
    )
    data = [text for text in overrides if text.startswith("data")]
    given = [f"checkpoint={REFERENCE}", "latency=false"]
    with _stage(out, 1, "nano measured"):
        full = _done("evaluate", out / "nano", [*given, *data])
    given = ["latency=false", f"reference={out / 'nano'}", *data]
    with _stage(out, 2, "nano compressed and measured"):
        compressed = _compressed(out / "nano_compressed", METHODS, [f"checkpoint={REFERENCE}", *given])
    training = ["experiment=nano_slim", f"init.checkpoint={REFERENCE}", "resume=auto", *overrides]
    with _stage(out, 3, "nano_slim cut, fitted, trained and measured"):
        slim = _done("train", out / "nano_slim", training)
    with _stage(out, 4, "nano_slim compressed and measured"):
        artifact = f"checkpoint={out / 'nano_slim/artifact'}"
        slim_compressed = _compressed(out / "nano_slim_compressed", ("weights_only", *METHODS), [artifact, *given])
    slim = _training_checkpoint(slim, out / "nano_slim")
    rows = [table_row(record, full, retrained=False) for record in (full, *compressed)]
    rows += [table_row(record, full, retrained=True) for record in (slim, *slim_compressed)]
    with _stage(out, 5, "table, plot and pictures"):
        csv_path, _ = write_table(rows, out)
        plot = map_vs_size(rows, out / "map_vs_size.png", title="What each step costs: nano on the shapes test split")
        picture = _pictures(out, data)
    print(f"\n{to_markdown(rows)}\nwritten: {csv_path}, {csv_path.with_suffix('.md')}, {plot}, {picture}")
    print(f"next:    sam3slim compare {out} --out {out / 'compare'}   (every run on one page)")
    print("         docs/tutorial.md                                (the same with your own checkpoint and data)")
    return rows


@contextmanager
def _stage(out: Path, number: int, title: str) -> Iterator[None]:
    """One line with the time it took; what is printed goes to the log, and bars to the terminal."""
    started = time.perf_counter()
    try:
        with output_to(out / LOG):
            yield
    except UserError as error:
        raise UserError(f"stage {number} of 5 failed: {error} (see {out / LOG})") from error
    minutes, seconds = divmod(round(time.perf_counter() - started), 60)
    print(f"{number}/5  {minutes}:{seconds:02}  {title}", flush=True)


def _done(name: Kind, folder: Path, overrides: Sequence[str]) -> RunRecord:
    """The record of one command in ``folder``, which is run unless its record says that just this has been done."""
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


def _compressed(folder: Path, methods: Sequence[str], overrides: Sequence[str]) -> list[RunRecord]:
    """One record per method; they are measured again only when their settings changed."""
    run = compose_run("compress", [f"compress=[{','.join(methods)}]", *overrides], folder)
    print(f"\n== {folder.name}: {run.command}", flush=True)
    return compress_unfinished(spec_from_dict(CompressSpec, run.config, ""), run)[0]


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
