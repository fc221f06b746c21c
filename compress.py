"""Write smaller artifacts of a checkpoint and measure them: ``python compress.py checkpoint=PATH``; see conf/compress.yaml."""

from pathlib import Path
from typing import Any

from sam3slim.config import entry_point


def run(config: dict[str, Any], output_dir: Path, choices: dict[str, str], command: str) -> Any:
    """One job; imported here so that bad input is answered before torch is loaded."""
    from sam3slim.runs import compress

    return compress(config, output_dir, choices, command)


if __name__ == "__main__":
    entry_point("compress", run)
