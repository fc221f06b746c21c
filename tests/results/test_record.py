from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sam3slim.errors import UserError
from sam3slim.results.record import SCHEMA, Artifact, Data, Drop, Metrics, ModelSummary, RunRecord, plain, read_record
from sam3slim.results.recording import begin, config_hash, finished_record, recording

CONTRACT = {
    "schema", "status", "error", "kind", "command", "config_hash", "git", "versions", "device", "choices",
    "model", "parent", "artifact", "data", "metrics", "drop", "latency_ms",
    "peak_memory_bytes", "seconds", "started",
}  # fmt: skip


def load(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "record.json").read_text())


def test_recording__finished_run_holds_the_contract(tmp_path: Path) -> None:
    with recording(tmp_path, kind="evaluate", command="evaluate.py", choices={"model": "nano"}) as record:
        record.metrics = Metrics({"segm": {"map": 0.5}})
    values = load(tmp_path)
    assert set(values) == CONTRACT
    assert (values["status"], values["error"], values["schema"]) == ("finished", None, SCHEMA)
    assert values["metrics"] == {"segm": {"map": 0.5}}
    assert values["choices"] == {"model": "nano"}
    assert values["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert values["seconds"] >= 0
    assert values["device"]


def test_recording__failed_run_is_written_and_raised(tmp_path: Path) -> None:
    def run() -> None:
        with recording(tmp_path, kind="train", command="c") as record:
            record.model = ModelSummary("nano")
            raise UserError("bad key\nsecond line")

    with pytest.raises(UserError, match="bad key"):
        run()
    values = load(tmp_path)
    assert (values["status"], values["error"]) == ("failed", "bad key")
    assert values["model"] == {"name": "nano"}


def test_recording__unexpected_error_names_its_type(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), recording(tmp_path, kind="train", command="c"):
        raise ZeroDivisionError("division by zero")
    assert load(tmp_path)["error"] == "ZeroDivisionError: division by zero"


def ctrl_c_through_lightning() -> None:
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        raise SystemExit(1)  # noqa: B904 - as Lightning does


class Terminated(SystemExit):
    """As Lightning's SIGTERMException."""


def raise_it(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    ("act", "status"),
    [
        (lambda: raise_it(KeyboardInterrupt()), "interrupted"),
        (ctrl_c_through_lightning, "interrupted"),
        (lambda: raise_it(Terminated()), "interrupted"),
        (lambda: raise_it(SystemExit("broken")), "failed"),
        (lambda: raise_it(SystemExit(0)), "finished"),
    ],
)
def test_recording__ends_from_outside(tmp_path: Path, act: Any, status: str) -> None:
    with pytest.raises(BaseException), recording(tmp_path, kind="train", command="c"):  # noqa: B017, PT011
        act()
    assert load(tmp_path)["status"] == status


def test_recording__killed_run_reads_interrupted(tmp_path: Path) -> None:
    with recording(tmp_path, kind="train", command="c"):
        assert load(tmp_path)["status"] == "interrupted"  # what a kill would leave


def test_recording__a_mistake_leaves_a_finished_record(tmp_path: Path) -> None:
    with recording(tmp_path, kind="train", command="first") as first:
        first.metrics = Metrics({"segm": {"map": 0.5}})
    with pytest.raises(UserError), recording(tmp_path, kind="train", command="mistyped"):
        raise UserError("no such checkpoint")
    assert read_record(tmp_path).command == "first"
    # From the model on it is another run's folder.
    with recording(tmp_path, kind="train", command="second") as second:
        second.model = ModelSummary("nano")
        begin(second, tmp_path)
        during = read_record(tmp_path)
    assert (during.command, during.status, during.model) == ("second", "interrupted", ModelSummary("nano"))
    assert (read_record(tmp_path).command, read_record(tmp_path).status) == ("second", "finished")


def test_recording__a_failure_after_the_model_replaces_a_finished_record(tmp_path: Path) -> None:
    RunRecord("evaluate", "first").write(tmp_path)

    def fails() -> None:
        with recording(tmp_path, kind="evaluate", command="second") as second:
            second.model = ModelSummary("nano")
            raise UserError("an image cannot be read")

    with pytest.raises(UserError):
        fails()
    assert (read_record(tmp_path).command, read_record(tmp_path).status) == ("second", "failed")


def test_recording__body_may_set_a_file_name_and_nan(tmp_path: Path) -> None:
    with recording(tmp_path / "r" / "one.json", kind="train", command="c") as record:
        record.metrics = Metrics({"bbox": {"map": math.nan, "map_50": torch.tensor(0.25), "n": np.int64(3)}})
    read = read_record(tmp_path / "r" / "one.json")
    assert read.metrics == Metrics({"bbox": {"map": None, "map_50": 0.25, "n": 3}})


@pytest.mark.parametrize(("variable", "rank", "written"), [("RANK", "1", False), ("LOCAL_RANK", "0", True)])
def test_recording__only_the_first_process_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, rank: str, written: bool
) -> None:
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, rank)
    with recording(tmp_path, kind="train", command="c"):
        pass
    assert (tmp_path / "record.json").exists() is written


