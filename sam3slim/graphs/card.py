"""The model card of an artifact of graphs, written from its facts."""

from __future__ import annotations

import json
from typing import Any

from sam3slim.artifacts.trained import SENTENCES, told_prompts
from sam3slim.checkpoints.locating import ONNX
from sam3slim.specs import ModelSpec

LOAD_ONNX = """```python
from sam3slim.graphs import load_onnx

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


LOAD_PROGRAMS = """```python
import torch
import torchvision  # the programs call its roi_align

vision = torch.export.load("vision.pt2").module()    # once per image
text = torch.export.load("text.pt2").module()        # once per phrase
prompts = torch.export.load("prompts.pt2").module()  # once per image and its phrases
with torch.inference_mode():
    fpn = vision(pixels)
    features = text(ids, mask)
    logits, boxes, presence, masks, semantic = prompts(
        *fpn, features, mask, torch.zeros(len(ids), dtype=torch.int64),
        torch.zeros(len(ids), 0, 4), torch.zeros(len(ids), 0, dtype=torch.int64),
    )
```

or as sam3slim's PyTorch model is called: `sam3slim.graphs.load_runnable("PATH/TO/THIS/FOLDER")`. The programs are FP32
and were traced on the CPU, where they run."""


def loading(format: str) -> str:
    """Markdown: lines of Python that run the graphs."""
    return LOAD_ONNX if format == ONNX else LOAD_PROGRAMS


def graphs_card(facts: dict[str, Any], spec: ModelSpec, license_note: str) -> str:
    """Markdown: what it is, its graphs, how to run them."""
    shares = ", ".join(f"{name} {row['bytes']:,} bytes" for name, row in facts["dtypes"].items())
    onnx = facts["format"] == ONNX
    own = facts[facts["format"].replace("-", "_")]
    worst = max(own["max_difference_fp32"].values())
    what = "ONNX graphs" if onnx else "programs of torch.export"
    lines = [
        "---",
        f"library_name: {'onnx' if onnx else 'pytorch'}",
        "pipeline_tag: mask-generation",
        "---",
        "",
        f"# {spec.name} ({'ONNX' if onnx else 'torch.export'}, {facts['precision']})",
        "",
        f"A SAM 3 image model as three {what}, written by sam3slim. {SENTENCES[told_prompts(facts)]}",
        "",
        "| | |",
        "|---|---|",
        f"| parameters | {facts['params']:,} |",
        f"| graphs | {facts['bytes']:,} bytes ({shares}) |",
        *([f"| opset | {own['opset']} |"] if onnx else []),
        f"| largest difference of the FP32 graphs from PyTorch | {worst:.1e} |",
        "",
    ]
    for graph in own["graphs"].values():
        lines += [f"## {graph['files'][0]['name']}", "", "| | name | type | shape |", "|---|---|---|---|"]
        for kind in ("inputs", "outputs"):
            lines += [
                f"| {kind[:-1]} | `{key}` | {row['dtype']} | {' × '.join(map(str, row['shape']))} |"
                for key, row in graph[kind].items()
            ]
        lines += ["", *(f"sha256 of {file['name']}: `{file['sha256']}`" for file in graph["files"]), ""]
    for title, key in (("Metrics", "metrics"), ("Parent", "parent"), ("Details", "extra")):
        if facts.get(key):
            lines += [f"## {title}", "", "```json", json.dumps(facts[key], indent=2), "```", ""]
    lines += [
        "## Running it",
        "",
        loading(facts["format"]),
        "",
        *inputs_lines(spec),
        "",
        "## Licence",
        "",
        license_note,
        "",
    ]
    return "\n".join(lines)


def inputs_lines(spec: ModelSpec) -> list[str]:
    """Markdown: what the graphs want to be given, and what their numbers mean."""
    side = spec.vit.image_size
    return [
        f"Pixels are RGB, resized to {side} × {side} and scaled to -1..1; tokens are CLIP's, at most "
        f"{spec.text.context_length}, with an attention mask of 1 on real ones. `image_index` says which image a "
        "prompt asks; boxes are (cx, cy, w, h) in 0..1 with labels 1 (positive), 0 (negative) and -10 (padding). A "
        "query's score is sigmoid(pred_logits) · sigmoid(presence_logits); `pred_boxes` are (x1, y1, x2, y2) in 0..1.",
    ]
