"""Fitting a cut text tower on the phrases of the data."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from sam3slim.models import Sam3
from sam3slim.slimming.fitting.blocks import Pair, capture, front, set_linear
from sam3slim.slimming.fitting.towers import Tower, plain
from sam3slim.slimming.least_squares import LeastSquares
from sam3slim.slimming.plan import Plan
from sam3slim.text.phrases import encode_phrases

AT_ONCE = 64  # phrases


class TextTower(Tower):
    """The text tower with tokens, positions and its projection."""

    def __init__(self, source: Sam3, target: Sam3, plan: Plan) -> None:
        super().__init__(source, target, plan, "text")
        self.source, self.target = source, target

    def fit_all(self, phrases: Sequence[str]) -> None:
        """Fit to some phrases; in place."""
        distinct = sorted(set(phrases))
        parts = [distinct[start : start + AT_ONCE] for start in range(0, len(distinct), AT_ONCE)]
        full, slim = ([tuple(value.to(self.device) for value in encode_phrases(model.spec.text, part))
                       for part in parts] for model in (self.source, self.target))  # fmt: skip
        self._turn(full)
        context = self.target.spec.text.context_length
        rows = {"stream": lambda stream: stream[:, :context]}
        pairs = [
            Pair(
                front(self.full[0], partial(self.source.text_encoder, *tokens)),
                front(self.slim[0], partial(self.target.text_encoder, *mine)),
                {"stream": mine[1].float()},
                rows,
            )
            for tokens, mine in zip(full, slim, strict=True)
        ]
        self.fit(pairs, "text tower")
        projections = {"projection": self.target.text_projection}, {"projection": self.source.text_projection}
        fit = LeastSquares(self.target.text_projection.weight, self.target.text_projection.bias)
        for pair, tokens, mine in zip(pairs, full, slim, strict=True):
            with capture(projections[0]) as seen:
                self.target.get_text_features(*mine)
            with capture(projections[1]) as original:
                self.source.get_text_features(*tokens)
            fit.add(seen["projection"][0], pair.own("stream", original["projection"][1]), pair.weights["stream"])
        set_linear(self.target.text_projection, *fit.solve())

    def _turn(self, parts: Sequence[tuple[Tensor, ...]]) -> None:
        full, slim = self.source.text_encoder, self.target.text_encoder
        words = full.text_model.embeddings.token_embedding.weight
        places = full.text_model.embeddings.position_embedding.weight
        self.turn(
            lambda: ((full.text_model(*tokens).last_hidden_state, tokens[1].bool()) for tokens in parts),
            more=words + places[1],  # phrases that the data lack are to be read as well
        )
        if not self.turned:
            return
        mine = slim.text_model.embeddings
        mine.token_embedding.weight.copy_(words[self.kept("text.tokens")].double() @ self.map.T)
        mine.position_embedding.weight.copy_(places[self.kept("text.context")].double() @ self.map.T)
        norm = full.text_model.final_layer_norm
        self.set_reader(self.target.text_projection, self.source.text_projection, norm)
        self.set_reader(slim.text_projection, full.text_projection, norm, self.kept("text.projection"))
        plain(slim.text_model.final_layer_norm)
