"""A prompt bank: the text tower's outputs for a fixed list of phrases, in place of the tower.

The tower reads nothing but the phrase, so for phrases known beforehand its outputs are constants. Only real tokens are
stored: every later part masks padding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sam3slim.errors import UserError
from sam3slim.specs import BankSpec, TextSpec
from sam3slim.text.phrases import check_known, token_rows
from sam3slim.text.vocabulary import with_boxes_only


class TextBank(nn.Module):
    """Token rows → stored features.

    ``features`` holds the real tokens' [N, width], phrase after phrase; which rows are whose follows from the spec.

    Args:
        bank: the phrases.
        context_length: T of the rows that are asked.
        width: of the features, the detector's d_model.
    """

    tokens: Tensor  # [phrases, T] int64, 0 on padding
    places: Tensor  # [phrases, T] int64: the row of ``features`` at each token, -1 on padding

    def __init__(self, bank: BankSpec, context_length: int, width: int) -> None:
        super().__init__()
        self.features = nn.Embedding(sum(map(len, bank.tokens)), width)
        places, first = [], 0
        for row in bank.tokens:
            places.append([*range(first, first + len(row)), *[-1] * (context_length - len(row))])
            first += len(row)
        self.register_buffer("tokens", bank_rows(bank, context_length)[0], persistent=False)
        self.register_buffer("places", torch.tensor(places), persistent=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Features [P, T, width] of token rows [P, T], 0 on padding.

        In an exported graph, which cannot raise, the features of a row that is not in the bank are NaN.

        Raises:
            UserError: a row that is not in the bank.
        """
        asked = input_ids if attention_mask is None else input_ids * attention_mask
        asked = F.pad(asked, (0, self.tokens.shape[1] - input_ids.shape[1]))
        same = (asked[:, None] == self.tokens).all(dim=-1)
        found = same.any(dim=1)
        if not torch.compiler.is_exporting() and not bool(found.all()):
            raise UserError(
                f"a prompt's tokens {asked[~found][0].tolist()} are not in the model's prompt bank of "
                f"{len(self.tokens)} phrases; make the bank again with that phrase"
            )
        places = self.places[same.int().argmax(dim=1), : input_ids.shape[1]]
        features: Tensor = self.features(places.clamp(min=0))
        features = torch.where((places >= 0)[..., None], features, 0.0)
        return torch.where(found[:, None, None], features, torch.nan)


def bank_rows(bank: BankSpec, context_length: int, count: int | None = None) -> tuple[Tensor, Tensor]:
    """Token ids and mask [count, context_length] int64 of the bank's phrases, each once or in turns up to ``count``."""
    chosen = [bank.tokens[i % len(bank.tokens)] for i in range(len(bank.tokens) if count is None else count)]
    ids = [[*row, *[0] * (context_length - len(row))] for row in chosen]
    mask = [[1] * len(row) + [0] * (context_length - len(row)) for row in chosen]
    return torch.tensor(ids), torch.tensor(mask)


def bank_spec(text: TextSpec, phrases: Sequence[str]) -> BankSpec:
    """The bank of ``phrases``, and "visual", that a model with ``text`` can fill.

    Phrases with equal tokens (``Dog``, ``dog``) share an entry.

    Raises:
        UserError: no phrases, a blank one, or one that the model cannot read.
    """
    if not phrases or any(not phrase.strip() for phrase in phrases):
        raise UserError("a prompt bank needs a list of phrases, none of them blank")
    wanted = with_boxes_only(phrases)
    check_known(wanted, text)
    by_row: dict[tuple[int, ...], str] = {}
    for row, phrase in zip(token_rows(text, wanted), wanted, strict=True):
        by_row.setdefault(row, phrase)
    return BankSpec(tuple(by_row.values()), tuple(by_row))
