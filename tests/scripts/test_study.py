"""The study says what was run, what not, and nothing that no record says."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from sam3slim.errors import UserError
from sam3slim.launch.compose import compose_plain
from sam3slim.results.record import Code, Metrics, ModelSummary, RunRecord, Status
from sam3slim.results.recording import config_hash
from sam3slim.specs import ModelSpec
from scripts import steps
from scripts.study import cells, run, table
from scripts.study.cells import Cell, all_cells, axis_cells, table_cells
from scripts.study.results import Result, read_results, write_results

FULL = RunRecord("evaluate", "", model=ModelSummary(params=2_600_000), metrics=Metrics({"segm": {"map": 0.8}}))


def result(cell: str, params: int, value: float) -> Result:
    return Result(cell, int(cell[-1]), params, value, value / 2, "abc", "hash")


def trained(folder: Path, cell: Cell, config: str, status: Status = "finished") -> None:
    RunRecord(
        "train", "", status=status, config_hash=config, model=ModelSummary(params=7),
        metrics=Metrics({"segm": {"map": 0.5}, "bbox": {"map": 0.25}}), git=Code("abc"),
    ).write(folder / cell.name)  # fmt: skip


def test_all_cells__names_are_folders_and_every_group_has_every_seed() -> None:
    names = [cell.name for cell in all_cells()]
    assert len(set(names)) == len(names) == 72
    assert not any(set(name) & set(" /\\:") for name in names)
    seeds = {cell.group: {c.seed for c in table_cells() if c.group == cell.group} for cell in table_cells()}
    assert set(map(frozenset, seeds.values())) == {frozenset(cells.SEEDS)}


def test_all_cells__compose_and_are_as_small_as_their_names_say() -> None:
    nano = ModelSpec.from_dict(compose_plain("train", ["model=nano"])["model"])
    for cell in table_cells()[: len(cells.INITS)] + axis_cells():
        config = compose_plain("train", run.step_of(cell).overrides)
        spec = ModelSpec.from_dict(config["model"])
        assert spec != nano
        assert config["seed"] == cell.seed


def test_study_markdown__shows_spread_and_what_was_not_run() -> None:
    done = {
        name: result(name, params, value)
        for name, params, value in [("half_taylor_full_0", 1_300_000, 70), ("half_taylor_full_1", 1_300_000, 72),
                                    ("half_scratch_full_0", 1_300_000, 40), ("axis_depth_1", 2_400_000, 79)]
    }  # fmt: skip
    text = table.study_markdown(lambda cell: done.get(cell.name), FULL)
    lines = text.splitlines()
    assert lines[0].startswith("| first weights | taught by | half (1,300,000 parameters) |")
    assert "| Taylor | full | 71.0 (70.0 to 72.0) | 88.8 % | not run | – | not run | – |" in lines
    assert "| scratch | full | 40.0 (1 seed of 2) | 50.0 % | not run | – | not run | – |" in lines
    # A size that this teaching is not tried on.
    assert not any(line.startswith("| fitted | features") for line in lines)
    assert "| scratch | features | not run | – | – | – | not run | – |" in lines
    assert "| depth | vit.depth=3 | 2,400,000 | 92.3 % | 79.0 | 1.0 |" in lines
    assert "| text | text.layers=1 | not run | – | – | – |" in lines


def test_write_study__only_between_the_markers(tmp_path: Path) -> None:
    page = tmp_path / "slimming.md"
    page.write_text("before\n<!-- study: begin -->\nold\n<!-- study: end -->\nafter\n")
    done = {"axis_depth_1": result("axis_depth_1", 2_400_000, 79)}
    table.write_study(lambda cell: done.get(cell.name), FULL, page, tmp_path / "t.csv", tmp_path / "p.png")
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert read_results(tmp_path / "t.csv") == done
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    page.write_text("no markers")
    with pytest.raises(ValueError, match="lacks"):
        table.write_study(lambda cell: None, FULL, page, tmp_path / "t.csv", tmp_path / "p.png")


def test_finished__only_the_same_configuration(tmp_path: Path) -> None:
    cell, kept = axis_cells()[0], tmp_path / "t.csv"
    config = config_hash(compose_plain("train", [*run.step_of(cell).overrides, "resume=auto"], tmp_path / cell.name))
    trained(tmp_path, cell, config)
    assert run.finished(cell, tmp_path, kept) == Result(cell.name, 0, 7, 50.0, 25.0, "abc", config)
    assert run.finished(cell, tmp_path, kept, ["trainer.max_steps=7"]) is None
    trained(tmp_path, cell, config, status="interrupted")
    assert run.finished(cell, tmp_path, kept) is None


def test_finished__what_the_table_keeps_of_the_same_configuration(tmp_path: Path) -> None:
    cell, kept, elsewhere = axis_cells()[0], tmp_path / "t.csv", tmp_path / "elsewhere"
    config = config_hash(compose_plain("train", [*run.step_of(cell).overrides, "resume=auto"], tmp_path / cell.name))
    trained(tmp_path, cell, config)
    found = run.finished(cell, tmp_path, kept)
    assert found is not None
    write_results(kept, [found])
    assert run.finished(cell, elsewhere, kept) == found
    assert run.finished(cell, elsewhere, kept, ["trainer.max_steps=7"]) is None
    assert run.finished(axis_cells()[1], elsewhere, kept) is None
    kept.write_text("cell,seed\naxis_depth_1,0\n")
    with pytest.raises(UserError, match=r"t\.csv is not a table of the study"):
        run.finished(cell, elsewhere, kept)


def test_the_projects_table__is_of_the_cells_as_they_are() -> None:
    """A cell whose configuration changed would be shown as not run: run it again, or take its row away."""
    cells_by_name = {cell.name: cell for cell in all_cells()}
    for name, found in read_results(Path("docs/slimming.csv")).items():
        assert run.finished(cells_by_name[name], Path("nowhere"), Path("docs/slimming.csv")) == found


def test_run__another_configuration_is_not_gone_on_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = axis_cells()[0]
    kept = tmp_path / cell.name / "checkpoints/last.ckpt"
    started: list[bool] = []

    def fake(*_: object, **__: object) -> SimpleNamespace:
        started.append(kept.is_file())
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(steps.subprocess, "run", fake)
    for more in ([], ["trainer.max_steps=7"]):
        config = compose_plain("train", [*run.step_of(cell).overrides, "resume=auto"], tmp_path / cell.name)
        RunRecord("train", "", status="interrupted", config_hash=config_hash(config)).write(tmp_path / cell.name)
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.touch()
        run.run_cells([cell], tmp_path, tmp_path / "t.csv", jobs=1, more=more, say=lambda line: None)
    assert started == [True, False]


def test_run_cells__a_failure_is_told_and_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = list(axis_cells()[:3])
    ran: list[str] = []

    def fake(step: steps.Step, out: Path) -> str | None:
        ran.append(step.name)
        return "disk full" if step.name == chosen[1].name else None

    monkeypatch.setattr(steps.Step, "run", fake)
    said: list[str] = []
    failed = run.run_cells(chosen, tmp_path, tmp_path / "t.csv", jobs=2, say=said.append)
    assert failed == {chosen[1].name: "disk full"}
    assert sorted(ran) == sorted(cell.name for cell in chosen)
    assert said[0] == "0 of 3 are finished; 3 to go, 2 at a time"
