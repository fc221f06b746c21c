"""Tables, plots and pictures of what runs recorded."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sam3slim.report.pictures import draw_instances, picture_grid
    from sam3slim.report.plots import map_vs_size
    from sam3slim.report.table import DEMO_COLUMNS, table_row, to_markdown, write_table

# Imported when asked for: a table needs neither matplotlib nor pycocotools.
_HOMES = {
    "DEMO_COLUMNS": "table",
    "draw_instances": "pictures",
    "map_vs_size": "plots",
    "picture_grid": "pictures",
    "table_row": "table",
    "to_markdown": "table",
    "write_table": "table",
}

__all__ = [
    "DEMO_COLUMNS",
    "draw_instances",
    "map_vs_size",
    "picture_grid",
    "table_row",
    "to_markdown",
    "write_table",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"sam3slim.report.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
