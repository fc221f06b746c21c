"""Commands as a user types them; entry points run in this process, trials too where a test looks at what they got."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import make_dataclass
from pathlib import Path
from typing import Any

import pytest
from hydra.errors import MissingConfigException

from sam3slim import cli, runs
from sam3slim.errors import UserError
from sam3slim.launch import child, sweep
from sam3slim.launch.command import main
from sam3slim.launch.compose import CONFIG_DIR, compose_plain, conf_dir
from sam3slim.launch.run import Run, RunCommand, Task
from sam3slim.results.record import read_record

ROOT = Path(__file__).resolve().parents[2]


Anything = make_dataclass("Anything", [(key, Any, None) for key in compose_plain("train")])  # all keys, any value


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., tuple[int, str, list[Any]]]]:
    """Call ``main`` for ``train`` in an empty folder: exit status, stderr and the runs of the jobs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(child, "FORKS", False)
    handlers = logging.getLogger().handlers[:]

    def call(
        *argv: str,
        job: Callable[[Mapping[str, Any]], Any] = lambda _: None,
        check: Callable[[Mapping[str, Any]], None] = lambda _: None,
        out: bool = False,
    ) -> tuple[int, str, list[Run]]:
        jobs: list[Run] = []

        def work(_: Anything, run: Run) -> Any:
            jobs.append(run)
            return job(run.config)

        capsys.readouterr()
        try:
            main(RunCommand("train", lambda: Task(Anything, work, lambda spec: check(vars(spec)))), argv)
            status = 0
        except SystemExit as error:
            status = int(error.code or 0)
        printed = capsys.readouterr()
        return status, printed.out if out else printed.err, jobs

    yield call
    logging.getLogger().handlers[:] = handlers


def test_main__what_a_job_gets(run: Any, tmp_path: Path) -> None:
    status, err, [job] = run("model/encoder=l2", "hydra.run.dir=out dir")
    output_dir, plain, choices = job.folder, job.config, job.choices
    assert (status, err) == (0, "")
    assert output_dir == tmp_path / "out dir"
    assert plain["output_dir"] == str(output_dir)
    assert plain["model"]["encoder"] == {"num_layers": 2}
    assert choices == choices | {"model": "nano", "model/encoder": "l2", "data": "shapes"}
    assert "experiment" not in choices
    assert job.command == "python train.py model/encoder=l2"
    assert (output_dir / ".hydra" / "config.yaml").is_file()


def test_main__default_folder_and_environment(run: Any, tmp_path: Path) -> None:
    before = dict(os.environ)
    _, _, [job] = run("name=mine")
    assert job.folder.parent == tmp_path / "outputs" / "mine"
    assert dict(os.environ) == before


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("model=nanno", "error: unknown option model=nanno; did you mean model=nano?"),
        ("optim.lrr=1", "error: unknown key optim.lrr; did you mean optim.lr?"),
        ("model.vit.embed_dim=500 model.vit.num_heads=4",
         "error: model.vit.embed_dim=500 gives heads of size 125, and RoPE needs a multiple of 4; use "
         "model.vit.embed_dim=496 or 512"),
        ("model.encoder=l4", "error: model.encoder must be a group of keys, got 'l4'; to choose an option write "
         "model/encoder=l4"),
        ("+model.vit.foo=1", "error: unknown key model.vit.foo"),
    ],
)  # fmt: skip
def test_main__bad_input(run: Any, tmp_path: Path, argument: str, message: str) -> None:
    status, err, jobs = run(*argument.split())
    assert (status, jobs) == (2, [])
    assert err.startswith(message)
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_main__bad_input_of_a_sweep(run: Any, tmp_path: Path) -> None:
    status, err, jobs = run("-m", "model=nano,nanno")
    assert (status, jobs) == (2, [])
    options = ", ".join(sorted(path.stem for path in (conf_dir() / "model").glob("*.yaml")))
    assert err == f"error: unknown option model=nanno; did you mean model=nano? available: {options}\n"


def test_main__check_comes_before_any_folder(run: Any, tmp_path: Path) -> None:
    def check(plain: dict[str, Any]) -> None:
        raise UserError(f"optim.lr={plain['optim']['lr']} is bad")

    assert run("optim.lr=7", check=check) == (2, "error: optim.lr=7 is bad\n", [])
    assert list(tmp_path.iterdir()) == []


