"""Measuring precision plans: each group on its own (sensitivity), and the smallest plan within a budget."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sam3slim.checkpoints import load
from sam3slim.compression import GROUPS, Mixed, weights_by_group
from sam3slim.compression import compress as compress_model
from sam3slim.compression.effects import Effect, Effects
from sam3slim.compression.groups import weights_by_unit
from sam3slim.compression.mixed import STORES
from sam3slim.compression.search import Searched, search
from sam3slim.data.module import ConceptData
from sam3slim.errors import UserError
from sam3slim.evaluation import agreed, evaluate
from sam3slim.files import Kept, scratch_folder, write_json
from sam3slim.models import Sam3
from sam3slim.report.rows import drop_columns
from sam3slim.report.table import drop_cells, to_markdown, write_table
from sam3slim.results.metrics import METRICS, main_metric, main_of
from sam3slim.results.record import Budget, Drop, RunRecord
from sam3slim.results.samples import check_paired, paired_bootstrap
from sam3slim.runs.measure import back_to_cpu
from sam3slim.runs.reference import Found
from sam3slim.runs.specs import BudgetSpec
from sam3slim.runtimes.eager import to_device

EFFECT_IMAGES = 8  # whose outputs rank groups and blocks before mAP is measured


class PrecisionEvaluator:
    """Drops of precision plans of one model on one split, each measured on a reloaded artifact.

    Args:
        model: FP32, on the CPU.
        reference: what drops are counted against; None measures the model itself first.
        limit: images to measure on.
        metric: name of the one that ``points`` are of; None: mask mAP, box mAP without masks.

    Raises:
        UserError: the data cannot have this metric.
    """

    def __init__(
        self,
        model: Sam3,
        data: ConceptData,
        split: str,
        device: torch.device,
        *,
        limit: int | None = None,
        reference: Found | None = None,
        metric: str | None = None,
    ) -> None:
        self.model, self.device, self.limit = model, device, limit
        self.data, self.split, self.loader = data, split, data.loader(split)
        if reference is None:
            found = evaluate(to_device(model, device, "fp32"), self.loader, limit=limit)
            reference = agreed(found, data.dataset(split)).samples
            back_to_cpu(model)  # where plans are made
        self.reference, self.metric = reference, main_of(reference, metric)

    def drops(self, method: Mixed) -> dict[str, Drop]:
        """The plan's drop by metric, with its interval."""
        return {
            name: paired_bootstrap(METRICS[name], self.reference[name], found)
            for name, found in self._measured(method).items()
            if name in self.reference
        }

    def points(self, method: Mixed) -> float:
        """The plan's drop in points of the metric."""
        found, metric = self._measured(method), self.metric
        check_paired(self.reference[metric.name], found[metric.name])
        before, after = self.reference[metric.name].value(), found[metric.name].value()
        if before is None or after is None:
            raise UserError("a search needs objects: none of the images it measures on has one")
        return metric.points_lost(before, after)

    def _measured(self, method: Mixed) -> Found:
        with scratch_folder() as folder:
            compress_model(self.model, method).write(self.model, folder / "artifact")
            reloaded, stored = load(folder / "artifact", expect=self.model.spec)
            return self._found(to_device(reloaded, self.device, stored.precision))

    def bytes(self, method: Mixed) -> int:
        """Bytes of the plan's file of weights, which a budget is about."""
        size: int = compress_model(self.model, method).file_bytes
        return size

    def effects(self, method: Mixed, keep: Kept) -> dict[str, dict[str, Effect]]:
        """Precision → unit → what it does to the model's outputs; ``method.granularity`` says what a unit is."""
        units = weights_by_unit(self.model, method.granularity)
        to_device(self.model, self.device, "fp32")
        batches = self.data.first_batches(-(-EFFECT_IMAGES // self.data.batch_size), self.split)
        effects = Effects(self.model, units, method, list(batches))
        print(f"ranking {len(units)} {method.granularity}s by the output errors they cause on {effects.images} images")
        found = {precision: effects.of(precision, keep) for precision in STORES}
        back_to_cpu(self.model)
        return found

    def _found(self, model: Sam3) -> Found:
        return evaluate(model, self.loader, limit=self.limit).samples


def sensitivity(
    evaluator: PrecisionEvaluator, folder: Path, keep: Kept, groups: Sequence[str] = GROUPS
) -> list[dict[str, Any]]:
    """Put one group at a time into INT8, everything else in FP32; writes ``sensitivity.csv`` and ``.md``.

    Args:
        keep: has the rows that an interrupted run measured.

    Returns:
        One row per group: parameters, bytes saved against FP32, drops with their 95 % intervals.
    """
    names, state = weights_by_group(evaluator.model), evaluator.model.state_dict()
    full = evaluator.bytes(Mixed(dict.fromkeys(GROUPS, "fp32"), rest="fp32"))
    rows: list[dict[str, Any]] = []
    columns = ("group", "params", "bytes_saved", *drop_columns())
    shown = ("group", "params", "bytes_saved", *(f"{name}_drop_interval" for name in evaluator.reference))
    for group in groups:
        if not names[group]:
            continue  # a prompt bank has no text tower
        method = Mixed({name: "int8" if name == group else "fp32" for name in GROUPS}, rest="fp32")
        drops = keep(group, partial(_drop_cells, evaluator, method))
        rows.append({
            "group": group, "params": sum(state[name].numel() for name in names[group]),
            "bytes_saved": full - evaluator.bytes(method), **drops,
        })  # fmt: skip
        # After every group, so that an interrupted run leaves what it knows.
        write_table(rows, folder, columns=columns, shown=shown, stem="sensitivity")
        print(f"{group}: {drops[f'{evaluator.metric.name}_drop']:.2f} points")
    print("\n" + to_markdown(rows, shown))
    return rows


def _drop_cells(evaluator: PrecisionEvaluator, method: Mixed) -> dict[str, Any]:
    return drop_cells(evaluator.drops(method))


def check_other_split(data: ConceptData, key: str, search: str, verify: str) -> None:
    """A plan must be searched, and rounding calibrated, on other images than those it is judged by.

    Raises:
        UserError: the same split, shared images, or no images.
    """
    if search == verify:
        raise UserError(
            f"{key}={search} is also data.split; numbers of the images that a method has looked at say nothing: "
            "choose another split for one of them"
        )
    searched, verified = _images(data, search), _images(data, verify)
    if not searched:
        raise UserError(f"{key}={search} has no images; choose another split")
    shared = sorted(searched & verified)
    if shared:
        raise UserError(
            f"{key}={search} shares {len(shared)} images with data.split={verify} (the first: "
            f"{shared[0]}); choose splits without common images"
        )


def _images(data: ConceptData, split: str) -> set[str]:
    dataset = data.dataset(split)
    return {str((dataset.folder / record.file_name).resolve()) for record in dataset.records}


def search_plan(evaluator: PrecisionEvaluator, method: Mixed, budget: BudgetSpec, folder: Path, keep: Kept) -> Searched:
    """The smallest plan within the budget, measured with ``evaluator``; every plan tried is kept in ``search.json``.

    Args:
        method: its ``granularity`` says what the plan gives precisions to, ``int4_group`` how INT4 is stored.
        keep: has what an interrupted run measured.
    """
    effects = evaluator.effects(method, keep)
    write_json(folder / "effects.json", {name: {u: asdict(e) for u, e in row.items()} for name, row in effects.items()})

    def drop_of(method: Mixed) -> float:
        points: float = keep(json.dumps(asdict(method), sort_keys=True), lambda: evaluator.points(method))
        print(f"{_told(method.groups)}: {points:.2f}")
        return points

    found = search(
        drop_of, evaluator.bytes, effects, method=method, max_drop=budget.max_drop, max_bytes=budget.max_bytes
    )
    write_json(folder / "search.json", found.trace)
    return found


def _told(groups: Mapping[str, str]) -> str:
    """A plan in one line: its groups, or of many blocks how many have which precision."""
    if len(groups) > len(GROUPS):
        return ", ".join(f"{count} in {precision}" for precision, count in sorted(Counter(groups.values()).items()))
    return ", ".join(f"{group} {precision}" for group, precision in groups.items() if precision != "fp16") or "fp16"


def verify_budget(record: RunRecord, found: Searched, budget: BudgetSpec) -> None:
    """Fill the record's ``budget`` and say plainly whether the measured artifact honours it."""
    measured, size = record.drop.get(main_metric(record, budget.metric).name), record.artifact.bytes
    drop = measured.points if measured else None
    kept = (budget.max_drop is None or (drop is not None and drop <= budget.max_drop)) and (
        budget.max_bytes is None or (size is not None and size <= budget.max_bytes)
    )
    record.budget = Budget(budget.max_drop, budget.max_bytes, dict(found.plan), budget.search_split, found.drop, kept)
    limits = [] if budget.max_drop is None else [f"{budget.max_drop:g} points"]
    limits += [] if budget.max_bytes is None else [f"{budget.max_bytes:,} bytes"]
    shown = f"{drop:.2f} points, {size:,} bytes" if drop is not None and size is not None else "not measured"
    print(f"budget of {' and '.join(limits)}: {'kept' if kept else 'BROKEN'} on the evaluated split ({shown})")
