"""Fitting a cut detector: geometry encoder, encoder, decoder and scoring, in the order in which data flow.

The mask head is not cut. To fit it to what the parts in front of it still lack won nothing (EXPERIMENTS.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sam3slim.data.batch import Batch
from sam3slim.models import Sam3
from sam3slim.models.decoder import read_out, step_of
from sam3slim.slimming.axes import STACKS
from sam3slim.slimming.fitting.blocks import (
    Layout,
    Map,
    Pair,
    Side,
    Step,
    arguments,
    attention,
    fit_block,
    fit_stack,
    front,
    mlp,
)
from sam3slim.slimming.plan import Plan
from sam3slim.text.phrases import encode_phrases

LEAST_ROW = 0.05  # weight of a row that no detection needs; one that a certain detection needs has 1 more
RIDGE = 1e-2  # of encoder and decoder: where there is nothing counts for little, so there are few rows
RANDOM_BOXES = 16  # box prompts of an image that a cut geometry encoder is fitted on

GEOMETRY = [*attention("self_attn", "o_proj", "layer_norm2"),
            *attention("cross_attn", "o_proj", "layer_norm3", keys="image"), *mlp()]  # fmt: skip
ENCODER = [*attention("self_attn", "o_proj", "layer_norm2"),
           *attention("cross_attn", "o_proj", "layer_norm3", keys="prompt"), *mlp()]  # fmt: skip
DECODER = [*attention("self_attn", "o_proj", "self_attn_layer_norm"),
           *attention("text_cross_attn", "o_proj", "text_cross_attn_layer_norm", keys="prompt"),
           *attention("vision_cross_attn", "o_proj", "vision_cross_attn_layer_norm", keys="image"),
           *mlp("mlp_layer_norm")]  # fmt: skip
SCORING = [Step(("text_mlp.layer1",)), Step(("text_mlp.layer2",), "text_mlp_out_norm")]


@dataclass(frozen=True)
class Answers:
    """Where the full model finds something in a batch: what the fit is to be exact about.

    Attributes:
        queries: [P, Q] 0..1, each query's score.
        pixels: [P, H·W] 0..1, the score of the best query whose mask holds the pixel of the encoder's map.
    """

    queries: Tensor
    pixels: Tensor

    @classmethod
    def of(cls, source: Sam3, batch: Batch) -> Answers:
        """Ask the full model."""
        out = source(**batch.inputs())
        scores = out.pred_logits.sigmoid() * out.presence_logits.sigmoid()
        found = torch.stack([(score[:, None, None] * masks.sigmoid()).amax(dim=0)
                             for score, masks in zip(scores, out.pred_masks, strict=True)])  # fmt: skip
        grid = out.fpn_hidden_states[-1].shape[-2:]
        return cls(scores, F.adaptive_max_pool2d(found, grid).flatten(1))


class Detector:
    """Both models and the batches, asked with phrases alone; parts are fitted in place, in the order of the methods.

    Memory: both streams of all batches in front of one block, and what else the blocks read.
    """

    def __init__(self, source: Sam3, target: Sam3, plan: Plan, batches: Sequence[Batch], answers: Sequence[Answers]):
        self.source, self.target, self.plan = source, target, plan
        self.batches = [(batch, in_tokens_of(target, batch)) for batch in batches]
        self.answers = answers
        full, mine = source.spec.text.context_length, target.spec.text.context_length
        queries = plan["decoder.queries"].entries().to(next(target.parameters()).device)
        self.queries = queries
        hidden = torch.cat([queries.new_zeros(1), queries + 1])  # the presence token comes first

        def prompt(rows: Tensor) -> Tensor:
            return torch.cat([rows[:, :mine], rows[:, full:]], dim=1)

        self.rows: dict[str, Map] = {"prompt": prompt}
        self.hidden_rows: dict[str, Map] = {"prompt": prompt, "stream": lambda rows: rows[:, hidden]}

    def _each(self, of: Callable[[Sam3, Callable[[], object]], Side]) -> Iterator[tuple[Side, Side, Batch, Answers]]:
        """Of every batch: ``of(model, a call of the model)`` of either model, the slim one's batch, and the answers."""
        for (batch, mine), answers in zip(self.batches, self.answers, strict=True):
            full, slim = (
                of(model, partial(model, **own.inputs())) for model, own in ((self.source, batch), (self.target, mine))
            )
            yield full, slim, mine, answers

    def _fit(self, stack: str, steps: Sequence[Step], pairs: Sequence[Pair], name: str, **how: Any) -> None:
        """Fit a stack whose width is the same in both models; ``how``: more of its ``Layout``."""
        layout = Layout(
            steps,
            self.plan[f"{stack}.blocks"].indices,
            lambda i: {"mlp.fc1": self.plan[f"{stack}[{i}].neurons"].entries().to(self.queries.device)},
            **how,
        )
        prefix = STACKS[stack].removesuffix(".")
        fit_stack(self.source.get_submodule(prefix).children(), self.target.get_submodule(prefix).children(),
                  layout, pairs, name)  # fmt: skip

    def fit_geometry(self) -> None:
        """The geometry encoder's layers, with and without box prompts, which are drawn."""
        generator = torch.Generator().manual_seed(0)
        pairs = []
        for batch, mine in self.batches:
            centres, sizes = (torch.rand(2, len(batch.input_ids), RANDOM_BOXES, 2, generator=generator)).unbind(0)
            boxes = torch.cat([0.1 + 0.8 * centres, 0.05 + 0.45 * sizes], dim=-1).to(self.queries.device)
            labels = torch.randint(0, 2, boxes.shape[:2], generator=generator).to(self.queries.device)
            for more in ({}, {"input_boxes": boxes, "input_boxes_labels": labels}):
                full, slim = (front(model.geometry_encoder.layers[0], partial(model, **own.inputs(), **more))
                              for model, own in ((self.source, batch), (self.target, mine)))  # fmt: skip
                pairs.append(Pair(full, slim))
        self._fit("geometry", GEOMETRY, pairs, "geometry encoder")

    def fit_encoder(self) -> None:
        """The encoder's layers; exact where there are objects."""
        pairs = [
            Pair(full, slim, _weights(mine, answers.pixels), self.rows)
            for full, slim, mine, answers in self._each(lambda model, run: front(model.detr_encoder.layers[0], run))
        ]
        self._fit("encoder", ENCODER, pairs, "encoder", ridge=RIDGE)

    def fit_decoder(self) -> None:
        """The decoder's layers; exact for queries that find something."""
        pairs = [
            Pair(full, slim, _weights(mine, F.pad(answers.queries[:, self.queries], (1, 0), value=1)), self.hidden_rows)
            for full, slim, mine, answers in self._each(_queries)
        ]
        self._fit("decoder", DECODER, pairs, "decoder", absorb=False, merge=False, ridge=RIDGE)

    def fit_scoring(self) -> None:
        """The MLP that reads the prompt."""
        pairs = [
            Pair(full, slim, {"stream": _prompt_weights(mine)}, {"stream": self.rows["prompt"]})
            for full, slim, mine, _ in self._each(_scored)
        ]
        kept = {"text_mlp.layer1": self.plan["scoring.neurons"].entries().to(self.queries.device)}
        fit_block(self.target.dot_product_scoring, self.source.dot_product_scoring, SCORING, pairs, kept=kept)


