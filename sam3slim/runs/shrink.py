"""``sam3slim shrink``: a checkpoint made as small as a budget allows, every step one of the other commands."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sam3slim.artifacts import extract
from sam3slim.artifacts.cut import cut_text
from sam3slim.checkpoints import load, locate, weight_files
from sam3slim.compression import Mixed, check_methods
from sam3slim.compression.slim import KEY
from sam3slim.data.spec import SPLITS
from sam3slim.export.run import Exported, export
from sam3slim.files import atomic_path
from sam3slim.launch.compose import compose_run
from sam3slim.launch.quoting import quoted
from sam3slim.progress import output_to
from sam3slim.report.rows import ACCEPTED_DROP, tells_drops
from sam3slim.report.table import drop_cells, metric_cells, times_smaller, to_markdown, write_table
from sam3slim.results.metrics import main_metric
from sam3slim.results.record import Kind, RunRecord
from sam3slim.runs import COMMANDS
from sam3slim.runs.compress import compress_unfinished
from sam3slim.runs.shrink_inputs import FIT_IMAGES, STEPS, ShrinkSpec, bank_phrases, claim, data_settings
from sam3slim.runs.shrink_sizes import FIT_BATCHES, as_overrides, cuts_of
from sam3slim.runs.specs import CompressSpec, EvaluateSpec
from sam3slim.specs import ModelSpec
from sam3slim.strict import spec_from_dict

LOG, ARTIFACT, PAGE = "log.txt", "artifact", "README.md"
# Of max_drop, that plans are searched with: what was found on some images may lose more on others.
SEARCHES = (1.0, 0.5, 0.25)
SHARE = 0.5  # of max_drop that a cut may cost: the rest is for fewer bits, which save more bytes a point
PLANS = 15  # that a search measures, about


def shrink(spec: ShrinkSpec, say: Callable[[str], object] = print) -> Exported:
    """The smallest artifact within the budget in ``out/artifact``, and in ``out/README.md`` what each step gave.

    Steps that are finished are not done again.

    Raises:
        UserError: bad input, before anything is measured; a budget that nothing keeps.
    """
    claim(spec)
    data = data_settings(spec)
    model, report = load(spec.checkpoint, mapped=True)
    report.tell()
    check_methods(model, {"mixed": Mixed()})
    full = model.spec
    del model
    config = compose_run("evaluate", [f"checkpoint={spec.checkpoint}", *data], spec.out).config
    built = spec_from_dict(EvaluateSpec, config, "").data.build(full)
    images = {split: len(built.dataset(split, training=split == "train")) for split in SPLITS}
    phrases = bank_phrases(spec)
    cuts = cuts_of(spec, full, images["train"], phrases)
    ladder = _Ladder(spec, data, images, say)
    lines = [line for split in ("val", "test") for line in built.dataset(split).report.lines()]
    unit = "agreement with the full model" if built.dataset("test").by_model else "mAP against annotations"
    say(
        f"{images['train']} images to fit on, {images['val']} to search with ({ladder.searched} are used), "
        f"{images['test']} to verify on; drops are points of {unit}"
    )
    for line in dict.fromkeys(line for line in lines if "cannot be read" in line):
        say(f"left out: {line}")
    return ladder.climb(cuts, phrases)


@dataclass
class _Ladder:
    """The steps of one call; ``rows`` are those of the page."""

    spec: ShrinkSpec
    data: list[str]
    images: dict[str, int]
    say: Callable[[str], object]
    rows: list[dict[str, Any]] = field(default_factory=list)
    ahead: list[float] = field(default_factory=list)  # images that the steps to come send through a model, about
    pace: list[float] = field(default_factory=list)  # seconds, images

    @property
    def searched(self) -> int:
        return min(self.images["val"], self.spec.search_images)

    def climb(self, cuts: dict[str, ModelSpec], phrases: list[str]) -> Exported:
        """All steps."""
        spec, folder = self.spec, self.spec.out / STEPS
        test, fit = self.images["test"], 3 * FIT_BATCHES * FIT_IMAGES + self.searched
        self.ahead = [0, test, self.searched, *[fit] * len(cuts), 0, test, PLANS * self.searched + test, 16]
        weights = folder / "weights"
        self.do("weights only", lambda: weights.is_dir() or extract(spec.checkpoint, weights))
        full = self.record("evaluate", "full", (), spec.checkpoint)
        found = self.record("evaluate", "full_search", self.searching)
        self.metric = main_metric(full)
        if not tells_drops(full, self.metric):
            self.say(f"warning: the full model has at most {ACCEPTED_DROP:g} point here, so no drop can be seen")
        self.row("the checkpoint", full, full)
        weights_bytes = sum(file.stat().st_size for file in weight_files(locate(weights)))
        exact = replace(full, artifact=replace(full.artifact, bytes=weights_bytes), seconds=None)
        self.row("weights only", exact, full, "exact")
        source: Path = weights
        for name, small in cuts.items():
            record = self.cut(name, small)
            lost = record.drop[self.metric.name].points
            kept = spec.max_drop is None or lost <= SHARE * spec.max_drop
            self.row(f"cut: {name}", record, found, f"on the search images; {'taken' if kept else 'not taken'}")
            if kept:
                source = folder / f"cut_{name}/slim/{ARTIFACT}"
                break
        if phrases:
            banked = folder / f"bank_{source.parts[-3] if source != weights else 'full'}"
            unbanked = source
            self.do("prompt bank", lambda: banked.is_dir() or cut_text(unbanked, banked, phrases, bank=True))
            source = banked
        measured = [folder / "full"]
        against = [f"reference={folder / 'full'}"]
        if source != weights:
            self.row("before rounding", self.record("evaluate", "unrounded", against, source), full, "held-out images")
            measured.append(folder / "unrounded")
        for share in SEARCHES:
            name = f"mixed_{share:g}"
            mixed = self.mixed(name, source, against, share)
            measured.append(folder / name / "mixed")
            lost = mixed.drop[self.metric.name].points
            kept = spec.max_drop is None or lost <= spec.max_drop
            part = "" if share == 1 else f", searched with {share:g} of the budget"
            self.row("precision for each group", mixed, full, f"held-out images{part}{'' if kept else '; too much'}")
            if kept:
                break
        limits: dict[str, Any] = {"max_drop": spec.max_drop, "max_bytes": spec.max_bytes}
        made: Exported = self.do("exported and checked", lambda: export(
            measured, spec.out / ARTIFACT, **limits, reference=folder / "full", overwrite=True,
            command=f"sam3slim shrink {spec.checkpoint} {spec.out} {spec.budget}",
        ))  # fmt: skip
        self.page(made, mixed, full)
        return made

    @property
    def searching(self) -> list[str]:
        return ["data.split=val", f"limit={self.searched}"]

    def cut(self, name: str, small: ModelSpec) -> RunRecord:
        """The architecture cut out and fitted, measured on the search images."""
        listed = ",".join(quoted(text) for text in as_overrides(small))
        reference = f"reference={self.spec.out / STEPS / 'full_search'}"
        settings = ["model=full", f"overrides=[{listed}]", f"fit_batches={FIT_BATCHES}"]
        slim = [f"{KEY}.{text}" for text in settings]
        return self.record("compress", f"cut_{name}", [*self.searching, "compress=[slim]", *slim, reference])

    def mixed(self, name: str, source: Path, against: list[str], share: float) -> RunRecord:
        """The precisions searched for with this share of the budget, measured on the held-out images."""
        spec = self.spec
        budget = f"max_bytes={spec.max_bytes}" if spec.max_drop is None else f"max_drop={share * spec.max_drop:g}"
        search = [budget, f"search_limit={self.searched}", f"search_reference={spec.out / STEPS / 'full_search'}"]
        settings = ["compress=[mixed]", *(f"compress.{text}" for text in search), *against]
        return self.record("compress", name, settings, source)

    def record(self, kind: Kind, name: str, settings: Sequence[str], checkpoint: str | Path | None = None) -> RunRecord:
        """The record of one command in ``steps/name``, which is run unless just this has been done there."""
        folder = self.spec.out / STEPS / name
        given = [f"checkpoint={checkpoint or self.spec.out / STEPS / 'weights'}", *self.data, *settings]

        def work() -> RunRecord:
            run = compose_run(kind, given, folder)
            if kind == "compress":
                return compress_unfinished(spec_from_dict(CompressSpec, run.config, ""), run)[0][0]
            return run.finished() or COMMANDS[kind].prepare(run)()  # type: ignore[no-any-return]

        found: RunRecord = self.do(name.replace("_", " "), work)
        return found

    def do(self, title: str, work: Callable[[], Any]) -> Any:
        """``work()``, and a line with the time it took and the time left; what it prints goes to the log."""
        started = time.perf_counter()
        with output_to(self.spec.out / LOG):
            print(f"\n== {title}", flush=True)
            found = work()
        seconds, images = time.perf_counter() - started, self.ahead.pop(0) if self.ahead else 0
        if images and seconds > 1:
            self.pace = [seconds + sum(self.pace[:1]), images + sum(self.pace[1:])]
        left = sum(self.ahead) * self.pace[0] / self.pace[1] if self.pace else 0
        minutes = f"; about {math.ceil(left / 60)} min left" if left else ""
        self.say(f"{seconds:6.0f} s  {title}{minutes}")
        return found

    def row(self, title: str, record: RunRecord, full: RunRecord, note: str = "") -> None:
        cells = {**metric_cells(record), **drop_cells(record.drop)}
        self.rows.append({
            "method": title, "params": record.model.params, "bytes": record.artifact.bytes,
            "ratio": times_smaller(record, full), **cells, "making_seconds": record.seconds, "note": note,
        })  # fmt: skip

    def page(self, made: Exported, mixed: RunRecord, full: RunRecord) -> None:
        """``README.md`` and the table as CSV; its sentences are printed too."""
        spec, metric = self.spec, self.metric
        drop = f"{metric.name}_drop"
        shown = ("method", "params", "bytes", "ratio", metric.column, f"{drop}_interval", "making_seconds", "note")
        write_table(self.rows, spec.out, columns=(*shown[:5], drop, f"{drop}_low", f"{drop}_high", *shown[6:]),
                    shown=shown, stem="shrink")  # fmt: skip
        chosen = made.selection.chosen
        ratio = (full.artifact.bytes or 0) / made.made.bytes
        lines = [
            f"{spec.out / ARTIFACT}: {ratio:.1f} times smaller than {spec.checkpoint}; "
            f"{chosen.summary(metric)} on {self.images['test']} held-out images",
        ]
        if spec.max_drop is not None and mixed.drop[metric.name].points > spec.max_drop:
            lost, searched = mixed.drop[metric.name], mixed.budget.searched_drop
            lines.append(
                f"{spec.budget} could not be met in fewer bits: they lose {lost.text()} points on the held-out images "
                f"({searched:.2f} on the {self.searched} searched with), so the smallest step that keeps it was taken; "
                f"--max-drop {math.ceil(lost.points * 10) / 10:g} or --search-images with more images would take them"
            )
        for line in lines:
            self.say(line)
        text = [f"# {spec.checkpoint} made smaller, {spec.budget}", *lines, to_markdown(self.rows, shown)]
        with atomic_path(spec.out / PAGE) as temporary:
            temporary.write_text("\n\n".join(text), encoding="utf-8")
        self.say(f"written: {spec.out / PAGE}, {spec.out / 'shrink.csv'}, {spec.out / ARTIFACT}")
