"""``sam3slim predict`` without its command line: many pictures into a folder."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sam3slim.data.detections import Detections
from sam3slim.environment import this_process
from sam3slim.errors import UserError
from sam3slim.predict.images import Picture, find_pictures, shared_folder
from sam3slim.predict.opening import choose_dtype, device_for, identity
from sam3slim.predict.overlay import write_overlay
from sam3slim.predict.predictor import Predictor
from sam3slim.predict.prompts import Prompts, read_boxes, read_phrases
from sam3slim.predict.reading import Decoded, Unread, batches, decode
from sam3slim.predict.shards import check_out, merge, shard_of
from sam3slim.predict.tiles import Tiling, merge_tiles
from sam3slim.predict.writer import FINAL_FILE, OutputFolder
from sam3slim.progress import progress_bar


@dataclass(frozen=True)
class PredictSpec:
    """The options of ``sam3slim predict``, checked.

    Attributes:
        source: the model; images: see ``find_pictures``; out: the output folder.
        prompts, prompts_file, boxes_file: what to ask.
        threshold: least score of a detection, 0..1; max_per_image: kept per picture.
        image_size: of the model's input, in pixels; None: its own.
        presence_threshold: least presence of a phrase in a picture, 0..1.
        batch_size, prompt_chunk: pictures and prompts that pass the model together.
        device, dtype, runtime: see ``Predictor``.
        overlays: also write pictures with the detections on them.
        tile, overlap: side of the tiles that larger pictures are cut into, in pixels, and how much they overlap (see
            ``Tiling``); None: pictures are squashed whole.
        shard: ``i/n``: this process takes the i-th of every n pictures; None: what torchrun says, or all.
        overwrite: begin again in a folder that has predictions.

    Raises:
        UserError: a value out of its range.
    """

    source: str
    images: Sequence[str]
    out: str
    prompts: Sequence[str] = ()
    prompts_file: str | None = None
    boxes_file: str | None = None
    threshold: float = 0.5
    max_per_image: int = 100
    image_size: int | None = None
    presence_threshold: float = 0.0
    batch_size: int = 8
    prompt_chunk: int = 32
    device: str = "auto"
    dtype: str = "auto"
    runtime: str | None = None
    overlays: bool = True
    tile: int | None = None
    overlap: float = 0.2
    shard: str | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise UserError(f"--threshold {self.threshold}: expected a score in 0..1")
        if not 0 <= self.presence_threshold <= 1:
            raise UserError(f"--presence-threshold {self.presence_threshold}: expected a probability in 0..1")
        for name in ("max_per_image", "batch_size", "prompt_chunk"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)}: expected at least 1")
        if self.tile is not None:
            Tiling(self.tile, self.overlap)
            if self.boxes_file:
                raise UserError(
                    "--tile with --boxes: a box may lie across tiles; ask for phrases alone, or leave --tile out"
                )
        shard_of(self.shard)
        if not (self.prompts or self.prompts_file or self.boxes_file):
            raise UserError("nothing to look for; give --prompt PHRASE, --prompts FILE or --boxes FILE")


@dataclass
class Done:
    """What a run did.

    Attributes:
        images, kept: pictures predicted now, and found finished from before.
        detections: in ``path``, the COCO file.
        skipped: picture's name → why it could not be read, or is left out.
        unasked: pictures that only boxes were to be asked of, and that have none.
        waiting: shards that have not finished, so that the common file is not written yet.
        seconds: of prediction, without opening the model.
    """

    path: Path
    images: int = 0
    kept: int = 0
    detections: int = 0
    unasked: int = 0
    waiting: list[str] = field(default_factory=list)
    seconds: float = 0.0
    skipped: dict[str, str] = field(default_factory=dict)


def predict_files(spec: PredictSpec, *, progress: bool = True) -> Done:
    """Predict on every picture and write ``detections.json`` and overlays; go on where an earlier run stopped.

    All input is checked before the model is opened. Memory does not grow with the number of pictures but for
    their names.

    Raises:
        UserError: bad input, in one line, or no picture could be read.
    """
    out = Path(os.path.expanduser(spec.out))
    pictures = find_pictures(spec.images, leave_out=out)
    phrases = read_phrases(spec.prompts, spec.prompts_file)
    boxes, digest = read_boxes(spec.boxes_file, pictures) if spec.boxes_file else ({}, "")
    prompts = Prompts(phrases, boxes, digest)
    shard = shard_of(spec.shard)
    device = device_for(spec.source, spec.device, spec.runtime)
    if device.type == "cuda" and device.index is None and shard is not None:
        device = torch.device("cuda", this_process().local_rank % torch.cuda.device_count())
    dtype = choose_dtype(spec.dtype, device, spec.runtime, spec.source)
    settings: dict[str, Any] = {
        "model": identity(spec.source), "dtype": dtype, "prompts": list(phrases), "boxes": digest,
        "threshold": spec.threshold, "max_per_image": spec.max_per_image,
        "images": str(shared_folder([picture.path for picture in pictures])),
    }  # fmt: skip
    # Only where they are given: folders from before these options were there can be gone on with.
    if spec.presence_threshold:
        settings["presence_threshold"] = spec.presence_threshold
    if spec.image_size is not None:
        settings["image_size"] = spec.image_size
    if spec.runtime is not None:
        settings["runtime"] = spec.runtime
    if spec.tile is not None:
        settings |= {"tile": spec.tile, "overlap": spec.overlap}
    check_out(out, shard)
    everything, place = pictures, out
    if shard is not None:
        pictures, place, settings["shard"] = shard.of(pictures), shard.folder(out), str(shard)
    with OutputFolder(place, settings, overwrite=spec.overwrite) as folder:
        todo = [p for p in pictures if not _finished(folder, p, spec.overlays)]
        done = Done(place / FINAL_FILE, kept=len(pictures) - len(todo))
        try:
            if todo:
                _work(spec, device, folder, todo, prompts, done, progress)
        except KeyboardInterrupt:
            print(f"{len(folder)} images are kept in {place}; the same command goes on", file=sys.stderr)
            raise
        lost = [p.name for p in pictures if p.name not in done.skipped and not folder.is_done(p)]
        done.skipped |= dict.fromkeys(lost, "was changed meanwhile; the same command does it again")
        if len(done.skipped) == len(pictures) and shard is None:
            name, why = next(iter(done.skipped.items()))
            raise UserError(f"none of the {len(pictures)} images can be read; the first, {name}, {why}")
        done.unasked = 0 if phrases else sum(p.name not in boxes and p.name not in done.skipped for p in pictures)
        done.detections = folder.finish(pictures, prompts.categories, done.skipped)
    if shard is not None:
        found, waiting = merge(out, shard, everything, prompts.categories, folder.settings)
        done.waiting = [str(other) for other in waiting]
        if not waiting:
            done.detections, done.path = found, out / FINAL_FILE
    return done


def _finished(folder: OutputFolder, picture: Picture, overlays: bool) -> bool:
    return folder.is_done(picture) and (not overlays or folder.overlay(picture).is_file())


def _work(
    spec: PredictSpec,
    device: torch.device,
    folder: OutputFolder,
    todo: Sequence[Picture],
    prompts: Prompts,
    done: Done,
    progress: bool,
) -> None:
    predictor = Predictor(
        spec.source, str(device), dtype=spec.dtype, batch_size=spec.batch_size, prompt_chunk=spec.prompt_chunk,
        image_size=spec.image_size, presence_threshold=spec.presence_threshold,
        runtime=spec.runtime,
    )  # fmt: skip
    categories = prompts.categories
    names = {number: phrase for phrase, number in categories.items()}
    predictor.check_phrases(categories)
    started = time.perf_counter()
    with progress_bar(show=progress) as bar:
        task = bar.add_task("predicting", total=len(todo))
        tiling = None if spec.tile is None else Tiling(spec.tile, spec.overlap)
        pictures = decode(todo, predictor, prompts, ahead=2 * spec.batch_size, keep=spec.overlays, tiling=tiling)
        for batch in batches(pictures, spec.batch_size):
            good = [one for one in batch if isinstance(one, Decoded)]
            found = _answers(predictor, good, spec)
            for one, detections in zip(good, found, strict=True):
                info = one.asked.info
                if one.image is not None:
                    path = folder.overlay(one.picture)
                    write_overlay(path, one.image, detections, names, info.height, info.width)
                # After its overlay: a picture counts as finished from here on.
                folder.add(one.picture, one.stamp, detections, info.height, info.width)
            done.images += len(good)
            done.skipped |= {one.picture.name: one.reason for one in batch if isinstance(one, Unread)}
            bar.advance(task, len(batch))
    done.seconds = time.perf_counter() - started


def _answers(predictor: Predictor, asked: Sequence[Decoded], spec: PredictSpec) -> list[Detections]:
    """Of every picture; tiles pass the model as pictures do, ``batch_size`` together."""
    plain = [one for one in asked if not one.tiles]
    answers = predictor.answer([one.asked for one in plain], spec.threshold, spec.max_per_image) if plain else []
    found = {one.picture.image_id: detections for one, detections in zip(plain, answers, strict=True)}
    for one in asked:
        if one.tiles:
            parts: list[Detections] = []
            for start in range(0, len(one.tiles), spec.batch_size):
                requests = [request for request, _ in one.tiles[start : start + spec.batch_size]]
                parts += predictor.answer(requests, spec.threshold, spec.max_per_image)
            places = [place for _, place in one.tiles]
            info = one.asked.info
            found[one.picture.image_id] = merge_tiles(
                list(zip(parts, places, strict=True)), info.height, info.width, spec.max_per_image
            )
    return [found[one.picture.image_id] for one in asked]
