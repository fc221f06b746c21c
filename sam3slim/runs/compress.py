"""``compress``: one measured artifact per method, and their comparison."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from sam3slim.checkpoints import LoadReport, load
from sam3slim.compression import Mixed, Slim, Slimmed, check_methods, method_from_name, needs_batches, needs_labels
from sam3slim.compression import compress as compress_model
from sam3slim.compression.search import Searched
from sam3slim.compression.slim import KEY
from sam3slim.data.batch import Batch
from sam3slim.data.module import ConceptData
from sam3slim.errors import UserError
from sam3slim.files import Kept, ensure_writable_dir
from sam3slim.launch.run import Run
from sam3slim.models import Sam3
from sam3slim.models.compiled import require_compiler
from sam3slim.predict.opening import identity
from sam3slim.report.rows import ACCEPTED_DROP, compression_columns, compression_rows, compression_shown, tells_drops
from sam3slim.report.table import to_markdown, write_table
from sam3slim.results.metrics import main_metric
from sam3slim.results.record import RunRecord, read_record
from sam3slim.results.recording import begin, config_hash
from sam3slim.runs.evaluate import loaded_artifact
from sam3slim.runs.measure import (
    back_to_cpu,
    label_as,
    measure,
    measured_on,
    measuring_device,
    model_summary,
    prepared_data,
    print_metrics,
    written_artifact,
)
from sam3slim.runs.plans import PrecisionEvaluator, check_other_split, search_plan, sensitivity, verify_budget
from sam3slim.runs.reference import Reference, check_images, load_reference, print_drop
from sam3slim.runs.specs import CompressSpec
from sam3slim.runtimes import check_runtime, open_runtime
from sam3slim.runtimes.eager import to_device
from sam3slim.slimming import check_enough

log = logging.getLogger(__name__)
SOURCE = "full"  # folder of the checkpoint's own measurement
SENSITIVITY = "sensitivity"
UNFINISHED = "unfinished.json"  # measurements of a search that has not come to its end


def compress(spec: CompressSpec, run: Run) -> list[RunRecord]:
    """One artifact and one record per method, each measured on what was written, reloaded; then the table.

    A method that fails is a row that says why, and the others go on.

    Raises:
        UserError: bad input, or methods that failed (after the table has been written).
    """
    budget = spec.budget
    entries = {name: options for name, options in spec.methods.items() if name != SENSITIVITY}
    methods = [method_from_name(**{"name": name, **_method(options)}) for name, options in entries.items()]
    if not spec.methods:
        raise UserError("compress is empty; choose methods, e.g. compress=[weights_only,fp16,int8_weight]")
    if budget.given and not any(isinstance(method, Mixed) for method in methods):
        raise UserError("compress.max_drop and compress.max_bytes are budgets of mixed; add compress=[…,mixed]")
    ensure_writable_dir(run.folder)
    device = measuring_device(spec)
    require_compiler(spec.compile, device)
    check_runtime(spec.runtime)
    spec.data.find()
    reference: Reference | None = load_reference(spec.reference, spec.data) if spec.reference else None
    searched_against = _search_reference(spec)
    model, report = load(spec.checkpoint, overrides=spec.overrides, mapped=True)
    print(report.render())
    check_methods(model, {**dict.fromkeys(spec.methods), **dict(zip(entries, methods, strict=True))})
    data = prepared_data(spec, model.spec)
    if any(map(needs_labels, methods)) and spec.data.kind == "pictures":
        raise UserError("compress=recalibrated fits scores to annotations, and data=pictures has none; use data=coco")
    if budget.given or any(map(needs_labels, methods)):
        check_other_split(data, "compress.search_split", budget.search_split, spec.data.split)
    if any(needs_batches(method) and not needs_labels(method) for method in methods):
        check_other_split(data, "compress.calibration_split", budget.calibration_split, spec.data.split)
    for method in methods:
        if isinstance(method, Slim):
            _check_slim(method, model, data, spec)
    if reference is not None:
        label_as(reference, data.dataset(spec.data.split))
    if searched_against is not None:
        check_images(searched_against, data.dataset(budget.search_split), budget.search_limit or spec.limit)
        label_as(searched_against, data.dataset(budget.search_split))
    work = _Compression(spec, run, model, report, data, device, reference, searched_against)
    full = work.measure_source() if reference is None else read_record(str(spec.reference))
    metric = main_metric(full, budget.metric)
    if not tells_drops(full, metric):
        log.warning(
            "the full model's %s on data.split=%s is at most %g point: a drop cannot be seen here and no method is "
            "recommended; check the checkpoint, the data set's categories and data.protocol",
            metric.title, spec.data.split, ACCEPTED_DROP,
        )  # fmt: skip
    if SENSITIVITY in spec.methods:
        work.sensitivity()
    records = [
        work.one(only(run, entry, options), method)
        for (entry, options), method in zip(entries.items(), methods, strict=True)
    ]
    if not records:
        return records
    named = list(zip(entries, records, strict=True))
    rows = compression_rows(full, named, metric)
    shown = compression_shown(metric, rows)
    path, _ = write_table(rows, run.folder, columns=compression_columns(), shown=shown, stem="compression")
    print("\n" + to_markdown(rows, shown) + f"written: {path}, {path.with_suffix('.md')}")
    failed = [f"{entry}: {record.error}" for entry, record in named if record.status != "finished"]
    if failed:
        raise UserError(f"{len(failed)} of {len(methods)} methods failed ({'; '.join(failed)})")
    return records


def compress_unfinished(spec: CompressSpec, run: Run, *, force: bool = False) -> tuple[list[RunRecord], bool]:
    """The methods' records, and whether they had to be made: not if all of them are finished, but for ``force``."""
    parts = [only(run, entry, options) for entry, options in spec.methods.items()]
    done = [part.finished() for part in parts]
    if not force and all(done):
        return [record for record in done if record is not None], False
    compress(spec, run)
    return [read_record(part.folder) for part in parts], True


