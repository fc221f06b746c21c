"""sam3slim shrink: the whole ladder on a model of milliseconds, and on nano where a drop must be real."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sam3slim.artifacts import write_artifact
from sam3slim.checkpoints import load
from sam3slim.cli import main
from sam3slim.compression import GROUPS, Mixed, compress
from sam3slim.compression.mixed import smallest_bytes
from sam3slim.compression.slim import Slim
from sam3slim.data.shapes import ShapesSpec, make_shapes
from sam3slim.errors import UserError
from sam3slim.models.build import empty_model
from sam3slim.results.record import read_record
from sam3slim.runs.plans import PrecisionEvaluator
from sam3slim.runs.shrink import shrink
from sam3slim.runs.shrink_inputs import ShrinkSpec
from sam3slim.runs.shrink_sizes import as_overrides, sizes
from sam3slim.specs import ModelSpec
from tests.tiny import SPEC, tiny_model

NANO = Path(__file__).parent.parent / "assets" / "nano"
QUICK = ("data.num_workers=0",)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shrink")
    write_artifact(tiny_model(), folder / "tiny")
    spec = ShapesSpec(image_size=32, train_images=10, val_images=3, test_images=3)
    make_shapes(folder / "set", spec, progress=False)
    (folder / "phrases.txt").write_text("circle\na small dog\n")
    return folder


def asked(root: Path, out: str, **changes: Any) -> ShrinkSpec:
    given = {"images": root / "set", "phrases": root / "phrases.txt", "max_drop": 1.0, "overrides": QUICK, **changes}
    return ShrinkSpec(str(root / "tiny"), root / out, **given)


@pytest.fixture(scope="module")
def made(root: Path) -> list[str]:
    lines: list[str] = []
    shrink(asked(root, "made"), lines.append)
    return lines


def test_shrink__all_steps_and_what_each_gave(root: Path, made: list[str]) -> None:
    """The tiny model finds nothing, so nothing is lost: the smallest cut, a bank, and INT4."""
    out = root / "made"
    model, report = load(out / "artifact")
    assert model.spec.text.bank is not None
    assert {"circle", "a small dog", "square"} <= set(model.spec.text.bank.phrases)
    assert replace(model.spec, text=SPEC.text) == sizes(SPEC)["quarter"]
    assert report.precision == "mixed"
    with (out / "shrink.csv").open() as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert list(rows) == [
        "the checkpoint", "weights only", "cut: quarter", "before rounding", "precision for each group"
    ]  # fmt: skip
    held_out = [read_record(out / "steps" / name) for name in ("full", "unrounded", "mixed_1/mixed")]
    assert {record.data.split for record in held_out} == {"test"}
    assert held_out[2].budget.searched_on == "val"
    assert held_out[2].artifact.bytes == int(rows["precision for each group"]["bytes"])
    assert rows["precision for each group"]["segm_drop_low"] != ""
    assert all(float(row["making_seconds"]) > 0 for name, row in rows.items() if name != "weights only")
    page = (out / "README.md").read_text()
    assert "| precision for each group |" in page
    assert "times smaller" in page
    assert "license" in (out / "artifact/README.md").read_text().lower()
    assert made[0].startswith(
        "10 images to fit on, 3 to search with (3 are used), 3 to verify on; drops are points of mAP"
    )
    assert any("min left" in line for line in made)
    assert any(line.startswith("warning: the full model has at most 1 point") for line in made)


def test_shrink__resumes(root: Path, made: list[str]) -> None:
    records = sorted((root / "made/steps").rglob("record.json"))
    before = {path: path.stat().st_mtime_ns for path in records}
    (root / "made/steps/mixed_1/mixed/record.json").unlink()  # killed before the end
    shrink(asked(root, "made"), lambda line: None)
    again = {path for path, time in before.items() if path.stat().st_mtime_ns != time}
    assert again == {root / "made/steps/mixed_1/mixed/record.json"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_drop": None}, r"no budget; give either --max-drop 1\.0 \(points\) or --max-bytes"),
        ({"max_bytes": 10**6}, r"two budgets; give either"),
        ({"max_drop": -1.0}, r"--max-drop -1: expected points in 0\.\.100"),
        ({"phrases": Path("nowhere.txt")}, r"--phrases nowhere\.txt is not a file"),
        ({"search_images": 0}, r"--search-images 0"),
        ({"max_drop": None, "max_bytes": 1000}, r"the smallest that .* takes about [\d,]+ bytes .*allow that much$"),
        (
            {"max_drop": None, "max_bytes": 1000, "keep_architecture": True, "phrases": None},
            r"allow that much, or give --phrases FILE, whose .*, or leave out --keep-architecture",
        ),
    ],
)  # fmt: skip
def test_shrink__bad_input(root: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        shrink(asked(root, "bad", **changes), print)
    assert not (root / "bad/steps").exists()


def test_shrink__a_folder_with_other_results(root: Path, made: list[str]) -> None:
    (root / "other.txt").write_text("square\n")
    for changes, message in (
        ({"checkpoint": str(NANO)}, r"made holds results of another checkpoint .*tiny.*; choose another folder"),
        ({"phrases": root / "other.txt"}, r"made holds results of other phrases"),
    ):
        with pytest.raises(UserError, match=message):
            shrink(replace(asked(root, "made"), **changes), print)
    (root / "used").mkdir()
    (root / "used/mine.txt").write_text("precious")
    with pytest.raises(UserError, match=r"used holds other files; choose a new or empty folder"):
        shrink(asked(root, "used"), print)
    assert [path.name for path in (root / "used").iterdir()] == ["mine.txt"]


def pictures(root: Path, count: int) -> Path:
    folder = root / f"pictures_{count}"
    if not folder.is_dir():
        make_shapes(root / "large", ShapesSpec(train_images=1, val_images=1, test_images=16), progress=False)
        folder.mkdir()
        for file in sorted((root / "large/test").iterdir())[:count]:
            shutil.copy(file, folder)
    return folder


def test_shrink__too_few_images(root: Path) -> None:
    with pytest.raises(UserError, match=r"nothing says what to ask .*give --phrases FILE .*or --annotations JSON"):
        shrink(asked(root, "few", images=pictures(root, 3), phrases=None), print)
    with pytest.raises(UserError, match=r"too few pictures to divide among train, val and test; at least 4"):
        shrink(asked(root, "few", images=pictures(root, 3)), print)
    needed = (
        r"at least 4 images are needed, and 2 of those in .* are for that \(half\); add images, or give --keep-arch"
    )
    with pytest.raises(UserError, match=needed):
        shrink(asked(root, "few", images=pictures(root, 4)), print)


def test_shrink__bytes_take_the_smallest_cut_that_is_needed(root: Path) -> None:
    lines: list[str] = []
    roomy = 310_000  # between what the tiny model and its smallest cut take in INT4, at most
    done = shrink(asked(root, "bytes", max_drop=None, max_bytes=roomy, phrases=None), lines.append)
    assert done.made.bytes <= roomy
    assert load(root / "bytes/artifact")[0].spec == sizes(SPEC)["quarter"]
    record = read_record(root / "bytes/steps/mixed_1/mixed")
    assert record.budget.kept
    assert record.budget.max_bytes == roomy
    assert (
        record.artifact.bytes
        == compress(load(root / "bytes/steps/cut_quarter/slim/artifact")[0], Mixed(record.budget.groups)).file_bytes
    )


def test_shrink__without_annotations_a_plan_that_breaks_on_held_out_images(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search that sees no loss takes INT4 everywhere; the held-out images tell, and the last good step is taken."""
    monkeypatch.setattr(PrecisionEvaluator, "points", lambda self, method: 0.0)
    folder = pictures(root, 16)
    (folder / "broken.png").write_bytes(b"\x89PNG not")
    (root / "shapes.txt").write_text("circle\nsquare\ntriangle\nred circle\n")
    lines: list[str] = []
    spec = ShrinkSpec(
        str(NANO), root / "agreed", folder, root / "shapes.txt", max_drop=0.0, keep_architecture=True, overrides=QUICK
    )
    done = shrink(spec, lines.append)
    text = "\n".join(lines)
    assert "drops are points of agreement with the full model" in text
    assert "1 images cannot be read (first: " in text
    assert "broken.png" in text
    assert "mAP" not in (root / "agreed/README.md").read_text()
    assert "--max-drop 0 could not be met in fewer bits: they lose" in text
    assert "--max-drop " in text.rpartition("was taken; ")[2]
    assert done.selection.chosen.run.folder == root / "agreed/steps/unrounded"  # the bank is exact
    assert read_record(root / "agreed/steps/mixed_0.25/mixed").budget.kept is False


