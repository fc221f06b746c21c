"""The same pictures as several recorded models see them, for the page of ``sam3slim compare``."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from sam3slim.compression import emulated
from sam3slim.data.batch import Batch
from sam3slim.data.coco import CocoConcepts
from sam3slim.data.images import read_image
from sam3slim.data.spec import recorded_data
from sam3slim.errors import UserError
from sam3slim.evaluation import ground_truths, predict_batch
from sam3slim.graphs import GraphSam3, load_runnable
from sam3slim.models import Sam3
from sam3slim.report.pictures import Instances, draw_instances
from sam3slim.report.rows import fronts, group_metric
from sam3slim.results.artifact import source_of
from sam3slim.results.collect import Group, Run
from sam3slim.results.costs import COSTS, Cost
from sam3slim.results.record import plain

MOST_RUNS = 6
CELL = 288  # pixels of a picture's longer side
QUALITY = 80  # of WebP
MIN_SCORE = 0.5
NAMED = 6  # instances that the alternative text names
Picture = dict[str, str]  # {"src": data URI, "alt": what can be seen}
Step = Callable[[str, int, int], object]


@dataclass
class Gallery:
    """Pictures of one group of runs.

    Attributes:
        names: of the images.
        truth: ground truth, in the order of ``names``.
        runs: folder of a run → its predictions, in the same order.
        missing: folder of a run → why it has none.
        phrases: what was looked for.
        heading: of ``truth``, which is empty pictures where nobody has annotated them.
    """

    names: list[str]
    truth: list[Picture] = field(default_factory=list)
    runs: dict[str, list[Picture]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    phrases: list[str] = field(default_factory=list)
    heading: str = "ground truth"

    def to_dict(self) -> dict[str, Any]:
        """JSON values for the page."""
        return {key: getattr(self, key) for key in ("names", "truth", "runs", "missing", "phrases", "heading")}


def gallery_runs(
    group: Group, wanted: Collection[Path] = (), metric: str | None = None, cost: Cost = COSTS["bytes"]
) -> list[Run]:
    """Whose predictions are shown: ``wanted``, or the largest model and the front of cost against mAP, dear to cheap.

    Args:
        wanted: folders of runs; those of other groups are passed over.
        metric: see ``group_metric``.
        cost: of the front; of latencies the machine's with most runs.
    """
    able = [run for run in group.runs if run.record.status == "finished" and run.record.artifact.path]
    if wanted:
        places = {folder.resolve() for folder in wanted}
        return [run for run in able if run.folder.resolve() in places]
    if not able:
        return []
    full = max(able, key=_size)
    decides = group_metric(group, metric)
    front = [able[i] for i in next(iter(fronts(able, decides, cost)), [])]
    rest = [run for run in reversed(front) if run is not full]
    if len(rest) > MOST_RUNS - 1:  # evenly over the front, both ends among them
        last = len(rest) - 1
        rest = [rest[round(i * last / (MOST_RUNS - 2))] for i in range(MOST_RUNS - 1)]
    return [full, *rest]


def make_gallery(
    group: Group,
    runs: Sequence[Run],
    images: int,
    *,
    root: str | Path | None = None,
    step: Step = lambda name, done, total: None,
) -> Gallery:
    """Predictions of the models of ``runs`` on the same first images with an object of the group's data.

    Args:
        images: how many.
        root: where the data lie now, if not where the records say.
        step: called with a run's folder, the number of runs done and of all.

    Raises:
        UserError: the data are not there or cannot be read.
    """
    gallery: Gallery | None = None
    missing: dict[str, str] = {}
    for number, run in enumerate(runs):
        step(str(run.folder), number, len(runs))
        try:
            source = source_of(run)
            model, _ = load_runnable(source.path, overrides=source.overrides or None)
        except UserError as error:
            missing[str(run.folder)] = str(error)
            continue
        dataset, batch = _batch(run, model, images, root)
        names = {int(category): phrase for category, phrase in zip(batch.category_ids, batch.phrases, strict=True)}
        shown = _specific(run, names)
        pictures = [
            Image.fromarray(read_image(dataset.folder / info.file_name, info.height, info.width))
            for info in batch.images
        ]
        if gallery is None:
            phrases = sorted(names[category] for category in (shown or names))
            heading = "not annotated" if dataset.by_model else "ground truth"
            gallery = Gallery([info.file_name for info in batch.images], phrases=phrases, heading=heading)
            gallery.truth = [
                _picture(*pair, names, shown, heading) for pair in zip(pictures, ground_truths(batch), strict=True)
            ]
        with emulated(model) if isinstance(model, Sam3) else nullcontext(0):
            found = predict_batch(model, batch)
        title = run.record.title
        gallery.runs[str(run.folder)] = [
            _picture(*pair, names, shown, title) for pair in zip(pictures, found, strict=True)
        ]
    gallery = gallery or Gallery([])
    gallery.missing = missing
    return gallery


def _batch(run: Run, model: Sam3 | GraphSam3, images: int, root: str | Path | None) -> tuple[CocoConcepts, Batch]:
    spec = recorded_data(plain(run.record.data), root=root)
    data = spec.build(model.spec)
    dataset = data.dataset(spec.split)
    with_objects = [i for i, record in enumerate(dataset.records) if record.annotations]
    chosen = sorted(with_objects[:images]) or list(range(min(images, len(dataset))))
    batch: Batch = data.collate([dataset[i] for i in chosen])
    return dataset, batch


def _specific(run: Run, names: Mapping[int, str]) -> set[int] | None:
    """Of drawn shapes only "red circle": every object has one such phrase, and four others that would cover it."""
    if run.record.data.name != "shapes":
        return None
    return {category for category, phrase in names.items() if len(phrase.split()) == 2} or None


def _picture(
    image: Image.Image, instances: Instances, names: Mapping[int, str], shown: set[int] | None, title: str
) -> Picture:
    drawn = draw_instances(image, instances, names, categories=shown, min_score=MIN_SCORE, cell=CELL)
    return {"src": data_uri(drawn), "alt": f"{title}: {_seen(instances, names, shown)}"}


def data_uri(image: Image.Image) -> str:
    """``image`` as WebP inside a URI."""
    buffer = io.BytesIO()
    image.save(buffer, format="WEBP", quality=QUALITY, method=6)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _seen(instances: Instances, names: Mapping[int, str], shown: set[int] | None) -> str:
    """``2 instances, red circle 0.98, blue square 0.91``."""
    scores: torch.Tensor | None = getattr(instances, "scores", None)
    words = []
    for i, label in enumerate(instances.labels.tolist()):
        score = None if scores is None else float(scores[i])
        if (shown is None or label in shown) and (score is None or score >= MIN_SCORE):
            words.append(names.get(label, str(label)) + ("" if score is None else f" {score:.2f}"))
    if not words:
        return "nothing"
    count = f"{len(words)} instance{'s' if len(words) > 1 else ''}"
    return ", ".join([count, *words[:NAMED], *(["…"] if len(words) > NAMED else [])])


def _size(run: Run) -> tuple[int, bool, int, str]:
    artifact = run.record.artifact
    return run.record.model.params or 0, artifact.precision == "fp32", artifact.bytes or 0, str(run.folder)
