"""A teacher's text features by phrase: each phrase passes its text tower once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sam3slim.errors import UserError
from sam3slim.models import Sam3
from sam3slim.text.phrases import encode_phrases

# Phrases kept; 4096 of them at SAM 3's size take 134 MB.
KEPT = 4096


class PhraseFeatures:
    """Tokenises with the teacher's own vocabulary and context, whatever those of the student are."""

    def __init__(self, model: Sam3) -> None:
        self._model = model
        self._known: dict[str, tuple[Tensor, Tensor]] = {}

    def __call__(self, phrases: Sequence[str], device: torch.device) -> tuple[Tensor, Tensor]:
        """Projected text features [P, T, d_model] and attention mask [P, T] int64 on the teacher's device.

        Raises:
            UserError: a phrase outside the teacher's trimmed vocabulary.
        """
        new = sorted({phrase for phrase in phrases if phrase not in self._known})
        if len(self._known) + len(new) > KEPT:
            self._known.clear()
            new = sorted(set(phrases))
        if new:
            ids, mask = self._tokens(new)
            features, _ = self._model.encode_text(ids.to(device), mask.to(device))
            self._known |= dict(zip(new, zip(features, mask.to(device), strict=True), strict=True))
        rows = [self._known[phrase] for phrase in phrases]
        return torch.stack([row[0] for row in rows]), torch.stack([row[1] for row in rows])

    def _tokens(self, phrases: Sequence[str]) -> tuple[Tensor, Tensor]:
        try:
            return encode_phrases(self._model.spec.text, phrases)
        except UserError as error:
            raise UserError(f"distill.teacher: {error}") from error
