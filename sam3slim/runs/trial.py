"""What ``train.py`` does: train, then write the smaller artifacts that ``compress_after`` asks for."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

from sam3slim import config as cfg
from sam3slim import runs
from sam3slim.records import FILE_NAME, RunRecord, finished_record, forget_made_from, is_finished, read_record
from sam3slim.runs.compress import compress
from sam3slim.runs.progressive import recorded_config
from sam3slim.runs.specs import TrainSpec
from sam3slim.strict import spec_from_dict
from sam3slim.sweep import Done

COMPRESSED = "compressed"  # folder of the artifacts, in the run's folder


def train_and_compress(config: dict[str, Any], output_dir: Path, choices: dict[str, str], command: str) -> Done:
    """Train and compress as composed, but for what ``output_dir`` has finished records of; ``force`` does all again.

    Returns:
        The training's record, then one per method.

    Raises:
        UserError: as ``train`` and ``compress``.
    """
    spec = spec_from_dict(TrainSpec, config, "")
    if spec.force:
        _forget(output_dir)
    record = None if spec.force else finished_record(output_dir, recorded_config(config, output_dir))
    fresh = record is None
    if record is None:
        rank_zero_only(forget_made_from)(output_dir / COMPRESSED)
        record = runs.train(config, output_dir, choices, command)
    else:
        rank_zero_only(print)(f"{output_dir} is finished, with just this configuration; force=true trains it again")
    records = [record]
    if spec.compress_after and getattr(rank_zero_only, "rank", 0) == 0:
        made, compressed = _compress(spec, config, output_dir, choices, command)
        records += made
        fresh = fresh or compressed
    return Done(tuple(records), fresh)


@rank_zero_only
def _forget(output_dir: Path) -> None:
    """What a finished run and its stages would go on from: with resume=auto nothing would be left to do."""
    for folder in (output_dir, *output_dir.glob("stage_*")):
        if is_finished(folder):
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
            (folder / FILE_NAME).unlink()


def _compress(
    spec: TrainSpec, config: dict[str, Any], output_dir: Path, choices: dict[str, str], command: str
) -> tuple[list[RunRecord], bool]:
    """The records of ``compress_after``, and whether any had to be made."""
    folder, artifact = output_dir / COMPRESSED, output_dir / "artifact"
    if artifact.is_relative_to(Path.cwd()):
        artifact = artifact.relative_to(Path.cwd())  # the same on another machine

    def composed(*methods: str) -> dict[str, Any]:
        # Trials may run side by side, where a latency means nothing.
        given = [f"checkpoint='{artifact}'", f"compress=[{','.join(methods)}]", "latency=false"]
        plain = cfg.compose_plain("compress", given, folder)
        return {**plain, "data": config["data"], "seed": spec.seed}

    places = {method: folder / method for method in spec.compress_after}
    if not spec.force:
        done = [finished_record(place, composed(method)) for method, place in places.items()]
        if all(done):
            return [record for record in done if record is not None], False
    compress(composed(*places), folder, choices, command)
    return [read_record(place) for place in places.values()], True
