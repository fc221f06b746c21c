"""What a search compares: objectives and machines that are not mixed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sam3slim.environment import describe_device
from sam3slim.errors import UserError
from sam3slim.launch import search
from sam3slim.launch.journal import Outcome
from sam3slim.launch.search import LatencyAxis, Search

SWEEPER = {"storage": "sqlite:///x.db", "study_name": "s", "n_trials": 3, "direction": ["maximize", "minimize"]}
PAIR = ("maximize", "minimize")


def measured(machine: str | None) -> Outcome:
    return Outcome("finished", "folder", values=(0.5, 12.0), machine=machine)


def test_search__only_of_a_sweeper_with_a_database() -> None:
    assert Search.of({"params": {}}, None, None) is None
    assert Search.of(SWEEPER, "cgf1", "latency") == Search("sqlite:///x.db", "s", 3, PAIR, "cgf1", "latency")
    assert Search.of({**SWEEPER, "direction": "maximize"}, None, None) == Search(
        "sqlite:///x.db", "s", 3, ("maximize",)
    )


def test_latency_axis__the_first_machine_sets_it_and_another_is_no_result(tmp_path: Path) -> None:
    axis, here = LatencyAxis(tmp_path), f"{describe_device('cpu')}, batch 1, prompts 5"
    axis.refuse_other_machine()
    assert axis.joined(Outcome("failed", "folder", "why")) == Outcome("failed", "folder", "why")
    assert axis.machine() is None
    assert axis.joined(measured(here)) == measured(here)
    assert axis.joined(measured(here)) == measured(here)
    axis.refuse_other_machine()
    other = axis.joined(measured("another CPU, 8 threads, batch 1, prompts 5"))
    assert (other.status, other.values) == ("failed", None)
    assert other.error is not None
    assert other.error.startswith(
        "its latency was measured on another CPU, 8 threads, batch 1, prompts 5, and those of"
    )
    assert axis.machine() == here


@pytest.mark.parametrize("device", ["another CPU, 1 threads", "a GPU that is not here"])
def test_latency_axis__another_machine_or_number_of_threads_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    axis = LatencyAxis(tmp_path)
    axis.joined(measured(f"{device}, batch 1, prompts 5"))
    with pytest.raises(UserError, match=rf"measured on {device}, batch 1.*hydra\.sweep\.dir=DIR"):
        axis.refuse_other_machine()
    monkeypatch.setattr(search, "this_machine", lambda kind: device if kind == "cpu" else "a machine without a GPU")
    axis.refuse_other_machine()
    monkeypatch.setattr(search, "this_machine", lambda kind: f"{device}0" if kind == "cpu" else "another GPU")
    with pytest.raises(UserError, match=rf"and this is {device}0, another GPU: "):
        axis.refuse_other_machine()


def test_search__trials_of_other_objectives_are_not_gone_on_from(tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna", reason="needs the extra search")
    ours = Search(f"sqlite:///{tmp_path / 'x.db'}", "s", 3, PAIR, cost="latency")
    assert ours.go_on() == 3
    assert replace(ours, cost="bytes").go_on() == 3  # no trial yet
    assert ours.go_on() == 3

    def tried(name: str, values: list[float]) -> None:
        study = optuna.load_study(study_name=name, storage=ours.storage)
        study.tell(study.ask(), values)

    tried("s", [0.5, 12.0])
    assert ours.go_on() == 2

    def refused(other: Search, message: str) -> None:
        with pytest.raises(UserError, match=message):
            other.go_on()

    refused(
        replace(ours, cost="bytes"), r"search s has trials of cost=latency, and this is cost=bytes: .*study_name=NAME"
    )
    refused(replace(ours, metric="cgf1"), "trials of metric=null, and this is metric=cgf1: ")
    refused(replace(ours, directions=("maximize",)), r"direction=\[maximize,minimize\], and this is direction=\[max")

    optuna.create_study(study_name="old", storage=ours.storage, directions=PAIR)  # by a version that noted nothing
    tried("old", [0.5, 1000.0])
    assert replace(ours, study="old", cost="bytes", metric="cgf1").go_on() == 2
    refused(replace(ours, study="old"), "search old has trials of cost=bytes, and this is cost=latency: ")

    alone = replace(ours, study="alone", directions=("maximize",))
    alone.go_on()
    tried("alone", [0.5])  # type: ignore[list-item]
    assert replace(alone, cost="bytes").go_on() == 2  # the cost is none of its values


def test_search__what_a_killed_start_left_is_asked_again(tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna", reason="needs the extra search")
    ours = Search(f"sqlite:///{tmp_path / 'x.db'}", "s", 3, PAIR)
    ours.go_on()
    study: Any = optuna.load_study(study_name="s", storage=ours.storage)
    depth = study.ask({"depth": optuna.distributions.IntUniformDistribution(1, 9)}).params["depth"]
    assert ours.go_on() == 3
    again = optuna.load_study(study_name="s", storage=ours.storage).ask()
    assert again.suggest_int("depth", 1, 9) == depth
