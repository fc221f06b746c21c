"""The slimming study: which weights are kept and what the student is taught, at equal steps."""

from sam3slim.study.cells import Cell, all_cells
from sam3slim.study.run import run_cells
from sam3slim.study.table import write_study

__all__ = ["Cell", "all_cells", "run_cells", "write_study"]
