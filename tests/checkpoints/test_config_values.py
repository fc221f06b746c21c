"""transformers' config.json with odd values: read where it can only mean one thing, else told in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from sam3slim.checkpoints.inspection import inspect
from sam3slim.errors import UserError

NANO = Path(__file__).resolve().parents[2] / "assets/nano"


def with_value(folder: Path, key: str, value: Any) -> Path:
    """nano as transformers writes it, with every ``key`` of its config.json set."""

    def put(config: dict[str, Any]) -> None:
        for name, old in config.items():
            if name == key:
                config[name] = value
            elif isinstance(old, dict):
                put(old)

    folder.mkdir()
    shutil.copy(NANO / "model.safetensors", folder)
    config = json.loads((NANO / "config.json").read_text())
    put(config)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_config__a_square_as_two_sides(tmp_path: Path) -> None:
    found = inspect(with_value(tmp_path / "nano", "image_size", [96, 96]))
    assert found.report.ok
    assert found.report.spec.vit.image_size == 96


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("image_size", [96, 48], r"backbone_config\.image_size=\[96, 48\], expected a whole number"),
        ("image_size", "96", r"config\.json is not a SAM 3 configuration: .*image_size"),
        ("image_size", 10**12, r"image_size=1000000000000 must be at most 16384"),
        ("hidden_size", "x", r"hidden_size"),
        ("num_attention_heads", 0, r"config\.json is not a SAM 3 configuration"),
        ("num_hidden_layers", 1e3, r"num_hidden_layers"),
        ("num_queries", -3, r"num_queries=-3, expected a whole number above 0"),
        ("num_layers", 10**9, r"num_layers=1000000000 must be at most 1024"),
        ("global_attn_indexes", [[1]], r"global_attn_indexes"),
        ("text_config", [], r"text_config"),
    ],
)
def test_config__odd_values_are_one_line(tmp_path: Path, key: str, value: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        inspect(with_value(tmp_path / "nano", key, value))
