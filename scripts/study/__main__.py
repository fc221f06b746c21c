"""``make study``: run what is missing of the slimming study (hours), then write docs/slimming.md's tables."""

from __future__ import annotations

import argparse
from pathlib import Path

from sam3slim.errors import UserError, one_line_exits
from sam3slim.results.record import read_record
from sam3slim.runs import start
from scripts.page import put_between
from scripts.study.cells import SOURCE, all_cells
from scripts.study.headline import headline_markdown
from scripts.study.run import finished, run_cells
from scripts.study.table import write_study


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m scripts.study", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("outputs/study"), help="a folder per cell")
    parser.add_argument("--jobs", type=int, default=2, help="cells at a time, a thread each")
    parser.add_argument("--only", default="", help="cells whose name contains this")
    parser.add_argument("--table", action="store_true", help="run nothing, write the tables of what there is")
    parser.add_argument(
        "--headline", type=Path, nargs="+", metavar="EVALUATION", help="write the table of these evaluations alone"
    )
    arguments = parser.parse_args()
    with one_line_exits():
        cells = [cell for cell in all_cells() if arguments.only in cell.name]
        if not cells:
            raise UserError(f"--only {arguments.only}: no cell's name contains it")
        evaluation = arguments.out / "nano"
        if not (evaluation / "record.json").is_file():
            start("evaluate", [f"checkpoint={SOURCE}", "latency=false"], evaluation)
        page, table = Path("docs/slimming.md"), Path("docs/slimming.csv")
        if arguments.headline:
            put_between(page, "headline", headline_markdown(read_record(evaluation), arguments.headline))
            return
        failed = {} if arguments.table else run_cells(cells, arguments.out, table, jobs=arguments.jobs)
        found = {
            cell: finished(cell, arguments.out, table) for cell in all_cells()
        }  # once: each composes a configuration
        write_study(found.get, read_record(evaluation), page, table, Path("docs/images/slimming_axes.png"))
        print(f"written: {page}, {table}")
        if failed:
            raise UserError(f"{len(failed)} cells failed: {', '.join(failed)}; their records say why")


if __name__ == "__main__":
    main()
