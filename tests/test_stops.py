"""train.py that is stopped, or ended by one of its processes."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from torch.multiprocessing.spawn import ProcessRaisedException

from sam3slim.data.batch import Batch
from sam3slim.errors import UserError
from sam3slim.results.record import read_record
from sam3slim.runs.train import bad_input_of
from sam3slim.training import ConceptSegmentation
from tests.tiny_runs import QUICK, train


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stops")


def test_train__stopped_in_the_last_step_still_validates_it(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = ConceptSegmentation.training_step

    def stopping(module: ConceptSegmentation, batch: Batch, batch_idx: int) -> torch.Tensor:
        if module.global_step == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return step(module, batch, batch_idx)

    given = ["trainer.max_steps=4", "trainer.val_check_interval=4"]
    with monkeypatch.context() as patch:
        patch.setattr(ConceptSegmentation, "training_step", stopping)
        with pytest.raises(KeyboardInterrupt):
            train(root, "last_step", *given)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    best = torch.load(root / "last_step/checkpoints/best.ckpt", weights_only=True)
    assert best["global_step"] == 4


@pytest.mark.parametrize("steps", [4, 2])
def test_train__stopped_in_a_validation_loses_none_of_it(
    root: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    """The best weights of a run that goes on are those of an undisturbed one, also after the last validation."""
    given = [f"trainer.max_steps={steps}", "trainer.val_check_interval=2", "data.eval_batch_size=2"]
    _, straight = train(root, f"undisturbed_{steps}", *given)
    validate = ConceptSegmentation.validation_step
    batches: list[int] = []

    def stopping(module: ConceptSegmentation, batch: Batch, batch_idx: int) -> None:
        validate(module, batch, batch_idx)
        batches.append(module.global_step)
        if len(batches) == 1:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(ConceptSegmentation, "validation_step", stopping)
        with pytest.raises(KeyboardInterrupt):
            train(root, f"halted_{steps}", *given)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    assert batches == [2, 2]  # both batches, though the signal came in the first
    assert read_record(root / f"halted_{steps}").status == "interrupted"
    last = torch.load(root / f"halted_{steps}/checkpoints/last.ckpt", weights_only=True)
    assert last["global_step"] == 2
    record, halted = train(root, f"halted_{steps}", *given, "resume=auto")
    assert record.status == "finished"
    best = [torch.load(out / "checkpoints/best.ckpt", weights_only=True) for out in (straight, halted)]
    assert best[0]["global_step"] == best[1]["global_step"]
    for key, value in best[0]["state_dict"].items():
        assert torch.equal(best[1]["state_dict"][key], value), key


@pytest.mark.parametrize(
    ("last", "message"),
    [
        ("sam3slim.errors.UserError: data.root=x does not exist: make it", "data.root=x does not exist: make it"),
        ("sam3slim.checkpoints.load_report.CheckpointError: it is damaged", "it is damaged"),
        ("KeyError: 3", None),
        (
            "RuntimeError: Unable to handle autograd's threading in combination with fork-based multiprocessing. "
            "See https://github.com/pytorch/pytorch/wiki/Autograd-and-Fork",
            "trainer.strategy=ddp_fork cannot be used: on a machine with a GPU, a process that has computed gradients "
            "(init.importance=taylor does) cannot fork others that will; set trainer=cpu, or trainer=ddp "
            "trainer.accelerator=cpu trainer.precision=32-true trainer.devices=2, whose processes start anew",
        ),
    ],
)
def test_bad_input_of__a_forked_process(last: str, message: str | None) -> None:
    text = (
        f"\n\n-- Process 1 terminated with the following error:\nTraceback (most recent call last):\n  File x\n{last}\n"
    )
    found = bad_input_of(ProcessRaisedException(text, 1, 7))
    assert (None if found is None else str(found)) == message


def test_train__bad_input_in_forked_processes_is_one_line(root: Path) -> None:
    given = ["trainer=cpu_ddp", *QUICK, "optim.lr=1e30", "optim.clip=0", "schedule.warmup_steps=0"]
    with pytest.raises(UserError, match="training has diverged"):
        train(root, "forked", *given)
    assert "training has diverged" in (read_record(root / "forked").error or "")
