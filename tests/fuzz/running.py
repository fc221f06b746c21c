"""Files broken at random, read in a process of its own: a crash, or memory and time without end, ends that alone.

``python -m tests.fuzz.running pictures 0 500 FILE`` prints as JSON what was not told as it should be.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.fuzz.annotations import read_annotations
from tests.fuzz.checkpoints import read_checkpoint
from tests.fuzz.pictures import read_picture

SECONDS, BYTES = 10, 2 * 10**9


class TookTooLong(BaseException):
    """Not an Exception: what reads must not take it for a broken file."""


CASES: dict[str, Callable[[int, Path], str]] = {
    "pictures": read_picture, "annotations": read_annotations, "checkpoints": read_checkpoint,
}  # fmt: skip


def run(name: str, first: int, last: int, report: Callable[[int], None] = lambda number: None) -> dict[str, Any]:
    """Read the files ``first`` … ``last`` - 1.

    Returns:
        {"outcomes": how often which, "failures": {number: what escaped}, "slowest": seconds, "bytes": most held}.
    """

    def stop(*_: object) -> None:
        raise TookTooLong

    signal.signal(signal.SIGPROF, stop)
    outcomes, failures, slowest = Counter[str](), {}, 0.0
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in range(first, last):
            report(number)
            started = time.process_time()
            signal.setitimer(signal.ITIMER_PROF, SECONDS)  # of the processor, whatever else the machine does
            try:
                outcomes[CASES[name](number, Path(folder))] += 1
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                failures[number] = f"{type(error).__name__}: {str(error)[:300]}"
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
            slowest = max(slowest, time.process_time() - started)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"outcomes": dict(outcomes), "failures": failures, "slowest": round(slowest, 2), "bytes": most}


def main(name: str, first: str, last: str, progress: str) -> None:
    """Write the number in work to the file ``progress``, and print what ``run`` returns."""
    held = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (16 * 10**9, held[1]))  # the machine outlives what is found
    file = Path(progress)
    print(json.dumps(run(name, int(first), int(last), lambda number: file.write_text(str(number)) and None)))


if __name__ == "__main__":
    main(*sys.argv[1:])
