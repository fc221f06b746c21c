"""``evaluate``: the mAP of any checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sam3slim.checkpoints import load, locate, weight_files
from sam3slim.files import ensure_writable_dir
from sam3slim.records import RunRecord, recording
from sam3slim.runs.measure import choose_device, measure, model_facts, print_metrics, to_device
from sam3slim.runs.specs import EvaluateSpec
from sam3slim.strict import spec_from_dict


def evaluate(config: dict[str, Any], output_dir: Path, choices: dict[str, str], command: str) -> RunRecord:
    """mAP of ``checkpoint`` on ``data.split``; writes ``record.json``.

    Raises:
        UserError: bad input.
    """
    spec = spec_from_dict(EvaluateSpec, config, "")
    ensure_writable_dir(output_dir)
    with recording(
        output_dir, kind="evaluate", command=command, config=config, choices=choices, parent=spec.checkpoint
    ) as record:
        device = choose_device(spec)
        model, report = load(spec.checkpoint, overrides=spec.overrides)
        print(report.render())
        record.model = model_facts(model)
        size = sum(file.stat().st_size for file in weight_files(locate(report.source)))
        record.artifact = {
            "path": str(report.source),
            "bytes": size,
            "format": report.kind,
            "precision": report.precision,
        }
        data = spec.data.build(model.spec, spec.seed)
        data.prepare_data()
        measure(to_device(model, device, report.precision), data, spec, record)
        print_metrics(record)
    return record
