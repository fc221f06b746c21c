"""Composition, and one line for every bad input; entry points run in this process."""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra

from sam3slim import config
from sam3slim.config import build, compose_model, compose_plain, conf_dir, entry_point
from sam3slim.errors import UserError

ROOT = Path(__file__).resolve().parent.parent


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
    ("train", ["data=cocoa"], "unknown option data=cocoa; did you mean data=coco? available: coco, shapes"),
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
    ("train", ["model.vit.depth=["], "cannot read 'model.vit.depth=['; write KEY=VALUE"),
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


# --- entry points


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., tuple[int, str, list[Any]]]]:
    """Call ``entry_point("train", ...)`` in an empty folder: exit status, stderr and what the jobs got."""
    monkeypatch.chdir(tmp_path)
    handlers = logging.getLogger().handlers[:]

    def call(
        *argv: str, job: Callable[[dict[str, Any]], Any] = lambda _: None, check: config.Check | None = None
    ) -> tuple[int, str, list[Any]]:
        jobs: list[Any] = []

        def run_fn(*arguments: Any) -> Any:
            jobs.append(arguments)
            return job(arguments[0])

        monkeypatch.setattr(sys, "argv", [str(ROOT / "train.py"), *argv])
        capsys.readouterr()
        try:
            entry_point("train", run_fn, check)
            status = 0
        except SystemExit as error:
            status = int(error.code or 0)
        return status, capsys.readouterr().err, jobs

    yield call
    logging.getLogger().handlers[:] = handlers


def test_entry_point__what_a_job_gets(run: Any, tmp_path: Path) -> None:
    status, err, [(plain, output_dir, choices, command)] = run("model/encoder=l2", "hydra.run.dir=out dir")
    assert (status, err) == (0, "")
    assert output_dir == tmp_path / "out dir"
    assert plain["output_dir"] == str(output_dir)
    assert plain["model"]["encoder"] == {"num_layers": 2}
    assert choices == choices | {"model": "nano", "model/encoder": "l2", "data": "shapes"}
    assert "experiment" not in choices
    assert command == "python train.py model/encoder=l2"
    assert (output_dir / ".hydra" / "config.yaml").is_file()


def test_entry_point__default_folder_and_environment(run: Any, tmp_path: Path) -> None:
    before = dict(os.environ)
    _, _, [(_, output_dir, _, _)] = run("name=mine")
    assert output_dir.parent == tmp_path / "outputs" / "mine"
    assert dict(os.environ) == before


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("model=nanno", "error: unknown option model=nanno; did you mean model=nano?"),
        ("optim.lrr=1", "error: unknown key optim.lrr; did you mean optim.lr?"),
        ("model.vit.embed_dim=500 model.vit.num_heads=4",
         "error: model.vit.embed_dim=500 gives heads of size 125, and RoPE needs a multiple of 4; use "
         "model.vit.embed_dim=496 or 512"),
        ("model.encoder=l4", "error: model.encoder must be a group of keys, got 'l4'; to choose an option write "
         "model/encoder=l4"),
        ("+model.vit.foo=1", "error: unknown key model.vit.foo"),
    ],
)  # fmt: skip
def test_entry_point__bad_input(run: Any, tmp_path: Path, argument: str, message: str) -> None:
    status, err, jobs = run(*argument.split())
    assert (status, jobs) == (2, [])
    assert err.startswith(message)
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_entry_point__bad_input_of_a_sweep(run: Any, tmp_path: Path) -> None:
    status, err, jobs = run("-m", "model=nano,nanno")
    assert (status, jobs) == (2, [])
    options = ", ".join(sorted(path.stem for path in (conf_dir() / "model").glob("*.yaml")))
    assert err == f"error: unknown option model=nanno; did you mean model=nano? available: {options}\n"


def test_entry_point__check_comes_before_any_folder(run: Any, tmp_path: Path) -> None:
    def check(plain: dict[str, Any]) -> None:
        raise UserError(f"optim.lr={plain['optim']['lr']} is bad")

    assert run("optim.lr=7", check=check) == (2, "error: optim.lr=7 is bad\n", [])
    assert list(tmp_path.iterdir()) == []


def raise_user_error(plain: dict[str, Any]) -> None:
    raise UserError(f"data.root={plain['data']['root']}\n is empty")


def test_entry_point__user_error_in_the_job(run: Any) -> None:
    status, err, _ = run("data.root=foo", job=raise_user_error)
    assert (status, err) == (2, "error: data.root=foo is empty\n")


def test_entry_point__unwritable_output(run: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    status, err, jobs = run("hydra.run.dir=file/run")
    assert (status, jobs) == (2, [])
    assert err.startswith(
        "error: cannot write to output folder file/run: Not a directory; choose another with hydra.run"
    )
    assert err.count("\n") == 1


def test_entry_point__interrupt(run: Any) -> None:
    def interrupt(_: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    assert run(job=interrupt)[:2] == (130, "interrupted\n")


@pytest.mark.parametrize("error", [KeyError("bug"), OSError("disk")])
def test_entry_point__bugs_keep_their_traceback(run: Any, error: Exception) -> None:
    def fail(_: dict[str, Any]) -> None:
        raise error

    with pytest.raises(type(error), match=r"bug|disk"):
        run(job=fail)


def test_entry_point__sweep_goes_on_after_a_failed_job(run: Any) -> None:
    def fail_first(plain: dict[str, Any]) -> None:
        if plain["name"] == "nano":
            raise UserError("nano is bad")

    status, err, jobs = run("-m", "model=nano,nano_slim", job=fail_first)
    assert status == 2
    assert [job[0]["name"] for job in jobs] == ["nano", "nano_slim"]
    assert err.startswith("error: job 0: nano is bad\n")
    assert "Traceback" not in err
    assert len({job[1].parent for job in jobs}) == 1  # one sweep, one folder


def test_entry_point__flags_of_hydra(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    status, err, jobs = run("--cfg", "job", "--package", "optim")
    assert (status, err, jobs) == (0, "", [])


def test_train_script__bad_input_is_answered_before_anything_is_made(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "model=full", "model.vit.image_size=1001"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        "error: model.vit.image_size=1001 is not a multiple of model.vit.patch_size=14; use 994 or 1008\n"
    )
    assert list(tmp_path.iterdir()) == []


# --- build


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


def test_house__only_config_imports_hydra() -> None:
    importers = [
        path.name
        for path in (ROOT / "sam3slim").rglob("*.py")
        if any(line.startswith(("import hydra", "from hydra", "import omegaconf", "from omegaconf"))
               for line in map(str.strip, path.read_text().splitlines()))
    ]  # fmt: skip
    assert importers == ["config.py"]


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("trainer=cpu_ddp", r"trainer\.devices=2"),
        ("trainer=ddp", r"trainer\.devices=-1"),
        ("trainer.num_nodes=2", r"trainer\.num_nodes=2"),
    ],
)
def test_entry_point__sweep_of_several_processes_is_refused(run: Any, override: str, key: str) -> None:
    status, err, jobs = run("-m", "model=nano,nano_slim", override)
    assert (status, jobs) == (2, [])
    assert re.search(rf"error: job 0: {key} in a sweep \(-m\): .*one device per job", err)
