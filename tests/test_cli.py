"""The console script: sizes without weights, bad input in one line, help without heavy imports."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from sam3slim.cli import main
from sam3slim.cli.inspect import size_table
from sam3slim.errors import UserError
from sam3slim.files import size_text
from sam3slim.launch.compose import compose_model


def test_inspect__table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "model=slim", "model.vit.depth=2"]) == 0
    out = capsys.readouterr().out
    table = size_table(compose_model(["model=slim", "model.vit.depth=2"]))
    assert f"slim: {table['params']['total']:,} parameters" in out
    for part, count in table["params"]["by_part"].items():
        assert part in out
        assert f"{count:,}" in out
    assert size_text(table["bytes"]["int8"]["total"]) in out
    assert "768 wide, 2 deep, 12 heads" in out


def test_inspect__json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "--json", "model=slim"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["model"]["vit"]["embed_dim"] == 768
    assert shown["params"]["total"] == sum(shown["params"]["by_part"].values()) == 556_056_822
    assert shown["bytes"]["fp32"]["total"] == 4 * 556_056_822
    assert shown["bytes"]["fp16"]["total"] == 2 * 556_056_822
    assert shown["bytes"]["fp32"]["by_part"]["vision"] == 4 * shown["params"]["by_part"]["vision"]
    assert 0.25 < shown["bytes"]["int8"]["total"] / shown["bytes"]["fp32"]["total"] < 0.258


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model=slimm"], "error: unknown option model=slimm; did you mean model=slim?"),
        (["model.vit.depht=3"], "error: unknown key model.vit.depht; did you mean model.vit.depth?"),
        (["model=full", "model.text.width=100"], "error: model.text.width=100 is not divisible by"),
        (["what"], "error: checkpoint what does not exist; give a folder, a file or a hub id"),
    ],
)
def test_inspect__bad_input(capsys: pytest.CaptureFixture[str], overrides: list[str], message: str) -> None:
    assert main(["inspect", *overrides]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(message)
    assert captured.err.count("\n") == 1


def test_main__settings_after_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "model=slim", "--json", "model.vit.depth=2"]) == 0
    assert json.loads(capsys.readouterr().out)["model"]["vit"]["depth"] == 2
    for words in (["compare", "outputs", "--gallery", "1", "--what"], ["inspect", "model=slim", "--json", "--depth=2"]):
        with pytest.raises(SystemExit):
            main(words)
        assert "unrecognized arguments: --" in capsys.readouterr().err


def test_main__interrupt(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sam3slim.launch.compose.compose_model", interrupt)
    assert main(["inspect"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_help__imports_nothing_heavy() -> None:
    code = (
        "import sys; from sam3slim.cli import make_parser; make_parser().format_help(); "
        "print([m for m in ('torch', 'transformers', 'lightning', 'hydra', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["a\x1b[31mb", "half \ud83d", "bell\x07", "\x9b31m"])
def test_user_error__can_be_printed_and_written(name: str) -> None:
    told = str(UserError(f"file {name}"))
    assert told.isprintable()
    assert told.encode() == f"file {name.encode('unicode_escape').decode()}".encode()
