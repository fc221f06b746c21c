"""Parameters without a gradient are known beforehand: they are those that a real backward pass leaves out."""

from __future__ import annotations

import os
from dataclasses import replace
from fnmatch import fnmatchcase

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from sam3slim.data.batch import Batch, Targets
from sam3slim.distill import DistillSpec, FrozenTeacher
from sam3slim.errors import UserError
from sam3slim.losses import Criterion, LossSpec
from sam3slim.models import Sam3, build_model
from sam3slim.specs import ModelSpec
from sam3slim.training import ConceptSegmentation, OptimSpec, ScheduleSpec
from sam3slim.training.unused import BOX_PROMPTS, narrow, unused_parameters, unused_parts
from tests.distill.lessons import EVERYTHING, phrase_batch
from tests.processes import run_two
from tests.tiny import SPEC, tiny_model

FEATURES = DistillSpec("x", fpn=1.0, memory=1.0)
NO_MASKS = LossSpec(mask=0, dice=0, semantic_focal=0, semantic_dice=0)
UNSURE = replace(EVERYTHING, min_score=0.999)
# (loss weights or None without labels, one-to-many, teacher, masks in the data)
LESSONS = {
    "labels": (LossSpec(), True, None, True),
    "labels, one to one": (LossSpec(), False, None, True),
    "boxes": (LossSpec(), True, None, False),
    "boxes, one to one": (LossSpec(), False, None, False),
    "masks of weight 0": (NO_MASKS, True, None, True),
    "semantic map of weight 0": (LossSpec(semantic_focal=0, semantic_dice=0), True, None, True),
    "presence of weight 0": (LossSpec(presence=0), True, None, True),
    "branch of weight 0": (LossSpec(o2m=0), True, None, True),
    "labels and features": (LossSpec(), True, FEATURES, True),
    "boxes and features": (LossSpec(), True, FEATURES, False),
    "boxes and everything": (LossSpec(), True, EVERYTHING, False),
    "features": (None, True, FEATURES, False),
    "maps": (None, True, DistillSpec("x", fpn=1.0), False),
    "memory": (None, True, DistillSpec("x", memory=1.0), False),
    "presence": (None, True, DistillSpec("x", presence=1.0), False),
    "everything": (None, True, EVERYTHING, False),
    "nothing detected": (None, True, UNSURE, False),
    "no masks": (None, True, replace(EVERYTHING, mask=0.0, dice=0.0, semantic=0.0), False),
    "no map": (None, True, replace(EVERYTHING, semantic=0.0), False),
}


def student(lesson: str, freeze: tuple[str, ...] = ()) -> ConceptSegmentation:
    weights, many, teacher, masks = LESSONS[lesson]
    model = tiny_model()
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():  # no weight at zero, behind which gradients are zero
            parameter.add_(0.05 * torch.randn_like(parameter))
    return ConceptSegmentation(
        model,
        None if weights is None else Criterion(weights),
        OptimSpec(freeze=freeze),
        ScheduleSpec(),
        one_to_many=many,
        teacher=None if teacher is None else FrozenTeacher(tiny_model(7), teacher, SPEC),
        masks=masks,
    )


def batch_of(lesson: str, *, targets: bool = True, seed: int = 0) -> Batch:
    batch = phrase_batch(seed)
    found = batch.targets
    masks = found.masks if LESSONS[lesson][3] else None
    if not targets:
        found, masks = Targets(found.boxes[:0], None, found.prompt_index[:0]), None if masks is None else masks[:0]
    return replace(batch, targets=replace(found, masks=masks))


def loss_of(net: ConceptSegmentation, batch: Batch) -> torch.Tensor:
    return net._probe_loss(net.model, replace(batch, soft=net.teacher and net.teacher.targets(batch)))


def gradients(net: ConceptSegmentation, batch: Batch) -> dict[str, torch.Tensor | None]:
    """Of every parameter, whatever is frozen."""
    net.model.requires_grad_(True)
    net.zero_grad()
    loss_of(net, batch).backward()
    return {name: parameter.grad for name, parameter in net.model.named_parameters()}


