"""Every shipped YAML file composes and passes the strict checks of the code that reads it."""

from __future__ import annotations

import inspect
import shlex
from collections import defaultdict
from functools import cache
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode

from sam3slim.launch.compose import build, compose_model, compose_plain, conf_dir
from sam3slim.launch.compose import compose as compose_hydra
from sam3slim.losses import LossSpec
from sam3slim.runs.specs import CompressSpec, EvaluateSpec, TrainSpec
from sam3slim.specs import ModelSpec
from sam3slim.strict import spec_from_dict
from sam3slim.training import OptimSpec, ScheduleSpec

CONF = conf_dir()
PRIMARY = ("train", "evaluate", "compress")
# Settings that have no default, because only the user knows them.
NEEDED = {
    "init=checkpoint": ["init.checkpoint=x"],
    "init=pruned": ["init.checkpoint=x"],
    "distill=features": ["distill.teacher=x"],
    "distill=nano_features": ["distill.teacher=x"],
    "distill=full": ["distill.teacher=x"],
    "distill=fitted": ["distill.teacher=x"],
    "distill=fitted_full": ["distill.teacher=x"],
    "data=coco": ["data.root=x"],
    "data=coco_mix": ["data.sets={a:{root:x}}"],
    "experiment=overfit": ["data.root=x"],
    "experiment=photo_frozen": ["init.vision=x", "data.sets.carparts.root=x", "data.sets.facades.root=x"],
    "experiment=photo_reference": ["data.sets.carparts.root=x", "data.sets.facades.root=x"],
    "experiment=photo_slim": ["data.sets.carparts.root=x", "data.sets.facades.root=x"],
    **{
        f"experiment={name}": ["init.checkpoint=x", "data.root=x"]
        for name in ("slim", "slim_depth", "slim_width", "slim_text", "slim_layers")
    },
    **{
        f"sweep={name}": ["init.checkpoint=x", "data.root=x"]
        for name in ("sizes", "depth", "width", "precision", "resolution")
    },
    "sweep=search": ["init.checkpoint=x", "data.root=x"],
}
# Options that need a plugin of Hydra's → its module.
PLUGINS = {
    "hydra/launcher=parallel": "hydra_joblib_launcher", "hydra/launcher=slurm": "hydra_submitit_launcher",
    "hydra/launcher=ray_cluster": "hydra_ray_launcher", "sweep=search": "hydra_optuna_sweeper",
    "sweep=nano_search": "hydra_optuna_sweeper",
}  # fmt: skip


def need_plugin(choice: str) -> None:
    """Skip where the extra that ``choice`` needs is not installed."""
    plugin = PLUGINS.get(choice)
    if plugin and find_spec("hydra_plugins") and find_spec(f"hydra_plugins.{plugin}"):
        return
    if plugin:
        pytest.skip(f"{choice} needs {plugin.replace('_', '-')}, which is an extra")


def choices() -> dict[str, list[str]]:
    """Group → its options, as found on disk."""
    groups = defaultdict(list)
    for path in sorted(CONF.rglob("*.yaml")):
        if path.parent != CONF:
            groups[path.parent.relative_to(CONF).as_posix()].append(path.stem)
    return groups


def overrides_of(group: str, option: str) -> tuple[str, list[str]]:
    """Primary configuration and overrides that bring the option in."""
    if group == "compress":
        return "compress", ["checkpoint=x", f"compress=[{option}]"]
    if (group, option) == ("data", "pictures"):
        return "evaluate", ["checkpoint=x", "data=pictures", "data.root=x", "data.phrases=x"]
    return "train", [f"{group}={option}", *NEEDED.get(f"{group}={option}", [])]


@cache
def compose(name: str, *overrides: str) -> dict[str, Any]:
    """Composed once per session; nobody changes it."""
    return compose_plain(name, overrides)


HEADER = ["command", "hardware", "time", "expect"]
OPTIONS = [(group, option) for group, options in choices().items() for option in options]


def test_files__all_are_reached() -> None:
    found = {path.relative_to(CONF).as_posix() for path in CONF.rglob("*") if path.is_file()}
    expected = {f"{group}/{option}.yaml" for group, option in OPTIONS}
    assert found == expected | {f"{name}.yaml" for name in (*PRIMARY, "base")}


