"""The border to Hydra: YAML groups and command-line overrides in, plain dicts and one-line errors out.

Nothing else in the package imports hydra or omegaconf. Groups hold data only; strict dataclasses
(``spec_from_dict``) check them after composition, so that a typing mistake inside a YAML file stops a run
like one on the command line. Only trainer, callbacks and loggers name classes, built by ``build``.
"""

from __future__ import annotations

import inspect
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from sam3slim import config_messages as messages
from sam3slim.errors import EXIT_BAD_INPUT, EXIT_INTERRUPTED, UserError, exit_with
from sam3slim.specs import ModelSpec
from sam3slim.strict import spec_from_dict, unknown_key

VERSION_BASE = "1.3"
# What composition and making the output folder raise, if no job has started.
BAD_INPUT = (HydraException, OmegaConfBaseException, YAMLError, OSError)
# Set by a user who wants Hydra's and our tracebacks for bad input too.
FULL_ERROR = "HYDRA_FULL_ERROR"

# run(plain configuration, output folder, {group: option}, command line)
RunFn = Callable[[dict[str, Any], Path, dict[str, str], str], Any]
Check = Callable[[dict[str, Any]], Any]


class JobFailed(UserError):
    """A job of a sweep failed; its reason has been printed."""


def conf_dir() -> Path:
    """The folder of the YAML files: inside an installed package, beside the package in a checkout.

    Raises:
        UserError: neither is there.
    """
    package = Path(__file__).resolve().parent
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "train.yaml").is_file():
            return folder
    raise UserError(f"no configuration files at {package.parent / 'conf'}; install sam3slim again")


def compose_plain(
    config_name: str, overrides: Sequence[str] = (), output_dir: str | Path = "outputs"
) -> dict[str, Any]:
    """What ``python <config_name>.py <overrides>`` runs with, as a plain nested dict.

    Raises:
        UserError: an unknown option or key, a missing value, a broken file.
    """
    with _told(config_name, overrides):
        cfg = _compose(config_name, overrides)
        cfg.output_dir = str(output_dir)
        return _to_plain(cfg)


def compose_model(overrides: Sequence[str] = ()) -> ModelSpec:
    """The architecture that overrides of ``train.yaml`` choose; other groups need not be complete.

    Raises:
        UserError: as ``compose_plain``; SpecError for an impossible architecture.
    """
    with _told("train", overrides):
        return validate_model(_to_plain(_compose("train", overrides), only="model"))


def validate_model(plain: Mapping[str, Any]) -> ModelSpec:
    """The checked architecture of a composed configuration. Raises SpecError naming key and fix."""
    return spec_from_dict(ModelSpec, plain["model"], "model")


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
    target = str(node["_target_"])
    try:
        factory = hydra.utils.get_object(target)
    except Exception as error:
        raise UserError(f"_target_={target} cannot be imported: {messages.one_line(str(error))}") from error
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


def entry_point(config_name: str, run_fn: RunFn, check: Check | None = None) -> None:
    """Compose ``conf/<config_name>.yaml`` with ``sys.argv`` and call ``run_fn`` once per job.

    Bad input becomes one ``error: …`` line on stderr and exit status 2, in a plain run before any folder is
    made; Ctrl-C one line and status 130. Every other exception is a bug and keeps its traceback. In a sweep
    (``-m``) a job that fails prints its line and the others go on.

    Args:
        config_name: primary configuration, ``train`` for ``conf/train.yaml``.
        run_fn: called with the plain configuration, the output folder, {group: option} and the command.
        check: raises UserError for settings that cannot be; called before ``run_fn``, possibly twice, after
            the model group, where there is one, has been checked.
    """
    job = _Job(run_fn, check)
    full_error = os.environ.get(FULL_ERROR)
    # Hydra then raises where it would print a traceback and exit.
    os.environ[FULL_ERROR] = "1"
    try:
        if not any(argument.startswith("-") for argument in sys.argv[1:]):
            job.check(compose_plain(config_name, sys.argv[1:]))
        hydra.main(version_base=VERSION_BASE, config_path=str(conf_dir()), config_name=config_name)(job.task())()
        if job.failure is not None:
            raise job.failure
    except KeyboardInterrupt:
        exit_with("interrupted", EXIT_INTERRUPTED)
    except JobFailed:
        sys.exit(EXIT_BAD_INPUT)
    except Exception as error:
        if full_error == "1" or not (
            isinstance(error, UserError) or (not job.started and isinstance(error, BAD_INPUT))
        ):
            raise
        overrides = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
        exit_with(f"error: {_explain(error, config_name, overrides)}", EXIT_BAD_INPUT)
    finally:
        os.environ.pop(FULL_ERROR) if full_error is None else os.environ.update({FULL_ERROR: full_error})


