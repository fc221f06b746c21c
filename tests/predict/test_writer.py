"""The output folder: what stays of a run that was killed, what is removed."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO

from sam3slim.data.detections import Detections
from sam3slim.errors import UserError
from sam3slim.predict.images import Picture
from sam3slim.predict.writer import OutputFolder, entries, read_index
from tests.predict.conftest import detections, draw, keep, names, settings, some


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
