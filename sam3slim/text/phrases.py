"""Phrases as a model's text tower reads them, and lists of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path

from torch import Tensor
from transformers import CLIPTokenizer

from sam3slim.errors import UserError
from sam3slim.files import read_lines
from sam3slim.specs import BankSpec, TextSpec
from sam3slim.text.tokenizer import clip_tokenizer, encode

# The phrase SAM 3 was trained with where only boxes are given.
BOXES_ONLY = "visual"
SHOWN = 3  # phrases named in a message


def tokenizer_of(text: TextSpec) -> CLIPTokenizer:
    """The tokenizer that gives ``text`` its token ids."""
    return clip_tokenizer(text.vocab_size, text.context_length, text.vocabulary)


def encode_phrases(text: TextSpec, phrases: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask [P, L] int64 of ``phrases`` for a model with ``text``, see ``encode``.

    Raises:
        UserError: a phrase that the model cannot read, see ``check_known``.
    """
    check_known(phrases, text)
    return encode(tokenizer_of(text), phrases)


def check_known(phrases: Iterable[str], text: TextSpec) -> None:
    """Refuse what is not in a prompt bank, or what a trimmed vocabulary splits otherwise than the untrimmed one did.

    Raises:
        UserError: such a phrase, unless ``text`` spells unknown ones in bytes; phrase and words are named, or the
            bank's nearest phrases.
    """
    if text.bank is not None:
        _check_banked(list(phrases), text, text.bank)
        return
    if text.vocabulary is None or text.vocabulary.unknown == "bytes":
        return
    for phrase in phrases:
        if not _same_pieces(phrase, text):
            words = [repr(word) for word in phrase.split() if not _same_pieces(word, text)] or ["it"]
            raise UserError(
                f"phrase {phrase!r}: {', '.join(words)} {'are' if len(words) > 1 else 'is'} not in the model's "
                f"vocabulary, which was trimmed to {text.vocab_size} tokens; trim again with this phrase, or have it "
                "spelt in kept pieces, which the model has not learnt to read: "
                "overrides={text.vocabulary.unknown:bytes}"
            )


def token_rows(text: TextSpec, phrases: Sequence[str]) -> list[tuple[int, ...]]:
    """The token ids of each phrase, cut to the context, without padding."""
    input_ids, attention_mask = encode(tokenizer_of(text), phrases)
    return [tuple(ids[mask == 1].tolist()) for ids, mask in zip(input_ids, attention_mask, strict=True)]


def _check_banked(phrases: list[str], text: TextSpec, bank: BankSpec) -> None:
    known = set(bank.tokens)
    for phrase, row in zip(phrases, token_rows(text, phrases), strict=True):
        if row not in known:
            near = get_close_matches(phrase.lower(), bank.phrases, SHOWN)
            has = f"near it: {_quoted(near)}" if near else f"it has {_quoted(bank.phrases[:SHOWN])}"
            has += ", …" if not near and len(bank.phrases) > SHOWN else ""
            raise UserError(
                f"phrase {phrase!r} is not one of the {len(bank.phrases)} in the model's prompt bank ({has}); make "
                "the bank again with it (sam3slim text CHECKPOINT OUT --phrases FILE --bank)"
            )


def _quoted(phrases: Sequence[str]) -> str:
    return ", ".join(map(repr, phrases))


def _same_pieces(phrase: str, text: TextSpec) -> bool:
    whole = clip_tokenizer(text.untrimmed_size).backend_tokenizer.encode(phrase).tokens
    mine: list[str] = tokenizer_of(text).backend_tokenizer.encode(phrase).tokens
    return bool(mine == whole)


def read_phrase_list(path: str | Path) -> list[str]:
    """One phrase of every line that is not blank, each once, inner blanks made single.

    Raises:
        UserError: a file that cannot be read or holds no phrase.
    """
    phrases = list(dict.fromkeys(" ".join(line.split()) for line in read_lines(Path(path)) if line))
    if not phrases:
        raise UserError(f"phrase list {path} holds no phrase; write one on every line")
    return phrases
