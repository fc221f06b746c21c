"""Train or retrain a model: ``python train.py experiment=nano_slim``; see conf/train.yaml."""

from pathlib import Path
from typing import Any

from sam3slim.config import entry_point


def run(config: dict[str, Any], output_dir: Path, choices: dict[str, str], command: str) -> Any:
    """One job; imported here so that bad input is answered before torch is loaded."""
    from sam3slim.runs import train

    return train(config, output_dir, choices, command)


if __name__ == "__main__":
    entry_point("train", run)
