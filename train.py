"""Train or retrain a model: ``python train.py experiment=nano_slim``; see conf/train.yaml."""

from pathlib import Path
from typing import Any

from sam3slim.entry import entry_point
from sam3slim.strict import spec_from_dict


# Imported inside, so that mistyped options and impossible models are answered before torch is loaded.
def check(config: dict[str, Any]) -> None:
    """Refuse unknown keys, wrong values and what this machine cannot do before an output folder is made."""
    from sam3slim.runs import TrainSpec, check_machine

    check_machine(spec_from_dict(TrainSpec, config, ""))


def run(config: dict[str, Any], output_dir: Path, choices: dict[str, str], command: str) -> Any:
    """One job."""
    from sam3slim.runs import train_and_compress

    return train_and_compress(config, output_dir, choices, command)


if __name__ == "__main__":
    entry_point("train", run, check)
