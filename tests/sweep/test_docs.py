"""Every command of docs/sweeps.md composes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from sam3slim.cli import make_parser
from sam3slim.launch.compose import compose, compose_plain
from sam3slim.runs.specs import TrainSpec
from sam3slim.strict import spec_from_dict
from tests.test_conf_files import need_plugin

PAGE = Path(__file__).resolve().parents[2] / "docs" / "sweeps.md"


def commands() -> list[str]:
    """Of the page's blocks of shell, continued lines joined; those that install are left out."""
    blocks = re.findall(r"```bash\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    # tests/test_docs.py looks at the other commands.
    return [line for line in lines if line and not line.startswith(("#", "pip ", "python evaluate.py "))]


def test_page__has_commands() -> None:
    assert len(commands()) >= 15
    assert all(re.search(r"train\.py |^sam3slim ", line) for line in commands())


@pytest.mark.parametrize("line", commands())
def test_command__composes(line: str) -> None:
    words = shlex.split(line)
    if words[0] == "sam3slim":
        make_parser().parse_args(words[1:])
        return
    given = words[words.index("train.py") + 1 :]
    for choice in given:
        need_plugin(choice)
        need_plugin(choice.replace("submitit_local", "slurm"))
    overrides = [text for text in given if text != "-m"]
    parser = OverridesParser.create()
    fixed = [text for text in overrides if not parser.parse_override(text).is_sweep_override()]
    assert ("-m" in given) == (fixed != overrides)
    spec_from_dict(TrainSpec, compose_plain("train", fixed), "")
    for text in set(overrides) - set(fixed):
        override = parser.parse_override(text)
        for value in override.sweep_string_iterator():
            compose("train", [*fixed, f"{override.get_key_element()}={value}"])
