"""A toy runtime that touches nothing else is evaluated, predicts and is refused like the others (docs/adding.md)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sam3slim.artifacts import write_artifact
from sam3slim.checkpoints import LoadReport, load
from sam3slim.errors import UserError
from sam3slim.launch.compose import compose_plain
from sam3slim.predict import Predictor
from sam3slim.runtimes import RUNTIMES, Opening, Runtime, register
from tests import running as runs
from tests.predict.conftest import draw
from tests.small import small_model
from tests.tiny import SPEC
from tests.tiny_runs import data


class Doubted:
    """PyTorch's model, half as sure of everything; no subclass of anything."""

    def __init__(self, model: Any) -> None:
        self.model, self.spec, self.device, self.dtype = model, model.spec, model.device, model.dtype
        self.get_vision_features, self.encode_text = model.get_vision_features, model.encode_text
        self.modules, self.eval = model.modules, model.eval

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        output = self.model(*args, **kwargs)
        output.presence_logits = output.presence_logits - 5.0
        return output


def open_doubted(opening: Opening) -> tuple[Doubted, LoadReport]:
    model, report = load(opening.located.path, overrides=opening.overrides or None)
    return Doubted(model), report


@pytest.fixture
def toy() -> Iterator[Runtime]:
    yield register(Runtime("toy", "A toy", open_doubted))
    del RUNTIMES["toy"]


def test_plugin__is_evaluated_and_predicts(toy: Runtime, tmp_path: Path) -> None:
    write_artifact(small_model(SPEC), tmp_path / "model")
    given = [f"checkpoint={tmp_path / 'model'}", *data(tmp_path), "limit=1", "runtime=toy"]
    record = runs.evaluate(compose_plain("evaluate", given, tmp_path / "eval"), tmp_path / "eval", {}, "evaluate")
    assert record.artifact.runtime == "toy"
    assert record.latency_ms.p50
    picture = draw(tmp_path / "a.png")
    plain, doubted = (
        Predictor(tmp_path / "model", runtime=name)(picture, "cup", threshold=0) for name in (None, "toy")
    )
    assert float(doubted[0].scores.max()) < 0.2 * float(plain[0].scores.max())
    with pytest.raises(UserError, match="A toy cannot compute in bf16, but in fp32"):
        Predictor(tmp_path / "model", runtime="toy", dtype="bf16")


def test_register__a_name_is_given_once(toy: Runtime) -> None:
    with pytest.raises(ValueError, match="already a runtime toy"):
        register(toy)
