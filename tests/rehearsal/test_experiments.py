"""Every shipped experiment takes its first steps through ``train.py``'s own path, with the sizes of a tiny model.

Precision, strategy, optimiser, schedule, losses, distillation and init stay the experiment's own. One that cannot be
rehearsed is a failing test.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests import running as runs
from tests.rehearsal.experiments import NAMES, rehearsal_of
from tests.rehearsal.running import check_result, make_data, rehearse
from tests.rehearsal.test_recipes import cells, config_of, name_of

PAIRS = [cell for cell in cells() if cell["processes"] != "one"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("experiments"))


@pytest.fixture(scope="module")
def configs(root: Path) -> dict[str, dict[str, Any]]:
    return {name: rehearsal_of(name, root) for name in NAMES}


def kind_of(config: dict[str, Any]) -> str:
    return "one" if config["trainer"]["devices"] == 1 else str(config["trainer"]["strategy"])


@pytest.fixture(scope="module")
def ddp(root: Path, configs: dict[str, dict[str, Any]]) -> None:
    """The experiments for several GPUs and the recipes of two processes, in one pair of them: starting takes long."""
    found = {name: config for name, config in configs.items() if kind_of(config) == "ddp"}
    for cell in PAIRS:
        found[name_of(cell)] = config_of(root, cell)
    rehearse(root, "pair", found, processes=2)


@pytest.fixture(scope="module")
def ddp_fork(root: Path, configs: dict[str, dict[str, Any]]) -> None:
    """The experiments that fork, in a process that has computed no gradient."""
    found = {name: config for name, config in configs.items() if kind_of(config) == "ddp_fork"}
    rehearse(root, "forking", found, processes=1)


@pytest.mark.parametrize("name", NAMES)
def test_experiment(root: Path, configs: dict[str, dict[str, Any]], name: str, request: pytest.FixtureRequest) -> None:
    kind = kind_of(configs[name])
    if kind == "one":
        runs.train(configs[name], root / name, {}, "rehearsal")
    else:
        request.getfixturevalue(kind)
    check_result(root / name)


@pytest.mark.usefixtures("ddp")
@pytest.mark.parametrize("cell", PAIRS, ids=name_of)
def test_recipe__two_processes(root: Path, cell: dict[str, str]) -> None:
    check_result(root / name_of(cell))
