"""Where a model's activations have outliers, layer by layer, and what INT8 and INT4 do to each Linear's output.

    python benchmarks/activation_ranges.py CHECKPOINT --data DIR [--annotations FILE --images DIR] [--batches 4]

For every Linear that prompts and pictures of the data reach:

- ``outlier``: the largest absolute input of a channel over the median channel's, of those that are ever used.
  Activations are quantised with one scale for all channels of a token, so a ratio of 100 leaves the median channel
  about one step of INT8.
- ``int8_input``: squared error of the output, of its energy, with inputs rounded to INT8, a scale per token.
- ``int8_weight``, ``int4_weight``: the same with weights rounded, a scale per output channel; ``int4_group32``: a
  scale per 32 inputs. Symmetric, plain rounding.

Rows are written for all Linears; the ten with the largest outliers are printed.
"""

from __future__ import annotations

import argparse
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sam3slim.checkpoints import load
from sam3slim.data.module import ConceptData
from sam3slim.environment import library_versions
from sam3slim.files import write_csv
from sam3slim.models.count import part_of

RESULTS = Path(__file__).parent / "results"
ROWS = 4096  # of a layer's inputs that errors are measured on


def rounded(values: Tensor, bits: int, dim: int = -1) -> Tensor:
    """Symmetric rounding to ``bits`` with one scale along ``dim``."""
    top = 2 ** (bits - 1) - 1
    scale = values.abs().amax(dim, keepdim=True).clamp(min=1e-12) / top
    return (values / scale).round().clamp(-top - 1, top) * scale


def grouped(weight: Tensor, bits: int, size: int) -> Tensor:
    """``rounded`` with a scale per ``size`` inputs; the last group may be smaller."""
    return torch.cat([rounded(part, bits) for part in weight.split(size, dim=1)], dim=1)


class Ranges:
    """What the inputs of one Linear look like."""

    def __init__(self, layer: nn.Linear) -> None:
        self.layer = layer
        self.top = torch.zeros(layer.in_features)
        self.rows: list[Tensor] = []

    def add(self, inputs: Tensor) -> None:
        """Inputs [..., in_features] of one call."""
        rows = inputs.detach().flatten(0, -2).float()
        self.top = torch.maximum(self.top, rows.abs().amax(0))
        missing = ROWS - sum(len(part) for part in self.rows)
        if missing > 0:
            self.rows.append(rows[torch.linspace(0, len(rows) - 1, min(missing, len(rows), ROWS // 4)).long()].clone())

    def row(self, name: str) -> dict[str, Any]:
        """A line of the CSV."""
        x, weight = torch.cat(self.rows), self.layer.weight.detach().float()
        y = x @ weight.T
        whole = y.square().sum()

        def error(other: Tensor) -> float:
            return float(f"{float((other - y).square().sum() / whole):.3e}")

        return {
            "part": part_of(f"{name}.weight"), "layer": name, "inputs": self.layer.in_features,
            "outputs": self.layer.out_features, "largest": round(float(self.top.max()), 3),
            "outlier": round(float(self.top.max() / self.top[self.top > 0].median()), 2),
            "int8_input": error(rounded(x, 8) @ weight.T), "int8_weight": error(x @ rounded(weight, 8).T),
            "int4_weight": error(x @ rounded(weight, 4).T), "int4_group32": error(x @ grouped(weight, 4, 32).T),
        }  # fmt: skip


@torch.inference_mode()
def ranges(model: nn.Module, batches: Any) -> list[dict[str, Any]]:
    """A line per Linear that is called with a tensor of tokens."""
    found: dict[str, Ranges] = {}
    hooks = []
    for name, layer in model.named_modules():
        if type(layer) is nn.Linear:

            def look(module: nn.Module, args: tuple[Any, ...], name: str = name) -> None:
                if args[0].numel():  # boxes are asked for, too, but there are none
                    found.setdefault(name, Ranges(module)).add(args[0])  # type: ignore[arg-type]

            hooks.append(layer.register_forward_pre_hook(look))
    for batch in batches:
        model(**batch.inputs())
    for hook in hooks:
        hook.remove()
    return [one.row(name) for name, one in found.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--data", required=True, help="a COCO-format data set")
    parser.add_argument("--annotations", help="of its test split, where they are not found by themselves")
    parser.add_argument("--images")
    parser.add_argument("--batches", type=int, default=4, help="of 4 images, asked for every category")
    parser.add_argument("--name", default="model", help="of the CSV")
    arguments = parser.parse_args()
    model, _ = load(arguments.checkpoint)
    data = ConceptData(
        arguments.data, image_size=model.spec.vit.image_size, text=model.spec.text, eval_batch_size=4,
        annotations={"test": arguments.annotations} if arguments.annotations else None,
        images={"test": arguments.images} if arguments.images else None,
    )  # fmt: skip
    data.prepare_data()
    lines = ranges(model, islice(data.loader("test"), arguments.batches))
    path = RESULTS / f"activation_ranges_{arguments.name}.csv"
    versions = library_versions()
    write_csv(path, [line | {"images": 4 * arguments.batches, "torch": versions["torch"]} for line in lines])
    for line in sorted(lines, key=lambda line: -line["outlier"])[:10]:
        errors = f"INT8 inputs {line['int8_input']:.1e}  INT4 weights {line['int4_weight']:.1e}"
        print(f"{line['outlier']:9.1f}  {errors}  {line['layer']}")
    print(f"written: {path}")


if __name__ == "__main__":
    main()
