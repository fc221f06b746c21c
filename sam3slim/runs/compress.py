"""``compress``: one measured artifact per method."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sam3slim.checkpoints import load
from sam3slim.compression import compress as compress_model
from sam3slim.compression import method_from_name
from sam3slim.errors import UserError
from sam3slim.files import ensure_writable_dir
from sam3slim.records import RunRecord, recording
from sam3slim.runs.measure import artifact_facts, choose_device, measure, model_facts, print_metrics, to_device
from sam3slim.runs.specs import CompressSpec
from sam3slim.strict import spec_from_dict


def compress(config: dict[str, Any], output_dir: Path, choices: dict[str, str], command: str) -> list[RunRecord]:
    """One artifact and one record per method, each measured on what was written, reloaded.

    Raises:
        UserError: bad input.
    """
    spec = spec_from_dict(CompressSpec, config, "")
    methods = [method_from_name(**{"name": name, **_method(options)}) for name, options in spec.compress.items()]
    if not methods:
        raise UserError("compress is empty; choose methods, e.g. compress=[weights_only,fp16,int8_weight]")
    ensure_writable_dir(output_dir)
    device = choose_device(spec)
    model, report = load(spec.checkpoint, overrides=spec.overrides)
    print(report.render())
    data = spec.data.build(model.spec, spec.seed)
    data.prepare_data()
    records = []
    for (entry, options), method in zip(spec.compress.items(), methods, strict=True):
        folder = output_dir / method.name
        with recording(
            folder, kind="compress", command=command, config={**config, "compress": {entry: options}},
            choices=choices, parent=spec.checkpoint,
        ) as record:  # fmt: skip
            tensors = compress_model(model, method)
            print(tensors.describe())
            info = tensors.write(model, folder / "artifact", parent=spec.checkpoint)
            record.artifact = artifact_facts(info, method.name)
            reloaded, stored = load(info.path, expect=model.spec)
            record.model = model_facts(model)
            measure(to_device(reloaded, device, stored.precision), data, spec, record)
            print_metrics(record)
        records.append(record)
    return records


def _method(options: dict[str, Any] | None) -> dict[str, Any]:
    """Options of one entry of the compress group; ``method`` names the handler (default: the entry's own name)."""
    options = dict(options or {})
    method = options.pop("method", None)
    return {**({"name": method} if method else {}), **options}
