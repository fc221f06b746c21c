"""Every size of the architecture, checked once, with the values that follow from others derived here.

Field names are the words a user types after ``model.`` on the command line; messages name them so.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from sam3slim.strict import SpecError, spec_from_dict

__all__ = [
    "BankSpec",
    "DecoderSpec",
    "EncoderSpec",
    "GeometrySpec",
    "ModelSpec",
    "SpecError",
    "TextSpec",
    "VitSpec",
    "VocabularySpec",
    "mlp_ratio",
    "spec_from_dict",
]

MOST_LAYERS, MOST_PIXELS, MOST = 1024, 16_384, 65_536  # of a stack, of a picture's side, of any other size
PADDED_BOX_LABEL = -10  # transformers' sign for a box slot that is only padding
CLIP_VOCAB_SIZE = 49408
# 256 bytes, 256 bytes that end a word, start and end of text: a BPE vocabulary without any merge.
MIN_VOCAB_SIZE = 514


def mlp_ratio(inner: int, width: int) -> float:
    """A ratio r with int(width · r) == inner, also where inner / width rounds below."""
    ratio = inner / width
    return ratio if int(width * ratio) == inner else (inner + 0.5) / width


def _digest(values: tuple[Any, ...]) -> str:
    return hashlib.sha256(repr(values).encode()).hexdigest()[:8]


def _positive(prefix: str, spec: Any, *names: str) -> None:
    """Sizes of at least 1, and of at most what a mistyped one exceeds before memory is asked for it."""
    for name in names:
        value = getattr(spec, name)
        if value < 1:
            raise SpecError(f"{prefix}.{name}={value} must be at least 1")
        most = MOST_LAYERS if name.endswith(("depth", "layers")) else MOST_PIXELS if "image" in name else MOST
        if value > most:
            raise SpecError(f"{prefix}.{name}={value} must be at most {most}")


def _shares(prefix: str, spec: Any, *names: str) -> None:
    for name in names:
        if not 0 <= getattr(spec, name) < 1:
            raise SpecError(f"{prefix}.{name}={getattr(spec, name)} must lie in 0..1 (1 excluded; 0 is off)")


def _some_neurons(prefix: str, width: int, ratio: float) -> None:
    if int(width * ratio) < 1:
        raise SpecError(f"{prefix}.mlp_ratio={ratio} leaves an MLP without neurons; use {1 / width:.2g} or more")
    if width * ratio > 16 * MOST:
        raise SpecError(f"{prefix}.mlp_ratio={ratio} must be at most {16 * MOST / width:.4g} ({16 * MOST} neurons)")


def _divisible_heads(prefix: str, width_key: str, width: int, heads: int, multiple: int = 1) -> None:
    """``width`` must split into ``heads`` equal heads whose size is a multiple of ``multiple``."""
    if width % heads == 0 and (width // heads) % multiple == 0:
        return
    valid = [h for h in range(1, width + 1) if width % h == 0 and (width // h) % multiple == 0]
    unit = heads * multiple
    lower, upper = width // unit * unit, (width // unit + 1) * unit
    widths = f"{upper}" if lower == 0 else f"{lower} or {upper}"
    near = sorted(sorted(valid, key=lambda h: (abs(h - heads), h))[:3])
    heads_hint = f", or {prefix}.num_heads={'|'.join(map(str, near))}" if near else ""
    why = (
        f"is not divisible by {prefix}.num_heads={heads}"
        if width % heads
        else f"gives heads of size {width // heads}, and RoPE needs a multiple of {multiple}"
    )
    raise SpecError(f"{prefix}.{width_key}={width} {why}; use {prefix}.{width_key}={widths}{heads_hint}")


@dataclass(frozen=True)
class VitSpec:
    """The vision tower: a plain ViT with windowed and global blocks (2-D axial RoPE)."""

    embed_dim: int = 1024
    depth: int = 32
    num_heads: int = 16
    mlp_ratio: float = 4.625
    patch_size: int = 14
    image_size: int = 1008
    pretrain_image_size: int = 336  # the learnt position grid, tiled over the image
    window_size: int = 24  # in patches
    num_global_blocks: int = 4
    global_attention_blocks: tuple[int, ...] | None = None  # None: spread evenly, last block global
    drop_path: float = 0.0  # of the last block while training; linear in depth from 0 in the first

    def __post_init__(self) -> None:
        p = "model.vit"
        _positive(p, self, "embed_dim", "depth", "num_heads", "patch_size", "image_size", "window_size")
        _positive(p, self, "pretrain_image_size", "num_global_blocks")
        _shares(p, self, "drop_path")
        _some_neurons(p, self.embed_dim, self.mlp_ratio)
        _divisible_heads(p, "embed_dim", self.embed_dim, self.num_heads, multiple=4)
        for key in ("image_size", "pretrain_image_size"):
            size = getattr(self, key)
            if size % self.patch_size:
                low = size // self.patch_size * self.patch_size
                near = f"{low} or {low + self.patch_size}" if low else f"{self.patch_size}"
                raise SpecError(f"{p}.{key}={size} is not a multiple of {p}.patch_size={self.patch_size}; use {near}")
        if self.grid_size < 2:
            # The neck halves the map once.
            raise SpecError(
                f"{p}.image_size={self.image_size} gives one patch of {self.patch_size}; "
                f"use {2 * self.patch_size} or more"
            )
        blocks = self.global_attention_blocks
        if blocks is not None:
            object.__setattr__(self, "global_attention_blocks", tuple(blocks))
            bad = [b for b in blocks if not 0 <= b < self.depth]
            if bad or list(blocks) != sorted(set(blocks)):
                raise SpecError(
                    f"{p}.global_attention_blocks={list(blocks)} must be increasing block numbers in "
                    f"0..{self.depth - 1} ({p}.depth={self.depth}); remove it to spread them evenly"
                )

    @property
    def intermediate_size(self) -> int:
        return int(self.embed_dim * self.mlp_ratio)

    @property
    def head_dim(self) -> int:
        return self.embed_dim // self.num_heads

    @property
    def grid_size(self) -> int:
        return self.image_size // self.patch_size

    @property
    def global_blocks(self) -> tuple[int, ...]:
        """Blocks with global attention: 7, 15, 23, 31 of 32; 5, 11, 17, 23 of 24."""
        if self.global_attention_blocks is not None:
            return self.global_attention_blocks
        n = min(self.num_global_blocks, self.depth)
        return tuple(math.ceil((i + 1) * self.depth / n) - 1 for i in range(n))


@dataclass(frozen=True)
class VocabularySpec:
    """A vocabulary trimmed to a list of phrases: CLIP's bytes and those of its merges that the phrases need.

    Attributes:
        merges: their numbers in CLIP's order, increasing.
        trimmed_from: size of the vocabulary they were cut from, which decides how a phrase is split.
        unknown: a phrase that needs other pieces is an ``error``, or spelt out in the kept ones (``bytes``), which
            the model has not been trained to read.
    """

    merges: tuple[int, ...]
    trimmed_from: int = CLIP_VOCAB_SIZE
    unknown: Literal["error", "bytes"] = "error"

    def __post_init__(self) -> None:
        p = "model.text.vocabulary"
        object.__setattr__(self, "merges", tuple(self.merges))
        if self.unknown not in ("error", "bytes"):
            raise SpecError(f"{p}.unknown={self.unknown} must be one of error, bytes")
        if not MIN_VOCAB_SIZE <= self.trimmed_from <= CLIP_VOCAB_SIZE:
            raise SpecError(f"{p}.trimmed_from={self.trimmed_from} must lie in {MIN_VOCAB_SIZE}..{CLIP_VOCAB_SIZE}")
        last = self.trimmed_from - MIN_VOCAB_SIZE - 1
        if list(self.merges) != sorted({merge for merge in self.merges if 0 <= merge <= last}):
            raise SpecError(
                f"{p}.merges must be increasing numbers of CLIP's merges, within 0..{last} ({p}.trimmed_from - 515)"
            )

    def __str__(self) -> str:
        """In a few words, for messages; equal for equal tokens."""
        return f"{len(self.merges)} of the merges of {self.trimmed_from} tokens ({_digest(self.merges)})"


@dataclass(frozen=True)
class BankSpec:
    """A fixed list of phrases whose stored features stand in for the text tower, see ``models.bank``.

    Attributes:
        phrases: as a person reads them.
        tokens: the token ids of each, start and end of text included; no two are equal.
    """

    phrases: tuple[str, ...]
    tokens: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        p = "model.text.bank"
        object.__setattr__(self, "phrases", tuple(self.phrases))
        object.__setattr__(self, "tokens", tuple(tuple(row) for row in self.tokens))
        if not self.phrases or len(self.phrases) != len(self.tokens):
            raise SpecError(f"{p} has {len(self.phrases)} phrases and {len(self.tokens)} token rows; make it again")
        if len(set(self.tokens)) != len(self.tokens) or any(not row for row in self.tokens):
            raise SpecError(f"{p}.tokens must be different rows of at least one token; make it again")

    def __str__(self) -> str:
        """In a few words, for messages; equal for equal tokens."""
        return f"{len(self.phrases)} phrases ({_digest(self.tokens)})"


@dataclass(frozen=True)
class TextSpec:
    """The text tower: CLIP's causal transformer over its BPE tokens.

    With a ``bank`` there is no tower, and the sizes are those of the one the bank was made with.
    """

    width: int = 1024
    layers: int = 24
    num_heads: int = 16
    mlp_ratio: float = 4.0
    context_length: int = 32
    vocab_size: int = CLIP_VOCAB_SIZE  # smaller: CLIP's BPE with only its first merges
    projection_dim: int = 512
    vocabulary: VocabularySpec | None = None  # trimmed to a phrase list, see data.vocabulary
    bank: BankSpec | None = None  # stored features instead of a tower

    def __post_init__(self) -> None:
        p = "model.text"
        _positive(p, self, "width", "layers", "num_heads", "projection_dim")
        _divisible_heads(p, "width", self.width, self.num_heads)
        _some_neurons(p, self.width, self.mlp_ratio)
        if self.context_length < 3:
            raise SpecError(f"{p}.context_length={self.context_length} must be at least 3 (start, word, end)")
        _positive(p, self, "context_length")
        if not MIN_VOCAB_SIZE <= self.vocab_size <= CLIP_VOCAB_SIZE:
            raise SpecError(
                f"{p}.vocab_size={self.vocab_size} must lie in {MIN_VOCAB_SIZE}..{CLIP_VOCAB_SIZE} "
                f"(CLIP's bytes, then its merges in order)"
            )
        if self.vocabulary is not None and self.vocab_size != MIN_VOCAB_SIZE + len(self.vocabulary.merges):
            raise SpecError(
                f"{p}.vocab_size={self.vocab_size} must be {MIN_VOCAB_SIZE + len(self.vocabulary.merges)}: "
                f"{MIN_VOCAB_SIZE} and one for each of {p}.vocabulary.merges"
            )
        if self.bank is not None and any(
            len(row) > self.context_length or min(row) < 0 or max(row) >= self.vocab_size for row in self.bank.tokens
        ):
            raise SpecError(f"{p}.bank.tokens must fit {p}.context_length={self.context_length} and {p}.vocab_size")

    @property
    def merges(self) -> Sequence[int]:
        """Numbers of the CLIP merges that have a token, in the tokens' order."""
        return range(self.vocab_size - MIN_VOCAB_SIZE) if self.vocabulary is None else self.vocabulary.merges

    @property
    def untrimmed_size(self) -> int:
        """Tokens of the vocabulary that decides how a phrase is split."""
        return self.vocab_size if self.vocabulary is None else self.vocabulary.trimmed_from


