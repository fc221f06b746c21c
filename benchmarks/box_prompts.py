"""What a positive and a negative box do to the score of the object in them.

    python benchmarks/box_prompts.py assets/nano outputs/nano_boxes/artifact [--data data/shapes] [--limit 300]

In every test image one concept that is in it and one of its instances are drawn (by the image's id). The concept's
phrase is asked alone, with a positive box on the instance, and with a negative one, drawn with the noise of training.
The object's score is the best class x presence probability of the queries whose box has an IoU of at least 0.5 with it,
0 without one; its logit is the best class logit of these queries, where all three questions have such a one. ``others``
are the concept's other instances: a negative box rules out one object, not all. Images whose object the phrase alone
does not find are left out.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor
from torchvision.ops import box_convert, box_iou

from sam3slim.checkpoints import load
from sam3slim.data.batch import Sample
from sam3slim.data.boxes import BoxRow, BoxSpec, example_boxes
from sam3slim.data.coco import CocoConcepts
from sam3slim.data.collate import Collate
from sam3slim.environment import describe_device, library_versions
from sam3slim.files import write_csv
from sam3slim.models import Sam3

RESULT = Path(__file__).parent / "results" / "box_prompts.csv"
QUESTIONS = ("text", "positive", "negative")
MIN_IOU = 0.5


def questions(sample: Sample, prompt: int, box: BoxRow) -> Sample:
    """The image asked three times for one concept: phrase, phrase + positive box, phrase + negative box."""
    rows: list[list[BoxRow]] = [[], [(box[0], 1)], [(box[0], 0)]]
    return replace(
        sample, phrases=[sample.phrases[prompt]] * 3, category_ids=[sample.category_ids[prompt]] * 3,
        box_prompts=rows,
    )  # fmt: skip


@torch.inference_mode()
def predictions(model: Sam3, collate: Collate, sample: Sample, objects: Tensor) -> tuple[Tensor, Tensor]:
    """Score and class logit [3, N] of the N objects (x1, y1, x2, y2) under the three questions; -inf: no query."""
    output = model(**collate([sample]).inputs(), with_masks=False)
    scores = output.pred_logits.sigmoid() * output.presence_logits.sigmoid()
    there = torch.stack([box_iou(boxes, objects) >= MIN_IOU for boxes in output.pred_boxes])  # [3, Q, N]
    best = (scores[..., None] * there).amax(1)
    logits = output.pred_logits[..., None].masked_fill(~there, -torch.inf).amax(1)
    return best, logits


def measure(checkpoint: str, root: str, limit: int | None) -> dict[str, object]:
    """One row of the table."""
    model, _ = load(checkpoint)
    model.eval()
    data = CocoConcepts(root, "test", image_size=model.spec.vit.image_size, prompts="present", limit=limit)
    collate = Collate(model.spec.text)
    found: dict[str, list[float]] = defaultdict(list)
    for place, record in enumerate(data.records):
        sample = data[place]
        prompt = int(torch.randint(len(sample.phrases), (1,), generator=torch.Generator().manual_seed(record.id)))
        own = box_convert(sample.boxes[sample.prompt_index == prompt], "cxcywh", "xyxy")
        index = torch.zeros(len(own), dtype=torch.int64)
        (row,) = example_boxes(BoxSpec(), "box", own, index, record.id, sample.category_ids[prompt : prompt + 1]).rows
        shown = box_convert(torch.tensor([row[0][0]]), "cxcywh", "xyxy")
        target = int(box_iou(shown, own).argmax())
        scores, logits = predictions(model, collate, questions(sample, prompt, row[0]), own)
        if scores[0, target] == 0:
            continue
        for name, score in zip(QUESTIONS, scores[:, target].tolist(), strict=True):
            found[name].append(score)
        if bool(torch.isfinite(logits[:, target]).all()):
            found["logit_positive"].append(float(logits[1, target] - logits[0, target]))
            found["logit_negative"].append(float(logits[2, target] - logits[0, target]))
        for other in (place for place in range(len(own)) if place != target and scores[0, place] > 0):
            found["others_negative"].append(float(scores[2, other] - scores[0, other]))
    lowered = [after < before for before, after in zip(found["text"], found["negative"], strict=True)]
    # A box of either label may lower every score: then this tells nothing about negative ones.
    apart = [no < yes for yes, no in zip(found["positive"], found["negative"], strict=True)]
    return {
        "checkpoint": Path(checkpoint).name if Path(checkpoint).name != "artifact" else Path(checkpoint).parent.name,
        "images": len(lowered),
        "lowered_percent": round(100 * fmean(lowered), 1),
        "below_positive_percent": round(100 * fmean(apart), 1),
        **{f"score_{name}": round(fmean(found[name]), 4) for name in QUESTIONS},
        **{f"{name}_change": round(fmean(found[name]), 4) for name in ("logit_positive", "logit_negative")},
        "others": len(found["others_negative"]),
        "others_score_negative_change": round(fmean(found["others_negative"]), 4) if found["others_negative"] else "",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+")
    parser.add_argument("--data", default="data/shapes")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    versions = {name: value for name, value in library_versions().items() if name in ("torch", "transformers")}
    rows = []
    for checkpoint in arguments.checkpoints:
        rows.append({**measure(checkpoint, arguments.data, arguments.limit), "device": describe_device(), **versions})
        print(json.dumps(rows[-1]), flush=True)
    write_csv(arguments.out, rows)


if __name__ == "__main__":
    main()
