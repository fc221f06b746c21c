"""Measure a checkpoint's mAP: ``python evaluate.py checkpoint=PATH data=shapes``; see conf/evaluate.yaml."""

from pathlib import Path
from typing import Any

from sam3slim.entry import entry_point
from sam3slim.strict import spec_from_dict


# Imported inside, so that mistyped options and impossible models are answered before torch is loaded.
def check(config: dict[str, Any]) -> None:
    """Refuse unknown keys and wrong values before an output folder is made."""
    from sam3slim.runs import EvaluateSpec

    spec_from_dict(EvaluateSpec, config, "")


def run(config: dict[str, Any], output_dir: Path, choices: dict[str, str], command: str) -> Any:
    """One job."""
    from sam3slim.runs import evaluate

    return evaluate(config, output_dir, choices, command)


if __name__ == "__main__":
    entry_point("evaluate", run, check)
