"""The export beside the picked run's model: both opened in fresh processes, their answers compared."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

import sam3slim
from sam3slim.checkpoints import spec_difference
from sam3slim.errors import UserError
from sam3slim.export.verify_worker import Request, write_request
from sam3slim.files import read_json
from sam3slim.graphs.verify import TOLERANCE, difference
from sam3slim.results.formats import Format
from sam3slim.results.metrics import METRICS
from sam3slim.results.record import Metrics, RunRecord, plain
from sam3slim.specs import ModelSpec

# Largest difference of an output: absolute below 1, a share of the largest value above. Weights of PyTorch are the
# same numbers, whatever file they lie in; graphs add up in another order.
TOLERANCES: dict[str, float] = {"hf": 1e-5, "reference": 1e-5, "onnx": TOLERANCE, "torch-export": TOLERANCE}
TOLERATED_POINTS = 0.5  # points: one detection that changes sides of a threshold, on a few images


@dataclass(frozen=True)
class Verified:
    """What was found equal.

    Attributes:
        differences: output → largest difference over all sample inputs.
        tolerance: what was allowed.
        transformers: largest difference of plain transformers on prompts with boxes; None: not for this format.
        sample: {"images", "prompts", "before", "after"} with {metric: mAP in 0..1}, of the picked run and the export.
        not_evaluated: why there is no sample.
        whole: the sample is all that the record's run was evaluated on, so its mAP must be the record's.
        int8: plain transformers needs the two lines that the card shows.
    """

    differences: dict[str, float]
    tolerance: float
    transformers: float | None = None
    sample: dict[str, Any] | None = None
    not_evaluated: str | None = None
    whole: bool = False
    int8: bool = False

    def lines(self) -> list[str]:
        """What to print."""
        worst = max(self.differences, key=lambda name: self.differences[name])
        lines = [
            f"reopened in a fresh process: outputs differ by at most {self.differences[worst]:.1e} ({worst}; "
            f"allowed {self.tolerance:g})"
        ]
        if self.transformers is not None:
            how = "opens it with the two lines that its card shows" if self.int8 else "opens it"
            lines.append(f"plain transformers {how}: outputs differ by at most {self.transformers:.1e}")
        if self.sample is None:
            return [*lines, f"not evaluated again: {self.not_evaluated}"]
        shown = [
            f"{METRICS[name].sentence(value)} (before: {METRICS[name].text(self.sample['before'][name])} "
            f"{METRICS[name].unit})"
            for name, value in self.sample["after"].items()
        ]
        what = "all" if self.whole else "the first"
        return [*lines, f"evaluated again on {what} {self.sample['images']} images: {', '.join(shown)}"]

    def metadata(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "outputs_max_difference": self.differences, "tolerance": self.tolerance,
            "transformers_max_difference": self.transformers, "sample": self.sample,
            "not_evaluated": self.not_evaluated, "sample_is_the_whole": self.whole,
        }  # fmt: skip


@dataclass(frozen=True)
class Opening:
    """A model to open: what ``load_runnable`` takes, and whether plain transformers opens it too."""

    source: Path
    overrides: dict[str, Any] = field(default_factory=dict)
    transformers: bool = False


def verify_export(
    before: Opening,
    after: Opening,
    record: RunRecord,
    format: Format,
    work: Path,
    *,
    images: int = 8,
    root: str | Path | None = None,
) -> Verified:
    """Open both in processes of their own and compare.

    Args:
        before, after: the picked run's artifact and the export.
        record: of the run; its ``data`` say which images.
        work: an existing folder for what the processes write.
        images: how many are evaluated; 0: none.
        root: where the data lie now, if not where the record says.

    Raises:
        UserError: one cannot be opened, they differ, or the picked model does not reproduce its record.
    """
    data = plain(record.data)
    asked = images if data else 0
    first = _ask(before, work / "before", data, root, asked)
    second = _ask(after, work / "after", data, root, asked)
    unlike = spec_difference(ModelSpec.from_dict(second["spec"]), ModelSpec.from_dict(first["spec"]))
    if unlike:
        key, found, wanted = unlike[0]
        raise UserError(
            f"the export opens as another architecture: {key} is {found}, not {wanted}; nothing was written"
        )
    differences = _differences(work / "before", work / "after")
    _require({**differences, **_plain(second)}, TOLERANCES[format], "the export's outputs")
    sample, reason, whole = _sample(first["sample"], second["sample"], record, asked)
    return Verified(differences, TOLERANCES[format], second["transformers_difference"], sample, reason, whole)


def _ask(opening: Opening, place: Path, data: dict[str, Any], root: str | Path | None, images: int) -> dict[str, Any]:
    answer, outputs = place.with_suffix(".json"), place.with_suffix(".safetensors")
    request = Request(
        str(opening.source), str(answer), str(outputs), opening.overrides, data if images else None,
        None if root is None else str(root), images, opening.transformers,
    )  # fmt: skip
    file = write_request(request, place.with_suffix(".request.json"))
    # The same code, wherever this process found it; no network, whatever a library would like to look up.
    path = os.pathsep.join([str(Path(sam3slim.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path.rstrip(os.pathsep), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "sam3slim.export.verify_worker", str(file)], env=environment, check=False
    )
    if done.returncode == 130:
        raise KeyboardInterrupt
    if done.returncode != 0 or not answer.is_file():
        raise UserError(
            f"the process that opened {opening.source} ended with status {done.returncode} (negative: killed by that "
            "signal, 9 for lack of memory); nothing was written"
        )
    found = read_json(answer, "export again")
    if "error" in found:
        raise UserError(f"{found['error']}; nothing was written")
    return found


def _differences(before: Path, after: Path) -> dict[str, float]:
    """Output → largest difference over the cases; NaN wins."""
    ours, theirs = (load_file(place.with_suffix(".safetensors")) for place in (before, after))
    found: dict[str, float] = {}
    for key, value in ours.items():
        name, here = key.partition(".")[2], difference(value, theirs[key])
        largest = found.get(name, 0.0)
        # Not max(): it would drop a NaN.
        found[name] = largest if here <= largest else here
    return found


def _plain(answer: Mapping[str, Any]) -> dict[str, float]:
    value = answer["transformers_difference"]
    return {} if value is None else {"in plain transformers": float(value)}


def _require(differences: Mapping[str, float], tolerance: float, what: str) -> None:
    wrong = [f"{name} by {value:.2g}" for name, value in differences.items() if not value <= tolerance]
    if wrong:
        raise UserError(
            f"{what} differ from the picked run's: {', '.join(wrong)} (allowed: {tolerance:g}); nothing was written; "
            "report it with the versions of torch and transformers"
        )


def _sample(
    before: dict[str, Any] | None, after: dict[str, Any] | None, record: RunRecord, asked: int
) -> tuple[dict[str, Any] | None, str | None, bool]:
    """The sample's mAPs, or why there is none; and whether the sample is all that the record was evaluated on."""
    if before is None or after is None:
        return None, "not asked for" if record.data else "the record names no data", False
    if "reason" in before or "reason" in after:
        return None, before.get("reason") or after.get("reason"), False
    one, two = (
        {name: v for name, m in METRICS.items() if (v := Metrics(found["metrics"]).value(m)) is not None}
        for found in (before, after)
    )
    # Fewer images than were asked for: the set has no more.
    whole = before["images"] == record.data.images and before["images"] <= asked
    for name, value in one.items():
        metric = METRICS[name]
        if abs(metric.points_lost(value, two[name])) > TOLERATED_POINTS:
            raise UserError(
                f"the export has {metric.sentence(two[name])} on {after['images']} images, the picked run's model "
                f"{metric.text(value)} {metric.unit} (allowed: {TOLERATED_POINTS:g} points); nothing was written"
            )
        stated = record.metrics.value(metric)
        if whole and stated is not None and abs(metric.points_lost(stated, value)) > TOLERATED_POINTS:
            raise UserError(
                f"the picked run's model has {metric.sentence(value)}, its record says {metric.text(stated)} "
                f"{metric.unit}: other data, or another artifact; evaluate it again, or --check-images 0"
            )
    sample = {"images": before["images"], "prompts": before["prompts"], "before": one, "after": two}
    return sample, None, whole
