"""What a parent and its child owe each other when either is killed or asked to stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sam3slim.launch import child
from sam3slim.launch.child import ChildDied, in_child

pytestmark = pytest.mark.skipif(not child.FORKS, reason="trials share a process where it cannot be forked")
ROOT = Path(__file__).resolve().parents[2]
# A parent whose child waits until it is interrupted, and says so; both write what happens into files.
PARENT = """
import os, pathlib, signal, sys, time
from sam3slim.launch.child import in_child

# A process that a script started in the background ignores Ctrl-C, and so do its children.
signal.signal(signal.SIGINT, signal.default_int_handler)

folder = pathlib.Path(sys.argv[1])

def work():
    (folder / "child").write_text(str(os.getpid()))
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        (folder / "saved").write_text("once" if not (folder / "saved").exists() else "twice")
    return "answer"

if "requeue" in sys.argv:
    def handler(number, frame):
        (folder / "requeued").write_text((folder / "saved").read_text())
        sys.exit(7)
    signal.signal(signal.SIGUSR2, handler)
if "bypass" in sys.argv:
    signal.signal(signal.SIGTERM, lambda number, frame: (folder / "bypassed").write_text(""))
try:
    in_child(work)
except KeyboardInterrupt:
    (folder / "interrupted").write_text("")
"""


def test_in_child__answers_and_shares_nothing() -> None:
    seen: list[int] = []

    def work() -> tuple[int, list[int]]:
        seen.append(1)
        return os.getpid(), seen

    pid, inside = in_child(work)
    assert pid != os.getpid()
    assert (inside, seen) == ([1], [])


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "killed by SIGKILL; often the memory was not enough"),
        (lambda: os.kill(os.getpid(), signal.SIGTERM), "killed by SIGTERM"),
        (lambda: os._exit(3), "ended with status 3"),
    ],
)
def test_in_child__death_is_told(work: Callable[[], None], message: str) -> None:
    with pytest.raises(ChildDied, match=f"its process (was )?{message}$"):
        in_child(work)


def start(folder: Path, *arguments: str) -> tuple[subprocess.Popen[bytes], int]:
    """The parent, and its child's process id once it runs."""
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(folder), *arguments], cwd=ROOT)
    return parent, int(wait_for(lambda: (folder / "child").read_text()))


def wait_for(read: Callable[[], str], seconds: float = 60.0) -> str:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if text := read():
                return text
        except FileNotFoundError:
            pass
        time.sleep(0.02)
    raise AssertionError("waited too long")


def alive(pid: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_in_child__a_request_to_stop_reaches_the_child_first(tmp_path: Path, number: int) -> None:
    parent, _ = start(tmp_path)
    parent.send_signal(number)
    assert parent.wait(60) == 0
    assert (tmp_path / "saved").read_text() == "once"
    assert (tmp_path / "interrupted").exists()


def test_in_child__the_schedulers_handler_runs_after_the_child_has_saved(tmp_path: Path) -> None:
    parent, _ = start(tmp_path, "requeue", "bypass")
    parent.send_signal(signal.SIGTERM)
    wait_for(lambda: "x" if (tmp_path / "bypassed").exists() else "")
    assert not (tmp_path / "saved").exists()
    parent.send_signal(signal.SIGUSR2)
    assert parent.wait(60) == 7
    assert (tmp_path / "requeued").read_text() == "once"


def test_in_child__dies_with_a_killed_parent(tmp_path: Path) -> None:
    parent, pid = start(tmp_path)
    assert alive(pid)
    parent.kill()
    parent.wait(60)
    wait_for(lambda: "" if alive(pid) else "gone")
