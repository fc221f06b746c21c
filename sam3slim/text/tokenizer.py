"""SAM 3's text tokenizer (CLIP's lower-cased byte-pair encoding), also with a shorter vocabulary.

The merge list ships with the package ``open_clip_torch``; only that file is read, because importing
``open_clip`` itself takes seconds.
"""

from __future__ import annotations

import gzip
import importlib.util
import logging
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from sam3slim.errors import UserError
from sam3slim.specs import CLIP_VOCAB_SIZE, MIN_VOCAB_SIZE, VocabularySpec

log = logging.getLogger(__name__)

START, END = "<|startoftext|>", "<|endoftext|>"


@lru_cache
def clip_tokenizer(
    vocab_size: int = CLIP_VOCAB_SIZE, context_length: int = 32, vocabulary: VocabularySpec | None = None
) -> CLIPTokenizer:
    """CLIP's tokenizer with its first ``vocab_size - 514`` merges, or those of a trimmed ``vocabulary``.

    Token ids: 256 bytes, 256 bytes + ``</w>``, the merges, then start and end of text as the last two.

    Raises:
        UserError: the vocabulary size is out of 514..49408, the context is shorter than 3 tokens, a merge of
            ``vocabulary`` lacks those it builds on, or the merge file of ``open_clip_torch`` is missing.
    """
    if not MIN_VOCAB_SIZE <= vocab_size <= CLIP_VOCAB_SIZE:
        raise UserError(
            f"model.text.vocab_size={vocab_size}: CLIP's vocabulary can have {MIN_VOCAB_SIZE} to "
            f"{CLIP_VOCAB_SIZE} tokens; choose a size in that range"
        )
    if context_length < 3:
        raise UserError(
            f"model.text.context_length={context_length}: a prompt needs at least 3 tokens "
            "(start, one token, end); use 3 or more"
        )
    kept = range(vocab_size - MIN_VOCAB_SIZE) if vocabulary is None else vocabulary.merges
    merges = [all_merges()[number] for number in kept]
    letters = list(bytes_to_unicode().values())
    pieces = [*letters, *(letter + "</w>" for letter in letters), *(a + b for a, b in merges)]
    known = set(pieces)
    if loose := [number for number, pair in zip(kept, merges, strict=True) if not known.issuperset(pair)]:
        raise UserError(
            f"model.text.vocabulary.merges: number {loose[0]} joins a piece that none of the others makes; "
            "trim the vocabulary again"
        )
    words = [*pieces, START, END]
    return CLIPTokenizer(
        vocab={word: index for index, word in enumerate(words)},
        merges=merges,  # type: ignore[arg-type]  # the BPE model takes pairs
        model_max_length=context_length,
    )


def encode(tokenizer: CLIPTokenizer, phrases: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask of ``phrases``, both [P, L] int64 with L = ``model_max_length``.

    Places after the end of text hold 0, as in the reference; the mask is 0 there. A phrase longer than
    the context keeps its first L - 1 tokens and the end of text, and is warned about once.
    """
    length = tokenizer.model_max_length
    input_ids = torch.zeros(len(phrases), length, dtype=torch.int64)
    attention_mask = torch.zeros(len(phrases), length, dtype=torch.int64)
    for row, phrase in enumerate(phrases):
        # Cut by hand: the tokenizer's own truncation sets state on the shared backend and hides the loss.
        ids = tokenizer.backend_tokenizer.encode(phrase).ids
        if len(ids) > length:
            _warn_truncated(phrase, len(ids), length)
            ids = [*ids[: length - 1], tokenizer.eos_token_id]
        input_ids[row, : len(ids)] = torch.tensor(ids)
        attention_mask[row, : len(ids)] = 1
    return input_ids, attention_mask


@lru_cache(maxsize=10_000)
def _warn_truncated(phrase: str, tokens: int, length: int) -> None:
    log.warning("phrase %r has %d tokens, cut to the text context of %d", phrase, tokens, length)


@lru_cache
def all_merges() -> tuple[tuple[str, str], ...]:
    """CLIP's 48,894 merges in their order. Raises UserError where their file is missing."""
    spec = importlib.util.find_spec("open_clip")
    folders = list(spec.submodule_search_locations or []) if spec else []
    paths = [path for folder in folders if (path := Path(folder) / "bpe_simple_vocab_16e6.txt.gz").is_file()]
    if not paths:
        raise UserError("CLIP's merge file bpe_simple_vocab_16e6.txt.gz is missing: pip install open_clip_torch")
    lines = gzip.decompress(paths[0].read_bytes()).decode("utf-8").split("\n")
    # The first line is a header, and CLIP uses only the first 48,894 of the file's merges.
    pairs = [line.split() for line in lines[1 : CLIP_VOCAB_SIZE - MIN_VOCAB_SIZE + 1]]
    return tuple((first, second) for first, second in pairs)
