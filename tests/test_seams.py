"""What a user's plugin adds without touching a file of the package (docs/adding.md)."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from PIL import Image
from torch import Tensor

from sam3slim.artifacts import extract
from sam3slim.artifacts.lazy import Convert
from sam3slim.checkpoints import inspect, load
from sam3slim.compression import compress, method_from_name, register, registry
from sam3slim.data.annotations import load_index
from sam3slim.data.batch import Targets
from sam3slim.data.content import FORMATS
from sam3slim.launch.compose import compose_model
from sam3slim.losses import Criterion, LossSpec, Match, Summed
from sam3slim.losses.criterion import LayerOutputs
from sam3slim.models import Sam3, build_model, count_params, state_shapes
from sam3slim.precisions import PRECISIONS, Precision, register_precision
from sam3slim.specs import ModelSpec
from tests.small import inputs, model, spec

__all__ = ["inputs", "model", "spec"]  # fixtures


@dataclass(frozen=True)
class Toy8:
    """Eight bits, of which four are the exponent's."""

    name: ClassVar[str] = "toy8"


@pytest.fixture
def toy8(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(registry, "_HANDLERS", dict(registry._HANDLERS))
    before = dict(PRECISIONS)
    register_precision(Precision("toy8", "float8_e4m3fn", 1, "#F0E442", computes=False))

    @register(Toy8)
    def handler(model: Sam3, method: Toy8) -> Convert:
        return lambda key, tensor: PRECISIONS["toy8"].store(tensor)

    yield
    PRECISIONS.clear()
    PRECISIONS.update(before)


@pytest.mark.usefixtures("toy8")
def test_method__with_a_precision_of_its_own(model: Sam3, tmp_path: Path) -> None:
    made = compress(model, method_from_name("toy8"))
    info = made.write(model, tmp_path / "artifact")
    params = sum(count_params(model.spec).values())
    assert "float8_e4m3fn 100.0 %" in made.describe()
    assert params < info.bytes < 1.5 * params + 100_000
    again, report = load(info.path)
    assert (report.ok, report.precision) == (True, "toy8")
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value.to(torch.float8_e4m3fn).float()), key
    assert inspect(info.path).dtypes.keys() == {"float8_e4m3fn"}
    extract(info.path, tmp_path / "x.safetensors", format="safetensors")
    assert inspect(tmp_path / "x.safetensors").report.precision == "toy8"
    extract(info.path, tmp_path / "back", dtype="fp32")
    assert load(tmp_path / "back")[1].precision == "fp32"


@pytest.mark.usefixtures("toy8")
def test_precision__what_it_cannot_hold_stays_and_is_named(model: Sam3) -> None:
    with torch.no_grad():
        model.text_projection.bias[0] = 1e6
    made = compress(model, method_from_name("toy8"))
    assert made.tensors.rounding.overflowed == ["text_projection.bias"]


def test_model_axis__a_value_that_no_file_has() -> None:
    spec = compose_model(
        ["model=nano", "model.vit.depth=5", "model.decoder.num_queries=7", "model.geometry.roi_size=3"]
    )
    shapes = state_shapes(spec)
    assert shapes["detr_decoder.query_embed.weight"] == (7, spec.d_model)
    assert shapes["geometry_encoder.boxes_pool_project.weight"][2:] == (3, 3)
    assert sum("backbone.layers." in key and key.endswith("layer_norm1.weight") for key in shapes) == 5
    assert sum(count_params(spec).values()) == sum(p.numel() for p in build_model(spec, device="meta").parameters())
    assert ModelSpec.from_dict(spec.to_dict()) == spec


def read_table(path: Path, split: str) -> dict[str, Any]:
    """A table of file, height, width, phrase, x, y, w, h as COCO's dict."""
    rows = list(csv.DictReader(path.open(encoding="utf-8")))
    files, phrases = sorted({row["file"] for row in rows}), sorted({row["phrase"] for row in rows})
    sizes = {row["file"]: (int(row["height"]), int(row["width"])) for row in rows}
    return {
        "images": [
            {"id": i, "file_name": file, "height": sizes[file][0], "width": sizes[file][1]}
            for i, file in enumerate(files)
        ],
        "categories": [{"id": i, "name": phrase} for i, phrase in enumerate(phrases)],
        "annotations": [
            {
                "id": i,
                "image_id": files.index(row["file"]),
                "category_id": phrases.index(row["phrase"]),
                "iscrowd": 0,
                "bbox": [float(row[key]) for key in "xywh"],
            }
            for i, row in enumerate(rows)
        ],
    }


def test_data_format__a_reader_of_annotations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORMATS, ".csv", read_table)
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    (tmp_path / "train.csv").write_text("file,height,width,phrase,x,y,w,h\na.png,30,40,red cup,1,2,10,8\n")
    index = load_index(tmp_path / "train.csv")
    assert [category.phrase for category in index.categories] == ["red cup"]
    assert index.records[0].annotations[0].box == (1, 2, 11, 10)


@dataclass(frozen=True)
class ToySpec(LossSpec):
    toy: float = 0.5


class ToyCriterion(Criterion):
    """Presence logits are pulled to zero."""

    def _one_to_one(
        self, outputs: LayerOutputs, targets: Targets, match: Match
    ) -> tuple[dict[str, Summed], dict[str, Tensor]]:
        losses, metrics = super()._one_to_one(outputs, targets, match)
        losses["loss_toy"] = Summed(outputs.layer_presence.float().square().sum((1, 2)), "prompts")
        return losses, metrics


def test_loss__weighed_and_reported_beside_the_others(model: Sam3, inputs: dict[str, Tensor]) -> None:
    output, targets = model(**inputs), Targets(torch.rand(2, 4) * 0.5 + 0.2, None, torch.tensor([0, 1]))
    plain, found = Criterion()(output, targets), ToyCriterion(ToySpec())(output, targets)
    layers = output.layer_presence.square().mean((1, 2))
    assert found["loss_toy"].item() == pytest.approx(layers[-1].item(), rel=1e-5)
    assert (found["loss"] - plain["loss"]).item() == pytest.approx(0.5 * layers.sum().item(), rel=1e-3)
    assert found.keys() == {*plain, "loss_toy"}
