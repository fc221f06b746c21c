"""Trimming CLIP's vocabulary to a list of phrases: which merges stay, and where their tokens were.

Byte-pair encoding (Sennrich et al., arXiv:1508.07909) applies, again and again, the first merge in CLIP's order that
fits. Where only merges are left out that a phrase's own encoding does not apply, the first that fits is the same at
every step: the phrase is split as before.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from typing import Literal

from sam3slim.errors import UserError
from sam3slim.specs import MIN_VOCAB_SIZE, TextSpec, VocabularySpec
from sam3slim.text.phrases import BOXES_ONLY, check_known, tokenizer_of
from sam3slim.text.tokenizer import all_merges

END_OF_WORD = "</w>"
BYTES = MIN_VOCAB_SIZE - 2  # tokens before the merges; start and end of text come after


def trim(phrases: Sequence[str], text: TextSpec, unknown: Literal["error", "bytes"] = "error") -> TextSpec:
    """``text`` with the smallest vocabulary that splits every one of ``phrases``, and "visual", as before.

    Args:
        text: whose vocabulary is trimmed; it may be a trimmed one already.
        unknown: what another phrase meets, see ``VocabularySpec``.

    Raises:
        UserError: no phrases, a blank one, one that ``text``'s own trimmed vocabulary lacks; a bank instead of a tower.
        SpecError: an ``unknown`` that does not exist.
    """
    if text.bank is not None:
        raise UserError("a prompt bank has no token table to trim; trim the checkpoint it was made from")
    if not phrases:
        raise UserError("a vocabulary cannot be trimmed to an empty list; give at least one phrase")
    if any(not phrase.strip() for phrase in phrases):
        raise UserError("a vocabulary cannot be trimmed to a blank phrase; remove it from the list")
    wanted = with_boxes_only(phrases)
    if text.vocabulary is not None:
        check_known(wanted, replace(text, vocabulary=replace(text.vocabulary, unknown="error")))
    merges = {merge for word in _words(wanted, text) for merge in _applied(word, text.untrimmed_size)}
    vocabulary = VocabularySpec(tuple(sorted(merges)), text.untrimmed_size, unknown)
    trimmed = replace(text, vocab_size=MIN_VOCAB_SIZE + len(merges), vocabulary=vocabulary)
    before, after = (tokenizer_of(spec).backend_tokenizer for spec in (text, trimmed))
    for phrase in wanted:
        if before.encode(phrase).tokens != after.encode(phrase).tokens:
            raise AssertionError(f"trimming changed how {phrase!r} is split")
    return trimmed


def with_boxes_only(phrases: Iterable[str]) -> list[str]:
    """``phrases``, each once, and the phrase that goes with boxes alone."""
    return list(dict.fromkeys([*phrases, BOXES_ONLY]))


def kept_tokens(source: TextSpec, target: TextSpec) -> tuple[int, ...]:
    """For every token of ``target`` its number in ``source``.

    Raises:
        UserError: the two split phrases by different vocabularies, or ``target`` has a token that ``source`` lacks.
    """
    have, want = source.untrimmed_size, target.untrimmed_size
    if have != want:
        key = "vocab_size" if target.vocabulary is None else "vocabulary.trimmed_from"
        raise UserError(f"model.text.{key}={want}: slimming keeps the full model's {have}; use model.text.{key}={have}")
    places = {merge: BYTES + place for place, merge in enumerate(source.merges)}
    lacking = sum(merge not in places for merge in target.merges)
    if lacking:
        raise UserError(
            f"model.text.vocab_size={target.vocab_size}: {lacking} of the tokens are not among the {source.vocab_size} "
            "of the full model's trimmed vocabulary; set vocabulary to phrases it knows, or start from an untrimmed "
            "checkpoint"
        )
    last = source.vocab_size
    return (*range(BYTES), *(places[merge] for merge in target.merges), last - 2, last - 1)


def _words(phrases: Iterable[str], text: TextSpec) -> set[str]:
    """The pieces that byte-pair encoding works on, in CLIP's letters for bytes."""
    backend = tokenizer_of(text).backend_tokenizer
    normal = (backend.normalizer.normalize_str(phrase) for phrase in phrases)
    return {word for phrase in normal for word, _ in backend.pre_tokenizer.pre_tokenize_str(phrase)}


def _applied(word: str, vocab_size: int) -> list[int]:
    """Numbers of the merges that encoding ``word`` applies, in order."""
    ranks, limit = _ranks(), vocab_size - MIN_VOCAB_SIZE
    pieces = [*word[:-1], word[-1] + END_OF_WORD]
    applied = []
    while len(pieces) > 1:
        rank = min(ranks.get(pair, limit) for pair in pairwise(pieces))
        if rank >= limit:
            break
        merge = all_merges()[rank]
        applied.append(rank)
        merged: list[str] = []
        place = 0
        while place < len(pieces):
            joined = tuple(pieces[place : place + 2]) == merge
            merged.append("".join(merge) if joined else pieces[place])
            place += 2 if joined else 1
        pieces = merged
    return applied


@lru_cache
def _ranks() -> dict[tuple[str, str], int]:
    return {pair: rank for rank, pair in enumerate(all_merges())}
