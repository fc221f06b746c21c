"""The default model card of an artifact, written from its facts."""

from __future__ import annotations

import json
from typing import Any

from sam3slim.artifacts.trained import SENTENCES, told_prompts
from sam3slim.checkpoints.locating import weights_name
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


def default_card(facts: dict[str, Any], spec: ModelSpec, license_note: str) -> str:
    """Markdown from ``sam3slim.json``'s facts: what it is, its numbers, how to load it."""
    quantised = "int8" in facts["dtypes"]
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: mask-generation",
        "---",
        "",
        f"# {spec.name} ({facts['precision']})",
        "",
        "A SAM 3 image model written by sam3slim. " + SENTENCES[told_prompts(facts)],
        "",
        "| | |",
        "|---|---|",
        f"| parameters | {facts['params']:,} |",
        f"| weights | {facts['bytes']:,} bytes |",
        f"| precision | {facts['precision']} ({_shares(facts['dtypes'])}) |",
        f"| vision tower | {spec.vit.depth} blocks × {spec.vit.embed_dim}, {spec.vit.image_size} px |",
        f"| text tower | {_text(spec.text)} |",
        f"| encoder / decoder | {spec.encoder.num_layers} / {spec.decoder.num_layers} layers, "
        f"{spec.decoder.num_queries} queries |",
        f"| sha256 of {weights_name(spec)} | `{facts['sha256']}` |",
    ]
    for title, key in (("Metrics", "metrics"), ("Parent", "parent"), ("Details", "extra")):
        if facts.get(key):
            lines += ["", f"## {title}", "", "```json", json.dumps(facts[key], indent=2), "```"]
    lines += ["", "## Loading", "", LOAD_SAM3SLIM, ""]
    if "transformers" in facts["opens_in"]:
        lines += ["or in plain transformers:", "", LOAD_INT8 if quantised else LOAD_PLAIN, ""]
    else:
        lines += [not_plain(spec), ""]
    lines += traps(spec)
    lines += ["", "## Licence", "", license_note, ""]
    return "\n".join(lines)


def not_plain(spec: ModelSpec) -> str:
    """Why plain transformers cannot open an artifact."""
    why = "convolutions are stored in INT8" if spec.text.bank is None else "it has no text tower"
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