@pytest.mark.parametrize("lesson", LESSONS)
def test_unused__exactly_what_a_backward_pass_leaves_out(lesson: str) -> None:
    net = student(lesson)
    frozen = {name for name, parameter in net.model.named_parameters() if not parameter.requires_grad}
    assert frozen == net.unused
    found = gradients(net, batch_of(lesson))
    expected = {name for name, grad in found.items() if grad is None or not grad.any()}
    if lesson == "nothing detected":  # a zero that the next batch need not have
        expected = {name for name, grad in found.items() if grad is None or name.startswith(BOX_PROMPTS)}
    # Of a token that attends to itself alone these are 0 but for rounding, which processors do differently.
    lone = {name for name in found if fnmatchcase(name, "geometry_encoder.layers.*.self_attn.[qk]_proj.*")}
    expected -= {name for name in lone if found[name] is not None}
    assert net.unused == expected
    # Batches differ in what they teach, not in which gradients there are: no process waits for another.
    alone = gradients(net, batch_of(lesson, targets=False))
    missing = {name for name, grad in found.items() if grad is None}
    assert {name for name, grad in alone.items() if grad is None} == missing


def test_unused__counts_of_the_cases_that_used_to_stop() -> None:
    """SAM 3's own layers: neck maps and the mask head on boxes; all behind the encoder on features."""
    constant = student("labels").unused
    boxes = student("boxes").unused - constant
    assert sum(name.startswith("vision_encoder.neck.") for name in boxes) == 14
    assert sum(name.startswith("mask_decoder.") for name in boxes) == len(boxes) - 14 == 28
    names = [name for name, _ in tiny_model().named_parameters()]
    assert unused_parts(names, boxes) == []  # two tensors of the mask head have no gradient with masks, either
    assert unused_parts(names, student("boxes").unused) == ["mask"]
    assert unused_parts(names, student("features").unused) == ["decoder", "mask", "scoring"]
    assert unused_parts(names, student("maps").unused) == [
        "text", "geometry", "encoder", "decoder", "mask", "scoring"
    ]  # fmt: skip


def test_unused__same_layers_at_full_size() -> None:
    full = ModelSpec()
    assert names_of(narrow(full)) == names_of(full)

    def loss(model: Sam3, batch: Batch) -> torch.Tensor:
        total: torch.Tensor = Criterion()(model(**batch.inputs(), one_to_many=True), batch.targets)["loss"]
        return total

    found = unused_parameters(full, loss, masks=True)
    assert found == student("labels").unused
    assert unused_parameters(full, loss, masks=True, boxes=True) == {
        name for name in found if not name.startswith(BOX_PROMPTS)
    }


def names_of(spec: ModelSpec) -> set[str]:
    return {name for name, _ in build_model(spec, device="meta").named_parameters()}


def test_unused__leaves_the_random_state() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    unused_parameters(SPEC, lambda model, batch: model(**batch.inputs()).layer_logits.sum(), masks=True)
    assert torch.equal(torch.rand(3), expected)


def test_module__nothing_left_to_train() -> None:
    """Boxes teach all but the mask head; all but the mask head is frozen."""
    others = ("vision", "text", "geometry", "encoder", "decoder", "scoring")
    student("labels", freeze=others)
    with pytest.raises(UserError, match=r"nothing is left to train: .*optim\.freeze="):
        student("boxes", freeze=others)


def one_process(rank: int, port: int) -> None:
    """The second process has no target; DDP raises when a gradient of the step before has not come."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    for lesson in ("boxes", "features", "everything"):
        net = student(lesson, freeze=("text",))
        net.forward = lambda batch, net=net: loss_of(net, batch)  # type: ignore[method-assign]
        parallel = DistributedDataParallel(net)
        for step in range(2):
            parallel(batch_of(lesson, targets=rank == 0, seed=step)).backward()
        for name, parameter in net.model.named_parameters():
            assert (parameter.grad is None) == (name in net.unused or name.startswith("text_")), (lesson, name)
    torch.distributed.destroy_process_group()


def test_ddp__waits_for_no_gradient_that_does_not_come(unused_port: int) -> None:
    run_two(one_process, unused_port)
