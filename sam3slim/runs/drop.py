"""What a run keeps so that others can be compared with it, image by image, and the comparison."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sam3slim.errors import UserError
from sam3slim.evaluation import EvalResult, Matches, match, paired_bootstrap
from sam3slim.evaluation.matches import Kind
from sam3slim.records import RunRecord

KINDS: tuple[Kind, ...] = ("bbox", "segm")
Found = Mapping[str, Matches]


def matches_of(result: EvalResult) -> dict[str, Matches]:
    """The matching of an evaluation that kept its detections, by kind of mAP."""
    assert result.detections is not None
    assert result.truths is not None
    return {kind: match(result.detections, result.truths, kind) for kind in KINDS if kind in result.metrics}


def save_matches(found: Found, folder: Path) -> None:
    """``matches_bbox.npz`` and ``matches_segm.npz`` in a run's folder."""
    for kind, matches in found.items():
        matches.save(folder / f"matches_{kind}.npz")


def load_reference(run: str | Path) -> dict[str, Matches]:
    """What ``save_matches`` left in the folder of ``run``.

    Raises:
        UserError: nothing there.
    """
    files = {kind: Path(run) / f"matches_{kind}.npz" for kind in KINDS}
    found: dict[str, Matches] = {kind: Matches.load(file) for kind, file in files.items() if file.is_file()}
    if not found:
        raise UserError(
            f"reference={run} has no {files['bbox'].name}; give the output folder of evaluate.py or compress.py, "
            "run on the same data and split"
        )
    return found


def fill_drop(record: RunRecord, reference: Found, found: Found) -> None:
    """The record's ``drop`` against ``reference``. Raises UserError when the images differ."""
    record.drop = {
        kind: paired_bootstrap(reference[kind], matches).to_dict()
        for kind, matches in found.items()
        if kind in reference
    }


def print_drop(record: RunRecord) -> None:
    """One line per kind of mAP."""
    for kind, drop in (record.drop or {}).items():
        low, high = drop["ci95"]
        print(f"{kind} drop: {drop['points']:.2f} points (95 % {low:.2f} to {high:.2f})")
