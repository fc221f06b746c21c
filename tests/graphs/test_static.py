"""Static graphs and FP16: equal answers, padded and cut to the lengths they have, or one line."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
import torch

from sam3slim.compression.graphs import Onnx
from sam3slim.errors import UserError
from sam3slim.graphs import export_onnx, load_onnx
from sam3slim.graphs.modules import Lengths
from sam3slim.graphs.onnx import trace_graphs
from sam3slim.models import Sam3
from tests.graphs.conftest import Exported
from tests.graphs.test_runner import ask
from tests.small import OUTPUTS, small_model
from tests.tiny import SPEC


@pytest.fixture(scope="module")
def static(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """FP16, and for two images' worth of four prompts; other weights, so that it is traced by itself."""
    model: Sam3 = small_model(SPEC)
    with torch.no_grad():
        model.detr_decoder.presence_head.layer3.bias += 0.01
    fixed = Lengths(images=2, prompts=4, boxes=2)
    info = export_onnx(model, tmp_path_factory.mktemp("static") / "fp16", precision="fp16", fixed=fixed)
    return Exported(model, info.path, load_onnx(info.path)[0])


@pytest.mark.parametrize(("images", "prompts", "boxes", "tokens"), [(1, 1, 0, 8), (2, 3, 2, 5), (3, 5, 1, 8)])
def test_static__any_call_within_the_lengths(
    static: Exported, images: int, prompts: int, boxes: int, tokens: int
) -> None:
    inputs = ask(images, prompts, boxes, tokens)
    with torch.inference_mode():
        ours, theirs = static.model(**inputs), static.runner(**inputs)
    for name in OUTPUTS:
        one, other = getattr(ours, name), getattr(theirs, name)
        assert one.shape == other.shape
        assert float((one - other).abs().max() / one.abs().max().clamp(min=1)) < 0.05, name


def test_static__more_than_exported_is_one_line(static: Exported) -> None:
    with pytest.raises(UserError, match=r"^5 prompts at once, .* exported for 4; .*--prompt-chunk 4.*prompts=5$"):
        static.runner(**ask(1, 5, 0))
    with pytest.raises(UserError, match=r"^3 boxes of a prompt, .* exported for 2; .*compress\.onnx\.boxes=3$"):
        static.runner(**ask(1, 1, 3))


def test_static__files_metadata_and_card(static: Exported) -> None:
    metadata = json.loads((static.folder / "sam3slim.json").read_text())
    assert metadata["onnx"]["fixed"] == {"images": 2, "prompts": 4, "boxes": 2}
    assert metadata["precision"] == "fp16"
    assert metadata["onnx"]["graphs"]["prompts"]["inputs"]["input_boxes"]["shape"] == [4, 2, 4]
    assert set(metadata["onnx"]["max_difference_fp16"]) == set(metadata["onnx"]["max_difference_fp32"])
    assert 1e-6 < max(metadata["onnx"]["max_difference_fp16"].values()) < 0.05
    assert max(metadata["onnx"]["max_difference_fp32"].values()) < 1e-4
    card = (static.folder / "README.md").read_text()
    assert "trtexec --onnx=vision.onnx --saveEngine=vision.plan --stronglyTyped" in card
    assert "Static graphs of opset 20: 2 images, 4 prompts" in card
    graph = onnx.load(str(static.folder / "vision.onnx")).graph
    assert [side.dim_value for side in graph.input[0].type.tensor_type.shape.dim] == [2, 3, 32, 32]
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    products = {node.input[1] for node in graph.node if node.op_type == "MatMul" and node.input[1] in types}
    assert products
    assert {types[name] for name in products} == {onnx.TensorProto.FLOAT16}
    assert {node.op_type for node in graph.node} >= {"Softmax", "MatMul"}
    assert not any("Attention" in node.op_type for node in graph.node)
    # A softmax reads what a cast back to FP32 gives, and no FP16 product's output as it is.
    made_by = {output: node for node in graph.node for output in node.output}
    halves = {out for node in graph.node if node.op_type == "Cast" and node.attribute[0].i == 10 for out in node.output}
    for node in graph.node:
        if node.op_type == "Softmax":
            assert node.input[0] not in halves
            assert made_by[node.input[0]].op_type != "MatMul"


def test_method__lengths_are_of_static_graphs() -> None:
    assert Onnx(static=True, prompts=4).prompts == 4
    with pytest.raises(
        UserError, match=r"compress\.onnx\.prompts=4 is a length of static graphs; set compress\.onnx\.static"
    ):
        Onnx(prompts=4)
    with pytest.raises(UserError, match=r"compress\.onnx\.images=0 must be at least 1"):
        Onnx(static=True, images=0)


def test_export__a_weight_beyond_fp16(tmp_path: Path) -> None:
    model = small_model(SPEC)
    with torch.no_grad():
        model.text_projection.weight[0, 0] = 7e4
    trace_graphs(model, tmp_path)
    from sam3slim.graphs.halves import halve

    with pytest.raises(UserError, match=r"has a weight beyond FP16's 65504; use compress\.onnx\.precision=fp32"):
        halve(tmp_path / "text.onnx", tmp_path / "half.onnx")
