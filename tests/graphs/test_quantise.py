"""Which weights become INT8, how well, and that nothing else changes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from sam3slim.compression import Int4Onnx, Int8Rules, compress
from sam3slim.compression.int8_weight import quantised_names
from sam3slim.errors import UserError
from sam3slim.graphs import load_onnx
from sam3slim.graphs.modules import TextGraph, signatures
from sam3slim.graphs.onnx import quantise_graphs
from sam3slim.graphs.quantise import quantise
from sam3slim.graphs.trace import trace
from tests.graphs.conftest import Exported
from tests.graphs.test_runner import ask

EMBEDDING = "text_encoder.text_model.embeddings.token_embedding.weight"


def integers(path: Path) -> dict[str, np.ndarray]:
    """Node → its INT8 weight."""
    graph = onnx.load(str(path)).graph
    tables = {t.name: t for t in graph.initializer if t.data_type == onnx.TensorProto.INT8}
    places = {"MatMulInteger": 1, "Gather": 0}
    used = {node.name: node.input[places[node.op_type]] for node in graph.node if node.op_type in places}
    return {node: onnx.numpy_helper.to_array(tables[name]) for node, name in used.items() if name in tables}


def weights_of(folder: Path) -> set[str]:
    found = [integers(folder / f"{name}.onnx") for name in ("vision", "text", "prompts")]
    return {f"{node.partition('/')[0]}.weight" for tables in found for node in tables}


def test_int8__the_weights_of_the_rules_and_no_others(int8: Exported) -> None:
    expected = set(quantised_names(int8.model, Int8Rules(also=())))
    # CLIP's own projection, which no output depends on.
    assert weights_of(int8.folder) == expected - {"text_encoder.text_projection.weight"}


def test_int8__within_the_reduced_range_and_half_a_step(int8: Exported) -> None:
    state = int8.model.state_dict()
    for name in ("vision", "text", "prompts"):
        for node, stored in integers(int8.folder / f"{name}.onnx").items():
            weight = state[f"{node.partition('/')[0]}.weight"].numpy()
            if "embedding" in node:
                scale = np.abs(weight).max(axis=1, keepdims=True) / 127
            else:
                assert np.abs(stored).max() <= 64, node
                # One scale per output channel: the largest value of each becomes the largest integer.
                assert (np.abs(stored).max(axis=0) >= 63).all(), node
                stored, scale = stored.T, np.abs(weight).max(axis=1, keepdims=True) / 64
            assert np.abs(stored * scale - weight).max() <= 0.51 * scale.max(), node


def test_int8__answers_stay_near(int8: Exported) -> None:
    for images, prompts, boxes in ((1, 1, 0), (2, 5, 1), (1, 23, 3)):
        inputs = ask(images, prompts, boxes)
        with torch.inference_mode():
            ours, theirs = int8.model(**inputs), int8.runner(**inputs)
        assert not torch.equal(ours.pred_masks, theirs.pred_masks)
        for name in ("pred_logits", "pred_boxes", "pred_masks", "presence_logits"):
            a, b = getattr(ours, name), getattr(theirs, name)
            # Narrow random layers average little out (7 % seen); nano's logits change by 0.5 %.
            assert (a - b).norm() <= 0.15 * a.norm().clamp(min=1), name


def test_int8__weights_in_files_of_their_own(int8: Exported, floats: Exported) -> None:
    for name in ("vision", "text", "prompts"):
        assert (int8.folder / f"{name}.onnx.data").stat().st_size > 0
        assert not (floats.folder / f"{name}.onnx.data").exists()
    assert not [path for path in int8.folder.iterdir() if path.is_dir()]


def test_quantise__parts_are_data(floats: Exported, tmp_path: Path) -> None:
    names = quantised_names(floats.model, Int8Rules(parts=("text",), also=(), keep_float=("*token_embedding*",)))
    for graph in ("vision", "text", "prompts"):
        quantise(floats.folder / f"{graph}.onnx", tmp_path / f"{graph}.onnx", names)
    found = weights_of(tmp_path)
    assert found
    assert all(name.startswith(("text_encoder.", "text_projection.")) for name in found)
    assert EMBEDDING not in found
    before, after = (onnx.load(str(folder / "vision.onnx")).graph for folder in (floats.folder, tmp_path))
    assert [n.op_type for n in before.node] == [n.op_type for n in after.node]


def test_large_model__graphs_with_files_of_their_own(floats: Exported, tmp_path: Path) -> None:
    """Tracing and quantising as a graph beyond 2 GB needs it."""
    signature, model = signatures(floats.model.spec)["text"], floats.model
    trace(
        TextGraph(model), signature.examples(), tmp_path / "text.onnx", inputs=list(signature.inputs),
        outputs=list(signature.outputs), dynamic_shapes=signature.dynamic_shapes({"tokens": 8}), external_data=True,
    )  # fmt: skip
    assert (tmp_path / "text.onnx").stat().st_size < (tmp_path / "text.onnx.data").stat().st_size
    names = quantised_names(model, Int8Rules(also=()))
    (tmp_path / "out").mkdir()
    for folder in (floats.folder, tmp_path):
        quantise(folder / "text.onnx", tmp_path / f"out/{folder.name}.onnx", names)
    ours, theirs = (integers(tmp_path / f"out/{folder.name}.onnx") for folder in (floats.folder, tmp_path))
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[node], theirs[node]) for node in ours)


def test_quantise__nothing_found(floats: Exported, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none of the weights to quantise is in a graph"):
        quantise_graphs(floats.folder, tmp_path, ["text_encoder.text_projection.weight"], None)


def test_quantise__embedding_alone(floats: Exported, tmp_path: Path) -> None:
    import onnxruntime

    assert quantise(floats.folder / "text.onnx", tmp_path / "text.onnx", [EMBEDDING]) == [EMBEDDING]
    inputs = ask(1, 5, 0)
    feed: dict[str, Any] = {name: inputs[name].numpy() for name in ("input_ids", "attention_mask")}
    outputs = [
        onnxruntime.InferenceSession(str(folder / "text.onnx")).run(None, feed)[0]
        for folder in (floats.folder, tmp_path)
    ]
    assert 0 < np.abs(outputs[0] - outputs[1]).max() < 0.05


@pytest.mark.parametrize("symmetric", [True, False])
def test_int4__the_values_of_the_packed_weights(floats: Exported, tmp_path: Path, symmetric: bool) -> None:
    model = copy.deepcopy(floats.model)
    graphs = compress(model, Int4Onnx(group=32, symmetric=symmetric))
    assert f"{len(graphs.int4)} in INT4" in graphs.describe()
    info = graphs.write(model, tmp_path / "a")
    runner, report = load_onnx(info.path)
    assert report.precision == "int4_onnx"
    nodes = [n for name in ("vision", "text", "prompts") for n in onnx.load(str(info.path / f"{name}.onnx")).graph.node]
    found = {f"{node.name.partition('/')[0]}.weight" for node in nodes if node.op_type == "MatMulNBits"}
    # CLIP's own projection, which no output depends on.
    assert found == set(graphs.int4) - {"text_encoder.text_projection.weight"}
    table = model.get_parameter(EMBEDDING).data
    scale = table.abs().amax(1, keepdim=True) / 127
    table.copy_((table / scale).round() * scale)
    for name, stored in graphs.int4.items():
        model.get_parameter(name).data.copy_(stored.dequantize())
    inputs = ask(2, 5, 1)
    with torch.inference_mode():
        ours, theirs = model(**inputs), runner(**inputs)
    for name in ("pred_logits", "pred_boxes", "pred_masks", "presence_logits"):
        torch.testing.assert_close(getattr(theirs, name), getattr(ours, name), rtol=1e-3, atol=1e-3)
