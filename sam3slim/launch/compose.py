"""YAML groups and command-line overrides in, plain dicts and one-line errors out.

Only this room imports hydra or omegaconf. Groups hold data only; strict dataclasses (``spec_from_dict``) check them
after composition, so that a typing mistake inside a YAML file stops a run like one on the command line. Only trainer,
callbacks and loggers name classes, built by ``build``.
"""

from __future__ import annotations

import copy
import inspect
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.errors import MissingConfigException, OverrideParseException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from yaml import YAMLError

from sam3slim.errors import UserError
from sam3slim.launch import messages
from sam3slim.launch.quoting import as_hydra_reads
from sam3slim.launch.run import Run
from sam3slim.results.record import Kind
from sam3slim.specs import ModelSpec
from sam3slim.strict import spec_from_dict, unknown_key

VERSION_BASE = "1.3"
# A folder of a user's own groups and options (--config-dir): a variable, so that it reaches a sweep's jobs on whatever
# machine.
CONFIG_DIR = "SAM3SLIM_CONFIG_DIR"


class _UserGroups(SearchPathPlugin):
    """Hydra looks into the user's folder first."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        if folder := os.environ.get(CONFIG_DIR):
            search_path.prepend("--config-dir", f"file://{folder}")


def conf_dir() -> Path:
    """The folder of the YAML files: inside an installed package, beside the package in a checkout.

    Raises:
        UserError: neither is there.
    """
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "train.yaml").is_file():
            return folder
    raise UserError(f"no configuration files at {package.parent / 'conf'}; install sam3slim again")


def compose_run(kind: Kind, overrides: Sequence[str], folder: str | Path) -> Run:
    """What ``python <kind>.py <overrides>`` would do in ``folder``.

    Raises:
        UserError: an unknown option or key, a missing value, a broken file.
    """
    with as_user_error(kind, overrides):
        return run_of(kind, compose(kind, overrides), Path(folder))


def compose_plain(
    config_name: str, overrides: Sequence[str] = (), output_dir: str | Path = "outputs", missing: str | None = None
) -> dict[str, Any]:
    """What ``python <config_name>.py <overrides>`` runs with, as a plain nested dict.

    Args:
        missing: stands for every value that must be given and is not; None refuses them.

    Raises:
        UserError: as ``compose_run``.
    """
    with as_user_error(config_name, overrides):
        cfg = without_hydra(compose(config_name, overrides), output_dir)
        if missing is not None:
            _fill(cfg, missing)
        return to_plain(cfg)


def compose_model(overrides: Sequence[str] = ()) -> ModelSpec:
    """The architecture that overrides of ``train.yaml`` choose; other groups need not be complete.

    Raises:
        UserError: as ``compose_plain``; SpecError for an impossible architecture.
    """
    with as_user_error("train", overrides):
        return validate_model(to_plain(compose("train", overrides), only="model"))


def validate_model(plain: Mapping[str, Any]) -> ModelSpec:
    """The checked architecture of a composed configuration. Raises SpecError naming key and fix."""
    return spec_from_dict(ModelSpec, plain["model"], "model")


def named(node: Mapping[str, Any]) -> Any:
    """The class or function that ``node`` names by ``_target_``.

    Raises:
        UserError: there is none.
    """
    target = str(node["_target_"])
    try:
        return hydra.utils.get_object(target)
    except Exception as error:
        raise UserError(f"_target_={target} cannot be imported: {messages.one_line(str(error))}") from error


def build(node: Mapping[str, Any], **objects: Any) -> Any:
    """Build the object that ``node`` describes by ``_target_`` and keyword arguments.

    A node without ``_target_`` (callbacks, loggers) gives a dict of what its entries describe.

    Args:
        node: plain dict from the trainer, callbacks or logger group.
        objects: further arguments that are no data, handed over as they are.

    Raises:
        UserError: the class does not exist, does not know a key, or refuses a value.
    """
    if "_target_" not in node:
        return {name: build(child) for name, child in node.items() if child is not None}
    target, factory = str(node["_target_"]), named(node)
    _refuse_unknown_arguments(target, factory, node)
    try:
        # Partial first: Hydra would copy the objects into its own containers.
        return hydra.utils.instantiate(dict(node), _convert_="all", _partial_=True)(**objects)
    except Exception as error:
        raise UserError(f"{target} refuses its settings: {messages.one_line(str(error))}") from error


def _refuse_unknown_arguments(target: str, factory: Any, node: Mapping[str, Any]) -> None:
    try:
        known = inspect.signature(factory).parameters
    except (TypeError, ValueError):
        return  # written in C without a signature: calling it will tell
    foreign = [key for key in node if not key.startswith("_") and key not in known]
    if foreign and not any(p.kind is p.VAR_KEYWORD for p in known.values()):
        raise UserError(unknown_key("", foreign[0], list(known)) + f" ({target})")


def check_options(key: str, chosen: Sequence[str], group: str) -> None:
    """Refuse a value of ``key`` that is not an option of ``group``. Raises UserError naming the nearest one."""
    options = options_of(group)
    for option in chosen:
        if option not in options:
            raise UserError(messages.unknown_option(key, option, options))


def compose(config_name: str, overrides: Sequence[str]) -> DictConfig:
    """As Hydra composes it, with Hydra's own node; whatever Hydra raises comes out (see ``as_user_error``)."""
    with own_hydra(config_name):
        return hydra.compose(config_name, as_hydra_reads(overrides), return_hydra_config=True)


