"""The vocabulary a training run trims its text tower to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_only

from sam3slim.data.annotations import category_phrases
from sam3slim.data.locate import find_annotations
from sam3slim.data.mixture import naming
from sam3slim.data.module import of_split
from sam3slim.data.prompt_file import read_prompts
from sam3slim.data.spec import DataSpec
from sam3slim.runs.specs import TrainSpec
from sam3slim.text.phrases import read_phrase_list
from sam3slim.text.vocabulary import trim

DATA = "data"


def with_vocabulary(spec: TrainSpec) -> TrainSpec:
    """``spec`` with its model's vocabulary trimmed as ``spec.vocabulary`` says.

    Raises:
        UserError: a phrase list or annotation file that is missing, broken or empty.
    """
    if spec.vocabulary is None:
        return spec
    phrases = data_phrases(spec) if spec.vocabulary == DATA else read_phrase_list(spec.vocabulary)
    text = trim(phrases, spec.model.text)
    rank_zero_only(print)(
        f"vocabulary: {len(phrases)} phrases need {text.vocab_size:,} of {spec.model.text.vocab_size:,} tokens"
    )
    return replace(spec, model=replace(spec.model, text=text))


def data_phrases(spec: TrainSpec) -> list[str]:
    """The phrases of all categories of every split that the run reads, each once."""
    phrases: list[str] = []
    for name, data in spec.data.each().items():
        with naming(name):
            phrases += _phrases_of(spec, data, validated=name in spec.data.validated)
    return list(dict.fromkeys(phrases))


def _phrases_of(spec: TrainSpec, data: DataSpec, *, validated: bool) -> list[str]:
    listed = [phrase.lower() for phrase in read_phrase_list(data.phrases)] if data.phrases is not None else []
    if data.shapes is not None:
        # Known before the pictures are drawn.
        return list(dict.fromkeys([*listed, *(category["name"] for category in data.shapes.categories())]))
    splits = dict.fromkeys([
        *(["train"] if data.phrases is None else []),  # pictures without annotations: the list is theirs
        *(["val"] if validated and spec.trainer.get("limit_val_batches") != 0 else []),
        *([data.split] if spec.eval_at_end else []),
    ])  # fmt: skip
    root = Path(data.root or ".")
    files = {find_annotations(root, split, of_split(data.annotations, split)): split for split in splits}
    given = None if data.prompts_file is None else read_prompts(data.prompts_file)
    named = (phrase for file, split in files.items() for phrase in category_phrases(file, split, given))
    return list(dict.fromkeys([*listed, *named]))
