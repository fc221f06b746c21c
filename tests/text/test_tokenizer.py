"""CLIP's token ids, with the whole vocabulary and with a short one."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sam3slim.errors import UserError
from sam3slim.text.tokenizer import clip_tokenizer, encode


def test_encode__golden_ids(shared_dir: Path) -> None:
    golden = shared_dir / "reference" / "golden_model"
    tensors = load_file(golden / "io.safetensors")
    cases = json.loads((golden / "golden.json").read_text())["cases"]
    input_ids, attention_mask = encode(clip_tokenizer(), [case["text"] for case in cases])
    for number, row in enumerate(input_ids):
        assert torch.equal(row[None], tensors[f"case{number}.input_ids"])
    assert attention_mask.sum(dim=1).tolist() == [5, 4, 3]


def test_encode__known_ids_without_reference_files() -> None:
    input_ids, _ = encode(clip_tokenizer(), ["Yellow  school bus"])
    assert input_ids[0, :6].tolist() == [49406, 4481, 1228, 2840, 49407, 0]


def test_clip_tokenizer__calling_it_agrees_with_encode() -> None:
    tokenizer = clip_tokenizer(1024, 16)
    input_ids, attention_mask = encode(tokenizer, ["small red circle", "it's 2 cups!"])
    called = tokenizer(["small red circle", "it's 2 cups!"], padding="max_length", return_tensors="pt")
    assert torch.equal(called["attention_mask"], attention_mask)
    assert torch.equal(called["input_ids"] * attention_mask, input_ids)


@pytest.mark.parametrize("vocab_size", [514, 1024, 49_408])
def test_clip_tokenizer__layout_of_ids(vocab_size: int) -> None:
    tokenizer = clip_tokenizer(vocab_size, 24)
    assert len(tokenizer) == vocab_size
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (vocab_size - 2, vocab_size - 1)
    ids = encode(tokenizer, ["red circle"])[0][0]
    assert int(ids.max()) == vocab_size - 1
    assert tokenizer.decode(ids[ids > 0].tolist(), skip_special_tokens=True) == "red circle"


def test_clip_tokenizer__short_vocabulary_is_a_prefix_of_the_long_one() -> None:
    short, full = clip_tokenizer(2000).get_vocab(), clip_tokenizer().get_vocab()
    assert {word: full[word] for word in short if short[word] < 1998} == {
        word: index for word, index in short.items() if index < 1998
    }


def test_encode__long_phrase_keeps_its_end_and_warns_once(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = clip_tokenizer(1024, 8)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            input_ids, attention_mask = encode(tokenizer, ["a b c d e f g h i j"])
    assert input_ids[0, -1] == tokenizer.eos_token_id
    assert attention_mask.all()
    assert len([record for record in caplog.records if "cut to the text context" in record.message]) == 1


def test_encode__no_phrases() -> None:
    assert encode(clip_tokenizer(1024, 16), [])[0].shape == (0, 16)


@pytest.mark.parametrize(("vocab_size", "context"), [(513, 32), (49_409, 32), (1024, 2)])
def test_clip_tokenizer__impossible_size(vocab_size: int, context: int) -> None:
    with pytest.raises(UserError, match=r"model\.text\.(vocab_size|context_length)="):
        clip_tokenizer(vocab_size, context)


def test_clip_tokenizer__does_not_import_open_clip() -> None:
    clip_tokenizer(600)
    assert "open_clip" not in sys.modules
