"""A command on its way down: what every part of it needs to know of the whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sam3slim.results.record import Kind, RunRecord
from sam3slim.results.recording import finished_record, recording, refuse_other_kind
from sam3slim.specs import ModelSpec
from sam3slim.strict import spec_from_dict

PROGRAM = "python {kind}.py"


@dataclass(frozen=True)
class Run:
    """One command, composed.

    Attributes:
        folder: where results go.
        config: plain, as composed.
        choices: {group: option}.
        command: the command line.
    """

    kind: Kind
    folder: Path
    config: Mapping[str, Any]
    choices: Mapping[str, str] = field(default_factory=dict)
    command: str = ""

    def part(self, name: str, config: Mapping[str, Any], kind: Kind | None = None) -> Run:
        """A part with a record of its own, in the folder ``name`` of this run's."""
        return replace(self, folder=self.folder / name, config=config, kind=kind or self.kind)

    def finished(self) -> RunRecord | None:
        """Its record, if the folder has one that says that just this has been done.

        Raises:
            UserError: a record that cannot be read.
        """
        return finished_record(self.folder, self.config)

    def recording(self, parent: str | None = None) -> AbstractContextManager[RunRecord]:
        """See ``results.recording``; ``parent`` is the record or artifact it starts from."""
        return recording(
            self.folder, kind=self.kind, command=self.command, config=self.config, choices=self.choices, parent=parent
        )


@dataclass(frozen=True)
class Task:
    """What a command does.

    Attributes:
        spec: the dataclass of its configuration.
        work: called with that and the run; returns the records, or ``Done``.
        check: refuses what this machine cannot do.
    """

    spec: type[Any]
    work: Callable[[Any, Run], Any]
    check: Callable[[Any], None] = lambda spec: None


@dataclass(frozen=True)
class RunCommand:
    """``conf/<name>.yaml`` and its task, imported only after the cheap checks: torch takes seconds."""

    name: Kind
    load: Callable[[], Task]

    def prepare(self, run: Run) -> Callable[[], Any]:
        """The work of ``run``, its configuration parsed and checked.

        Raises:
            UserError: settings that cannot be; a folder that holds what another command has found out.
        """
        refuse_other_kind(run.folder, self.name)
        if "model" in run.config:
            spec_from_dict(ModelSpec, run.config["model"], "model")
        task = self.load()
        spec = spec_from_dict(task.spec, run.config, "")
        task.check(spec)
        return lambda: task.work(spec, run)
