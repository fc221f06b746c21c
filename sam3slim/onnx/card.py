"""The model card of an ONNX artifact, written from its facts."""

from __future__ import annotations

import json
from typing import Any

from sam3slim.specs import ModelSpec

LOAD = """```python
from sam3slim.onnx import load_onnx

model, report = load_onnx("PATH/TO/THIS/FOLDER")  # called like sam3slim's PyTorch model, on the CPU
```

or with onnxruntime alone:

```python
import onnxruntime

vision = onnxruntime.InferenceSession("vision.onnx")    # once per image
text = onnxruntime.InferenceSession("text.onnx")        # once per phrase
prompts = onnxruntime.InferenceSession("prompts.onnx")  # once per image and its phrases
fpn = vision.run(None, {"pixel_values": pixels})
(features,) = text.run(None, {"input_ids": ids, "attention_mask": mask})
logits, boxes, presence, masks, semantic = prompts.run(None, {
    "fpn_0": fpn[0], "fpn_1": fpn[1], "fpn_2": fpn[2], "text_features": features, "attention_mask": mask,
    "image_index": np.zeros(len(ids), np.int64),
    "input_boxes": np.zeros((len(ids), 0, 4), np.float32), "input_boxes_labels": np.zeros((len(ids), 0), np.int64),
})
```"""


def onnx_card(facts: dict[str, Any], spec: ModelSpec, license_note: str) -> str:
    """Markdown: what it is, its graphs, how to run them."""
    shares = ", ".join(f"{name} {row['bytes']:,} bytes" for name, row in facts["dtypes"].items())
    worst = max(facts["onnx"]["max_difference_fp32"].values())
    lines = [
        "---",
        "library_name: onnx",
        "pipeline_tag: mask-generation",
        "---",
        "",
        f"# {spec.name} (ONNX, {facts['precision']})",
        "",
        "A SAM 3 image model (text and box prompts) as three ONNX graphs, written by sam3slim.",
        "",
        "| | |",
        "|---|---|",
        f"| parameters | {facts['params']:,} |",
        f"| graphs | {facts['bytes']:,} bytes ({shares}) |",
        f"| opset | {facts['onnx']['opset']} |",
        f"| largest difference of the FP32 graphs from PyTorch | {worst:.1e} |",
        "",
    ]
    for name, graph in facts["onnx"]["graphs"].items():
        lines += [f"## {name}.onnx", "", "| | name | type | shape |", "|---|---|---|---|"]
        for kind in ("inputs", "outputs"):
            lines += [
                f"| {kind[:-1]} | `{key}` | {row['dtype']} | {' × '.join(map(str, row['shape']))} |"
                for key, row in graph[kind].items()
            ]
        lines += ["", *(f"sha256 of {file['name']}: `{file['sha256']}`" for file in graph["files"]), ""]
    for title, key in (("Metrics", "metrics"), ("Parent", "parent"), ("Details", "extra")):
        if facts.get(key):
            lines += [f"## {title}", "", "```json", json.dumps(facts[key], indent=2), "```", ""]
    lines += ["## Running it", "", LOAD, "", *_inputs(spec), "", "## Licence", "", license_note, ""]
    return "\n".join(lines)


def _inputs(spec: ModelSpec) -> list[str]:
    side = spec.vit.image_size
    return [
        f"Pixels are RGB, resized to {side} × {side} and scaled to -1..1; tokens are CLIP's, at most "
        f"{spec.text.context_length}, with an attention mask of 1 on real ones. `image_index` says which image a "
        "prompt asks; boxes are (cx, cy, w, h) in 0..1 with labels 1 (positive), 0 (negative) and -10 (padding). A "
        "query's score is sigmoid(pred_logits) · sigmoid(presence_logits); `pred_boxes` are (x1, y1, x2, y2) in 0..1.",
    ]
