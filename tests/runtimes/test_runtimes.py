"""Every runtime answers what PyTorch answers, or says in one line why it does not run."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from sam3slim.artifacts import write_artifact
from sam3slim.cli import main
from sam3slim.errors import UserError
from sam3slim.graphs import export_onnx
from sam3slim.graphs.runner import GraphSam3
from sam3slim.launch.compose import compose_plain
from sam3slim.models import Sam3
from sam3slim.results.record import RunRecord
from sam3slim.runs.specs import EvaluateSpec
from sam3slim.runtimes import RUNTIMES, open_runtime
from sam3slim.runtimes.registry import Runtime, check_runtime
from sam3slim.strict import SpecError, spec_from_dict
from tests import running as runs
from tests.predict.conftest import draw
from tests.small import OUTPUTS, small_model
from tests.tiny import SPEC, tiny_batch
from tests.tiny_runs import data


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as weights, as weights in INT8's place, and as graphs."""
    root = tmp_path_factory.mktemp("runtimes")
    model = small_model(SPEC)
    write_artifact(model, root / "weights")
    export_onnx(model, root / "graphs")
    return root


@pytest.fixture
def traced(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tracing the graphs takes long, and they are the same each time."""

    def copy(model: Sam3, folder: Path) -> None:
        for file in (root / "graphs").glob("*.onnx*"):
            shutil.copy(file, folder)

    monkeypatch.setattr("sam3slim.runtimes.onnx_sessions.trace_graphs", copy)


def answer(model: Any) -> dict[str, torch.Tensor]:
    batch = tiny_batch()
    with torch.inference_mode():
        found = model(batch.pixel_values, batch.input_ids, batch.attention_mask, image_index=batch.image_index)
    return {name: getattr(found, name) for name in OUTPUTS}


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("source", ["weights", "graphs"])
@pytest.mark.parametrize(
    ("name", "arithmetic", "most"),
    [
        ("onnx", "fp32", 1e-4),
        ("openvino", "fp32", 1e-4),
        ("openvino", "w8a16", 0.2),
        ("openvino", "w8a8", 0.3),
        ("openvino", "w8a8_static", 0.4),
    ],
)
def test_open_runtime__answers_as_pytorch_does(
    root: Path, source: str, name: str, arithmetic: str, most: float
) -> None:
    if name == "openvino":
        pytest.importorskip("openvino", reason="the extra openvino is not installed")
        pytest.importorskip("nncf", reason="the extra openvino is not installed")
    ours = answer(open_runtime(root / "weights")[0])
    runner, report = open_runtime(root / source, name, arithmetic=arithmetic, calibration=lambda _: [tiny_batch()])
    theirs = answer(runner)
    differences = [float((ours[key] - theirs[key]).abs().max() / ours[key].abs().max()) for key in OUTPUTS]
    assert max(differences) < most
    assert (max(differences) > 1e-4) == (arithmetic != "fp32")
    assert (runner.spec, report.precision) == (SPEC, "fp32")
    assert runner.computes_in in (arithmetic, None)


SIGNALS = """
import os, signal, sys
from pathlib import Path
from sam3slim.runtimes.openvino_models import compile_graph

signal.signal(signal.SIGUSR1, lambda *_: print("answered"))
opened = [compile_graph(Path(sys.argv[1]), "fp32", tower=False) for _ in range(3)]
while opened:
    del opened[0]
os.kill(os.getpid(), signal.SIGUSR1)
"""


def test_open_openvino__signals_are_answered_after_several_models(root: Path) -> None:
    pytest.importorskip("openvino", reason="the extra openvino is not installed")
    asked = [sys.executable, "-c", SIGNALS, str(root / "graphs/text.onnx")]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "answered\n"), done.stderr


@pytest.mark.usefixtures("traced")
def test_open_runtime__int8_of_a_checkpoint_in_onnx_runtime(root: Path) -> None:
    runner, _ = open_runtime(root / "weights", "onnx", arithmetic="w8a8")
    ours, theirs = answer(open_runtime(root / "weights", "eager")[0]), answer(runner)
    assert runner.computes_in == "w8a8"
    assert (
        1e-4 < float((ours["pred_logits"] - theirs["pred_logits"]).abs().max() / ours["pred_logits"].abs().max()) < 0.3
    )


def test_open_runtime__the_default_is_the_sources_own(root: Path) -> None:
    assert isinstance(open_runtime(root / "weights")[0], Sam3)
    assert type(open_runtime(root / "graphs")[0]).__name__ == "OnnxSam3"


@pytest.mark.parametrize(
    ("source", "name", "given", "line"),
    [
        ("weights", "onx", {}, r"^runtime onx is not known; did you mean onnx\?$"),
        ("graphs", "compile", {}, r"inductor \(runtime compile\) does not run onnx graphs \(.*\); use onnx, openvino$"),
        ("weights", "onnx", {"arithmetic": "bf16"}, r"^ONNX Runtime cannot compute in bf16, but in fp32, w8a8; use one"
         r" of them or auto, or the runtime eager or compile or openvino$"),
        ("graphs", "onnx", {"arithmetic": "w8a8"}, r"graphs of .* are written in fp32 and cannot compute in w8a8 here"),
        ("weights", "onnx", {"device": "cuda"}, r"^device cuda: ONNX Runtime \(runtime onnx\) runs on cpu;"),
        ("graphs", "onnx", {"overrides": {"vit.image_size": 64}}, r"graphs of .* have their size built in"),
    ],
)  # fmt: skip
def test_open_runtime__what_cannot_be(root: Path, source: str, name: str, given: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=line):
        open_runtime(root / source, name, **given)


def test_open_runtime__static_ranges_need_pictures(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("openvino", reason="the extra openvino is not installed")
    pytest.importorskip("nncf", reason="the extra openvino is not installed")
    with pytest.raises(UserError, match=r"^w8a8_static measures activations on training pictures"):
        open_runtime(root / "weights", "openvino", arithmetic="w8a8_static")
    draw(root / "pictures/a.png")
    asked = ["predict", str(root / "weights"), str(root / "pictures"), "--prompt", "cup", "--out", str(root / "static")]
    assert main([*asked, "--runtime", "openvino", "--dtype", "w8a8_static"]) == 2
    assert "w8a8_static measures activations on training pictures" in capsys.readouterr().err


def test_check_runtime__a_package_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RUNTIMES, "away", Runtime("away", "Away", "a:b", packages=("no_such",), extra="openvino"))
    with pytest.raises(UserError, match=r"^runtime away needs no_such, .*; pip install 'sam3slim\[openvino\]'$"):
        check_runtime("away")


def evaluated(root: Path, name: str, *given: str) -> RunRecord:
    asked = [f"checkpoint={root / 'weights'}", *data(root), "latency=false", "limit=2", *given]
    return runs.evaluate(compose_plain("evaluate", asked, root / name), root / name, {}, "python evaluate.py")


def test_evaluate__in_another_runtime(root: Path) -> None:
    plain, other = evaluated(root, "plain"), evaluated(root, "other", "runtime=onnx")
    assert other.metrics.values["segm"]["map"] == pytest.approx(plain.metrics.values["segm"]["map"], abs=1e-3)
    assert (plain.artifact.runtime, plain.artifact.arithmetic) == (None, "fp32")
    assert (other.artifact.runtime, other.artifact.arithmetic) == ("onnx", "fp32")


@pytest.mark.usefixtures("traced")
def test_evaluate__static_ranges_are_measured_on_training_pictures(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino", reason="the extra openvino is not installed")
    pytest.importorskip("nncf", reason="the extra openvino is not installed")

    seen: dict[int, int] = {}

    def quantise(graph: Any, feeds: Any) -> Any:
        seen[len(seen)] = len(feeds)
        return graph

    monkeypatch.setattr("sam3slim.runtimes.openvino_models._int8", quantise)
    record = evaluated(root, "static", "runtime=openvino", "arithmetic=w8a8_static")
    assert record.artifact.arithmetic == "w8a8_static"
    assert seen == {0: 8, 1: 23}  # pictures of the training split, and their phrases


def test_tower_feeds__the_first_pictures_and_phrases() -> None:
    openvino_models = pytest.importorskip("sam3slim.runtimes.openvino_models")
    batch, runner = tiny_batch(), GraphSam3(SPEC)
    feeds = openvino_models.tower_feeds(runner, [batch] * 100)
    assert len(feeds["vision"]) == openvino_models.MOST["vision"]
    assert len(feeds["text"]) == len({tuple(row.tolist()) for row in batch.input_ids})
    with pytest.raises(UserError, match=r"no phrases to measure activations on; use w8a8$"):
        openvino_models.tower_feeds(runner, [])


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ("runtime=tensorrt", r"^runtime=tensorrt must be one of eager, compile, onnx, openvino, or null"),
        (
            "runtime=onnx arithmetic=w8a16",
            r"^arithmetic=w8a16: ONNX Runtime computes in fp32, w8a8; .*=openvino$",
        ),
        ("runtime=compile compile=true", r"^compile=true .* runtime=compile does anyway; set compile=false$"),
        ("arithmetic=int3", r"^arithmetic=int3 must be one of auto, fp32, "),
    ],
)
def test_evaluate__bad_settings(root: Path, given: str, line: str) -> None:
    asked = [f"checkpoint={root / 'weights'}", *data(root), *given.split()]
    with pytest.raises(SpecError, match=line):
        spec_from_dict(EvaluateSpec, compose_plain("evaluate", asked, root / "bad"), "")


@pytest.mark.usefixtures("traced")
def test_predict__in_another_runtime(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw(root / "photos/a.png")
    asked = ["predict", str(root / "weights"), str(root / "photos"), "--prompt", "cup", "--out", str(root / "out")]
    assert main([*asked, "--runtime", "onnx"]) == 0
    assert main([*asked]) == 2
    assert "begun with other settings (" in capsys.readouterr().err
    assert main([*asked, "--runtime", "onnx", "--dtype", "bf16", "--overwrite"]) == 2
    assert "ONNX Runtime cannot compute in bf16" in capsys.readouterr().err


@pytest.mark.slow
def test_compile__answers_as_pytorch_does(root: Path) -> None:
    ours, theirs = (answer(open_runtime(root / "weights", name)[0]) for name in ("eager", "compile"))
    for key in OUTPUTS:
        torch.testing.assert_close(theirs[key], ours[key], rtol=1e-4, atol=1e-4)
