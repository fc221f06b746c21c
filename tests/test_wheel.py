"""The installed package, far from the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from sam3slim.results.record import read_record

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parent.parent
SHAPES = ["data.shapes.train_images=8", "data.shapes.val_images=4", "data.shapes.test_images=8"]


def run(*command: str | Path, cwd: Path) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run([str(word) for word in command], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment in which the wheel is installed; its libraries are those of this one."""
    pytest.importorskip("hatchling")
    root = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", root], cwd=ROOT, check=True)
    venv.create(root / "venv", symlinks=True)
    programs = root / "venv/bin"
    site = Path(
        run(programs / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=root).strip()
    )
    # Not with its own .pth files, one of which may name the checkout.
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (wheel,) = root.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "--python", programs / "python", "install", "--no-deps", "--no-index", wheel]
    run(*pip, cwd=root)
    assert "venv" in run(programs / "python", "-c", "import sam3slim; print(sam3slim.__file__)", cwd=root)
    return programs


def test_wheel__cuts_and_evaluates_nano_from_any_folder(scripts: Path, tmp_path: Path) -> None:
    cut = ["model=nano_slim", "init=pruned", f"init.checkpoint={ROOT / 'assets/nano'}", "trainer.max_steps=0"]
    run(scripts / "sam3slim", "train", *cut, *SHAPES, "hydra.run.dir=cut", "eval_at_end=false", cwd=tmp_path)
    own = tmp_path / "own/data"
    own.mkdir(parents=True)
    (own / "few.yaml").write_text("defaults: [shapes]\neval_limit: 4\n")
    given = ["checkpoint=cut/artifact", "data=few", *SHAPES, "latency=false", "hydra.run.dir=measured"]
    run(scripts / "sam3slim", "evaluate", "--config-dir", "own", *given, cwd=tmp_path)
    record = read_record(tmp_path / "measured")
    assert record.command.startswith("sam3slim evaluate checkpoint=cut/artifact data=few")
    assert (record.status, record.data and record.data.images) == ("finished", 4)
    assert read_record(tmp_path / "cut").artifact
    run(scripts / "sam3slim", "compress", "checkpoint=cut/artifact", *SHAPES, "--cfg", "job", cwd=tmp_path)
