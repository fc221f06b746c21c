"""Tables, plots and pictures of what runs recorded."""

from sam3slim.report.pictures import draw_instances, picture_grid
from sam3slim.report.plots import map_vs_size
from sam3slim.report.table import DEMO_COLUMNS, table_row, to_markdown, write_table

__all__ = [
    "DEMO_COLUMNS",
    "draw_instances",
    "map_vs_size",
    "picture_grid",
    "table_row",
    "to_markdown",
    "write_table",
]
