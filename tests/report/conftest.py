"""Measured artifacts of a tiny model."""

from __future__ import annotations

from tests.measured import copied, measured

__all__ = ["copied", "measured"]
