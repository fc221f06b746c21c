"""The output folder: what stays of a run that was killed, who may write, what is removed."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO

from sam3slim.data.detections import Detections
from sam3slim.errors import UserError
from sam3slim.predict.images import Picture
from sam3slim.predict.writer import OutputFolder, entries, read_index, stamp
from tests.predict.conftest import Predict, detections, draw, names

ADVICE = "use the same, another --out, or --overwrite"


def some(score: float = 0.75) -> Detections:
    """One detection: a box with fractions and a mask of 3 x 4 pixels in a picture of 40 x 32."""
    mask = np.zeros((32, 40), dtype=np.uint8)
    mask[2:5, 10:14] = 1
    return Detections(
        image_id=1,
        boxes=torch.tensor([[10.1234, 2.0, 14.0, 5.5]]), scores=torch.tensor([score]), labels=torch.tensor([2]),
        rles=[mask_utils.encode(np.asfortranarray(mask))],
    )  # fmt: skip


@pytest.fixture
def pictures(tmp_path: Path) -> list[Picture]:
    return [Picture(draw(tmp_path / f"in/{i}.png", i), f"{i}.png", i + 1) for i in range(3)]


def settings(pictures: list[Picture], **changed: Any) -> dict[str, Any]:
    return {"model": "sha256:0", "prompts": ["red"], "images": str(pictures[0].path.parent), **changed}


def keep(folder: OutputFolder, *pictures: Picture, score: float = 0.75) -> None:
    for picture in pictures:
        folder.add(picture, stamp(picture.path), some(score), 32, 40)


def test_entries__as_coco_writes_results() -> None:
    (entry,) = entries(some())
    assert entry["category_id"] == 2
    assert entry["bbox"] == [10.123, 2.0, 3.877, 3.5]
    assert (entry["score"], entry["area"], entry["iscrowd"]) == (0.75, 12, 0)
    assert entry["segmentation"]["size"] == [32, 40]
    assert mask_utils.decode(entry["segmentation"])[2:5, 10:14].sum() == 12


def test_entries__boxes_alone() -> None:
    (entry,) = entries(Detections(1, torch.zeros(1, 4), torch.ones(1), torch.ones(1, dtype=torch.int64), rles=None))
    assert entry == {"category_id": 1, "bbox": [0.0, 0.0, 0.0, 0.0], "score": 1.0, "iscrowd": 0}


def test_output_folder__what_was_added_is_there_again(tmp_path: Path, pictures: list[Picture]) -> None:
    given = settings(pictures)
    with OutputFolder(tmp_path / "out", given) as folder:
        keep(folder, pictures[1])
        assert [folder.is_done(p) for p in pictures] == [False, True, False]
    with OutputFolder(tmp_path / "out", given) as folder:
        assert [folder.is_done(p) for p in pictures] == [False, True, False]
        keep(folder, pictures[0])
        assert len(folder) == 2
        assert folder.finish(pictures, {"red": 1, "blue": 2}, {"2.png": "is broken"}) == 2
    written = detections(tmp_path / "out")
    assert [(i["id"], i["file_name"], i["height"], i["width"]) for i in written["images"]] == [
        (1, "0.png", 32, 40), (2, "1.png", 32, 40),
    ]  # fmt: skip
    assert [(a["id"], a["image_id"]) for a in written["annotations"]] == [(1, 1), (2, 2)]
    assert written["categories"] == [{"id": 1, "name": "red"}, {"id": 2, "name": "blue"}]
    assert written["info"]["skipped"] == {"2.png": "is broken"}
    assert written["info"]["settings"] == {"schema": 1, "model": "sha256:0", "images": given["images"]}


def test_output_folder__coco_api_reads_it(tmp_path: Path, pictures: list[Picture]) -> None:
    with OutputFolder(tmp_path / "out", settings(pictures)) as folder:
        keep(folder, *pictures)
        folder.finish(pictures, {"red": 1, "blue": 2}, {})
    truth = COCO(str(tmp_path / "out/detections.json"))
    results = truth.loadRes(detections(tmp_path / "out")["annotations"])
    assert results.getImgIds() == [1, 2, 3]
    (found,) = results.loadAnns(results.getAnnIds(imgIds=[3]))
    assert results.annToMask(found).shape == (32, 40)
    assert (found["score"], int(results.annToMask(found).sum())) == (0.75, 12)


def test_output_folder__no_detections_at_all(tmp_path: Path, pictures: list[Picture]) -> None:
    with OutputFolder(tmp_path / "out", settings(pictures)) as folder:
        assert folder.finish([], {"red": 1}, {}) == 0
    assert (detections(tmp_path / "out")["images"], detections(tmp_path / "out")["annotations"]) == ([], [])


def test_output_folder__a_changed_picture_is_not_finished(tmp_path: Path, pictures: list[Picture]) -> None:
    with OutputFolder(tmp_path / "out", settings(pictures)) as folder:
        keep(folder, *pictures)
        os.utime(pictures[0].path, ns=(1, 1))
        draw(pictures[1].path, 9, (50, 50))
        pictures[2].path.unlink()
        assert not any(map(folder.is_done, pictures))
        keep(folder, pictures[0], score=0.25)  # again: the later line counts
        folder.finish(pictures, {"red": 1, "blue": 2}, {})
    assert names(tmp_path / "out") == ["0.png"]
    assert [a["score"] for a in detections(tmp_path / "out")["annotations"]] == [0.25]


@pytest.mark.parametrize("cut", [1, 10, 10_000])
def test_output_folder__a_last_line_cut_by_a_kill_is_done_again(
    tmp_path: Path, pictures: list[Picture], cut: int
) -> None:
    parts = tmp_path / "out/parts.jsonl"
    with OutputFolder(tmp_path / "out", settings(pictures)) as folder:
        keep(folder, pictures[0])
        first = parts.read_bytes()
        keep(folder, pictures[1])
    whole = parts.read_bytes()
    parts.write_bytes(whole[: max(len(whole) - cut, len(first))])
    with OutputFolder(tmp_path / "out", settings(pictures)) as folder:
        assert [folder.is_done(p) for p in pictures] == [True, False, False]
        assert parts.read_bytes() == first
        keep(folder, pictures[1])
    assert parts.read_bytes() == whole


def broken(line: bytes, kind: str) -> bytes:
    value = json.loads(line)
    lines = {
        "cut": line[:20], "zeros": bytes(len(line)), "text": b"what?", "latin": b'"caf\xe9"', "blank": b"",
        "list": b"[1]", "number": b"7", "path": json.dumps({**value, "path": ["x"]}).encode(),
        "height": json.dumps({**value, "height": "x"}).encode(),
    }  # fmt: skip
    if kind in lines:
        return lines[kind]
    return json.dumps({key: entry for key, entry in value.items() if key != "detections"}).encode()


@pytest.mark.parametrize(
    "kind", ["cut", "zeros", "text", "latin", "blank", "list", "number", "path", "height", "without detections"]
)
@pytest.mark.parametrize("fix", ["overwrite", "delete"])
def test_output_folder__a_damaged_line_is_named_and_both_fixes_work(
    tmp_path: Path, pictures: list[Picture], kind: str, fix: str
) -> None:
    parts, given = tmp_path / "out/parts.jsonl", settings(pictures)
    with OutputFolder(tmp_path / "out", given) as folder:
        keep(folder, *pictures)
    lines = parts.read_bytes().splitlines()
    parts.write_bytes(b"\n".join([lines[0], broken(lines[1], kind), lines[2], b""]))
    before = parts.read_bytes()
    with (
        pytest.raises(UserError, match=r"^.*/out/parts\.jsonl line 2 is damaged; begin again with --overwrite, or del"),
        OutputFolder(tmp_path / "out", given),
    ):
        pass
    assert parts.read_bytes() == before
    if fix == "delete":
        parts.write_bytes(b"\n".join([lines[0], lines[2], b""]))
    with OutputFolder(tmp_path / "out", given, overwrite=fix == "overwrite") as folder:
        assert [folder.is_done(p) for p in pictures] == ([True, False, True] if fix == "delete" else [False] * 3)


def test_read_index__a_damaged_last_line_is_removed(tmp_path: Path) -> None:
    good = b'{"path": "a", "stamp": [1, 2], "height": 1, "width": 1, "detections": []}\n'
    (tmp_path / "parts").write_bytes(good + b"{}\n")
    assert read_index(tmp_path / "parts") == {"a": (0, [1, 2])}
    assert (tmp_path / "parts").read_bytes() == good


def test_output_folder__what_a_killed_run_left_is_removed(tmp_path: Path, pictures: list[Picture]) -> None:
    out = tmp_path / "out"
    # Killed before it wrote its settings: still a new folder.
    out.mkdir()
    (out / ".write-test-0123abcd").touch()
    (out / ".predict.0123abcd.tmp.json").write_text("{")
    with OutputFolder(out, settings(pictures)) as folder:
        keep(folder, pictures[0])
    assert sorted(path.name for path in out.iterdir()) == [".lock", "parts.jsonl", "predict.json"]
    own = [out / ".mine.tmp", out / "notes/.detections.0123abcd.tmp.json", out / "overlays/.x.tmp.jpg"]
    left = [out / ".detections.0123abcd.tmp.json", out / "overlays/more/.a b.png.0123abcd.tmp.jpg"]
    for path in (*own, *left):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{")
    with OutputFolder(out, settings(pictures)) as folder:
        assert folder.is_done(pictures[0])
    assert not any(path.exists() for path in left)
    assert all(path.read_text() == "{" for path in own)


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


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_output_folder__a_full_disk(
    tmp_path: Path, pictures: list[Picture], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Half of the second line fits; it is taken back, and the same command goes on."""

    class Full:
        def __init__(self, file: Any) -> None:
            self.file, self.room = file, 100

        def write(self, content: memoryview) -> int:
            if not self.room:
                raise OSError(number, os.strerror(number))
            count, self.room = self.file.write(content[: self.room]), 0
            return int(count)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    parts = tmp_path / "out/parts.jsonl"
    with OutputFolder(tmp_path / "out", settings(pictures)) as folder:
        keep(folder, pictures[0])
        before = parts.read_bytes()
        monkeypatch.setattr(folder, "_parts", Full(folder._parts))
        kind, said = (OSError, "Input/output error") if number == errno.EIO else (UserError, "cannot write .*free some")
        with pytest.raises(kind, match=said):
            keep(folder, pictures[1])
        assert parts.read_bytes() == before
        assert not folder.is_done(pictures[1])
    with OutputFolder(tmp_path / "out", settings(pictures)) as folder:
        keep(folder, pictures[1])
        assert folder.is_done(pictures[0])


