"""Static INT8: the scales of what was seen, on the nodes of the rules and no others."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from sam3slim.compression import Int8OnnxStatic, Int8Rules, Int8Weight, compress
from sam3slim.compression.int8_weight import quantised_names
from sam3slim.data.batch import Batch
from sam3slim.errors import UserError
from sam3slim.graphs import load_onnx
from sam3slim.graphs.calibration import CalibrationSet, feeds
from sam3slim.models import Sam3
from tests.graphs.conftest import Exported
from tests.graphs.test_runner import ask
from tests.small import small_model
from tests.tiny import SPEC, tiny_batch

GRAPHS = ("vision", "text", "prompts")


def batches(count: int) -> list[Batch]:
    return [tiny_batch(seed) for seed in range(count)]


@pytest.fixture(scope="module")
def static(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    model = small_model(SPEC)
    made = compress(model, Int8OnnxStatic(calibration_batches=2), batches)
    assert made.images_used == 4
    assert "activations' scales fixed on 4 images" in made.describe()
    info = made.write(model, tmp_path_factory.mktemp("static") / "a", parent="full")
    runner, report = load_onnx(info.path)
    assert report.precision == "int8_onnx_static"
    told = json.loads((info.path / "sam3slim.json").read_text())["extra"]["method"]
    assert (told["calibration_batches"], told["calibrated"]) == (2, {"images": 4})
    return Exported(model, info.path, runner)


def quantised(folder: Path, names: Collection[str]) -> dict[str, tuple[np.ndarray, np.ndarray, float, int]]:
    """Weight → its integers [columns, rows], their scales [rows], scale and zero of what is multiplied with it.

    ``names``: of weights; only their MatMuls read rounded activations.
    """
    found = {}
    for graph in (onnx.load(str(folder / f"{name}.onnx")).graph for name in GRAPHS):
        tables = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
        makers = {output: node for node in graph.node for output in node.output}
        for node in graph.node:
            left, right = (makers.get(name) for name in node.input[:2]) if node.op_type == "MatMul" else (None, None)
            if right is None or right.op_type != "DequantizeLinear":
                continue
            # Whoever multiplies in float reads what was not rounded.
            rounded = node.input[0]
            assert all(n.name.partition("/")[0] + ".weight" in names for n in graph.node if rounded in n.input), rounded
            assert left is not None
            stored, scale = (tables[name] for name in right.input[:2])
            _, step, zero = (tables.get(name) for name in left.input)
            found[f"{node.name.partition('/')[0]}.weight"] = (stored, scale, float(step), int(zero))
    return found


def chosen(static: Exported) -> set[str]:
    return {name for name in quantised_names(static.model, Int8Rules(also=())) if "token_embedding" not in name}


def test_static__the_weights_of_the_rules_and_no_others(static: Exported) -> None:
    state = static.model.state_dict()
    found = quantised(static.folder, chosen(static))
    assert set(found) == chosen(static) - {"text_encoder.text_projection.weight"}
    for name, (stored, scale, _, _) in found.items():
        weight = state[name].numpy()
        assert (stored.dtype, stored.T.shape, scale.shape) == (np.int8, weight.shape, (len(weight),)), name
        assert np.abs(stored).max() <= 64, name
        assert np.abs(stored.T * scale[:, None] - weight).max() <= 0.51 * scale.max(), name


def test_static__scales_are_of_what_was_seen(static: Exported) -> None:
    seen: dict[str, list[Tensor]] = {}
    handles = [
        module.register_forward_pre_hook(lambda _, args, n=name: seen.setdefault(f"{n}.weight", []).append(args[0]))
        for name, module in static.model.named_modules()
        if isinstance(module, nn.Linear)
    ]
    with torch.inference_mode():
        for batch in batches(2):
            static.model.get_vision_features(batch.pixel_values)
    for handle in handles:
        handle.remove()
    found = quantised(static.folder, chosen(static))
    towers = [name for name in seen if name in found]
    assert len(towers) == 12
    for name in towers:
        _, _, step, zero = found[name]
        values = torch.cat([value.flatten() for value in seen[name]])
        low, high = float(values.min().clamp(max=0)), float(values.max().clamp(min=0))
        assert step == pytest.approx((high - low) / 255, rel=1e-3), name
        assert abs(zero + low / step) <= 0.51, name


def test_static__answers_stay_near(static: Exported) -> None:
    batch = tiny_batch(1)
    with torch.inference_mode():
        ours, theirs = static.model(**batch.inputs()), static.runner(**batch.inputs())
    for name in ("pred_logits", "pred_boxes", "pred_masks", "presence_logits"):
        a, b = getattr(ours, name), getattr(theirs, name)
        assert not torch.equal(a, b), name
        assert (a - b).norm() <= 0.15 * a.norm().clamp(min=1), name
    assert static.runner(**ask(1, 5, 2)).pred_logits.isfinite().all()


def test_feeds__what_the_graphs_read(floats: Exported) -> None:
    batch = tiny_batch()
    given = {name: list(feeds(floats.runner, name, [batch, batch])) for name in GRAPHS}
    phrases = len({tuple(row.tolist()) for row in batch.input_ids})
    assert {name: len(found) for name, found in given.items()} == {"vision": 4, "text": phrases, "prompts": 2}
    assert [found["pixel_values"].shape for found in given["vision"]] == [(1, 3, 32, 32)] * 4
    (answers,) = (floats.runner.sessions["prompts"].run(["pred_logits"], found) for found in given["prompts"][:1])
    np.testing.assert_array_equal(answers[0], floats.runner(**batch.inputs()).pred_logits.numpy())
    assert given["vision"][0].keys() == {"pixel_values"}
    assert given["text"][0].keys() == {"input_ids", "attention_mask"}


def test_static__bad_input(static: Exported, tmp_path: Path) -> None:
    model = static.model
    for none in (None, lambda count: []):
        with pytest.raises(UserError, match=r"int8_onnx_static needs unlabelled images.*calibration_split"):
            compress(model, Int8OnnxStatic(), none)
    with pytest.raises(UserError, match=r"calibration_batches=0 must be at least 1"):
        Int8OnnxStatic(calibration_batches=0)
    from sam3slim.checkpoints import load

    compress(model, Int8Weight()).write(model, tmp_path / "a")
    int8: Sam3 = load(tmp_path / "a")[0]
    with pytest.raises(UserError, match=r"already INT8.*start from its FP32 or FP16 parent"):
        compress(int8, Int8OnnxStatic(), batches)
    assert CalibrationSet(batches(2)).images == 4
