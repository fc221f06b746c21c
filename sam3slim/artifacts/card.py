"""Model cards: one template, and the card of an artifact, written from its metadata."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sam3slim.artifacts.trained import SENTENCES, told_prompts
from sam3slim.checkpoints.locating import GRAPH_FILES, ONNX, weights_name
from sam3slim.specs import ModelSpec, TextSpec

DEFAULT_LICENSE_NOTE = (
    "Weights inherit the licence of what they were trained from: anything derived from Meta's released SAM 3 "
    "stays under the SAM License; weights trained from scratch on generated data carry the project's licence."
)

LOAD_SAM3SLIM = """```python
from sam3slim.checkpoints import load

model, report = load("PATH/TO/THIS/FOLDER")  # FP32 on the CPU, eval mode
```"""

LOAD_PLAIN = """```python
import torch
from transformers import Sam3Model, Sam3Processor

model = Sam3Model.from_pretrained("PATH/TO/THIS/FOLDER", dtype=torch.float32).eval()
processor = Sam3Processor.from_pretrained("PATH/TO/THIS/FOLDER")
```"""

LOAD_INT8 = """```python
import torch
from transformers import Sam3Model, Sam3Processor

# transformers' TorchAO loader asks for these two.
Sam3Model.get_input_embeddings = lambda self: self.text_encoder.get_input_embeddings()
Sam3Model.get_output_embeddings = lambda self: None
model = Sam3Model.from_pretrained("PATH/TO/THIS/FOLDER", dtype=torch.float32).eval()
processor = Sam3Processor.from_pretrained("PATH/TO/THIS/FOLDER")
```"""

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


def tensorrt_lines(metadata: Mapping[str, Any]) -> list[str]:
    """Markdown: how static ONNX graphs become engines; nothing for other artifacts."""
    onnx = metadata.get(ONNX) or {}
    if not (fixed := onnx.get("fixed")):
        return []
    half = metadata["precision"] == "fp16"
    typed = " --stronglyTyped" if half else ""
    return [
        f"Static graphs of opset {onnx['opset']}: {fixed['images']} images, {fixed['prompts']} prompts (and phrases), "
        f"{fixed['boxes']} boxes per prompt (label -10 pads), whole contexts. "
        + ("Attention is written out; its products are FP16, its softmax FP32." if half else "They are FP32."),
        "",
        "```bash",
        *(f"trtexec --onnx={name}.onnx --saveEngine={name}.plan{typed}" for name in onnx["graphs"]),
        "```",
        "",
        "The engines were not built here; the graphs were compared with PyTorch in ONNX Runtime on the CPU.",
    ]


def model_card(
    title: str, library: str, intro: str, sections: Iterable[tuple[str, Sequence[str]]], license_note: str
) -> str:
    """Markdown with the front matter that model hubs read.

    Args:
        library: that opens the model, in a hub's words.
        sections: heading (empty: none) and lines; sections without lines are left out.
    """
    lines = ["---", f"library_name: {library}", "pipeline_tag: mask-generation", "---", "", f"# {title}", "", intro]
    for heading, body in [*sections, ("Licence", [license_note])]:
        if body:
            lines += ["", *([f"## {heading}", ""] if heading else []), *body]
    return "\n".join([*lines, ""])


def artifact_card(metadata: Mapping[str, Any], spec: ModelSpec, license_note: str) -> str:
    """What it is, its numbers, how to load it."""
    format = metadata.get("format")
    graphs = format in GRAPH_FILES
    library = {None: "transformers", ONNX: "onnx"}.get(format, "pytorch")
    kind = {None: "", ONNX: "ONNX, "}.get(format, "torch.export, ")
    what = {None: "", ONNX: " as three ONNX graphs,"}.get(format, " as three programs of torch.export,")
    return model_card(
        f"{spec.name} ({kind}{metadata['precision']})",
        library,
        f"A SAM 3 image model{what} written by sam3slim. {SENTENCES[told_prompts(metadata)]}",
        [
            ("", ["| | |", "|---|---|", *(_graph_rows(metadata) if graphs else _weight_rows(metadata, spec))]),
            *(_graph_tables(metadata[str(format).replace("-", "_")]["graphs"]) if graphs else []),
            ("Metrics", [*measured_in(metadata), *_json(metadata.get("metrics"))]),
            ("Parent", _json(metadata.get("parent"))),
            ("Details", _json(metadata.get("extra"))),
            ("Running it", [loading(str(format)), "", *inputs_lines(spec)])
            if graphs
            else ("Loading", _loading_weights(metadata, spec)),
            ("TensorRT", tensorrt_lines(metadata)),
        ],
        license_note,
    )


def measured_in(metadata: Mapping[str, Any]) -> list[str]:
    """In which arithmetic the metrics were measured; nothing where that is not known."""
    arithmetic = (metadata.get("metrics") or {}).get("arithmetic")
    if arithmetic is None:
        return []
    return [f"Weights stored in {metadata['precision']}, measured in {arithmetic} arithmetic.", ""]


def _json(value: Any) -> list[str]:
    return ["```json", json.dumps(value, indent=2), "```"] if value else []


def _weight_rows(metadata: Mapping[str, Any], spec: ModelSpec) -> list[str]:
    sizes = (metadata.get("extra") or {}).get("image_sizes")
    return [
        f"| parameters | {metadata['params']:,} |",
        f"| weights | {metadata['bytes']:,} bytes |",
        f"| precision | {metadata['precision']} ({_shares(metadata['dtypes'])}) |",
        f"| vision tower | {spec.vit.depth} blocks × {spec.vit.embed_dim}, {spec.vit.image_size} px |",
        *([f"| trained at | {', '.join(map(str, sizes))} px |"] if sizes else []),
        f"| text tower | {_text(spec.text)} |",
        f"| encoder / decoder | {spec.encoder.num_layers} / {spec.decoder.num_layers} layers, "
        f"{spec.decoder.num_queries} queries |",
        f"| sha256 of {weights_name(spec)} | `{metadata['sha256']}` |",
    ]


def _graph_rows(metadata: Mapping[str, Any]) -> list[str]:
    own = metadata[metadata["format"].replace("-", "_")]
    shares = ", ".join(f"{name} {row['bytes']:,} bytes" for name, row in metadata["dtypes"].items())
    worst = max(own["max_difference_fp32"].values())
    return [
        f"| parameters | {metadata['params']:,} |",
        f"| graphs | {metadata['bytes']:,} bytes ({shares}) |",
        *([f"| opset | {own['opset']} |"] if "opset" in own else []),
        f"| largest difference of the FP32 graphs from PyTorch | {worst:.1e} |",
    ]


def _graph_tables(graphs: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    tables = []
    for graph in graphs.values():
        rows = [
            f"| {kind[:-1]} | `{key}` | {row['dtype']} | {' × '.join(map(str, row['shape']))} |"
            for kind in ("inputs", "outputs")
            for key, row in graph[kind].items()
        ]
        hashes = [f"sha256 of {file['name']}: `{file['sha256']}`" for file in graph["files"]]
        head = ["| | name | type | shape |", "|---|---|---|---|"]
        tables.append((graph["files"][0]["name"], [*head, *rows, "", *hashes]))
    return tables


def _loading_weights(metadata: Mapping[str, Any], spec: ModelSpec) -> list[str]:
    lines = [LOAD_SAM3SLIM, ""]
    if "transformers" in metadata["opens_in"]:
        lines += ["or in plain transformers:", "", LOAD_INT8 if "int8" in metadata["dtypes"] else LOAD_PLAIN, ""]
    else:
        lines += [not_plain(spec, metadata), ""]
    return lines + traps(spec)


def not_plain(spec: ModelSpec, metadata: Mapping[str, Any]) -> str:
    """Why plain transformers cannot open an artifact with this ``sam3slim.json``."""
    if spec.text.bank is not None:
        why = "it has no text tower"
    elif "int4" in metadata.get("dtypes", {}):
        why = "INT4 weights have sam3slim's layout (`sam3slim/checkpoints/int4.py`)"
    elif "float8_e4m3fn" in metadata.get("dtypes", {}):
        why = "FP8 weights have sam3slim's layout (`sam3slim/checkpoints/float8.py`)"
    else:
        why = "convolutions are stored in INT8"
    return f"Plain transformers cannot open it: {why}."


def _text(text: TextSpec) -> str:
    if text.bank is not None:
        return f"none: stored features of {len(text.bank.phrases)} phrases"
    return f"{text.layers} layers × {text.width}, {text.context_length} tokens"


def _shares(dtypes: dict[str, dict[str, int]]) -> str:
    total = sum(row["bytes"] for row in dtypes.values()) or 1
    return ", ".join(f"{name} {100 * row['bytes'] / total:.1f} % of bytes" for name, row in dtypes.items())


def traps(spec: ModelSpec) -> list[str]:
    """Markdown: where other people's code treats this model differently."""
    lines = [
        "Without a box prompt, transformers' `Sam3Model.forward` leaves out the CLS prompt token that the "
        "reference implementation always appends; scores of text-only prompts then differ a little. "
        "sam3slim's forward appends it.",
    ]
    if spec.text.vocabulary is not None:
        lines += [
            "",
            f"The vocabulary is trimmed to the {spec.text.vocab_size} tokens that a list of phrases needs. sam3slim "
            "refuses other phrases; a bare tokenizer spells them in pieces the model has not learnt to read.",
        ]
    if spec.text.bank is not None:
        return [*lines, "", "It answers these phrases and no others: " + ", ".join(spec.text.bank.phrases) + "."]
    if spec.text.context_length != 32:
        lines += [
            "",
            f"`Sam3Processor` pads phrases to 32 tokens; this text tower reads {spec.text.context_length}. "
            f'Tokenize with `processor.tokenizer(phrases, padding="max_length", truncation=True, '
            f'max_length={spec.text.context_length}, return_tensors="pt")`.',
        ]
    return lines


def inputs_lines(spec: ModelSpec) -> list[str]:
    """Markdown: what the graphs want to be given, and what their numbers mean."""
    side = spec.vit.image_size
    return [
        f"Pixels are RGB, resized to {side} × {side} and scaled to -1..1; tokens are CLIP's, at most "
        f"{spec.text.context_length}, with an attention mask of 1 on real ones. `image_index` says which image a "
        "prompt asks; boxes are (cx, cy, w, h) in 0..1 with labels 1 (positive), 0 (negative) and -10 (padding). A "
        "query's score is sigmoid(pred_logits) · sigmoid(presence_logits); `pred_boxes` are (x1, y1, x2, y2) in 0..1.",
    ]
