"""``sam3slim inspect … --memory``: what a training step will hold."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from sam3slim.cli.command import quick_imports
from sam3slim.errors import UserError

if TYPE_CHECKING:
    from sam3slim.planning import Planned


def show_memory_plan(arguments: argparse.Namespace) -> None:
    """Print the plan of the settings before and after ``--memory``.

    Raises:
        UserError: an unknown card, an impossible configuration, a checkpoint in place of settings.
    """
    overrides = [*arguments.targets, *arguments.memory]
    if files := [text for text in overrides if "=" not in text]:
        raise UserError(f"--memory plans settings of train.py, got {files[0]}; give init.checkpoint={files[0]}")
    with quick_imports():
        from sam3slim.planning import parse_cards, plan_memory

    cards = parse_cards(arguments.cards)
    planned = plan_memory(overrides, instances=arguments.instances, device=arguments.device)
    if arguments.json:
        print(json.dumps({**planned.plan.to_dict(cards), "assumptions": planned.assumptions}, indent=2))
    else:
        _print(planned, cards)


def _print(planned: Planned, cards: tuple[float, ...]) -> None:
    from rich.console import Console
    from rich.table import Table

    plan = planned.plan
    shown = Table(title=f"{planned.spec.name}: a training step holds", title_justify="left")
    for heading in ("", "GiB", "share"):
        shown.add_column(heading, justify="right" if heading else "left")

    def rows(sizes: Mapping[str, int], before: str = "") -> None:
        for name, size in sizes.items():
            if size:
                shown.add_row(before + name, gibibytes(size), f"{size / plan.peak:.1%}")
        shown.add_section()

    rows(plan.standing)
    rows(plan.saved, "saved: ")
    rows({"temporary at the peak": plan.temporary})
    rows({"peak": plan.peak, "with context and gaps": plan.needed})
    console = Console(highlight=False)
    console.print(shown)
    largest = sorted(plan.at_peak.items(), key=lambda item: -item[1])[:4]
    console.print(
        f"at the peak, during {plan.during}: {', '.join(f'{name} {gibibytes(size)}' for name, size in largest)}",
        soft_wrap=True,
    )
    for card, fits in plan.fits(cards).items():
        room = card - plan.needed / 2**30
        console.print(f"{card:g} GB: {'fits' if fits else 'does not fit'} ({room:+.1f} GiB)")
    for line in planned.assumptions:
        console.print(f"assumed: {line}", soft_wrap=True)


def gibibytes(size: int) -> str:
    """``3 * 2**29`` → ``1.50``."""
    return f"{size / 2**30:.2f}"
