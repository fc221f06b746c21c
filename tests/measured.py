"""Records of a tiny model with real artifacts, measured on four pictures."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from sam3slim.artifacts import write_artifact
from sam3slim.launch.compose import compose_plain
from tests import running as runs
from tests.small import small_model
from tests.tiny import SPEC
from tests.tiny_runs import data

METHODS = "compress=[fp16,int8_weight,int8_dynamic]"


@pytest.fixture(scope="session")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``model/``, ``shapes/`` and ``runs/{full,fp16,int8_weight,int8_dynamic}``. Not to be changed."""
    root = tmp_path_factory.mktemp("measured")
    write_artifact(small_model(SPEC), root / "model")
    given = [f"checkpoint={root / 'model'}", *data(root), "latency=false", METHODS]
    config = compose_plain("compress", given, root / "runs")
    runs.compress(config, root / "runs", {}, "python compress.py")
    return root


@pytest.fixture
def copied(measured: Path, tmp_path: Path) -> Path:
    """The records and artifacts of ``measured``, to be changed; the data stay where they are."""
    runs = tmp_path / "runs"
    shutil.copytree(measured / "runs", runs)
    for path in runs.glob("*/record.json"):
        path.write_text(path.read_text().replace(str(measured / "runs"), str(runs)))
    return runs
