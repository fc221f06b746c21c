"""One row: what is asked of the process that measures it, and what comes back as JSON."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sam3slim.files import read_json, write_json

FINISHED, FAILED = "finished", "failed"
REQUEST, RESULT = "request.json", "result.json"


@dataclass(frozen=True)
class Asked:
    """What to measure.

    Attributes:
        source: the artifact; identity: what tells its weights from others.
        runtime, arithmetic: see ``runtimes``.
        device, threads: where; threads of the CPU.
        prompts: numbers of prompts that pass together with one image.
        repeats: forwards that are timed.
        config: of ``evaluate.py`` for the mAP; None: no mAP is asked for.
        reference: folder of the row it is compared with; None: it is that row.
        machine: hardware, flags and versions that the numbers are true for.
    """

    source: str
    identity: str
    runtime: str
    arithmetic: str
    device: str
    threads: int
    prompts: tuple[int, ...]
    repeats: int
    config: dict[str, Any] | None = None
    reference: str | None = None
    machine: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Of the row's folder: equal where the same has been measured on the same machine; the artifact may move."""
        values = {**asdict(self), "source": None}
        if self.config is not None:
            values["config"] = {key: value for key, value in self.config.items() if key != "output_dir"}
        digest = hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:10]
        return f"{Path(self.source).name}_{self.runtime}_{self.arithmetic}_{digest}"

    def write(self, path: Path) -> Path:
        return write_json(path, asdict(self))

    @classmethod
    def read(cls, path: Path) -> Asked:
        """What ``write`` wrote. Raises UserError for a broken file."""
        values = read_json(path, "run the benchmark again")
        return cls(**{**values, "prompts": tuple(values["prompts"])})
