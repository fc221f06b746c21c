"""``sam3slim compare``: every record below some folders on one page."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sam3slim.cli.command import Command, plain_progress, quick_imports
from sam3slim.errors import UserError

if TYPE_CHECKING:
    from sam3slim.results.collect import Collected


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUNS", help="folders; every record.json in and below them is read")
    parser.add_argument("--out", default="outputs/compare", metavar="DIR", help="default: %(default)s")
    parser.add_argument("--gallery", type=int, default=0, metavar="N", help="show predictions on N images of the data")
    parser.add_argument(
        "--gallery-of", action="append", default=[], metavar="RUN",
        help="whose; default: the largest model and the Pareto front, 6 at most",
    )  # fmt: skip
    parser.add_argument("--metric", metavar="NAME", help="the metric that decides (default: segm; bbox without masks)")
    parser.add_argument(
        "--cost", metavar="NAME",
        help="what the Pareto front sets it against: bytes (default) or latency, each machine's by itself",
    )  # fmt: skip
    parser.add_argument("--data", metavar="DIR", help="where the data lie now, if not where the records say")


def _run(arguments: argparse.Namespace) -> None:
    with quick_imports():
        from sam3slim.files import ensure_writable_dir
        from sam3slim.report.page import write_comparison
        from sam3slim.results.collect import collect
        from sam3slim.results.costs import named_cost
        from sam3slim.results.metrics import check_metric, main_metric

    check_metric(arguments.metric, "--metric")
    cost = named_cost(arguments.cost)
    found = collect(arguments.runs)
    if arguments.cost is not None and all(cost.of(run.record) is None for run in found.runs):
        raise UserError(f"--cost {arguments.cost}: none of the runs has measured it; evaluate.py measures latency")
    if arguments.metric is not None:
        main_metric((run.record for run in found.runs), arguments.metric)
    ensure_writable_dir(arguments.out)
    for line in found.unread:
        print(f"not read: {line}", file=sys.stderr)
    written = write_comparison(found, arguments.out, _galleries(found, arguments), metric=arguments.metric, cost=cost)
    runs = found.runs
    not_finished = sum(run.record.status != "finished" for run in runs)
    print(f"{len(runs)} runs in {len(found.groups)} groups of equal data and protocol, {not_finished} not finished")
    for run in runs:
        if run.conflict:
            print(f"same configuration as another run, other numbers: {run.folder}")
    for path in written:
        print(f"written: {path}")


def _galleries(found: Collected, arguments: argparse.Namespace) -> dict[int, dict[str, Any]]:
    """Number of a group → its pictures, for the groups whose data are there; says what is missing."""
    if arguments.gallery < 0:
        raise UserError(f"--gallery {arguments.gallery}: expected a number of images, 0 for none")
    if not arguments.gallery:
        if arguments.gallery_of:
            raise UserError("--gallery-of needs --gallery N, the number of images")
        return {}
    wanted = [Path(folder) for folder in arguments.gallery_of]
    known = {run.folder.resolve() for run in found.runs}
    unknown = [str(folder) for folder in wanted if folder.resolve() not in known]
    if unknown:
        raise UserError(f"--gallery-of {unknown[0]} is none of the runs; give the folder of one of them")
    with quick_imports():
        from sam3slim.report.gallery import gallery_runs, make_gallery
        from sam3slim.results.costs import named_cost

    galleries = {}
    with plain_progress(show=sys.stdout.isatty()) as bar:
        task = bar.add_task("pictures", total=None)
        for number, group in enumerate(found.groups):
            runs = gallery_runs(group, wanted, arguments.metric, named_cost(arguments.cost)) if group.data else []
            if not runs:
                continue

            def step(name: str, done: int, total: int) -> None:
                bar.update(task, description=f"pictures of {name}", completed=done, total=total)

            try:
                gallery = make_gallery(group, runs, arguments.gallery, root=arguments.data, step=step)
            except UserError as error:
                print(f"no gallery of {group.title}: {error}", file=sys.stderr)
                continue
            for folder, why in gallery.missing.items():
                print(f"no pictures of {folder}: {why}", file=sys.stderr)
            if gallery.runs:
                galleries[number] = gallery.to_dict()
    return galleries


COMPARE = Command(
    "compare",
    "every run below some folders: CSV, Markdown, plots and one HTML page",
    _arguments,
    _run,
    epilog="sam3slim compare outputs --gallery 4 --out outputs/compare",
)