class _Job:
    """The function Hydra calls, with what it learns on the way."""

    def __init__(self, run_fn: RunFn, extra_check: Check | None) -> None:
        self.run_fn, self.extra_check = run_fn, extra_check
        self.started = False
        self.failure: Exception | None = None

    def check(self, plain: dict[str, Any]) -> None:
        """Raises UserError for settings that cannot be; the cheap check first."""
        if "model" in plain:
            validate_model(plain)
        if self.extra_check is not None:
            self.extra_check(plain)

    def task(self) -> Callable[[DictConfig], Any]:
        """A plain function, because Hydra asks for its module and code."""

        def run(cfg: DictConfig) -> Any:
            sweep = HydraConfig.get().mode is RunMode.MULTIRUN
            try:
                return self(cfg)
            except UserError as error:
                if sweep:
                    print(
                        f"error: job {HydraConfig.get().job.num}: {messages.one_line(str(error))}",
                        file=sys.stderr,
                    )
                    raise JobFailed(str(error)) from None
                # Hydra announces an exception with a line of its own; keep it until Hydra is done.
                self.failure = error
                return None

        return run

    def __call__(self, cfg: DictConfig) -> Any:
        context = HydraConfig.get()
        overrides = list(context.overrides.task)
        with _told(str(context.job.config_name), overrides):
            plain = _to_plain(cfg)
        self.check(plain)
        if context.mode is RunMode.MULTIRUN:
            _refuse_processes(plain.get("trainer") or {})
        self.started = True
        choices = {
            str(group): str(option)
            for group, option in context.runtime.choices.items()
            if option is not None and not str(group).startswith("hydra/")
        }
        command = shlex.join(["python", Path(sys.argv[0]).name, *overrides])
        return self.run_fn(plain, Path(context.runtime.output_dir), choices, command)


def _refuse_processes(trainer: Mapping[str, Any]) -> None:
    """A process that Lightning starts in a sweep would start the whole sweep again.

    Raises:
        UserError: the trainer has more than one device or node.
    """
    devices, nodes = trainer.get("devices", 1), trainer.get("num_nodes", 1)
    one = devices in (1, "1") or (isinstance(devices, list) and len(devices) == 1)
    if not one or nodes != 1:
        key = f"trainer.devices={devices}" if not one else f"trainer.num_nodes={nodes}"
        raise UserError(
            f"{key} in a sweep (-m): every process would start the sweep again; use one device per job "
            "(trainer=cpu or trainer=gpu), or start each run alone, without -m (torchrun, sbatch)"
        )


def _compose(config_name: str, overrides: Sequence[str]) -> DictConfig:
    running = GlobalHydra.instance().hydra  # a command may compose something else while it runs
    GlobalHydra.instance().hydra = None
    try:
        with hydra.initialize_config_dir(str(conf_dir()), version_base=VERSION_BASE):
            return hydra.compose(config_name, list(overrides))
    finally:
        GlobalHydra.instance().hydra = running


def _to_plain(cfg: DictConfig, only: str | None = None) -> dict[str, Any]:
    """All of ``cfg``, or one group of it, with interpolations resolved; a value still missing is refused."""
    node = cfg if only is None else cfg[only]
    if missing := OmegaConf.missing_keys(node):
        raise UserError(messages.missing_values(f"{only}.{key}" if only else key for key in missing))
    plain = OmegaConf.to_container(node, resolve=True)
    return {only: plain} if only else plain  # type: ignore[return-value]


@contextmanager
def _told(config_name: str, overrides: Sequence[str]) -> Iterator[None]:
    """Whatever composition raises comes out as a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(_explain(error, config_name, overrides)) from error


def _explain(error: BaseException, config_name: str, overrides: Sequence[str]) -> str:
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
        if not group:
            return messages.unknown_option("--config-name", option, messages.option_names(conf_dir()))
        if any(text.startswith((f"{group}=", f"+{group}=")) for text in overrides):
            where = ""
        options = error.options or messages.option_names(conf_dir() / group)
        return messages.unknown_option(group, option, list(options), where)
    if unknown := re.search(r"Could not (?:override|delete(?: from config\.)?) '([^']+)'", text):
        keys = _known_keys(config_name, overrides, unknown[1])
        return messages.unknown_override(unknown[1], keys, _groups(), where)
    if isinstance(error, OverrideParseException):
        return messages.unreadable_override(error.override)
    if several := re.search(r"Ambiguous value for argument '([^']+)'", text):
        return messages.several_values(several[1])
    if isinstance(error, OSError):
        return messages.unwritable(error, "choose another with hydra.run.dir=DIR")
    if error.__cause__ is not None and str(error.__cause__) not in text:
        text = f"{text}: {error.__cause__}"
    return messages.one_line(text)


def _known_keys(config_name: str, overrides: Sequence[str], bad: str) -> list[str]:
    """Dotted names of all keys, as composed without the override of ``bad`` or, failing that, without any."""
    good = [text for text in overrides if text.lstrip("+~").split("=")[0] != bad]
    for attempt in (good, []):
        try:
            return list(_dotted(OmegaConf.to_container(_compose(config_name, attempt))))
        except Exception:  # another override is bad as well; this one is told first
            continue
    return []


def _dotted(node: Any, prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _dotted(value, f"{prefix}{key}.")


def _groups() -> list[str]:
    """All config groups: the folders of conf/."""
    root = conf_dir()
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_dir())
