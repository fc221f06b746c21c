"""Values that Hydra's grammar refuses or misreads: they arrive as they were typed."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from sam3slim.cli import main
from sam3slim.errors import UserError
from sam3slim.launch.compose import compose_plain
from sam3slim.launch.quoting import FOLDERS, PATHS, as_hydra_reads, for_the_shell, quoted
from sam3slim.runs import main as run
from tests.small import small_model
from tests.tiny import SPEC

# The issue's, then our own.
ODD = [
    "epoch=3-step=10.ckpt", "é", "数据/图片", "a#b", "a&b", "it's", "set (1)", "set(1)", "a b", "2024_11",
    "1e3", "007", "true", "a:b", "[x", "{x}y", "a[1]", "a;b", "<x>", "`x`", "!x", "^x", '"x', 'a"b', "a\\é\\",
    'é\\"b', 'é\\\\"', "C:\\data\\ü", "ümlaut 'and' \"more\"", "🙂", "x=[y]", "$x", "100%", "a|b", "*", "~", "a~",
]  # fmt: skip


def read(override: str) -> Any:
    return OverridesParser.create().parse_override(override).value()


@pytest.mark.parametrize("text", [*ODD, "a,b", "[x]", "{x: y}", "", "\\", '\\"'])
def test_quoted__is_read_as_the_text(text: str) -> None:
    assert read(f"x={quoted(text)}") == text
    assert as_hydra_reads([f"x={quoted(text)}"]) == [f"x={quoted(text)}"]


@pytest.mark.parametrize("text", ODD)
@pytest.mark.parametrize("key", ["checkpoint", "data.root", "hydra.run.dir", "+data.images"])
def test_paths__arrive_as_typed(text: str, key: str) -> None:
    assert read(as_hydra_reads([f"{key}={text}"])[0]) == os.path.expanduser(text)


@pytest.mark.parametrize(
    "override",
    ["model=nano,slim", "optim.lr=1e-3", "compress=[fp16,int8_weight]", "data.root=null", "optim.lora={rank: 4}",
     "data.root=/a/b-c_1.2/d", "~optim.lr", "-m", "data.annotations={train: a.json}", "model.vit.depth=range(1,3)",
     "init.overrides={text.num_heads:2}", "data.root=${oc.env:HOME}/x", "data.root=a\\,b", "nano"],
)  # fmt: skip
def test_what_hydra_reads_rightly__stays(override: str) -> None:
    assert as_hydra_reads([override]) == [override]


def test_texts_in_lists_and_dicts__are_quoted() -> None:
    (found,) = as_hydra_reads(["data.annotations={train: /é/a (1).json, val: ~/x,test: /plain.json}"])
    assert read(found) == {
        "train": "/é/a (1).json", "val": f"{Path.home()}/x", "test": "/plain.json",
    }  # fmt: skip
    (found,) = as_hydra_reads(["data.sets={a: {root: it's, weight: 2}, b: {root: ü}}"])
    assert read(found)["a"]["weight"] == 2
    assert read(found)["b"]["root"] == "ü"


def test_commas__one_path_where_the_whole_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert as_hydra_reads(["data.root=a,b", "data.root=é,b"]) == ["data.root=a,b", 'data.root="é",b']
    (tmp_path / "a,b").mkdir()
    (tmp_path / "[c]").mkdir()
    assert as_hydra_reads(["data.root=a,b", "data.root=[c]"]) == ['data.root="a,b"', 'data.root="[c]"']
    assert as_hydra_reads(["hydra.run.dir=new,folder"]) == ['hydra.run.dir="new,folder"']


@pytest.mark.parametrize("override", ["data.root=a,b (1)", "data.root=it's,b", "data.root=a,b", "name=[é", "name={a"])
def test_advice__what_a_message_says_to_type_works(override: str) -> None:
    with pytest.raises(UserError) as caught:
        compose_plain("train", ["data=coco", override])
    typed = next(word for word in _typed(str(caught.value)) if word.startswith(override.partition("=")[0]))
    plain = compose_plain("train", ["data=coco", "data.root=x", typed])
    value = plain["name"] if override.startswith("name") else plain["data"]["root"]
    assert value == override.partition("=")[2]


def _typed(message: str) -> list[str]:
    """The words after "write", as a shell splits them."""
    return shlex.split(message.rpartition("write ")[2].rpartition(" for ")[0])


def test_for_the_shell__is_one_word() -> None:
    assert shlex.split(for_the_shell('x=it\'s "é"')) == ['x="it\'s \\"é\\""']


def test_home__wherever_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    plain = compose_plain("train", ["data=coco", "data.root=~/é", "distill.cache='~/c'", "data.images={val: ~/p}"])
    assert plain["data"]["root"] == "/home/me/é"
    assert plain["distill"]["cache"] == "/home/me/c"
    assert plain["data"]["images"] == {"val": "/home/me/p"}


def test_path_keys__are_keys() -> None:
    """What is named here exists in some command."""
    known = {f"{group}.{key}" for group in ("init", "distill", "data") for key in _keys(group)}
    known |= {*compose_plain("train"), *compose_plain("evaluate", missing="x"), *FOLDERS}
    known |= {f"compress.{key}" for key in compose_plain("compress", missing="x")["compress"]}
    assert set(PATHS) <= known


def _keys(group: str) -> set[str]:
    choice = {"init": "init=checkpoint", "distill": "distill=full", "data": "data=coco"}[group]
    return set(compose_plain("train", [choice], missing="x")[group])


@pytest.mark.parametrize("name", ["epoch=3-step=10", "é (1) & 'x' #2", "a,b", "~x", "数据"])
def test_commands__odd_names_of_every_path(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from sam3slim.artifacts import write_artifact

    monkeypatch.chdir(tmp_path)
    write_artifact(small_model(SPEC), tmp_path / name / "model")
    (tmp_path / name / "shapes").mkdir()  # "a,b/shapes" is two folders otherwise
    overrides = [
        f"checkpoint={name}/model", "data=shapes", f"data.root={name}/shapes", "data.shapes.train_images=2",
        "data.shapes.val_images=2", "data.shapes.test_images=2", "limit=1", "latency=false",
        f"hydra.run.dir={name}/out", "data.num_workers=0", "device=cpu",
    ]  # fmt: skip
    run("evaluate", overrides)
    assert (tmp_path / name / "out/record.json").is_file()
    assert sorted(os.listdir(tmp_path)) == [name]
    assert main(["inspect", f"{name}/model"]) == 0
    assert f"{name}/model: artifact" in capsys.readouterr().out


def test_inspect__a_file_with_equal_signs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    from sam3slim.artifacts.reference_file import reference_tensors

    monkeypatch.chdir(tmp_path)
    assert main(["inspect", "epoch=3-step=10.ckpt"]) == 2
    assert capsys.readouterr().err.startswith("error: checkpoint epoch=3-step=10.ckpt does not exist; ")
    model = small_model(SPEC)
    torch.save(reference_tensors(SPEC, model.state_dict()), "epoch=3-step=10.ckpt")
    assert main(["inspect", "epoch=3-step=10.ckpt", "text.num_heads=2"]) == 0
    assert "complete" in capsys.readouterr().out
    (tmp_path / "a=b").mkdir()
    assert main(["inspect", "a=b"]) == 2
    assert "a=b" in capsys.readouterr().err
