"""What a training says while it runs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from sam3slim import progress
from sam3slim.training import StepProgress


def fake(step: int, **changed: Any) -> Any:
    given: dict[str, Any] = {
        "global_step": step, "max_steps": 40, "estimated_stepping_batches": float("inf"), "sanity_checking": False,
        "callback_metrics": {"val/map": 0.25}, "progress_bar_metrics": {"train/loss": 3.0},
    }  # fmt: skip
    return SimpleNamespace(**given | changed)


def test_step_progress__a_line_per_validation(capsys: pytest.CaptureFixture[str]) -> None:
    bar, module = StepProgress(), SimpleNamespace()
    bar.on_train_start(fake(20), module)  # type: ignore[arg-type]
    bar._started -= 60  # a resumed run: 10 steps a minute
    bar.on_validation_end(fake(30), module)  # type: ignore[arg-type]
    bar.on_validation_end(fake(40), module)  # type: ignore[arg-type]
    bar.on_validation_end(fake(30, sanity_checking=True), module)  # type: ignore[arg-type]
    bar.on_train_end(fake(40), module)  # type: ignore[arg-type]
    assert capsys.readouterr().out == (
        "step 30 of 40: val/map 0.250 after 1:00, about 1:00 left\nstep 40 of 40: val/map 0.250 after 1:00\n"
    )
    endless = fake(30, max_steps=-1)
    bar.on_validation_end(endless, module)  # type: ignore[arg-type]
    assert capsys.readouterr().out.startswith("step 30 of ?: val/map 0.250 after 1:0")


def test_step_progress__steps_of_how_many_and_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "Console", lambda **_: Console(force_terminal=True))
    bar, module = StepProgress(), SimpleNamespace()
    bar.on_train_start(fake(0), module)  # type: ignore[arg-type]
    bar.on_train_batch_end(fake(10), module, None)  # type: ignore[arg-type]
    assert bar._bar is not None
    (task,) = bar._bar.tasks
    assert (task.completed, task.total, task.description) == (10, 40, "training, loss 3.000")
    bar.on_exception(fake(10), module, KeyboardInterrupt())  # type: ignore[arg-type]
    assert bar._bar is None
