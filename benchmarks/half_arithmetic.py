"""What half-precision arithmetic costs a model in mAP, beside half-precision storage, on the CPU.

    python benchmarks/half_arithmetic.py assets/nano [--data data/shapes] [--limit 300]

Every value is stored in FP16 or bfloat16 and reloaded; then products are computed in FP32 (storage alone) or under
autocast in the stored type (storage and arithmetic), as on a GPU. Matrix products, convolutions and attention are
**emulated**: their inputs are in the half type, they are summed in FP32, and their results are rounded to the half
type, as tensor cores do. All other operations run as PyTorch runs them in that type. A GPU may sum in another order.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from sam3slim.checkpoints import load
from sam3slim.data.module import ConceptData
from sam3slim.environment import describe_device, library_versions
from sam3slim.evaluation import EvalResult, evaluate
from sam3slim.files import write_csv
from sam3slim.models.arithmetic import HALVES, compute_in
from sam3slim.results.metrics import METRICS, Measured
from sam3slim.results.samples import paired_bootstrap

RESULT = Path(__file__).parent / "results" / "half_arithmetic.csv"
CASES = (("fp32", "fp32"), ("fp16", "fp32"), ("fp16", "fp16"), ("bf16", "fp32"), ("bf16", "bf16"))
aten = torch.ops.aten
PRODUCTS = {
    aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default, aten.convolution.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
}  # fmt: skip


class EmulatedProducts(TorchDispatchMode):
    """Products of half-precision tensors are summed in FP32 and rounded once; counts them."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        half = next((a.dtype for a in args if isinstance(a, Tensor) and a.dtype in HALVES.values()), None)
        if half is None:
            return func(*args, **kwargs)
        if func not in PRODUCTS:
            with self:  # in inference mode `linear` and the like arrive whole
                parts = func.decompose(*args, **kwargs)
            return func(*args, **kwargs) if parts is NotImplemented else parts
        self.count += 1
        wide = tree_map(lambda value: value.float() if isinstance(value, Tensor) else value, (args, kwargs))
        return tree_map(lambda value: value.to(half) if isinstance(value, Tensor) else value, func(*wide[0], **wide[1]))


def measured(checkpoint: str, root: str, limit: int | None, storage: str, arithmetic: str) -> EvalResult:
    """mAP with every weight rounded to ``storage`` and products in ``arithmetic``."""
    model, _ = load(checkpoint)
    if storage in HALVES:
        for parameter in model.parameters():
            parameter.data = parameter.data.to(HALVES[storage]).float()
    compute_in(model, arithmetic)
    data = ConceptData(root, image_size=model.spec.vit.image_size, text=model.spec.text, eval_batch_size=8)
    with EmulatedProducts() as products:
        result = evaluate(model, data.loader("test"), limit=limit)
    assert (products.count > 0) == (arithmetic in HALVES)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--data", default="data/shapes")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    versions = {name: value for name, value in library_versions().items() if name in ("torch", "transformers")}
    full: dict[str, Measured] = {}
    rows = []
    for storage, arithmetic in CASES:
        result = measured(arguments.checkpoint, arguments.data, arguments.limit, storage, arithmetic)
        full = full or result.measured
        row: dict[str, Any] = {"checkpoint": Path(arguments.checkpoint).name}
        row |= {"storage": storage, "arithmetic": arithmetic}
        for kind in ("segm", "bbox"):
            before, after = full[kind].samples, result.measured[kind].samples
            assert before is not None
            assert after is not None
            drop = paired_bootstrap(METRICS[kind], before, after)
            assert drop.ci95 is not None
            number = result.measured[kind].numbers["map"]
            row |= {f"{kind}_map": round(100 * number, 3), f"{kind}_drop": round(drop.points, 3)}
            row |= {f"{kind}_{name}": round(end, 3) for name, end in zip(("low", "high"), drop.ci95, strict=True)}
        rows.append({**row, "images": result.images, "device": describe_device(), **versions})
        print(json.dumps(rows[-1]), flush=True)
        write_csv(arguments.out, rows)


if __name__ == "__main__":
    main()