@pytest.mark.parametrize("path", sorted(CONF.rglob("*.yaml")), ids=lambda p: p.relative_to(CONF).as_posix())
def test_files__short_enough_to_read(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 40


@pytest.mark.parametrize("name", PRIMARY)
def test_primary__composes(name: str) -> None:
    check(name, compose(name, *(["checkpoint=x"] if name != "train" else [])))


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_option__composes_and_is_valid(group: str, option: str) -> None:
    need_plugin(f"{group}={option}")
    name, overrides = overrides_of(group, option)
    node: Any = compose(name, *overrides)
    check(name, node)
    if group not in ("experiment", "sweep", "hydra/launcher"):
        for key in group.split("/"):
            node = node[key]
        assert isinstance(node, dict)


def check(name: str, plain: dict[str, Any]) -> None:
    """Through the dataclass of the command that reads it."""

    specs = {"train": TrainSpec, "evaluate": EvaluateSpec, "compress": CompressSpec}
    spec_from_dict(specs[name], plain, "")


@pytest.mark.parametrize("group", ["init", "distill", "loss", "optim", "schedule", "data", "trainer", *(
    f"model/{part}" for part in ("vit", "text", "geometry", "encoder", "decoder"))])  # fmt: skip
def test_group__options_have_the_same_keys(group: str) -> None:
    """Otherwise an override that one option accepts would be an unknown key under another."""
    keys = {}
    for option in choices()[group]:
        name, overrides = overrides_of(group, option)
        node: Any = compose(name, *overrides)
        for key in group.split("/"):
            node = node[key]
        keys[option] = tuple(sorted(node))
    assert len(set(keys.values())) == 1, keys


@pytest.mark.parametrize(("choice", "spec"), [("loss=reference", LossSpec), ("optim=adamw", OptimSpec),
                                              ("schedule=cosine", ScheduleSpec)])  # fmt: skip
def test_group__defaults_of_the_file_are_those_of_its_class(choice: str, spec: type[Any]) -> None:
    """Code that makes the class without a file means the same as a user who names the option."""
    group = choice.partition("=")[0]
    node = compose("train", choice)[group]
    assert spec_from_dict(spec, node, group) == spec()
    assert node.keys() == spec.__dataclass_fields__.keys()


def test_logger__options() -> None:
    names = {option: sorted(compose("train", f"logger={option}")["logger"]) for option in choices()["logger"]}
    assert names == {
        "csv": ["csv"], "tensorboard": ["tensorboard"], "csv_tensorboard": ["csv", "tensorboard"], "none": [],
        "wandb": ["csv", "wandb"], "mlflow": ["csv", "mlflow"],
    }  # fmt: skip


@pytest.mark.parametrize("option", choices()["trainer"])
def test_trainer__knows_every_key(option: str) -> None:
    from lightning import Trainer

    trainer = compose("train", f"trainer={option}")["trainer"]
    assert trainer["_target_"] == "lightning.Trainer"
    assert set(trainer) - {"_target_"} <= set(inspect.signature(Trainer).parameters)


def test_trainer__built_with_callbacks_and_loggers(tmp_path: Path) -> None:
    plain = compose_plain("train", ["trainer.max_steps=3", "logger=csv_tensorboard"], tmp_path)
    callbacks, loggers = build(plain["callbacks"]), build(plain["logger"])
    trainer = build(plain["trainer"], callbacks=[*callbacks.values()], logger=[*loggers.values()])
    assert trainer.max_steps == 3
    assert trainer.loggers == [loggers["csv"], loggers["tensorboard"]]
    assert trainer.checkpoint_callback is callbacks["checkpoint"]
    assert {Path(logger.log_dir) for logger in trainer.loggers} == {
        tmp_path / "csv",
        tmp_path / "tensorboard",
    }


@pytest.mark.parametrize("option", choices()["experiment"])
def test_experiment__opens_with_a_command_that_composes(option: str) -> None:
    lines = (CONF / "experiment" / f"{option}.yaml").read_text().splitlines()
    assert lines[0] == "# @package _global_"
    header = {words[1]: words[2] for words in (line.split(maxsplit=2) for line in lines[2:6]) if len(words) == 3}
    assert list(header) == HEADER
    python, script, *overrides = shlex.split(header["command"])
    assert (python, script, overrides[0]) == ("python", "train.py", f"experiment={option}")
    assert compose("train", *overrides)["name"] == option


@pytest.mark.parametrize("option", choices()["sweep"])
def test_sweep__opens_with_a_command_and_every_trial_is_valid(option: str) -> None:
    """All of a grid; of a search, every value of every parameter."""
    lines = (CONF / "sweep" / f"{option}.yaml").read_text().splitlines()
    header = {words[1]: words[2] for words in (line.split(maxsplit=2) for line in lines[2:6]) if len(words) == 3}
    assert (lines[0], list(header)) == ("# @package _global_", HEADER)
    python, script, *overrides = shlex.split(header["command"])
    assert (python, script, overrides[0]) == ("python", "train.py", f"sweep={option}")
    need_plugin(f"sweep={option}")
    cfg = compose_hydra("train", overrides)
    assert cfg.hydra.mode is RunMode.MULTIRUN
    assert cfg.trainer.devices == 1
    params = [f"{key}={value}" for key, value in cfg.hydra.sweeper.params.items()]
    parsed = OverridesParser.create().parse_overrides(params)
    values = [[f"{p.get_key_element()}={v}" for v in p.sweep_string_iterator()] for p in parsed]
    if option.endswith("search"):
        trials = {(*(each[0] for each in values[:i]), value, *(each[0] for each in values[i + 1 :]))
                  for i, own in enumerate(values) for value in own}  # fmt: skip
    else:
        trials = set(product(*values))
    specs = {ModelSpec.from_dict(compose("train", *overrides, *trial)["model"]) for trial in trials}
    assert len(specs) == len(trials)
    if option in ("nano_sizes", "sizes"):
        assert all(spec.encoder.num_layers == spec.decoder.num_layers for spec in specs)


def test_sweep__nano_sizes_has_nine_trials_of_as_many_sizes() -> None:
    from sam3slim.models.count import count_params

    sizes = {
        sum(count_params(compose_model(["sweep=nano_sizes", f"model/vit={vit}", f"model/decoder={decoder}"])).values())
        for vit in ("nano", "nano_slim", "nano_small")
        for decoder in ("l3", "l2", "l1")
    }
    assert len(sizes) == 9


@pytest.mark.parametrize("option", choices()["hydra/launcher"])
def test_launcher__options_are_those_of_its_plugin(option: str) -> None:
    need_plugin(f"hydra/launcher={option}")
    launcher = compose_hydra("train", [f"hydra/launcher={option}"]).hydra.launcher
    own = yaml.safe_load((CONF / "hydra/launcher" / f"{option}.yaml").read_text())
    assert {key: launcher[key] for key in own if key != "defaults"} == {k: v for k, v in own.items() if k != "defaults"}


@pytest.mark.parametrize(
    ("model", "total", "by_part"),
    [
        (
            "full",
            840_376_374,
            {"vision": 454.0, "text": 353.7, "geometry": 8.1, "encoder": 9.5, "decoder": 11.6},
        ),
        (
            "slim",
            556_056_822,
            {"vision": 176.6, "text": 353.7, "geometry": 8.1, "encoder": 6.3, "decoder": 7.9},
        ),
    ],
)
def test_model__parameters_of_the_real_sizes(model: str, total: int, by_part: dict[str, float]) -> None:
    from sam3slim.models.count import count_params

    counts = count_params(compose_model([f"model={model}"]))
    assert sum(counts.values()) == total
    assert {part: round(counts[part] / 1e6, 1) for part in by_part} == by_part


def test_model__nano_slim_cuts_nano_as_slim_cuts_full() -> None:
    full, slim, nano, nano_slim = (compose_model([f"model={n}"]) for n in ("full", "slim", "nano", "nano_slim"))
    assert nano_slim.vit.embed_dim / nano.vit.embed_dim == slim.vit.embed_dim / full.vit.embed_dim == 0.75
    assert nano_slim.vit.depth / nano.vit.depth == slim.vit.depth / full.vit.depth == 0.75
    for small, large in ((slim, full), (nano_slim, nano)):
        assert small.vit.head_dim == large.vit.head_dim  # RoPE
        assert small.encoder.num_layers * 3 == large.encoder.num_layers * 2
        assert small.decoder.num_layers * 3 == large.decoder.num_layers * 2
        assert small.decoder.num_queries == large.decoder.num_queries


@pytest.mark.parametrize("experiment", [n for n in choices()["experiment"] if n not in ("nano", "overfit")])
def test_experiment__without_its_teacher(experiment: str, tmp_path: Path) -> None:
    """What a comparison needs: the same run, and nobody to learn from."""
    given = [f"experiment={experiment}", *NEEDED.get(f"experiment={experiment}", []), "distill=none"]
    config = compose_plain("train", given, tmp_path)
    assert config["distill"]["teacher"] is None