def _prompt_weights(mine: Batch) -> Tensor:
    """1 for real tokens, of which the geometry encoder's is the last."""
    return F.pad(mine.attention_mask, (0, 1), value=1).float()


def _weights(mine: Batch, needed: Tensor) -> dict[str, Tensor]:
    return {"stream": LEAST_ROW + needed, "prompt": _prompt_weights(mine)}


def in_tokens_of(model: Sam3, batch: Batch) -> Batch:
    """The batch in the tokens of ``model``, without box prompts."""
    ids, mask = (value.to(batch.pixel_values.device) for value in encode_phrases(model.spec.text, batch.phrases))
    return replace(batch, input_ids=ids, attention_mask=mask, input_boxes=None, input_boxes_labels=None)


def _queries(model: Sam3, run: Callable[[], object]) -> Side:
    """The decoder's stream [P, 1 + Q, d + 4]: its queries, and beside them the boxes that its layers refine."""
    (hidden,), called = arguments(model.detr_decoder.layers[0], run)
    decoder, width = model.detr_decoder, model.spec.d_model
    grid = (model.spec.vit.image_size // model.spec.vit.patch_size,) * 2

    def call(layer: Any, stream: Tensor) -> Tensor:
        boxes = stream[:, 1:, width:]
        made = step_of(
            decoder, layer, grid, False, stream[..., :width], boxes, called["text_features"],
            called["vision_features"], called["vision_pos_encoding"], called["text_cross_attn_mask"],
        )  # fmt: skip
        return _with_boxes(made, read_out(decoder, made, boxes)[1])

    boxes = decoder.reference_points.weight.sigmoid().expand(len(hidden), -1, -1)
    return Side(_with_boxes(hidden, boxes), call)


def _with_boxes(hidden: Tensor, boxes: Tensor) -> Tensor:
    """The presence token has none."""
    return torch.cat([hidden, F.pad(boxes, (0, 0, 1, 0))], dim=-1)


def _scored(model: Sam3, run: Callable[[], object]) -> Side:
    """The prompt [P, T, d] on its way through the scoring head."""
    _, called = arguments(model.dot_product_scoring, run)
    return Side(called["text_features"], lambda head, prompt: head(**{**called, "text_features": prompt}))
