"""What leaving out phrases that the model thinks absent costs in mAP, and how many phrases that leaves out.

    python benchmarks/presence_threshold.py assets/nano [--data data/shapes] [--limit N]

Every category is asked of every test image. The drop and its interval are paired over the images. ``kept`` is the share
of phrases whose presence reaches the threshold: the pixel decoder runs for no others.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from sam3slim.checkpoints import load
from sam3slim.data.module import ConceptData
from sam3slim.environment import describe_device
from sam3slim.evaluation import evaluate
from sam3slim.files import write_csv
from sam3slim.results.metrics import METRICS, Measured
from sam3slim.results.samples import paired_bootstrap

RESULT = Path(__file__).parent / "results" / "presence_threshold.csv"
THRESHOLDS = (0.0, 0.01, 0.05, 0.1, 0.3, 0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--data", default="data/shapes")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    model, _ = load(arguments.checkpoint)
    data = ConceptData(arguments.data, image_size=model.spec.vit.image_size, text=model.spec.text, eval_batch_size=8)
    full: dict[str, Measured] = {}
    rows = []
    for threshold in THRESHOLDS:
        result = evaluate(model, data.loader("test"), limit=arguments.limit, min_presence=threshold)
        full = full or result.measured
        presence = torch.cat([found.prompts.presence for found in result.detections if found.prompts is not None])
        row: dict[str, Any] = {"checkpoint": Path(arguments.checkpoint).name, "threshold": threshold}
        row["kept"] = round(float((presence >= threshold).float().mean()), 4)
        for kind in ("segm", "bbox"):
            before, after = full[kind].samples, result.measured[kind].samples
            assert before is not None
            assert after is not None
            drop = paired_bootstrap(METRICS[kind], before, after)
            assert drop.ci95 is not None
            row |= {f"{kind}_map": round(100 * result.measured[kind].numbers["map"], 3)}
            row |= {f"{kind}_drop": round(drop.points, 3)}
            row |= {f"{kind}_{name}": round(end, 3) for name, end in zip(("low", "high"), drop.ci95, strict=True)}
        rows.append({**row, "images": result.images, "device": describe_device()})
        print(json.dumps(rows[-1]), flush=True)
        write_csv(arguments.out, rows)


if __name__ == "__main__":
    main()