def test_overlay__a_long_name_gets_a_short_one(tmp_path: Path, pictures: list[Picture]) -> None:
    given = settings(pictures)
    with OutputFolder(tmp_path / "out", given) as folder:
        long = [Picture(tmp_path / "in" / name, f"more/{name}", 1) for name in ("x" * 251 + ".png", "ü" * 125 + ".png")]
        places = [folder.overlay(picture) for picture in (*pictures, *long)]
        assert [place.name for place in places[:3]] == ["0.png.jpg", "1.png.jpg", "2.png.jpg"]
        assert len(set(places)) == 5
        assert all(place.parent == tmp_path / "out/overlays/more" for place in places[3:])
        for place in places:
            draw(place)


def test_predict__another_folder_with_the_same_names_is_refused(predict: Predict, photos: Path, tmp_path: Path) -> None:
    """Their overlays would have the same names, and the first folder's would count as there when it is asked again."""
    predict()
    other = tmp_path / "other"
    shutil.copytree(photos, other)
    with pytest.raises(UserError, match=rf"images \"{photos}\", now \"{other}\"\); {ADVICE}"):
        predict(images=[str(other)])
    predict(images=[str(other)], overwrite=True)
    assert detections(tmp_path / "out")["info"]["settings"]["images"] == str(other)
