"""What each text-tower lever saves: parameters and bytes of a model's text part, counted without allocating it.

    python benchmarks/text_sizes.py [--model full] [--phrases benchmarks/coco_names.txt]

One row per lever, all of the same model: its tower as it is, ``model/text`` options, the vocabulary trimmed to the
phrases, and the prompt bank. ``text_*`` is the text part, ``total_*`` the whole model, in bytes by precision.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from sam3slim.files import write_csv
from sam3slim.launch.compose import compose_model
from sam3slim.models import bytes_by_part, count_params
from sam3slim.specs import ModelSpec
from sam3slim.text.bank import bank_spec
from sam3slim.text.phrases import read_phrase_list
from sam3slim.text.vocabulary import trim

HERE = Path(__file__).parent
OPTIONS = ("c16", "l12", "w512")


def levers(model: str, phrases: list[str]) -> dict[str, ModelSpec]:
    """Lever → the architecture it gives."""
    whole = compose_model([f"model={model}"])
    found = {"none": whole}
    if model in ("full", "slim"):  # the options are cut from their tower
        found |= {option: compose_model([f"model={model}", f"model/text={option}"]) for option in OPTIONS}
    text = whole.text
    found["vocabulary"] = replace(whole, text=trim(phrases, text))
    if "l12" in found:
        found["vocabulary + l12"] = replace(found["l12"], text=trim(phrases, found["l12"].text))
        found["vocabulary + w512"] = replace(found["w512"], text=trim(phrases, found["w512"].text))
    found["bank"] = replace(whole, text=replace(text, bank=bank_spec(text, phrases)))
    return found


def row(lever: str, spec: ModelSpec) -> dict[str, Any]:
    params, sizes = count_params(spec), bytes_by_part(spec)
    counts: dict[str, Any] = {"lever": lever, "vocab_size": spec.text.vocab_size}
    counts |= {"text_params": params["text"], "total_params": sum(params.values())}
    for name in sizes["text"]:
        counts[f"text_{name}"] = sizes["text"][name]
        counts[f"total_{name}"] = sum(part[name] for part in sizes.values())
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="full")
    parser.add_argument("--phrases", default=str(HERE / "coco_names.txt"))
    arguments = parser.parse_args()
    phrases = read_phrase_list(arguments.phrases)
    rows = [row(lever, spec) for lever, spec in levers(arguments.model, phrases).items()]
    for found in rows:
        saved = rows[0]["total_fp32"] - found["total_fp32"]
        print(
            f"{found['lever']:<18} text {found['text_params']:>12,}  FP32 {found['total_fp32']:>14,}  saved {saved:,}"
        )
    result = HERE / "results" / f"text_sizes_{arguments.model}_{len(phrases)}_phrases.csv"
    write_csv(result, rows)


if __name__ == "__main__":
    main()
