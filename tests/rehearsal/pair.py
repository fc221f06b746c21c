"""``python -m tests.rehearsal.pair CELLS.json``: trainings one after the other.

With LOCAL_RANK in the environment this is one process of several, and Lightning starts none itself: all trainings
share these.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from pathlib import Path

from tests import running as runs


def main(file: Path) -> None:
    """Each cell {"folder", "config", "port"}; what failed is left as ``failed.RANK`` in its folder."""
    for cell in json.loads(file.read_text(encoding="utf-8")):
        folder, start = Path(cell["folder"]), time.perf_counter()
        os.environ["MASTER_PORT"] = str(cell["port"])
        try:
            runs.train(cell["config"], folder, {}, "rehearsal")
        except BaseException:
            rank = os.environ.get("LOCAL_RANK", "0")
            (folder.parent / f"{folder.name}.failed.{rank}").write_text(traceback.format_exc(), encoding="utf-8")
            raise  # the other process would wait for ever
        print(f"{folder.name}: {time.perf_counter() - start:.1f} s", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    sys.stdout.flush()
    # gloo's threads may still run when the interpreter is taken down, which aborts a process that has done its work.
    os._exit(0)
