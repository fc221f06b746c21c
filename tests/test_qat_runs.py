"""train.py qat=…: what is validated, saved and compressed afterwards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sam3slim.checkpoints import load
from sam3slim.compression import Int4Weight, compress
from sam3slim.errors import UserError
from sam3slim.launch.compose import compose_plain
from sam3slim.models import Sam3
from sam3slim.runs.specs import TrainSpec
from sam3slim.strict import spec_from_dict
from sam3slim.training import module
from tests import running as runs
from tests.tiny import OVERRIDES
from tests.tiny_runs import QUICK, data

QAT = "qat={method:int4_weight,group:32}"
KEY = "vision_encoder.backbone.layers.0.mlp.fc1.weight"


def config(root: Path, *more: str) -> dict[str, Any]:
    return compose_plain("train", [*OVERRIDES, *QUICK, *data(root), *more], root / "out")


def rounded(model: Sam3) -> torch.Tensor:
    stored = compress(model, Int4Weight(group=32)).tensors[KEY]
    values: torch.Tensor = stored.dequantize()
    return values


def test_train__rounds_in_steps_and_validation_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[torch.Tensor, bool]] = []
    predict, step = module.predict_batch, torch.optim.AdamW.step

    def predict_batch(model: Sam3, *arguments: Any, **options: Any) -> Any:
        seen.append((model.get_parameter(KEY).detach().clone(), True))
        return predict(model, *arguments, **options)

    def adamw(self: Any, *arguments: Any, **options: Any) -> Any:
        result = step(self, *arguments, **options)
        weights = [p for group in self.param_groups for p in group["params"]]
        seen.append((next(p for p in weights if p.shape == (64, 32)).detach().clone(), False))
        return result

    monkeypatch.setattr(module, "predict_batch", predict_batch)
    monkeypatch.setattr(torch.optim.AdamW, "step", adamw)
    out = tmp_path / "out"
    more = (QAT, "compress_after=[int4_weight]", "eval_at_end=false")
    done = runs.train_and_compress(config(tmp_path, *more), out)
    grouped = [len(weight.unique()) <= 16 * 64 and _on_grid(weight) for weight, _ in seen]
    assert grouped == [validated for _, validated in seen]
    assert {True, False} == set(grouped)
    model, _ = load(out / "artifact")
    assert not _on_grid(model.get_parameter(KEY).detach())  # the weights that go on being trained
    small, _ = load(out / "compressed/int4_weight/artifact", dequantize=True)
    assert torch.equal(small.get_parameter(KEY), rounded(model))
    method = json.loads((out / "compressed/int4_weight/artifact/sam3slim.json").read_text())["extra"]["method"]
    assert (method["name"], method["group"]) == ("int4_weight", 32)  # not the 64 of conf/compress
    told = json.loads((out / "artifact/sam3slim.json").read_text())["extra"]["qat"]
    assert told == {"method": "int4_weight", "group": 32}
    assert [record.status for record in done.records] == ["finished", "finished"]


def _on_grid(weight: torch.Tensor) -> bool:
    """Whether every row of 32 has at most 16 values."""
    return all(len(row.unique()) <= 16 for row in weight)


def test_train__bad_input_before_the_start(tmp_path: Path) -> None:
    for given, message in (
        (["qat=fp16"], r"qat=fp16 must be one of int4_weight, int8_weight, mixed"),
        (["qat={group:32}"], r"qat=.* names no method; write 'qat=\{method: int4_weight, …\}'"),
        ([QAT, "optim.lora={rank:4}", "init=checkpoint", "init.checkpoint=x"], r"set optim\.lora=null, or qat=null"),
        ([QAT, "trainer=fsdp"], r"trainer=fsdp shards them; use trainer=ddp, or qat=null"),
    ):
        with pytest.raises(UserError, match=message):
            spec_from_dict(TrainSpec, compose_plain("train", [*OVERRIDES, *data(tmp_path), *given], tmp_path), "")
