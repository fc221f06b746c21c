"""A trimmed vocabulary splits its phrases as the whole one does, and says so when it cannot."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sam3slim.errors import UserError
from sam3slim.specs import TextSpec, VocabularySpec
from sam3slim.text.phrases import check_known, encode_phrases, tokenizer_of
from sam3slim.text.vocabulary import kept_tokens, trim

NANO = TextSpec(width=32, num_heads=2, context_length=16, vocab_size=8192)
PHRASES = ["Yellow  school bus", "small red circle", "it's 2 cups!", "café crème", "traffic light", "黄色い 犬"]


@pytest.mark.parametrize("text", [NANO, TextSpec(context_length=77)], ids=["prefix", "clip"])
def test_trim__phrases_keep_their_pieces(text: TextSpec) -> None:
    trimmed = trim(PHRASES, text)
    assert trimmed.vocab_size < 600
    ids, mask = encode_phrases(text, [*PHRASES, "visual"])
    new_ids, new_mask = encode_phrases(trimmed, [*PHRASES, "visual"])
    assert new_mask.equal(mask)
    places = kept_tokens(text, trimmed)
    assert [places[token] for token in new_ids[mask == 1]] == ids[mask == 1].tolist()
    assert tokenizer_of(trimmed).convert_ids_to_tokens(new_ids[0, :3].tolist())[1:] == ["yellow</w>", "school</w>"]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=12).filter(str.strip), min_size=1, max_size=4))
def test_trim__any_text(phrases: list[str]) -> None:
    """``trim`` compares the pieces itself; here the numbers."""
    trimmed = trim(phrases, NANO)
    places = kept_tokens(NANO, trimmed)
    for phrase in phrases:
        found = tokenizer_of(trimmed).backend_tokenizer.encode(phrase).ids
        assert [places[token] for token in found] == tokenizer_of(NANO).backend_tokenizer.encode(phrase).ids


def test_trim__every_merge_is_needed() -> None:
    trimmed = trim(PHRASES, NANO)
    assert trimmed.vocabulary is not None
    for left_out in trimmed.vocabulary.merges:
        merges = tuple(merge for merge in trimmed.vocabulary.merges if merge != left_out)
        fewer = replace(trimmed, vocab_size=trimmed.vocab_size - 1, vocabulary=VocabularySpec(merges, 8192))
        with pytest.raises(UserError, match=r"not in the model's vocabulary|joins a piece that none"):
            check_known([*PHRASES, "visual"], fewer)


def test_trim__again_to_fewer_phrases() -> None:
    once = trim(PHRASES, NANO)
    assert trim(["red bus"], once) == trim(["red bus"], NANO)
    with pytest.raises(UserError, match=r"phrase 'green bus': 'green' is not in the model's vocabulary"):
        trim(["green bus"], trim(PHRASES, NANO, "bytes"))


@pytest.mark.parametrize(
    ("phrases", "message"), [([], "empty list; give at least one phrase"), (["dog", " "], "a blank phrase; remove it")]
)
def test_trim__nothing_to_read(phrases: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        trim(phrases, NANO)


def test_check_known__names_phrase_and_words() -> None:
    trimmed = trim(["yellow school bus"], NANO)
    check_known(["Bus", "yellow  bus"], trimmed)
    with pytest.raises(UserError) as caught:
        encode_phrases(trimmed, ["school bus", "green school cat"])
    message = str(caught.value)
    assert message.startswith("phrase 'green school cat': 'green', 'cat' are not in the model's vocabulary, which was")
    assert "\n" not in message


def test_check_known__bytes_spells_in_kept_pieces() -> None:
    spelling = trim(["yellow school bus"], NANO, "bytes")
    ids, mask = encode_phrases(spelling, ["green cat"])
    assert int(ids.max()) < spelling.vocab_size
    assert tokenizer_of(spelling).decode(ids[0][mask[0] == 1], skip_special_tokens=True) == "green cat"


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        (NANO, replace(NANO, vocab_size=8000), r"model\.text\.vocab_size=8000: slimming keeps the full model's 8192"),
        (NANO, trim(["dog"], replace(NANO, vocab_size=8000)), r"vocabulary\.trimmed_from=8000: slimming keeps"),
        (trim(["dog"], NANO), NANO, r"model\.text\.vocab_size=8192: 76\d\d of the tokens are not among the 5\d\d of"),
        (trim(["dog"], NANO), trim(["dog", "cat"], NANO), r": \d of the tokens are not among .* set vocabulary to"),
    ],
)
def test_kept_tokens__what_cannot_be_inherited(source: TextSpec, target: TextSpec, message: str) -> None:
    with pytest.raises(UserError, match=message):
        kept_tokens(source, target)


def test_kept_tokens__all_of_an_untrimmed_one() -> None:
    assert kept_tokens(NANO, NANO) == tuple(range(8192))


def test_str__tells_vocabularies_apart() -> None:
    found: list[Any] = [trim([word], NANO).vocabulary for word in ("dog", "dog", "cat")]
    assert str(found[0]) == str(found[1]) != str(found[2])
