"""From records to a model that other code opens: pick, convert, reopen, check, describe."""

from typing import Any

from sam3slim.export.sizes import parse_bytes
from sam3slim.results.select import ExportCriteria, Selection, choose

__all__ = ["ExportCriteria", "Exported", "Selection", "choose", "export", "parse_bytes"]


def __getattr__(name: str) -> Any:
    """``export`` and what it returns, imported when asked for: torch and transformers take seconds."""
    if name in ("Exported", "export"):
        from sam3slim.export import run

        return getattr(run, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