@dataclass(frozen=True)
class GeometrySpec:
    """The encoder of box prompts (and of the CLS token every prompt ends with)."""

    num_layers: int = 3
    roi_size: int = 7

    def __post_init__(self) -> None:
        _positive("model.geometry", self, "num_layers", "roi_size")


@dataclass(frozen=True)
class EncoderSpec:
    """The DETR encoder that fuses image features with the prompt."""

    num_layers: int = 6

    def __post_init__(self) -> None:
        _positive("model.encoder", self, "num_layers")


@dataclass(frozen=True)
class DecoderSpec:
    """The DETR decoder: object queries and a presence token."""

    num_layers: int = 6
    num_queries: int = 200

    def __post_init__(self) -> None:
        _positive("model.decoder", self, "num_layers", "num_queries")


@dataclass(frozen=True)
class ModelSpec:
    """A whole SAM 3 image model. The defaults are SAM 3 as released.

    Attributes:
        dropout: on what is added to the residual stream of geometry encoder, encoder and decoder, while training.
        attention_dropout: on their attention weights; ``ffn_dropout``: on the hidden units of their MLPs. Like
            ``vit.drop_path`` 0 by default, as records of models that never knew them mean it; ``model=full`` has 0.1.
    """

    name: str = "full"
    vit: VitSpec = field(default_factory=VitSpec)
    text: TextSpec = field(default_factory=TextSpec)
    geometry: GeometrySpec = field(default_factory=GeometrySpec)
    encoder: EncoderSpec = field(default_factory=EncoderSpec)
    decoder: DecoderSpec = field(default_factory=DecoderSpec)
    d_model: int = 256
    num_heads: int = 8
    ffn_dim: int = 2048
    dropout: float = 0.1
    attention_dropout: float = 0.0
    ffn_dropout: float = 0.0

    def __post_init__(self) -> None:
        p = "model"
        _positive(p, self, "d_model", "num_heads", "ffn_dim")
        if self.d_model % 8:
            low = max(self.d_model // 8 * 8, 8)
            raise SpecError(
                f"{p}.d_model={self.d_model} must be a multiple of 8 (group norm of the mask head); "
                f"use {low} or {low + 8}"
            )
        _divisible_heads(p, "d_model", self.d_model, self.num_heads)
        _shares(p, self, "dropout", "attention_dropout", "ffn_dropout")

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dict of primitives and lists, as saved in checkpoints and ``sam3slim.json``."""
        plain = asdict(self)
        if plain["vit"]["global_attention_blocks"] is not None:
            plain["vit"]["global_attention_blocks"] = list(plain["vit"]["global_attention_blocks"])
        if plain["text"]["vocabulary"] is not None:
            plain["text"]["vocabulary"]["merges"] = list(plain["text"]["vocabulary"]["merges"])
        if (bank := plain["text"]["bank"]) is not None:
            bank |= {"phrases": list(bank["phrases"]), "tokens": [list(row) for row in bank["tokens"]]}
        return plain

    @staticmethod
    def from_dict(values: dict[str, Any]) -> ModelSpec:
        """Inverse of ``to_dict``. Raises SpecError for an unknown key or a value of the wrong type."""
        return spec_from_dict(ModelSpec, values, "model")
