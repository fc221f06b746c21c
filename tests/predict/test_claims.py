"""The output folder: who may write into it, and what ``overwrite`` takes away."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from sam3slim.errors import UserError
from sam3slim.predict.images import Picture
from sam3slim.predict.writer import OutputFolder
from tests.predict.conftest import Predict, detections, draw, keep, settings

ADVICE = "use the same, another --out, or --overwrite"


def test_output_folder__only_one_at_a_time(tmp_path: Path, pictures: list[Picture]) -> None:
    out, given = tmp_path / "out", settings(pictures)
    with OutputFolder(out, given) as folder:
        keep(folder, pictures[0])
        for overwrite in (False, True):
            with (
                pytest.raises(UserError, match=r"/out is in use by another run; wait for it, or choose another fold"),
                OutputFolder(out, given, overwrite=overwrite),
            ):
                pass
        assert folder.is_done(pictures[0])
    with OutputFolder(out, given) as folder:
        assert folder.is_done(pictures[0])


def test_output_folder__two_runs_that_begin_one_folder(tmp_path: Path, pictures: list[Picture]) -> None:
    """Both saw an empty folder; the second to get the lock must not go on under the settings of the first."""
    slow = OutputFolder(tmp_path / "out", settings(pictures, prompts=["blue"]))
    with OutputFolder(tmp_path / "out", settings(pictures)) as folder:
        keep(folder, pictures[0])
    with pytest.raises(UserError, match=rf'\(prompts \["red"\], now \["blue"\]\); {ADVICE}'):
        slow.__enter__()
    with OutputFolder(tmp_path / "out", settings(pictures)) as folder:  # and it holds no lock
        assert folder.is_done(pictures[0])


def test_output_folder__a_disk_without_locks(
    tmp_path: Path, pictures: list[Picture], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(file: object, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refuse)
    with (
        pytest.raises(UserError, match=r"cannot lock .*/\.lock: No locks available; choose an output folder on a"),
        OutputFolder(tmp_path / "out", settings(pictures)),
    ):
        pass


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"model": "sha256:1"}, '(model "sha256:0", now "sha256:1")'),
        ({"prompts": ["red", "blue"]}, '(prompts ["red"], now ["red", "blue"])'),
        ({"threshold": 0.5}, "(threshold null, now 0.5)"),
        ({"prompts": [f"number {i}" for i in range(99)]}, '(prompts ["red"], now ["number 0", "number 1", '),
        ({"images": "/elsewhere"}, '/in", now "/elsewhere")'),
    ],
)
def test_output_folder__other_settings(
    tmp_path: Path, pictures: list[Picture], changed: dict[str, Any], said: str
) -> None:
    out = tmp_path / "out"
    with OutputFolder(out, settings(pictures)) as folder:
        keep(folder, pictures[0])
    before = {path: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(UserError) as caught:
        OutputFolder(out, settings(pictures, **changed))
    assert said in str(caught.value)
    assert str(caught.value).endswith(ADVICE)
    assert len(str(caught.value)) < 800
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    with OutputFolder(out, settings(pictures, **changed), overwrite=True) as folder:
        assert not folder.is_done(pictures[0])
    OutputFolder(out, settings(pictures, **changed))  # the new ones count from now on
    with pytest.raises(UserError, match=ADVICE):
        OutputFolder(out, settings(pictures))


def test_output_folder__of_an_early_version_goes_on(tmp_path: Path, pictures: list[Picture]) -> None:
    given = settings(pictures)
    with OutputFolder(tmp_path / "out", given) as folder:
        keep(folder, pictures[0])
    marker = tmp_path / "out/predict.json"
    old = json.loads(marker.read_text())
    del old["images"]
    marker.write_text(json.dumps(old))
    with OutputFolder(tmp_path / "out", given) as folder:
        assert folder.is_done(pictures[0])
    with OutputFolder(tmp_path / "out", given, overwrite=True) as folder:
        assert not folder.is_done(pictures[0])
    assert json.loads(marker.read_text())["images"] == given["images"]


def test_output_folder__overwrite_removes_its_own_files_alone(tmp_path: Path, pictures: list[Picture]) -> None:
    out = tmp_path / "out"
    deep = Picture(draw(tmp_path / "in/more/d.png"), "more/d.png", 4)
    with OutputFolder(out, settings(pictures)) as folder:
        keep(folder, *pictures, deep)
        folder.finish([*pictures, deep], {"red": 1, "blue": 2}, {})
        for picture in (*pictures, deep):
            draw(folder.overlay(picture))
    own = [out / "notes.txt", out / "overlays/my.png", out / "overlays/0.png", out / "mine/0.png.jpg"]
    for path in own:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    parts = out / "parts.jsonl"
    parts.write_bytes(b"damaged\n" + parts.read_bytes() + b'{"path": "/elsewhere/x.png"}\n')
    with OutputFolder(out, settings(pictures), overwrite=True) as folder:
        assert len(folder) == 0
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()) == [
        ".lock", "mine/0.png.jpg", "notes.txt", "overlays/0.png", "overlays/my.png", "parts.jsonl", "predict.json",
    ]  # fmt: skip
    assert all(path.read_text() == "mine" for path in own)
    assert not (out / "overlays/more").exists()


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ("file", r"output folder .*/out is a file; choose a folder"),
        ("others", r"/out holds files that are not predictions; choose a new or empty one"),
        ("marker", r"/out holds files that are not predictions; choose a new or empty one"),
        ("list", r"/out holds files that are not predictions; choose a new or empty one"),
        ("broken", r"cannot read .*/out/predict\.json as JSON: .*; choose another output folder"),
        ("parts", r"/out/parts\.jsonl is a folder; move it away, or choose another output folder"),
        ("final", r"/out/detections\.json is a folder; move it away, or choose another output folder"),
        ("long", r"cannot write to output folder .*: File name too long; choose another folder"),
        ("below a file", r"cannot write to output folder .*: Not a directory; choose another folder"),
    ],
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_output_folder__not_ours(
    tmp_path: Path, pictures: list[Picture], made: str, message: str, overwrite: bool
) -> None:
    out, written = tmp_path / "out", {"list": "[]", "broken": '{"schema"', "marker": '{"name": "x"}'}
    if made == "file":
        out.write_text("mine")
    elif made == "others":
        out.mkdir()
        (out / "mine.txt").write_text("mine")
    elif made in written:
        out.mkdir()
        (out / "predict.json").write_text(written[made])
    elif made in ("parts", "final"):
        with OutputFolder(out, settings(pictures)):
            pass
        place = out / {"parts": "parts.jsonl", "final": "detections.json"}[made]
        place.unlink(missing_ok=True)
        place.mkdir()
    elif made == "below a file":
        out.write_text("mine")
        out /= "deep"
    else:
        out = tmp_path / ("x" * 300)
    with (
        pytest.raises(UserError, match=message) as caught,
        OutputFolder(out, settings(pictures), overwrite=overwrite),
    ):
        pass
    assert "\n" not in str(caught.value)


def test_predict__another_folder_with_the_same_names_is_refused(predict: Predict, photos: Path, tmp_path: Path) -> None:
    """Their overlays would have the same names, and the first folder's would count as there when it is asked again."""
    predict()
    other = tmp_path / "other"
    shutil.copytree(photos, other)
    with pytest.raises(UserError, match=rf"images \"{photos}\", now \"{other}\"\); {ADVICE}"):
        predict(images=[str(other)])
    predict(images=[str(other)], overwrite=True)
    assert detections(tmp_path / "out")["info"]["settings"]["images"] == str(other)