def raise_user_error(plain: dict[str, Any]) -> None:
    raise UserError(f"data.root={plain['data']['root']}\n is empty")


def test_main__user_error_in_the_job(run: Any) -> None:
    status, err, _ = run("data.root=foo", job=raise_user_error)
    assert (status, err) == (2, "error: data.root=foo is empty\n")


def test_main__unwritable_output(run: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    status, err, jobs = run("hydra.run.dir=file/run")
    assert (status, jobs) == (2, [])
    assert err.startswith(
        "error: cannot write to output folder file/run: Not a directory; choose another with hydra.run"
    )
    assert err.count("\n") == 1


def test_main__interrupt(run: Any) -> None:
    def interrupt(_: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    assert run(job=interrupt)[:2] == (130, "interrupted\n")


@pytest.mark.parametrize("error", [KeyError("bug"), OSError("disk")])
def test_main__bugs_keep_their_traceback(run: Any, error: Exception) -> None:
    def fail(_: dict[str, Any]) -> None:
        raise error

    with pytest.raises(type(error), match=r"bug|disk"):
        run(job=fail)


def test_main__sweep_goes_on_after_a_failed_job(run: Any, tmp_path: Path) -> None:
    def fail_first(plain: dict[str, Any]) -> None:
        if plain["name"] == "nano":
            raise UserError("nano is bad")

    status, err, jobs = run("-m", "model=nano,nano_slim", job=fail_first)
    assert status == 2
    assert [job.config["name"] for job in jobs] == ["nano", "nano_slim"]
    assert re.match(r"error: trial 0, model-nano_[0-9a-f]{10}: nano is bad\n", err)
    assert "Traceback" not in err
    assert {job.folder.parent for job in jobs} == {tmp_path / "outputs/sweep/nano"}
    record = read_record(jobs[0].folder)
    assert (record.status, record.error, record.kind) == ("failed", "nano is bad", "train")
    assert record.command == "python train.py model=nano"


@pytest.mark.parametrize("limit", [(), ("hydra.sweeper.max_batch_size=1",)])
def test_main__sweep_with_an_impossible_architecture(run: Any, limit: tuple[str, ...]) -> None:
    status, err, jobs = run("-m", "model.vit.embed_dim=128,500,64", *limit)
    assert status == 2
    assert [job.config["model"]["vit"]["embed_dim"] for job in jobs] == [128, 64]
    assert err.startswith("error: trial 1, embed_dim-500_")
    folders = list((jobs[0].folder.parent).glob("embed_dim-500_*"))
    assert "RoPE needs a multiple of 4" in str(read_record(folders[0]).error)


def test_main__a_bug_in_a_trial_is_a_row_too(run: Any) -> None:
    def fail(plain: dict[str, Any]) -> None:
        raise KeyError("bug")

    status, err, jobs = run("-m", "seed=1,2", job=fail)
    assert (status, len(jobs)) == (2, 2)
    assert "Traceback" in err
    assert read_record(jobs[1].folder).error == "KeyError: 'bug'"


def test_main__sweep_ends_with_one_line(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    status, err, jobs = run("-m", "seed=1,2", "model=nano", "name=mine", out=True)
    assert (status, len(jobs)) == (0, 2)
    assert err.splitlines()[-1] == "2 trials: 2 finished; compare them: sam3slim compare outputs/sweep/mine"
    assert not list(jobs[0].folder.parent.glob(".trials"))


def test_main__trial_folders_are_those_of_their_configuration(run: Any) -> None:
    first = [job.folder for job in run("-m", "seed=1,2", "optim.lr=0.1")[2]]
    again = [job.folder for job in run("optim.lr=0.1", "seed=2,3,1", "-m")[2]]
    assert again == [first[1], again[1], first[0]]
    assert again[1] not in first
    moved = [job.folder for job in run("-m", "seed=1", "optim.lr=0.1", 'hydra.sweep.dir="it\'s here"')[2]]
    assert [folder.name for folder in moved] == [first[0].name.removeprefix("seed-1_")]  # nothing varies
    assert moved[0].parent.name == "it's here"


def test_main__trials_resume_by_themselves(run: Any) -> None:
    jobs = run("-m", "seed=1,2", "resume=null")[2] + run("-m", "seed=1", "resume=some.ckpt")[2]
    assert [job.config["resume"] for job in jobs] == ["auto", "auto", "some.ckpt"]
    assert run("seed=1")[2][0].config["resume"] is None


def test_main__sweep_file_starts_a_sweep_and_takes_more_values(run: Any) -> None:
    status, _, jobs = run("sweep=nano_depth", "seed=0,1")
    assert status == 0
    assert sorted((job.config["model"]["vit"]["depth"], job.config["seed"]) for job in jobs) == [
        (depth, seed) for depth in (2, 3, 4) for seed in (0, 1)
    ]
    assert jobs[0].folder.parent.name == "sweep_nano_depth"


def test_main__unknown_sweep_file(run: Any, tmp_path: Path) -> None:
    status, err, jobs = run("sweep=nano_sizs")
    assert (status, jobs) == (2, [])
    assert err.startswith("error: unknown option sweep=nano_sizs; did you mean sweep=nano_sizes? available: ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["cost=latency", "latency=false"], "cost=latency minimises what latency=false does not measure; "),
        (["cost=latency", "eval_at_end=false"], "cost=latency is measured when the model is evaluated, "),
        (["cost=flops"], "cost=flops is not known; choose from bytes, latency"),
    ],
)
def test_main__a_sweep_for_a_latency_that_nothing_measures(
    run: Any, tmp_path: Path, overrides: list[str], message: str
) -> None:
    status, err, jobs = run("-m", "seed=1,2", *overrides)
    assert (status, jobs) == (2, [])
    assert err.startswith(f"error: {message}")
    assert list(tmp_path.iterdir()) == []


def test_refuse_side_by_side__latencies_of_trials_that_share_a_machine() -> None:
    basic = {"_target_": "hydra._internal.core_plugins.basic_launcher.BasicLauncher"}
    joblib = {"_target_": "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher", "n_jobs": 2}
    local = {"_target_": "hydra_plugins.hydra_submitit_launcher.submitit_launcher.LocalLauncher"}
    slurm = {"_target_": "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher"}
    for launcher, sweeper in (
        (basic, {"n_jobs": 2}),
        (slurm, {}),
        (joblib, {"n_jobs": 1}),
        (joblib | {"n_jobs": 1}, {}),
    ):
        sweep.refuse_side_by_side(launcher, sweeper, "latency=false")
    for launcher, sweeper, fix in (
        (joblib, {}, r"JoblibLauncher with hydra\.launcher\.n_jobs=2 .*; set hydra\.launcher\.n_jobs=1, or"),
        (joblib, {"n_jobs": 3}, r"hydra\.sweeper\.n_jobs=3 .*; set hydra\.sweeper\.n_jobs=1, or"),
        (local, {}, "LocalLauncher runs trials side by side.*; set hydra/launcher=basic, or"),
    ):
        with pytest.raises(UserError, match=fix):
            sweep.refuse_side_by_side(launcher, sweeper, "latency=false")


@pytest.mark.parametrize("command", ["evaluate", "compress"])
def test_sweep_of__latencies_side_by_side(command: str) -> None:
    """Both measure one unless they are told not to."""
    joblib = "hydra.launcher._target_=hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher"
    given = ["checkpoint=a,b", joblib, "++hydra.launcher.n_jobs=2"]
    with pytest.raises(UserError, match=r"set hydra\.launcher\.n_jobs=1, or measure none \(latency=false\)"):
        sweep.sweep_of(command, given, multirun=True)
    assert isinstance(sweep.sweep_of(command, [*given, "latency=false"], multirun=True), sweep.Sweep)
    assert isinstance(sweep.sweep_of(command, [*given, "++hydra.launcher.n_jobs=1"], multirun=True), sweep.Sweep)


def test_main__unwritable_sweep_folder(run: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    status, err, jobs = run("-m", "seed=1,2", "hydra.sweep.dir=file/sweep")
    assert (status, jobs) == (2, [])
    assert re.fullmatch(
        r"error: cannot write to output folder .*/file/sweep: Not a directory; choose another with "
        r"hydra\.sweep\.dir=DIR\n", err
    )  # fmt: skip


@pytest.mark.parametrize(
    ("override", "extra"),
    [("hydra/launcher=ray", "ray"), ("hydra/sweeper=optuna", "search"), ("hydra/launcher=submitit_slurm", "slurm")],
)
def test_main__plugin_that_is_not_installed(
    run: Any, monkeypatch: pytest.MonkeyPatch, override: str, extra: str
) -> None:
    group, _, option = override.partition("=")

    def not_found(*_: Any, **__: Any) -> None:
        raise MissingConfigException(f"Could not find '{group}/{option}'", f"{group}/{option}", ["basic"])

    monkeypatch.setattr(sweep, "compose", not_found)
    assert run("-m", "seed=1,2", override) == (
        2, f"error: {override} needs a plugin that is not installed; pip install 'sam3slim[{extra}]'\n", []
    )  # fmt: skip


@pytest.mark.parametrize(
    ("environment", "arguments", "message"),
    [
        ({"RANK": "1", "WORLD_SIZE": "16"}, ["seed=1"], "this run is 16 processes (WORLD_SIZE), which need one folder"),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, ["seed=1"], "this run is 8 processes (SLURM_NTASKS), which need"),
        ({"RANK": "1", "WORLD_SIZE": "2"}, ["-m", "seed=1"], "a sweep started as 2 processes (WORLD_SIZE): each would"),
    ],
)
def test_main__several_processes_need_one_folder(
    run: Any, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], arguments: list[str], message: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    status, err, jobs = run(*arguments)
    assert (status, jobs) == (2, [])
    assert err.startswith(f"error: {message}")
    assert run("seed=1", "hydra.run.dir=here")[0] == 0


def test_main__flags_of_hydra(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    status, err, jobs = run("--cfg", "job", "--package", "optim")
    assert (status, err, jobs) == (0, "", [])


def test_train_script__bad_input_is_answered_before_anything_is_made(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "model=full", "model.vit.image_size=1001"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        "error: model.vit.image_size=1001 is not a multiple of model.vit.patch_size=14; use 994 or 1008\n"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("trainer=cpu_ddp", r"trainer\.devices=2"),
        ("trainer=ddp", r"trainer\.devices=-1"),
        ("trainer.num_nodes=2", r"trainer\.num_nodes=2"),
    ],
)
def test_main__sweep_of_several_processes_is_refused(run: Any, override: str, key: str) -> None:
    status, err, jobs = run("-m", "model=nano,nano_slim", override)
    assert (status, jobs) == (2, [])
    assert re.search(rf"error: {key} in a sweep \(-m\): .*one device per job", err)
    assert err.count("\n") == 1


def test_main__own_groups_from_a_folder(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CONFIG_DIR, "")
    for name in ("vit", ""):
        (tmp_path / "own/model" / name).mkdir(parents=True, exist_ok=True)
    (tmp_path / "own/model/vit/thin.yaml").write_text("defaults: [nano, _self_]\ndepth: 1\n")
    status, err, jobs = run("model/vit=thin", "--config-dir", "own")
    assert (status, err, jobs[0].config["model"]["vit"]["depth"]) == (0, "", 1)
    status, err, jobs = run("-m", "model/vit=thin,nano", "-cd", "own")
    assert [job.config["model"]["vit"]["depth"] for job in jobs] == [1, 4]
    status, err, _ = run("model/vit=thinn", "-cd", "own")
    assert err.startswith("error: unknown option model/vit=thinn; did you mean model/vit=thin? available: d16, ")
    assert run("-cd", "nowhere")[:2] == (
        2, "error: --config-dir nowhere is not a folder; give one with groups such as model/\n"
    )  # fmt: skip


@pytest.mark.parametrize("flag", ["--config-name=x", "--experimental-rerun", "--foo"])
def test_main__flags_that_are_not_known(run: Any, flag: str) -> None:
    status, err, jobs = run("seed=1", flag)
    assert (status, jobs) == (2, [])
    assert err.startswith(f"error: unknown flag {flag}; known: -m, ")


def test_main__as_a_subcommand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[Run] = []
    task = Task(Anything, lambda spec, run: seen.append(run))
    monkeypatch.setitem(runs.COMMANDS, "train", RunCommand("train", lambda: task))
    assert cli.main(["train", "seed=3", f"hydra.run.dir={tmp_path}"]) == 0
    assert (seen[0].command, seen[0].config["seed"]) == ("sam3slim train seed=3", 3)
