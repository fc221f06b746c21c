"""The architectures that ``sam3slim shrink`` tries, and the bytes they get down to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from sam3slim.compression.mixed import smallest_bytes
from sam3slim.compression.slim import KEY
from sam3slim.errors import UserError
from sam3slim.files import size_text
from sam3slim.launch.compose import compose_model
from sam3slim.models.build import empty_model
from sam3slim.runs.shrink_inputs import FIT_IMAGES, ShrinkSpec
from sam3slim.slimming import check_enough, check_slimmer
from sam3slim.specs import ModelSpec
from sam3slim.text.bank import bank_spec

FIT_BATCHES = 8
ENTRY = 90  # bytes of a tensor's type, shape and place in a file's header; a rounded weight has two tensors


def sizes(full: ModelSpec) -> dict[str, ModelSpec]:
    """Architectures to cut out of ``full``, the smallest first; those that it has no layers or heads for are left out.

    ``quarter`` has a quarter less of the vision tower's width and depth and a third less of encoder and decoder, as
    ``model=slim`` has of SAM 3; ``layers`` a third less of the encoder and a quarter of the tower's neurons;
    ``neurons`` the latter alone.
    """
    vit = full.vit
    heads, depth, fewer = max(vit.num_heads * 3 // 4, 1), max(vit.depth * 3 // 4, 1), (lambda n: max(n * 2 // 3, 1))
    narrow = replace(vit, mlp_ratio=vit.mlp_ratio * 3 / 4)
    encoder = replace(full.encoder, num_layers=fewer(full.encoder.num_layers))
    decoder = replace(full.decoder, num_layers=fewer(full.decoder.num_layers))
    slim = replace(
        vit, num_heads=heads, embed_dim=heads * vit.head_dim, depth=depth, global_attention_blocks=None,
        num_global_blocks=min(len(vit.global_blocks), depth),
    )  # fmt: skip
    found = {
        "quarter": replace(full, vit=slim, encoder=encoder, decoder=decoder),
        "layers": replace(full, vit=narrow, encoder=encoder),
        "neurons": replace(full, vit=narrow),
    }
    new: dict[str, ModelSpec] = {}
    for name, small in found.items():
        if small not in (full, *new.values()):
            new[name] = small
    return {name: replace(small, name=f"{full.name}_{name}") for name, small in new.items()}


def cuts_of(spec: ShrinkSpec, full: ModelSpec, images: int, phrases: Sequence[str]) -> dict[str, ModelSpec]:
    """The sizes to try, in this order. Raises UserError: too few images, or bytes that none of them gets down to."""
    given = {} if spec.keep_architecture or full.text.bank is not None else sizes(full)
    for small in reversed(given.values()):
        check_slimmer(full, small)
        try:
            used = min(images, FIT_BATCHES * FIT_IMAGES)
            check_enough(small, used, math.ceil(used / FIT_IMAGES), f"{KEY}.fit_batches", images)
        except UserError as error:
            raise UserError(
                f"too few images to fit a cut model on: {str(error).partition(':')[2].partition(',')[0].strip()}, and "
                f"{images} of those in {spec.images} are for that (half); add images, or give --keep-architecture"
            ) from error
    if spec.max_bytes is None:
        return given
    least = {name: _least(small, phrases) for name, small in {"": full, **dict(reversed(given.items()))}.items()}
    fitting = [name for name, size in least.items() if size <= spec.max_bytes]
    if not fitting:
        more = [] if spec.phrases else ["give --phrases FILE, whose features replace the text tower"]
        more += ["leave out --keep-architecture"] if spec.keep_architecture else []
        smallest = min(least.values())
        raise UserError(
            f"--max-bytes {spec.max_bytes}: the smallest that can be made of {spec.checkpoint} takes about "
            f"{smallest:,} bytes ({size_text(smallest)}); {', or '.join(['allow that much', *more])}"
        )
    return {name: given[name] for name in fitting[:1] if name}


def _least(small: ModelSpec, phrases: Sequence[str]) -> int:
    """Bytes of the file with everything in INT4, a bank instead of the text tower where phrases are fixed, at most."""
    if phrases and small.text.bank is None:
        small = replace(small, text=replace(small.text, bank=bank_spec(small.text, phrases)))
    model = empty_model(small, device="meta")
    return smallest_bytes(model) + sum(2 * (len(key) + ENTRY) for key in model.state_dict())


def as_overrides(small: ModelSpec) -> list[str]:
    """Settings that make ``model=full`` this architecture (``compress.slim.overrides``)."""
    base, overrides = compose_model(["model=full"]).to_dict(), []
    for key, value in small.to_dict().items():
        pairs = {f"{key}.{inner}": v for inner, v in value.items()} if isinstance(value, dict) else {key: value}
        for name, setting in pairs.items():
            before = base[key] if name == key else base[key][name.partition(".")[2]]
            if setting != before and name not in ("text.vocabulary", "text.bank"):
                overrides.append(f"model.{name}={'null' if setting is None else setting}".replace(" ", ""))
    return overrides
