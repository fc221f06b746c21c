"""Composition, and one line for every bad input."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra

from sam3slim.errors import UserError
from sam3slim.launch import compose as config
from sam3slim.launch.compose import build, compose_model, compose_plain, conf_dir

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["model=full", "model.vit.depth=24"], {"vit": {"depth": 24, "embed_dim": 1024}}),
        (["model=full", "model/encoder=l4"], {"encoder": {"num_layers": 4}, "decoder": {"num_layers": 6}}),
        (["model=nano", "model/decoder=l2"], {"decoder": {"num_layers": 2, "num_queries": 16}}),
        (["model=full", "model/decoder=l4"], {"decoder": {"num_layers": 4, "num_queries": 200}}),
        (["model=nano", "model.decoder.num_queries=8"], {"decoder": {"num_queries": 8}}),
        (["model=full", "model.vit.embed_dim=512", "model.vit.num_heads=8"], {"vit": {"embed_dim": 512}}),
        (["model=slim", "model/vit=d24"], {"vit": {"embed_dim": 1024, "depth": 24}, "name": "slim"}),
        (["model=full", "model/text=w512"], {"text": {"width": 512, "layers": 12, "num_heads": 8}}),
        (["experiment=nano_slim", "init.checkpoint=x", "model/encoder=l3"], {"encoder": {"num_layers": 3}}),
    ],
)
def test_compose_model__overrides(overrides: list[str], expected: dict[str, Any]) -> None:
    plain = compose_model(overrides).to_dict()
    for key, value in expected.items():
        assert plain[key] == plain[key] | value if isinstance(value, dict) else plain[key] == value


def test_compose_model__other_groups_may_be_incomplete() -> None:
    assert compose_model(["init=pruned", "data=coco"]).name == "nano"


def test_compose_model__while_a_command_runs() -> None:
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        running = GlobalHydra.instance().hydra
        assert compose_model(["model=nano_half"]).name == "nano_half"
        assert GlobalHydra.instance().hydra is running


def test_compose_plain__plain_and_resolved(tmp_path: Path) -> None:
    plain = compose_plain("train", ["init=pruned", "init.checkpoint=a.pt", "distill=features"], tmp_path)
    assert type(plain) is dict
    assert type(plain["optim"]["betas"]) is list
    assert plain["distill"]["teacher"] == "a.pt"
    assert plain["callbacks"]["checkpoint"]["dirpath"] == f"{tmp_path}/checkpoints"
    assert "hydra" not in plain


def test_compose_plain__compress_methods_are_a_list() -> None:
    def methods(*overrides: str) -> dict[str, Any]:
        """The entries that are no budget."""
        composed = compose_plain("compress", ["checkpoint=x", *overrides])["compress"]
        return {name: options for name, options in composed.items() if isinstance(options, dict)}

    assert list(methods()) == ["weights_only", "fp16", "int8_weight"]
    for choice in ("[fp16]", "fp16"):
        assert methods(f"compress={choice}") == {"fp16": {"method": "fp16"}}


BAD_INPUT = [
    ("train", ["model=nanno"], "unknown option model=nanno; did you mean model=nano? available: full, nano"),
    ("train", ["model/vit=zzz"], "unknown option model/vit=zzz; available: d16, d24, full"),
    ("evaluate", ["model=nano"], "unknown key model: model is a group of another command; the groups"),
    ("compress", ["optim.lr=1"], "unknown key optim.lr: optim is a group of another command; the groups of this"),
    ("evaluate", ["experimnt=x"], "unknown key experimnt; known keys: arithmetic, checkpoint, compile, data"),
    ("train", ["experimnt=x"], "unknown key experimnt; did you mean experiment?"),
    ("train", ["experiment.lr=1"], "unknown key experiment.lr; did you mean optim.lr or callbacks.lr?"),
    ("train", ["hydra.run.dirr=x"], "unknown key hydra.run.dirr; --cfg job shows all keys"),
    ("train", ["~logger", "logger.csv.x=1"], "unknown key logger.csv.x; did you mean logger?"),
    ("train", ["data=cocoa"], "unknown option data=cocoa; did you mean data=coco? available: coco, "
     "coco_mix, pictures, shapes"),
    ("train", ["experiment=foo"], "unknown option experiment=foo; "),
    ("compress", ["checkpoint=x", "compress=[fp16,int8]"], "unknown option compress=int8; did you mean compress=int8_"),
    ("compress", ["checkpoint=x", "compress=fp17"], "unknown option compress=fp17; did you mean compress=fp16?"),
    ("train", ["optim.lrr=3"], "unknown key optim.lrr; did you mean optim.lr?"),
    ("train", ["optim.qqq=3"], "unknown key optim.qqq; known keys: optim.betas, optim.clip"),
    ("train", ["model.vit.depht=3"], "unknown key model.vit.depht; did you mean model.vit.depth?"),
    ("train", ["modle=nano"], "unknown key modle; did you mean model?"),
    ("train", ["encoder=l4"], "unknown key encoder; did you mean model/encoder?"),
    ("train", ["depth=4"], "unknown key depth; did you mean model.vit.depth or init.depth?"),
    ("train", ["optim.lrr=1", "model.vit.qqq=2"], "unknown key optim.lrr; did you mean optim.lr?"),
    ("train", ["~optim.lrx"], "unknown key optim.lrx; did you mean optim.lr?"),
    ("train", ["init=pruned"], "init.checkpoint has no value; pass init.checkpoint=PATH"),
    ("train", ["data=coco"], "data.root has no value; pass data.root=FOLDER"),
    ("evaluate", [], "checkpoint has no value; pass checkpoint=PATH"),
    ("compress", ["data=coco"], "checkpoint has no value; pass checkpoint=PATH (a checkpoint file or an artifact "
     "folder) (and data.root)"),
    ("train", ["nano"], "cannot read 'nano'; write KEY=VALUE"),
    ("train", ["model.vit.depth=["], "cannot read 'model.vit.depth=['; close its brackets"),
    ("train", ["model=nano,slim"], "model=nano,slim gives model several values; add -m"),
    ("train", ["distill.teacher=${nope}"], "Interpolation key 'nope' not found full_key: distill.teacher"),
    ("trian", [], "unknown option --config-name=trian; did you mean --config-name=train?"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "overrides", "message"), BAD_INPUT)
def test_compose_plain__bad_input(name: str, overrides: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        compose_plain(name, overrides)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.fixture
def own_conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of conf/ that a test may spoil."""
    folder = tmp_path / "conf"
    shutil.copytree(conf_dir(), folder)
    monkeypatch.setattr(config, "conf_dir", lambda: folder)
    return folder


