"""``export``: from records to a checked folder that other code opens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from sam3slim.errors import UserError
from sam3slim.export.builder import builder_sizes
from sam3slim.export.card import ExportDetails, export_card
from sam3slim.export.convert import Advance, Converted, convert
from sam3slim.export.verify import Opening, Verified, verify_export
from sam3slim.files import at_home, atomic_path, ensure_writable_dir, scratch_folder, size_text, write_json
from sam3slim.results.artifact import source_of
from sam3slim.results.record import plain
from sam3slim.results.select import ExportCriteria, Selection, choose

EXPORT_FILE = "export.json"
SCHEMA = 1
IMAGES = 8


@dataclass(frozen=True)
class Exported:
    """What was written, to which folder, why, and what was checked."""

    path: Path
    selection: Selection
    made: Converted
    verified: Verified


def export(
    runs: Sequence[str | Path],
    out: str | Path,
    *,
    format: str = "hf",
    max_drop: float | None = None,
    max_bytes: int | None = None,
    best: str | None = None,
    metric: str | None = None,
    max_latency_ms: float | None = None,
    on: Literal["cpu", "cuda"] | None = None,
    any_machine: bool = False,
    group: str | None = None,
    reference: str | Path | None = None,
    data: str | Path | None = None,
    check_images: int = IMAGES,
    overwrite: bool = False,
    command: str = "sam3slim.export.export(…)",
    on_choice: Callable[[Selection], object] = lambda selection: None,
    step: Callable[[str], object] = lambda text: None,
    advance: Advance = lambda done, total: None,
) -> Exported:
    """Pick a run, write its model to ``out`` in ``format`` with a card, and check it, whole or not at all.

    Args:
        runs: folders with records in and below them.
        out: a new or empty folder.
        format: ``hf`` (a folder for transformers), ``reference`` (a file for the reference implementation), ``onnx``,
            ``torch-export``.
        max_drop: most points of the metric lost against the full model.
        max_bytes: of the export's weights.
        best: ``map`` or ``size``; see ``ExportCriteria``.
        metric: name of the metric that decides; None: mask mAP, box mAP without masks.
        max_latency_ms, on, any_machine: see ``ExportCriteria``.
        group, reference: see ``choose``.
        data: where the data lie now, if not where the records say.
        check_images: how many of the record's images both models are evaluated on; 0: none.
        overwrite: replace an export that is there.
        command: what the card says was called.
        on_choice, step, advance: called with the choice, with what is done next, and with elements written.

    Raises:
        UserError: bad input, a format that a package is missing for, or an export that is not what was picked.
    """
    path = at_home(out)
    # Words are checked there.
    wanted: Any = (format, max_drop, max_bytes, best, metric, max_latency_ms, on, any_machine)
    criteria = ExportCriteria(*wanted)
    if check_images < 0:
        raise UserError(f"--check-images {check_images}: expected 0 or more")
    _check_out(path, overwrite)
    choice = choose(runs, criteria, group=group, reference=reference)
    on_choice(choice)
    source = source_of(choice.chosen.run)
    ensure_writable_dir(path.parent)
    # Answers are compared on the export's own disk: of a full-size model they take a gigabyte.
    with atomic_path(path) as temporary, scratch_folder(path.parent) as work:
        step(f"writing {criteria.format}")
        record = choice.chosen.run.record
        made = convert(source, criteria.format, temporary, metrics=plain(record.metrics), advance=advance)
        _check_size(made, criteria)
        step("opening it in a fresh process, beside the picked run's model")
        spec = source.spec
        opens = criteria.format == "hf" and "transformers" in source.metadata.get("opens_in", ["transformers"])
        verified = verify_export(
            Opening(source.path, source.overrides), Opening(made.path, made.overrides, opens), record, criteria.format,
            work, images=check_images, root=data,
        )  # fmt: skip
        verified = replace(verified, int8=source.quantised)
        details = ExportDetails(choice, criteria, source, spec, made, verified, command)
        (temporary / "README.md").write_text(export_card(details), encoding="utf-8")
        write_json(temporary / EXPORT_FILE, _export_json(details))
    return Exported(path, choice, replace(made, path=path / made.path.relative_to(temporary)), verified)


def _check_out(path: Path, overwrite: bool) -> None:
    """Only an export is ever replaced, and only when asked to."""
    if path.exists() and not path.is_dir():
        raise UserError(f"output folder {path} is a file; choose a folder")
    if not path.is_dir() or not any(path.iterdir()):
        return
    if not (path / EXPORT_FILE).is_file():
        raise UserError(f"output folder {path} holds files that are not an export; choose a new or empty folder")
    if not overwrite:
        raise UserError(f"output folder {path} holds an export; choose another folder or give --overwrite")


def _check_size(made: Converted, criteria: ExportCriteria) -> None:
    if criteria.max_bytes is not None and made.bytes > criteria.max_bytes:
        raise UserError(
            f"the {criteria.format} export has {made.bytes:,} bytes ({size_text(made.bytes)}) with names and "
            f"constants, more than --max-bytes {criteria.max_bytes:,}; nothing was written: give a larger limit or "
            "another --format"
        )


def _export_json(details: ExportDetails) -> dict[str, Any]:
    """The card's content for programs."""
    choice, record = details.selection, details.selection.chosen.run.record
    runs = [
        {
            "run": str(c.run.folder), "model": c.name, choice.metric.name: c.value,
            "drop": c.drop.points if c.drop else None, "bytes": c.bytes, "verdict": c.verdict,
        }
        for c in choice.candidates
    ]  # fmt: skip
    values = {
        "schema": SCHEMA,
        "command": details.command,
        "format": details.criteria.format,
        "wish": asdict(details.criteria),
        "why": choice.why,
        "warnings": choice.warnings,
        "drop_against": None if choice.against is None else asdict(choice.against),
        "runs": runs,
        "record": record.to_dict(),
        "artifact": str(details.source.path),
        "spec": details.spec.to_dict(),
        "reference_builder": builder_sizes(details.spec),
        "weights": details.made.weights,
        "bytes": details.made.bytes,
        "notes": details.made.notes,
        "overrides": details.made.overrides,
        "checks": details.verified.metadata(),
    }
    checked: dict[str, Any] = plain(values)
    return checked
