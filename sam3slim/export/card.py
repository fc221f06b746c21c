"""The model card of an export."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sam3slim.artifacts.card import (
    LOAD_INT8,
    LOAD_PLAIN,
    LOAD_SAM3SLIM,
    inputs_lines,
    loading,
    model_card,
    not_plain,
    traps,
)
from sam3slim.artifacts.trained import SENTENCES, inherited_prompts, told_prompts
from sam3slim.checkpoints.locating import ONNX, PROGRAMS
from sam3slim.export.builder import MODULE, builder_lines
from sam3slim.export.convert import Converted
from sam3slim.export.verify import Verified
from sam3slim.files import size_text
from sam3slim.models import count_params
from sam3slim.results.artifact import Source
from sam3slim.results.metrics import METRICS
from sam3slim.results.select import ExportCriteria, Selection
from sam3slim.specs import ModelSpec

SHAPES = "shapes"
LICENSE_SAM = (
    "SAM 3's weights are Meta's, under the SAM License. Weights that descend from them, by fine-tuning, slimming, "
    "distillation or compression, are derivative works under the same licence: pass them on only under its terms, with "
    "a copy of it. Whether these weights descend from SAM 3's is told by the first ancestor under Provenance."
)
LICENSE_SHAPES = (
    "This run was measured on drawn shapes. The nano family of sam3slim is trained from scratch on such pictures, "
    "which carry no third-party rights; its weights are under the project's Apache-2.0 licence."
)
LIBRARIES = {"hf": "transformers", ONNX: "onnx"}


@dataclass(frozen=True)
class ExportDetails:
    """All that a card tells."""

    selection: Selection
    criteria: ExportCriteria
    source: Source
    spec: ModelSpec
    made: Converted
    verified: Verified
    command: str


def export_card(details: ExportDetails) -> str:
    """Markdown with the architecture, data, metrics, drop, sizes, choice, checks, provenance, use and licence."""
    record = details.selection.chosen.run.record
    drawn = record.data.name == SHAPES
    prompts = (
        told_prompts(details.source.metadata) if details.source.metadata else inherited_prompts(details.source.path)
    )
    return model_card(
        f"{details.spec.name} ({record.artifact.precision}) as {details.criteria.format}",
        LIBRARIES.get(details.criteria.format, "pytorch"),
        f"A SAM 3 image model, chosen from measured runs and exported by sam3slim. {SENTENCES[prompts]}",
        [
            ("Architecture", _architecture(details)),
            ("Data and metrics", _measured(details)),
            ("Sizes", _sizes(details)),
            ("Why this one", _choice(details)),
            ("Checks at export", [f"- {line}" for line in (*details.verified.lines(), *details.made.notes)]),
            ("Provenance", _provenance(details)),
            ("Use", _use(details)),
        ],
        "\n\n".join([LICENSE_SAM, *([LICENSE_SHAPES] if drawn else [])]),
    )


def table(heads: Sequence[str], rows: Sequence[Sequence[Any]], right: int = 1) -> list[str]:
    """A Markdown table whose columns from ``right`` on are numbers."""
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    rule = "|" + "|".join("---:" if i >= right else "---" for i in range(len(heads))) + "|"
    return [f"| {' | '.join(heads)} |", rule, *(f"| {' | '.join(row)} |" for row in cells), ""]


def _architecture(details: ExportDetails) -> list[str]:
    spec = details.spec
    vit, text = spec.vit, spec.text
    blocks = ", ".join(map(str, vit.global_blocks))
    params = count_params(spec)
    rows = [
        ("parameters", f"{sum(params.values()):,}"),
        ("vision tower", f"embed_dim {vit.embed_dim}, depth {vit.depth}, heads {vit.num_heads}, "
         f"mlp_ratio {vit.mlp_ratio:g}, {vit.image_size} px in patches of {vit.patch_size}, window {vit.window_size}, "
         f"global blocks {blocks}"),
        ("text tower", f"none: stored features of {len(text.bank.phrases)} phrases, d_model {spec.d_model}"
         if text.bank is not None else f"width {text.width}, layers {text.layers}, heads {text.num_heads}, "
         f"mlp_ratio {text.mlp_ratio:g}, {text.context_length} tokens of {text.vocab_size:,}, "
         f"projection {text.projection_dim}"),
        ("encoder, decoder", f"layers {spec.encoder.num_layers} and {spec.decoder.num_layers}, d_model {spec.d_model}, "
         f"heads {spec.num_heads}, feed-forward {spec.ffn_dim}, {spec.decoder.num_queries} queries"),
        ("geometry encoder", f"layers {spec.geometry.num_layers}, boxes pooled to {spec.geometry.roi_size} × "
         f"{spec.geometry.roi_size}"),
    ]  # fmt: skip
    return [*table(("", ""), rows, right=2)]


def _measured(details: ExportDetails) -> list[str]:
    chosen = details.selection.chosen
    record, data = chosen.run.record, chosen.run.record.data
    measured = {METRICS[name]: values for name, values in record.metrics.values.items() if name in METRICS}
    keys = dict.fromkeys(key for values in measured.values() for key in values if key != "per_category")
    rows = [
        (f"{m.title}, {m.unit}", *("–" if (v := values.get(key)) is None else m.text(v, 1) for key in keys))
        for m, values in measured.items()
    ]
    against, metric = details.selection.against, details.selection.metric
    drop = (
        f"Drop in {metric.title}: {chosen.drop.text()} points, against {against.where} "
        f"({metric.text(against.value)} {metric.unit}); in brackets the 95 % interval over images, where the record "
        "has one."
        if against and chosen.drop is not None
        else "Drop: not known; no record states one."
    )
    where = ", ".join(
        str(part) for part in (
            data.name, f"split {data.split}", f"protocol {data.protocol}", f"{data.images:,} images",
            f"{data.prompts:,} prompts", f"at {data.root}",
        )
    )  # fmt: skip
    arithmetic = record.artifact.arithmetic
    computed = f", stored in {record.artifact.precision}, computed in {arithmetic}" if arithmetic else ""
    latency = record.latency_ms
    speed = (
        [f"Latency: {latency.p50:.1f} ms (median; batch {latency.batch}, {latency.prompts} prompts, "
         f"{record.device}), of the picked artifact, not of this format.", ""]
        if latency.p50 is not None else []
    )  # fmt: skip
    return [
        f"Measured on {where}{computed}.", "", *table(("", *keys), rows), drop, "", *speed,
    ]  # fmt: skip


def _sizes(details: ExportDetails) -> list[str]:
    artifact = details.selection.chosen.run.record.artifact
    rows = [
        ("this export, weights", f"{details.made.bytes:,}", size_text(details.made.bytes)),
        (f"the measured artifact ({artifact.format}, {artifact.precision})", f"{artifact.bytes:,}",
         size_text(artifact.bytes or 0)),
    ]  # fmt: skip
    rows += [(f"– its {part}", f"{size:,}", size_text(size)) for part, size in artifact.bytes_by_part.items()]
    files = [(f"`{name}`", f"`{sha}`") for name, sha in details.made.weights.items()]
    return [*table(("", "bytes", ""), rows), *table(("file", "sha256"), files, right=2)]


def _choice(details: ExportDetails) -> list[str]:
    shown = table(details.selection.headings(details.criteria.format), details.selection.rows(), right=6)
    return [f"{details.selection.why}.", "", *(f"Note: {w}.\n" for w in details.selection.warnings), *shown]


def _provenance(details: ExportDetails) -> list[str]:
    run = details.selection.chosen.run
    record = run.record
    versions = ", ".join(f"{name} {value}" for name, value in record.versions.items() if value)
    rows = [
        ("record", f"`{run.folder / 'record.json'}`"),
        ("artifact", f"`{details.source.path}`"),
        ("made from", " ← ".join(f"`{name}`" for name in _ancestors(details))),
        ("command", f"`{record.command}`"),
        ("configuration", f"`{record.config_hash}`"),
        ("code", str(record.git)),
        ("ran on", f"{record.device}, {record.started}"),
        ("with", versions),
        ("exported by", f"`{details.command}` (Python {platform.python_version()})"),
    ]
    return [*table(("", ""), rows, right=2)]


def _ancestors(details: ExportDetails) -> list[str]:
    """Parents as records and artifacts state them, the nearest first; ``unknown`` where none is stated."""
    found = [
        str(name)
        for name in (details.selection.chosen.run.record.parent, details.source.metadata.get("parent"))
        if name
    ]
    return list(dict.fromkeys(found)) or ["nothing (trained from scratch), or unknown"]


def _use(details: ExportDetails) -> list[str]:
    if details.criteria.format == "reference":
        return _use_reference(details)
    if details.criteria.format in (ONNX, PROGRAMS):
        return [loading(details.criteria.format), "", *inputs_lines(details.spec)]
    lines = [LOAD_SAM3SLIM]
    if details.verified.transformers is None:
        lines += ["", not_plain(details.spec, details.source.metadata)]
    else:
        lines += ["", "or in plain transformers:", "", LOAD_INT8 if details.source.quantised else LOAD_PLAIN]
    return [*lines, "", *traps(details.spec)]


def _use_reference(details: ExportDetails) -> list[str]:
    file = details.made.path.name
    heads = details.made.overrides["text.num_heads"]
    lines = [
        f"`{file}` is a `torch.save` of the reference implementation's keys behind `detector.`. Its builder "
        f"(`{MODULE}.build_sam3_image_model`) has SAM 3's sizes written into it; given these it loads the "
        "file strictly:",
        "",
        "```python",
        *builder_lines(details.spec, file),
        "```",
        "",
        "or with sam3slim, which reads the other sizes from the tensors:",
        "",
        "```python",
        "import sam3slim",
        "",
        f'model, report = sam3slim.load("{file}", overrides={{"text.num_heads": {heads}}})',
        "```",
    ]
    released = ModelSpec().text.vocab_size
    if details.spec.text.vocab_size != released:
        lines += [
            "",
            f"The text tower knows the first {details.spec.text.vocab_size:,} tokens of CLIP's {released:,}; the "
            "reference's tokenizer must be cut to the same merges.",
        ]
    return lines