def only(run: Run, entry: str, options: Mapping[str, Any]) -> Run:
    """One row's part, as ``compress=[entry]`` alone would have it, so that both ways to ask hash to one record."""
    settings = {name: value for name, value in run.config["compress"].items() if not isinstance(value, dict)}
    return run.part(entry, {**run.config, "compress": {**settings, entry: options}})


@dataclass
class _Compression:
    """What all methods of one command share."""

    spec: CompressSpec
    run: Run
    model: Sam3
    report: LoadReport
    data: ConceptData
    device: torch.device
    reference: Reference | None
    searched_against: Reference | None = None  # on the search split; None: the checkpoint itself
    slimmed: dict[Slim, tuple[Slimmed, float]] = field(default_factory=dict)  # for other rows, which store it otherwise

    def measure_source(self) -> RunRecord:
        """The checkpoint as it is: what the drops are counted against when no other reference is given."""
        part = self.run.part(SOURCE, self.run.config, "evaluate")
        with part.recording(self.spec.checkpoint) as record:
            record.model, record.artifact = model_summary(self.model), loaded_artifact(self.report, self.spec.overrides)
            if self.spec.runtime is None:
                model = to_device(self.model, self.device, self.report.precision, self.spec.arithmetic)
            else:
                model = self.opened(self.spec.checkpoint, self.spec.overrides)
            self.reference = measure(model, self.data, self.spec, record, part.folder, None)
            print_metrics(record)
        if self.device.type != "cpu":
            # Converting starts from the CPU's FP32 weights; half-precision ones are the stored values again.
            self.model = to_device(self.model, torch.device("cpu"), "fp32").float()
        return record

    def one(self, part: Run, method: Any) -> RunRecord:
        """One method's record, also when it failed.

        Raises:
            UserError: no record can be written.
        """
        record: RunRecord | None = None
        folder = part.folder
        try:
            with part.recording(self.spec.checkpoint) as record:
                searched = None
                if isinstance(method, Mixed) and self.spec.budget.given:
                    searched = self.search(part, method)
                    method = searched.method
                compressed, seconds = self.compressed(method)
                print(compressed.describe())
                small = compressed.model or self.model
                record.model = model_summary(small)
                begin(record, folder)
                info = compressed.write(self.model, folder / "artifact", parent=self.spec.checkpoint)
                stored = compressed.stored if isinstance(compressed, Slimmed) else compressed
                record.artifact = written_artifact(info, stored.method["name"])
                if images := compressed.images_used:
                    record.artifact = replace(record.artifact, images_used=images, making_seconds=round(seconds, 1))
                model = self.opened(info.path, expect=small)
                measure(model, self.data, self.spec, record, folder, self.reference)
                print_metrics(record)
                print_drop(record)
                if searched is not None:
                    verify_budget(record, searched, self.spec.budget)
            (folder / UNFINISHED).unlink(missing_ok=True)
        except UserError as error:
            if record is None:
                raise
            print(f"{folder.name} failed: {error}")
        except Exception:
            if record is None:
                raise
            log.exception("%s failed", folder.name)
        return record

    def opened(self, source: str | Path, overrides: dict[str, Any] | None = None, expect: Sam3 | None = None) -> Any:
        """``source`` in the runtime that is to be measured; ``expect`` has its architecture (None: the model)."""
        return open_runtime(
            source, self.spec.runtime, device=measured_on(self.spec, self.device), arithmetic=self.spec.arithmetic,
            overrides=overrides, expect=(expect or self.model).spec,
            calibration=lambda _: self.data.loader(self.spec.budget.calibration_split),
        )[0]  # fmt: skip

    def compressed(self, method: Any) -> tuple[Any, float]:
        """What ``method`` makes of the model, and in how many seconds; with images, on the device."""
        started = time.perf_counter()
        if not isinstance(method, Slim):
            return self._made(method), time.perf_counter() - started
        cut = replace(method, then=())
        if cut not in self.slimmed:
            self.slimmed[cut] = self._made(cut), time.perf_counter() - started
        slimmed, seconds = self.slimmed[cut]
        started = time.perf_counter()
        return slimmed.stored_as(method), seconds + time.perf_counter() - started

    def _made(self, method: Any) -> Any:
        if not needs_batches(method):
            return compress_model(self.model, method)
        to_device(self.model, self.device, "fp32")
        try:
            return compress_model(self.model, method, self.labelled if needs_labels(method) else self.calibration)
        finally:
            back_to_cpu(self.model)

    def calibration(self, count: int) -> Iterator[Batch]:
        """The first batches of the calibration split as training has them; the seed decides which.

        Labels only decide which phrases are asked, where there are some.
        """
        return self.data.first_batches(count, self.spec.budget.calibration_split)

    def labelled(self, count: int) -> Iterator[Batch]:
        """The first annotated batches of the search split, asked as in an evaluation."""
        yield from islice((b for b in self.data.loader(self.spec.budget.search_split) if len(b.input_ids)), count)

    def sensitivity(self) -> None:
        """What each group of weights costs in INT8, on the evaluated split."""
        part = only(self.run, SENSITIVITY, self.spec.methods[SENSITIVITY])
        with part.recording(self.spec.checkpoint) as record:
            record.model = model_summary(self.model)
            evaluator = PrecisionEvaluator(
                self.model, self.data, self.spec.data.split, self.device,
                limit=self.spec.limit, reference=self.reference.found if self.reference else None,
                metric=self.spec.budget.metric,
            )  # fmt: skip
            sensitivity(evaluator, part.folder, self.kept(part))
        (part.folder / UNFINISHED).unlink(missing_ok=True)

    def kept(self, part: Run) -> Kept:
        """What an interrupted run of ``part`` has measured of this checkpoint."""
        return Kept(part.folder / UNFINISHED, f"{identity(self.spec.checkpoint)} {config_hash(part.config)}")

    def search(self, part: Run, method: Mixed) -> Searched:
        """The plan for the budget, searched on a split of its own."""
        budget = self.spec.budget
        evaluator = PrecisionEvaluator(
            self.model, self.data, budget.search_split, self.device,
            limit=budget.search_limit or self.spec.limit, metric=budget.metric,
            reference=self.searched_against.found if self.searched_against else None,
        )  # fmt: skip
        return search_plan(evaluator, method, budget, part.folder, self.kept(part))