def test_recording__unwritable_folder_stops_before_the_body(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ran = False
    with (
        pytest.raises(UserError, match="cannot write to output folder"),
        recording(tmp_path / "file" / "run", kind="train", command="c"),
    ):
        ran = True
    assert not ran


def test_read_record__round_trip(tmp_path: Path) -> None:
    record = RunRecord(
        kind="compress", command="c", artifact=Artifact(bytes=12), drop={"segm": Drop(0.1, (0.0, 0.2), 5)}
    )
    record.write(tmp_path)
    assert read_record(tmp_path) == record
    assert read_record(tmp_path / "record.json") == record


GOOD = {"schema": 1, "status": "finished", "kind": "train", "command": "c"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "as JSON: "),
        ("[]", "not a run record"),
        ('{"a": 1}', "no integer schema"),
        (json.dumps(GOOD | {"schema": 99}), "schema 99.*up to 1"),
        (json.dumps(GOOD | {"colour": 1}), "unknown keys colour"),
        (json.dumps({"schema": 1, "status": "finished", "kind": "train"}), "no command"),
        (json.dumps(GOOD | {"status": "fine"}), "status='fine' must be one of finished"),
        (json.dumps(GOOD | {"kind": "cook"}), "kind='cook'"),
        (json.dumps(GOOD | {"metrics": [1]}), r"metrics is \[1\], not an object"),
        (json.dumps(GOOD | {"drop": {"segm": 1}}), "is not a run record of schema 1"),
        ("\udcff", "as JSON: "),
    ],
)
def test_read_record__bad_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "record.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=message) as caught:
        read_record(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_read_record__parts_of_older_and_newer_versions(tmp_path: Path) -> None:
    """Records of the first versions lack entries, and a later one may add some."""
    values = GOOD | {
        "model": None, "artifact": {"bytes": 12, "colour": "red"}, "data": {"name": "shapes", "root": None},
        "metrics": {"segm": {"map": 0.5}, "calibration": {"presence_present": 0.9}},
        "drop": {"segm": {"points": 1.0, "ci95": [0.5, 1.5]}, "bbox": {"points": -0.001}, "none": None},
        "latency_ms": {"p50": 3.0},
    }  # fmt: skip
    (tmp_path / "record.json").write_text(json.dumps(values))
    record = read_record(tmp_path)
    assert not record.model
    assert (record.artifact, record.data) == (Artifact(bytes=12), Data(name="shapes"))
    assert record.metrics.calibration == {"presence_present": 0.9}
    assert {name: drop.text() for name, drop in record.drop.items()} == {"segm": "1.00 (0.50 to 1.50)", "bbox": "0.00"}
    again = json.loads(record.write(tmp_path).read_text())
    assert again["metrics"] == values["metrics"]
    assert again["latency_ms"] == {"p50": 3.0}
    assert again["model"] is None


def test_read_record__missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no record at .*record\.json"):
        read_record(tmp_path)


def test_finished_record__none_but_of_this_configuration_and_loud_if_it_cannot_be_read(tmp_path: Path) -> None:
    config = {"seed": 1}
    assert finished_record(tmp_path, config) is None
    with recording(tmp_path, kind="train", command="c", config=config):
        assert finished_record(tmp_path, config) is None
    assert finished_record(tmp_path, config) == read_record(tmp_path)
    assert finished_record(tmp_path, {"seed": 2}) is None
    (tmp_path / "record.json").write_text("{")
    with pytest.raises(UserError, match=r"cannot read .*record\.json as JSON: .*; delete it and run again"):
        finished_record(tmp_path, config)


def test_config_hash__order_and_output_folders_do_not_matter() -> None:
    config: Mapping[str, Any] = {"model": {"depth": 4, "heads": (1, 2)}, "optim": {"lr": 1e-4}}
    other = {"optim": {"lr": 1e-4}, "hydra": {"run": {"dir": "x"}}, "model": {"heads": [1, 2], "depth": 4}}
    other["callbacks"] = {"dirpath": "/somewhere"}
    assert config_hash(dict(config) | {"callbacks": {}}) == config_hash(other)
    assert len(config_hash(config)) == 64


def test_config_hash__a_value_matters() -> None:
    assert config_hash({"lr": 1e-4}) != config_hash({"lr": 2e-4})
    assert config_hash({"a": {"b": 0}}) != config_hash({"a": {}})


def test_config_hash__a_new_option_that_is_off_changes_nothing() -> None:
    assert config_hash({"a": {"b": None}}) == config_hash({"a": {}})
    assert config_hash({"a": {"b": None}}) != config_hash({"a": {"b": False}})


def test_plain__paths_sets_arrays_and_dataclasses() -> None:
    record = RunRecord(kind="train", command="c")
    value = {
        1: Path("a/b"),
        "s": {2, 1},
        "t": torch.tensor([1.5, math.inf]),
        "b": np.bool_(True),
        "r": record,
    }
    result = plain(value)
    assert result["1"] == "a/b"
    assert result["s"] == [1, 2]
    assert result["t"] == [1.5, None]
    assert result["b"] is True
    assert result["r"]["command"] == "c"
    json.dumps(result, allow_nan=False)
