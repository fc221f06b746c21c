"""The slimming study: which weights are kept and what the student is taught, at equal steps."""

from scripts.study.cells import Cell, all_cells
from scripts.study.run import run_cells
from scripts.study.table import write_study

__all__ = ["Cell", "all_cells", "run_cells", "write_study"]
