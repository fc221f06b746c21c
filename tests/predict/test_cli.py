"""``sam3slim predict`` as it is typed."""

from __future__ import annotations

from pathlib import Path

import pytest

from sam3slim.cli import main
from sam3slim.cli.predict import SHOWN_SKIPPED
from tests.predict.conftest import detections, draw


@pytest.fixture
def command(artifact: Path, photos: Path, tmp_path: Path) -> list[str]:
    return [
        "predict", str(artifact), str(photos), "--out", str(tmp_path / "out"), "--device", "cpu", "--threshold", "0",
    ]  # fmt: skip


def test_predict__says_what_was_done(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [*command, "--prompt", "red", "--prompt", "a cup", "--max-per-image", "3", "--no-overlays"]
    assert main(given) == 0
    captured = capsys.readouterr()
    first, second = captured.out.splitlines()
    assert first.startswith("5 images, 15 detections in ")
    assert second == f"written: {tmp_path / 'out/detections.json'}"
    assert captured.err.strip() == ""
    assert not (tmp_path / "out/overlays").exists()
    assert main(given) == 0
    assert capsys.readouterr().out.splitlines()[0] == "5 images (5 from before), 15 detections"
    assert main([*command, "--prompt", "red"]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: output folder {tmp_path / 'out'} was begun with other settings (prompts ")
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert main([*command, "--prompt", "red", "--overwrite"]) == 0
    assert [row["name"] for row in detections(tmp_path / "out")["categories"]] == ["red"]


def test_predict__names_unreadable_pictures_and_those_without_boxes(
    command: list[str], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(SHOWN_SKIPPED + 3):
        (photos / f"x{number:02d}.png").write_bytes(b"no picture")
    draw(photos / "[b]é.png")
    (photos / "[b]é.png").write_bytes(b"no picture")
    boxes = tmp_path / "boxes.json"
    boxes.write_text('{"a.png": [{"bbox": [1, 1, 9, 9]}]}')
    assert main([*command, "--boxes", str(boxes)]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("5 images, ")
    lines = captured.err.strip().splitlines()
    assert lines[0] == "warning: 4 images have no boxes, so nothing was asked of them"
    count = SHOWN_SKIPPED + 4
    assert lines[1] == f"warning: {count} images could not be read and are left out:"
    assert lines[2].startswith("  [b]é.png cannot be decoded (cannot identify image file")
    assert len(lines) == 2 + SHOWN_SKIPPED + 1
    assert lines[-1] == f"  … all are named under info.skipped in {tmp_path / 'out/detections.json'}"
    assert len(detections(tmp_path / "out")["info"]["skipped"]) == count


def test_predict__no_picture_can_be_read(command: list[str], photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in photos.rglob("*.png"):
        path.write_bytes(b"no picture")
    assert main([*command, "--prompt", "red"]) == 2
    assert "error: none of the 5 images can be read; the first, a.png, cannot be decoded" in capsys.readouterr().err
