"""The teacher is the model that its file means."""

from __future__ import annotations

from pathlib import Path

from sam3slim.artifacts.reference_file import reference_tensors, write_reference
from sam3slim.distill import FrozenTeacher
from sam3slim.launch.compose import compose_plain
from sam3slim.runs.specs import TrainSpec
from sam3slim.runs.teacher import overrides_of, teacher_of, training_data
from sam3slim.specs import ModelSpec
from sam3slim.strict import spec_from_dict
from tests.tiny import OVERRIDES, tiny_model
from tests.tiny_runs import SLIMMER, data


def test_teacher__reads_what_its_file_does_not_tell_as_the_student_does(tmp_path: Path) -> None:
    full = tiny_model(0)
    write_reference(tmp_path / "teacher.pt", reference_tensors(full.spec, full.state_dict()))
    given = [
        *OVERRIDES,
        *data(tmp_path),
        *SLIMMER,
        "init=pruned",
        f"init.checkpoint={tmp_path / 'teacher.pt'}",
        "distill=full",
    ]
    heads = full.spec.text.num_heads
    assert heads > 1  # from the width alone one would be taken

    def teacher(*more: str) -> ModelSpec:
        spec = spec_from_dict(TrainSpec, compose_plain("train", [*given, *more], tmp_path), "")
        found = teacher_of(spec, training_data(spec))
        assert isinstance(found, FrozenTeacher)
        return found.model_spec

    assert teacher(f"init.overrides={{text.num_heads:{heads}}}").text.num_heads == heads
    assert teacher(f"distill.overrides={{text.num_heads:{heads}}}").text.num_heads == heads
    other = [f"init.overrides={{text.num_heads:{heads}}}", "distill.teacher=" + str(tmp_path / "full")]
    spec = spec_from_dict(TrainSpec, compose_plain("train", [*given, *other], tmp_path), "")
    assert overrides_of(spec) is None