def test_annotations__are_dealt_by_name(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One file of annotations becomes three without common images; the rest of the command is asked for too much."""
    flags = ["--images", str(root / "set/train"), "--annotations", str(root / "set/annotations/instances_train.json")]
    assert main(["shrink", str(root / "tiny"), str(root / "dealt"), *flags, "--max-bytes", "1kB"]) == 2
    assert "the smallest that can be made" in capsys.readouterr().err
    parts = {s: json.loads((root / f"dealt/data/{s}.json").read_text()) for s in ("train", "val", "test")}
    names = {split: {image["file_name"] for image in part["images"]} for split, part in parts.items()}
    assert {split: len(found) for split, found in names.items()} == {"train": 5, "val": 3, "test": 2}
    assert len(set.union(*names.values())) == 10
    for part in parts.values():
        assert {item["image_id"] for item in part["annotations"]} <= {image["id"] for image in part["images"]}


@pytest.mark.parametrize("full", [SPEC, ModelSpec()], ids=["tiny", "full"])
def test_sizes__as_overrides_of_the_method(full: ModelSpec) -> None:
    for small in sizes(full).values():
        assert Slim(model="full", overrides=tuple(as_overrides(small))).target(full) == small
    params = [sum(p.numel() for p in empty_model(small, device="meta").parameters()) for small in sizes(full).values()]
    assert params == sorted(params)


def test_smallest_bytes__are_those_of_the_method() -> None:
    model = tiny_model()
    made = compress(model, Mixed(dict.fromkeys(GROUPS, "int4"))).bytes
    assert smallest_bytes(empty_model(SPEC, device="meta")) == made
