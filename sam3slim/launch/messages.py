"""One line for every way a configuration can be wrong: what was given, and what to type instead."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path

from yaml import MarkedYAMLError, YAMLError

from sam3slim.launch.quoting import PATHS, for_the_shell

# What a value that has no default is, for those a user must give.
WANTED = {
    "checkpoint": "PATH (a checkpoint file or an artifact folder)",
    "init.checkpoint": "PATH (the checkpoint whose weights to start from)",
    "data.root": "FOLDER (images with a COCO-format JSON file)",
    "data.phrases": "FILE (a phrase on every line)",
    "data.sets": "'{NAME: {root: FOLDER}, NAME: {root: FOLDER}}' (COCO-format data sets)",
}

# Hydra's own groups → option of a plugin → extra of this package that installs it.
PLUGINS = {
    "hydra/launcher": {"joblib": "joblib", "submitit_slurm": "slurm", "submitit_local": "slurm", "ray": "ray"},
    "hydra/sweeper": {"optuna": "search"},
}


def one_line(text: str) -> str:
    """``text`` with its lines joined, so that it can be grepped and fits a table cell."""
    return " ".join(text.split())


def missing_values(keys: Iterable[str]) -> str:
    """For mandatory keys (``???``) without a value."""
    first, *more = sorted(keys)
    also = f" (and {', '.join(more)})" if more else ""
    return f"{first} has no value; pass {first}={WANTED.get(first, 'VALUE')}{also}"


def unknown_option(group: str, option: str, options: Sequence[str], where: str = "") -> str:
    """For ``group=option`` with an option that has no file; ``where`` is the YAML file that asked for it."""
    asked = f" in {where}" if where else ""
    if not options:
        return f"unknown option {group}={option}{asked}: there is no group {group}"
    near = get_close_matches(option, options, 1)
    guess = f"did you mean {group}={near[0]}? " if near else ""
    return f"unknown option {group}={option}{asked}; {guess}available: {', '.join(sorted(options))}"


def missing_plugin(group: str, option: str) -> str | None:
    """For an option of Hydra's own groups whose plugin is not installed; None for any other."""
    extra = PLUGINS.get(group, {}).get(option)
    return extra and f"{group}={option} needs a plugin that is not installed; pip install 'sam3slim[{extra}]'"


def unknown_override(
    key: str, keys: Sequence[str], groups: Sequence[str], others: Sequence[str], where: str = ""
) -> str:
    """For a key or group that the composed configuration does not have; ``others`` are groups of other commands."""
    asked = f" in {where}" if where else ""
    root, *_ = re.split(r"[./]", key)
    if root in others:
        own = ", ".join(name for name in groups if "/" not in name and name != "hydra")
        return f"unknown key {key}{asked}: {root} is a group of another command; the groups of this one: {own}"
    if key in keys:
        return (
            f"{key} was given with a key that it does not have{asked}; add one with '++{key}.KEY=VALUE', "
            f"change one with {key}.KEY=VALUE"
        )
    near = _nearest(key, keys, groups)
    if near:
        return f"unknown key {key}{asked}; did you mean {' or '.join(near)}?"
    parent = key.rpartition(".")[0]
    siblings = sorted(k for k in keys if k.rpartition(".")[0] == parent)
    if siblings:
        return f"unknown key {key}{asked}; known keys: {', '.join(siblings)}"
    return f"unknown key {key}{asked}; --cfg job shows all keys, --help all groups"


def unreadable_override(override: str) -> str:
    """For an argument that is no override."""
    if not re.fullmatch(r"[+\w./@-]+=.+", override, re.DOTALL):
        return f"cannot read {override!r}; write KEY=VALUE or GROUP=OPTION, and quote brackets and spaces for the shell"
    return f"cannot read {override!r}; close its brackets, or write {for_the_shell(override)} for a text"


def several_values(override: str) -> str:
    """For ``key=a,b`` outside a sweep."""
    key, _, values = override.partition("=")
    if key.lstrip("+") in PATHS:
        path = for_the_shell(override.replace('"', ""))
        return f"{override} gives {key} several values; add -m to run them all, or write {path} for one path"
    return f"{override} gives {key} several values; add -m to run them all, or write {key}=[{values}] for a list"


def broken_yaml(error: YAMLError) -> str:
    """For a file that is not YAML: its name, the line and the parser's reason."""
    if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{mark.name} line {mark.line + 1}: {one_line(error.problem or 'not YAML')}"
    return f"not YAML: {one_line(str(error))}"


def option_names(group_dir: Path) -> list[str]:
    """The options of a group: the YAML files in its folder."""
    return sorted(path.stem for path in group_dir.glob("*.yaml"))


def _nearest(key: str, keys: Sequence[str], groups: Sequence[str]) -> list[str]:
    """Known names like ``key``: near siblings first, then the same last word elsewhere, then near names."""
    parent, _, tail = key.rpartition(".")
    siblings = {k.rpartition(".")[2]: k for k in keys if k.rpartition(".")[0] == parent}
    if near := get_close_matches(tail, siblings, 1):
        return [siblings[near[0]]]
    same = [k for k in (*groups, *keys) if re.split(r"[./]", k)[-1] == tail]
    if same := [k for k in same if k.replace(".", "/") not in groups or "/" in k]:
        return same[:3]
    return [] if parent and siblings else get_close_matches(key, (*groups, *keys), 1)