@contextmanager
def own_hydra(config_name: str) -> Iterator[Any]:
    """An instance of Hydra over the configuration files, also inside a job of Hydra's, which allows only one."""
    Plugins.instance().register(_UserGroups)
    running = GlobalHydra.instance().hydra
    GlobalHydra.instance().hydra = None
    try:
        with hydra.initialize_config_dir(str(conf_dir()), config_name, VERSION_BASE):
            yield GlobalHydra.instance().hydra
    finally:
        GlobalHydra.instance().hydra = running  # Hydra has put another instance in place


def run_of(kind: Kind, cfg: DictConfig, folder: Path, program: str = "python {kind}.py") -> Run:
    """A composed command that writes into ``folder``.

    Args:
        cfg: with Hydra's own node.
        program: what the command line starts with.
    """
    choices = {
        str(group): str(option)
        for group, option in cfg.hydra.runtime.choices.items()
        if option is not None and not str(group).startswith("hydra/")
    }
    command = f"{program.format(kind=kind)} {shlex.join(cfg.hydra.overrides.task)}".strip()
    return Run(kind, folder, to_plain(without_hydra(cfg, folder)), choices, command)


def without_hydra(cfg: DictConfig, output_dir: str | Path) -> DictConfig:
    """A copy without Hydra's own node, which names the output folder."""
    found = copy.deepcopy(cfg)
    with read_write(found), open_dict(found):
        del found["hydra"]
        found.output_dir = str(output_dir)
    return found


def to_plain(cfg: DictConfig, only: str | None = None) -> dict[str, Any]:
    """All of ``cfg``, or one group of it, with interpolations and ``~/`` resolved; a value still missing is refused."""
    node = cfg if only is None else cfg[only]
    if missing := OmegaConf.missing_keys(node):
        raise UserError(messages.missing_values(f"{only}.{key}" if only else key for key in missing))
    plain = _at_home(OmegaConf.to_container(node, resolve=True))
    return {only: plain} if only else plain  # type: ignore[return-value]


def _at_home(value: Any) -> Any:
    """``value`` with every ``~/…`` in it in the user's home, which no shell has seen in a file or behind ``KEY=``."""
    if isinstance(value, dict):
        return {key: _at_home(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_at_home(item) for item in value]
    return os.path.expanduser(value) if isinstance(value, str) and value.startswith("~/") else value


def _fill(node: Any, value: str) -> None:
    """Give ``value`` to whatever is missing in ``node``, in place."""
    for key in node:
        if OmegaConf.is_missing(node, key):
            node[key] = value
        elif not OmegaConf.is_interpolation(node, key) and isinstance(node[key], DictConfig):
            _fill(node[key], value)


@contextmanager
def as_user_error(config_name: str, overrides: Sequence[str]) -> Iterator[None]:
    """Whatever composition raises comes out as a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(explain(error, config_name, overrides)) from error


def explain(error: BaseException, config_name: str, overrides: Sequence[str]) -> str:
    """One line for an exception raised before a job ran."""
    if isinstance(error, UserError):
        return messages.one_line(str(error))
    if isinstance(error, YAMLError):
        return messages.broken_yaml(error)
    text = str(error) or str(error.__cause__ or type(error).__name__)
    asked = re.match(r"In '([^']+)': ", text)
    where = f"conf/{asked[1]}.yaml" if asked else ""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.rpartition("/")
        if plugin := messages.missing_plugin(group, option):
            return plugin
        if not group:
            return messages.unknown_option("--config-name", option, options_of("."))
        if any(text.startswith((f"{group}=", f"+{group}=")) for text in overrides):
            where = ""
        options = error.options or options_of(group)
        return messages.unknown_option(group, option, list(options), where)
    if unknown := re.search(r"Could not (?:override|delete(?: from config\.)?) '([^']+)'", text):
        keys = _known_keys(config_name, overrides, unknown[1])
        return messages.unknown_override(unknown[1], keys, *_groups(config_name), where)
    if isinstance(error, OverrideParseException):
        return messages.unreadable_override(error.override)
    if several := re.search(r"Ambiguous value for argument '(.+)'$", text, re.MULTILINE):
        return messages.several_values(several[1])
    if error.__cause__ is not None and str(error.__cause__) not in text:
        text = f"{text}: {error.__cause__}"
    return messages.one_line(text)


def options_of(group: str) -> list[str]:
    """The options of a group, shipped and the user's own, by name."""
    return sorted({*messages.option_names(conf_dir() / group), *messages.option_names(_user_dir() / group)})


def _user_dir() -> Path:
    return Path(os.environ.get(CONFIG_DIR) or conf_dir())


def _known_keys(config_name: str, overrides: Sequence[str], bad: str) -> list[str]:
    """Dotted names of all keys, as composed without the override of ``bad`` or, failing that, without any."""
    good = [text for text in overrides if text.lstrip("+~").split("=")[0] != bad]
    for attempt in (good, []):
        try:
            return list(_dotted(OmegaConf.to_container(without_hydra(compose(config_name, attempt), ""))))
        except Exception:  # another override is bad as well; this one is told first
            continue
    return []


def _dotted(node: Any, prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _dotted(value, f"{prefix}{key}.")


def _groups(config_name: str) -> tuple[list[str], list[str]]:
    """The config groups (folders of conf/): those below what the command's defaults list names, and the others."""
    root = conf_dir()
    roots = {root, _user_dir()}
    found = sorted({path.relative_to(top).as_posix() for top in roots for path in top.rglob("*") if path.is_dir()})
    command: Any = OmegaConf.load(root / f"{config_name}.yaml")
    own = {"hydra"}.union(*(entry for entry in command.defaults if isinstance(entry, Mapping)))
    return [n for n in found if n.partition("/")[0] in own], [n for n in found if n.partition("/")[0] not in own]
