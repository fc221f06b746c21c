"""Which parameters no loss of a run depends on, known before its first step.

DDP and FSDP must not wait for a gradient that never comes, and weight decay must not shrink what nothing teaches. Which
parameters these are depends on the losses, on whether the data have masks, and on the architecture. It is not
written down in a list: the run's own losses are computed once on a narrow model of the same layers, and what their
autograd graph does not reach has no gradient in the run either. The answer is the same in every process.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sam3slim.data.batch import Batch, Targets
from sam3slim.distill import DistillSpec, soft_targets
from sam3slim.models import Sam3, build_model, part_of
from sam3slim.models.count import PARTS
from sam3slim.specs import ModelSpec

LossOf = Callable[[Sam3, Batch], Tensor]
# What only boxes pass through. Without any they take part with no rows, which gives gradients of zeros.
BOX_PROMPTS = tuple(
    f"geometry_encoder.{name}."
    for name in ("label_embed", "vision_layer_norm", "boxes_direct_project", "boxes_pool_project",
                 "boxes_pos_enc_project")
)  # fmt: skip
SIDE, TOKENS, WORDS = 32, 8, 600  # pixels, and sizes of the text tower


def unused_parameters(
    spec: ModelSpec, loss_of: LossOf, *, masks: bool, boxes: bool = False, teacher: DistillSpec | None = None
) -> frozenset[str]:
    """Names of the parameters of ``Sam3(spec)`` that have no gradient, or one of zeros, whatever the batch.

    Takes about a second, at any width. Leaves the random state as it was, and computes no gradient: a process that has
    done so cannot fork others that will (``trainer.strategy=ddp_fork``) where there is a GPU.

    Args:
        spec: the architecture that is trained.
        loss_of: the run's loss of a batch, which ``Batch.soft`` brings a teacher's answers of.
        masks: whether the training data have masks.
        boxes: whether there are box prompts.
        teacher: what a teacher teaches; None without one.
    """
    small = narrow(spec)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        model = build_model(small).eval()
        batch = probe_batch(masks=masks)
        if teacher is not None:
            # At this threshold every query is a detection; what kinds of answers there are stays as in the run.
            with torch.no_grad():
                predictions = model(**batch.inputs(), with_masks=teacher.masks)
            soft = soft_targets(predictions, replace(teacher, min_score=1e-6))
            batch = replace(batch, soft=replace(soft, fpn=predictions.fpn_hidden_states if teacher.fpn else ()))
        reached = reached_by(loss_of(model, batch))
    return frozenset(
        name
        for name, parameter in model.named_parameters()
        if id(parameter) not in reached or (not boxes and name.startswith(BOX_PROMPTS))
    )


def unused_parts(names: Iterable[str], unused: Collection[str]) -> list[str]:
    """The parts of the model all of whose parameters, of those called ``names``, no loss depends on."""
    soft = {part_of(name) for name in names if name not in unused}
    return [part for part in PARTS if part not in soft]


def reached_by(loss: Tensor) -> set[int]:
    """``id`` of the leaves of the autograd graph of ``loss``: what gets a gradient in its backward pass."""
    leaves: set[int] = set()
    seen: set[Any] = {loss.grad_fn}
    waiting = [] if loss.grad_fn is None else [loss.grad_fn]
    while waiting:
        node: Any = waiting.pop()
        if hasattr(node, "variable"):
            leaves.add(id(node.variable))
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                waiting.append(following)
    return leaves


def narrow(spec: ModelSpec) -> ModelSpec:
    """The same modules with the same names, as narrow as they can be built."""
    return replace(
        spec,
        vit=replace(
            spec.vit, embed_dim=32, num_heads=2, mlp_ratio=2.0, patch_size=8, image_size=SIDE,
            pretrain_image_size=SIDE, window_size=2, global_attention_blocks=spec.vit.global_blocks,
        ),
        text=replace(
            spec.text, width=32, num_heads=2, mlp_ratio=2.0, context_length=TOKENS, vocab_size=WORDS,
            projection_dim=32, vocabulary=None,
        ),
        decoder=replace(spec.decoder, num_queries=6),
        d_model=32, num_heads=4, ffn_dim=32,
    )  # fmt: skip


def probe_batch(*, masks: bool) -> Batch:
    """Two random images of ``narrow``'s size and three prompts, two of them with instances."""
    ids = torch.randint(0, WORDS - 3, (3, TOKENS))
    ids[:, 0], ids[:, -1] = WORDS - 2, WORDS - 1
    targets = Targets(
        boxes=torch.rand(3, 4) * 0.3 + 0.3,
        masks=torch.rand(3, SIDE, SIDE) > 0.5 if masks else None,
        prompt_index=torch.tensor([0, 0, 1]),
    )
    return Batch(
        pixel_values=torch.rand(2, 3, SIDE, SIDE) * 2 - 1,
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        image_index=torch.tensor([0, 0, 1]),
        category_ids=torch.tensor([1, 2, 1]),
        targets=targets,
        phrases=["a", "b", "a"],
    )