@pytest.mark.parametrize(
    ("file", "text", "overrides", "message"),
    [
        ("optim/adamw.yaml", "lr: [1\nclip: 2: 3\n", [], "{conf}/optim/adamw.yaml line 2: "),
        ("model/nano.yaml", "defaults: [{vit: nanno}]\n", [], "unknown option model/vit=nanno in conf/model/nano.yaml"),
        ("experiment/mine.yaml", "# @package _global_\ndefaults: [override /modle: nano]\n", ["experiment=mine"],
         "unknown key modle in conf/experiment/mine.yaml; did you mean model?"),
        ("model/vit/mine.yaml", "defaults: [nano, _self_]\ndepht: 3\n", ["model/vit=mine"],
         "unknown key model.vit.depht; did you mean model.vit.depth?"),
        ("model/vit/mine.yaml", "- 1\n", ["model/vit=mine"], ""),
        ("model/vit/mine.yaml", "defaults: [nano, _self_]\ndepth: ${model.zzz}\n", ["model/vit=mine"],
         "Interpolation key 'model.zzz' not found full_key: model.vit.depth"),
    ],
)  # fmt: skip
def test_compose_model__bad_yaml_file(own_conf: Path, file: str, text: str, overrides: list[str], message: str) -> None:
    (own_conf / file).write_text(text)
    with pytest.raises(UserError) as caught:
        compose_model(overrides)
    assert str(caught.value).startswith(message.format(conf=own_conf))
    assert "\n" not in str(caught.value)


def test_build__nested_and_plain() -> None:
    made = build({"a": {"_target_": "collections.Counter", "x": [1]}, "b": None})
    assert list(made) == ["a"]
    assert type(made["a"]["x"]) is list


def test_build__objects_are_handed_over_as_they_are() -> None:
    marker = object()
    assert build({"_target_": "types.SimpleNamespace", "a": 1}, callbacks=[marker]).callbacks[0] is marker


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"_target_": "pathlib.Nope"}, "_target_=pathlib.Nope cannot be imported: "),
        ({"_target_": "datetime.timezone.utc.nope"}, "_target_=datetime.timezone.utc.nope cannot be imported: "),
        ({"_target_": "argparse.Namespace.__init__.x"}, "_target_=argparse"),
        ({"_target_": "logging.handlers.RotatingFileHandler", "filenam": "x"},
         "unknown key filenam; did you mean filename? (logging.handlers.RotatingFileHandler)"),
        ({"_target_": "fractions.Fraction", "numerator": "x"}, "fractions.Fraction refuses its settings: "),
    ],
)  # fmt: skip
def test_build__bad_input(node: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        build(node)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_house__only_the_border_imports_hydra() -> None:
    importers = [
        path.name
        for path in (ROOT / "sam3slim").rglob("*.py")
        if any(line.startswith(("import hydra", "from hydra", "import omegaconf", "from omegaconf"))
               for line in map(str.strip, path.read_text().splitlines()))
    ]  # fmt: skip
    assert sorted(importers) == ["command.py", "compose.py", "quoting.py", "sweep.py"]