def _check_slim(method: Slim, model: Sam3, data: ConceptData, spec: CompressSpec) -> None:
    """Has the calibration split as many images as it takes? Raises UserError."""
    target = method.target(model.spec)
    if method.needs_batches:
        size = spec.data.batch_size
        there = len(data.training_set(spec.budget.calibration_split))
        batches = min(method.fit_batches, -(-there // size))
        check_enough(target, min(there, batches * size), batches, f"{KEY}.fit_batches", there)


def _search_reference(spec: CompressSpec) -> Reference | None:
    """What a search counts drops against. Raises UserError for a measurement of other data, or where it is idle."""
    budget, key = spec.budget, "compress.search_reference"
    if budget.search_reference is None:
        return None
    if not (budget.given and spec.reference):
        raise UserError(
            f"{key}={budget.search_reference} is what a search counts drops against; also give the budget "
            "(compress.max_drop or compress.max_bytes), and reference=FOLDER of the same model on data.split, which "
            "the result is judged against"
        )
    return load_reference(budget.search_reference, replace(spec.data, split=budget.search_split), key)


def _method(options: dict[str, Any] | None) -> dict[str, Any]:
    """Options of one entry of the compress group; ``method`` names the handler (default: the entry's own name)."""
    options = dict(options or {})
    method = options.pop("method", None)
    return {**({"name": method} if method else {}), **options}
