"""``make reference``: train nano from scratch (hours) and put the result, with its card, into assets/nano."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from sam3slim.artifacts import write_artifact
from sam3slim.artifacts.card import LOAD_SAM3SLIM, measured_in, model_card
from sam3slim.checkpoints import ARTIFACT_FILE, load
from sam3slim.checkpoints.locating import read_metadata
from sam3slim.errors import UserError, one_line_exits
from sam3slim.results.metrics import METRICS
from sam3slim.results.record import RunRecord, read_record
from sam3slim.runs import start
from sam3slim.runs.train import training_seconds

EXPERIMENT = "experiment=nano_reference"

INTRO = (
    "A SAM 3 of {params:,} parameters, trained from scratch on drawn shapes. It exists to measure on: what slimming "
    "and compression cost is counted against it. It knows circles, squares and triangles in four colours and two "
    "sizes, and nothing else."
)
LICENSE_NOTE = (
    "The training pictures are generated (`data=shapes`), so the weights carry no third-party licence; they are "
    "published under this repository's. The architecture is SAM 3's, as in `transformers`."
)


def publish(run: Path, target: Path) -> Path:
    """Write the best model of the finished run to ``target`` with a card of its facts.

    Raises:
        UserError: the run has not finished or was not evaluated.
    """
    record = read_record(run)
    if record.status != "finished" or not record.metrics or not record.model or not record.data:
        raise UserError(f"{run} is {record.status} ({record.error}); finish it first: python train.py {EXPERIMENT}")
    model, _ = load(run / "artifact")
    metadata = read_metadata(run / "artifact" / ARTIFACT_FILE)
    metadata["extra"]["training_seconds"] = training_seconds(run)
    info = write_artifact(
        model,
        target,
        metrics=metadata["metrics"],
        extra=metadata["extra"],
        trained_prompts=metadata.get("trained_prompts"),
        card=_card(record, metadata),
    )
    print(f"{info.path}: {info.total_bytes:,} bytes, sha256 {info.sha256}")
    return info.path


def _card(record: RunRecord, metadata: dict[str, Any]) -> str:
    data, extra = record.data, metadata["extra"]
    git = extra.get("git") or {"sha": "unknown", "dirty": False}
    maps = [f"{100 * (record.metrics.value(METRICS[name]) or 0.0):.2f}" for name in ("bbox", "segm")]
    phrases = (data.prompts or 0) // (data.images or 1)
    versions = ", ".join(f"{name} {value}" for name, value in record.versions.items() if value)
    rows = {
        "box mAP, mask mAP": f"{', '.join(maps)} (shapes {data.split}: {data.images} images, "
        f"{phrases} phrases asked of each)",
        "trained by": f"`{record.command}`",
        "at commit": git["sha"] + (" with uncommitted changes" if git["dirty"] else ""),
        "seed, time": f"{extra['seed']}, {extra['training_seconds'] / 60:.0f} minutes on {record.device}",
        "weights": f"FP32, {metadata['bytes']:,} bytes, sha256 of model.safetensors in sam3slim.json",
        "versions": versions,
    }
    table = ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]
    return model_card(
        "nano: the full model of sam3slim's nano family",
        "transformers",
        INTRO.format(params=record.model.params),
        [("", [*table, "", *measured_in(metadata)]), ("Loading", [LOAD_SAM3SLIM])],
        LICENSE_NOTE,
    )


def main() -> None:
    """Command line: ``python -m scripts.reference [--run DIR] [--publish-only] [OVERRIDES…]``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, default=Path("outputs/nano_reference"))
    parser.add_argument("--target", type=Path, default=Path("assets/nano"))
    parser.add_argument("--publish-only", action="store_true", help="the run is there; only write the artifact")
    parser.add_argument("overrides", nargs="*", help="Hydra overrides")
    arguments = parser.parse_args()
    with one_line_exits("interrupted; the same command goes on from the last checkpoint"):
        if not arguments.publish_only:
            start("train", [EXPERIMENT, "resume=auto", *arguments.overrides], arguments.run)
        publish(arguments.run, arguments.target)


if __name__ == "__main__":
    main()
