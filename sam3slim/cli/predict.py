"""``sam3slim predict``: phrases and boxes to many pictures."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from sam3slim.cli.command import Command, quick_imports
from sam3slim.runtimes.registry import RUNTIMES, all_arithmetics

if TYPE_CHECKING:
    from sam3slim.predict import Done

SHOWN_SKIPPED = 20


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="ARTIFACT", help="a checkpoint: file, folder or hub id")
    parser.add_argument("images", nargs="+", metavar="IMAGES", help="folders, globs, files, .txt lists of files")
    parser.add_argument("--prompt", action="append", default=[], metavar="PHRASE", help="may be given several times")
    parser.add_argument("--prompts", metavar="FILE", help="a phrase on every line")
    parser.add_argument("--boxes", metavar="FILE", help="JSON: box prompts by image (docs/predict.md)")
    parser.add_argument("--out", required=True, metavar="DIR", help="detections.json and overlays go here")
    parser.add_argument("--threshold", type=float, default=0.5, help="least score (default: %(default)s)")
    parser.add_argument("--max-per-image", type=int, default=100, metavar="N", help="default: %(default)s")
    parser.add_argument("--image-size", type=int, metavar="N", help="side of the model's input (default: its own)")
    parser.add_argument(
        "--presence-threshold", type=float, default=0.0, metavar="P",
        help="no detections of phrases less likely to be in the picture (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="images at once (default: %(default)s)")
    parser.add_argument(
        "--prompt-chunk", type=int, default=32, metavar="N", help="prompts at once (default: %(default)s)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: %(default)s)")
    parser.add_argument(
        "--runtime",
        metavar="NAME",
        help=f"what runs the model: {', '.join(RUNTIMES)} (default: PyTorch, or the graphs' own)",
    )
    parser.add_argument(
        "--dtype", choices=("auto", *all_arithmetics()), default="auto", help="auto: fp16 on a GPU, else as stored"
    )
    parser.add_argument(
        "--overlays", action=argparse.BooleanOptionalAction, default=True, help="write pictures with detections"
    )
    parser.add_argument("--tile", type=int, metavar="PIXELS", help="cut larger pictures into tiles of this side")
    parser.add_argument(
        "--overlap", type=float, default=0.2, metavar="SHARE", help="of neighbouring tiles (default: %(default)s)"
    )
    parser.add_argument(
        "--shard", metavar="I/N", help="this is process I of N that share the pictures and --out (torchrun sets it)"
    )
    parser.add_argument("--overwrite", action="store_true", help="begin again in a folder that has predictions")


def _run(arguments: argparse.Namespace) -> None:
    with quick_imports():
        from sam3slim.predict import PredictSpec, predict_files

    spec = PredictSpec(
        source=arguments.source,
        images=arguments.images,
        out=arguments.out,
        prompts=arguments.prompt,
        prompts_file=arguments.prompts,
        boxes_file=arguments.boxes,
        threshold=arguments.threshold,
        max_per_image=arguments.max_per_image,
        image_size=arguments.image_size,
        presence_threshold=arguments.presence_threshold,
        batch_size=arguments.batch_size,
        prompt_chunk=arguments.prompt_chunk,
        device=arguments.device,
        dtype=arguments.dtype,
        runtime=arguments.runtime,
        overlays=arguments.overlays,
        tile=arguments.tile,
        overlap=arguments.overlap,
        shard=arguments.shard,
        overwrite=arguments.overwrite,
    )
    _print(predict_files(spec))


def _print(done: Done) -> None:
    rate = f" in {done.seconds:.1f} s, {done.images / done.seconds:.1f} images/s" if done.images else ""
    before = f" ({done.kept} from before)" if done.kept else ""
    print(f"{done.images + done.kept} images{before}, {done.detections} detections{rate}")
    print(f"written: {done.path}")
    if done.waiting:
        print(f"not finished yet: shards {', '.join(done.waiting)}; the last one writes the common detections.json")
    if done.unasked:
        print(f"warning: {done.unasked} images have no boxes, so nothing was asked of them", file=sys.stderr)
    if done.skipped:
        print(f"warning: {len(done.skipped)} images could not be read and are left out:", file=sys.stderr)
        for name, why in list(done.skipped.items())[:SHOWN_SKIPPED]:
            print(f"  {name} {why}", file=sys.stderr)
        if len(done.skipped) > SHOWN_SKIPPED:
            print(f"  … all are named under info.skipped in {done.path}", file=sys.stderr)


PREDICT = Command(
    "predict",
    "find instances of phrases in many images: COCO-format JSON with masks, and overlay pictures",
    _arguments,
    _run,
    epilog='sam3slim predict assets/nano photos/ --prompt "yellow school bus" --prompt dog --out predictions',
)
