"""A checkpoint whose text tower is cut down to a list of phrases, exactly: a trimmed vocabulary, or a prompt bank."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from sam3slim.artifacts.extraction import check_options, part_bytes, provenance
from sam3slim.artifacts.write import write_folder
from sam3slim.checkpoints import int8
from sam3slim.checkpoints.load_report import CheckpointError, by_part
from sam3slim.checkpoints.loading import require_all
from sam3slim.checkpoints.locating import locate, weight_files
from sam3slim.checkpoints.readers import Overrides, RawCheckpoint, read
from sam3slim.files import at_home, ensure_writable_dir, require_space
from sam3slim.models import Sam3, empty_model, part_of
from sam3slim.specs import BankSpec, DecoderSpec, EncoderSpec, GeometrySpec, ModelSpec, VitSpec
from sam3slim.text.bank import bank_rows, bank_spec
from sam3slim.text.vocabulary import kept_tokens, trim, with_boxes_only

TOKENS = "text_encoder.text_model.embeddings.token_embedding.weight"
BANK = "text_bank.features.weight"
CHUNK = 16  # phrases that pass the tower together


@dataclass(frozen=True)
class TextCut:
    """What ``cut_text`` wrote.

    Attributes:
        path: the artifact.
        source, spec: the architectures before and after.
        params_before, params_after, bytes_before, bytes_after: by part.
        file_before, file_after: bytes of the weights on disk.
    """

    path: Path
    source: ModelSpec
    spec: ModelSpec
    params_before: dict[str, int]
    params_after: dict[str, int]
    bytes_before: dict[str, int]
    bytes_after: dict[str, int]
    file_before: int
    file_after: int


def cut_text(
    source: str | Path,
    target: str | Path,
    phrases: Sequence[str],
    *,
    bank: bool = False,
    unknown: Literal["error", "bytes"] = "error",
    overrides: Overrides | None = None,
    overwrite: bool = False,
    encoded: Callable[[int, int], object] = lambda done, total: None,
    advance: Callable[[int, int], object] = lambda done, total: None,
) -> TextCut:
    """Write ``source`` as an artifact that reads ``phrases`` (and "visual") as before, whole or not at all.

    Tensors keep their stored types; a bank's features are FP32. Memory holds the text tower at most.

    Args:
        source: what ``load`` takes, but not INT8 or INT4.
        target: a folder.
        bank: store the tower's outputs instead of the tower; otherwise trim its token table.
        unknown: of a trimmed vocabulary, see ``VocabularySpec``.
        encoded: called with phrases that have just passed the tower and phrases in all (``bank``).
        advance: called with elements just written and elements in all.

    Raises:
        CheckpointError: the source is damaged, lacks a tensor, or is quantised.
        UserError: no phrases, or one the source cannot read; the target is there or cannot be written to.
    """
    located, path = locate(source), at_home(target)
    check_options(located, path, None, "hf", overwrite)
    raw = read(located, overrides)
    if any(pattern.match(key) for key in raw.tensors for pattern in (int8.QDATA, *(own[0] for own in int8.OWN))):
        raise CheckpointError(
            f"checkpoint {raw.path} is already quantised ({raw.precision}); cut the text tower of its FP32 or FP16 "
            "parent, and compress the result"
        )
    require_all(raw, raw.tensors).tell()
    ensure_writable_dir(path.parent)
    spec, tensors = _banked(raw, phrases, encoded) if bank else _trimmed(raw, phrases, unknown)
    require_space(path.parent, sum(part_bytes(tensors).values()))
    total = sum(tensor.numel() for tensor in tensors.values())
    files = weight_files(located)
    info = write_folder(
        path,
        spec,
        tensors,
        precision=raw.precision,
        parent=str(raw.path),
        extra={"text": _metadata(raw.spec, spec, phrases)},
        source=lambda: provenance(raw, files),
        advance=lambda count: advance(count, total),
    )
    return TextCut(
        path, raw.spec, spec, _params(raw.tensors), _params(tensors), part_bytes(raw.tensors), part_bytes(tensors),
        sum(file.stat().st_size for file in files), info.bytes,
    )  # fmt: skip


def _trimmed(
    raw: RawCheckpoint, phrases: Sequence[str], unknown: Literal["error", "bytes"]
) -> tuple[ModelSpec, dict[str, Tensor]]:
    text = trim(phrases, raw.spec.text, unknown)
    rows = torch.tensor(kept_tokens(raw.spec.text, text))
    return replace(raw.spec, text=text), {**raw.tensors, TOKENS: raw.tensors[TOKENS].index_select(0, rows)}


def _banked(
    raw: RawCheckpoint, phrases: Sequence[str], encoded: Callable[[int, int], object]
) -> tuple[ModelSpec, dict[str, Tensor]]:
    bank = bank_spec(raw.spec.text, phrases)
    features = bank_features(_tower(raw), bank, encoded)
    kept = {key: tensor for key, tensor in raw.tensors.items() if part_of(key) != "text"}
    return replace(raw.spec, text=replace(raw.spec.text, bank=bank)), {**kept, BANK: features}


@torch.no_grad()
def bank_features(
    model: Sam3, bank: BankSpec, advance: Callable[[int, int], object] = lambda done, total: None
) -> Tensor:
    """What ``model`` makes of the bank's phrases: [N, d_model] float32 on the CPU, as ``TextBank.features`` has them.

    Phrases are padded to the context as in use: the same shapes add up in the same order, so features keep every bit.

    Args:
        model: may have a bank itself, of which this one is a part.
        advance: called with phrases just encoded and phrases in all.
    """
    input_ids, attention_mask = bank_rows(bank, model.spec.text.context_length)
    parts = []
    for ids, mask in zip(input_ids.split(CHUNK), attention_mask.split(CHUNK), strict=True):
        features, real = model.encode_text(ids.to(model.device), mask.to(model.device))
        parts.append(features[real].float().cpu())
        advance(len(ids), len(input_ids))
    return torch.cat(parts)


@torch.no_grad()
def _tower(raw: RawCheckpoint) -> Sam3:
    """A model with ``raw``'s text part in FP32; its other parts are as small as they get and hold anything."""
    spec = replace(
        raw.spec,
        vit=VitSpec(
            embed_dim=8, depth=1, num_heads=1, patch_size=8, image_size=16, pretrain_image_size=8, window_size=1
        ),
        geometry=GeometrySpec(1, 1),
        encoder=EncoderSpec(1),
        decoder=DecoderSpec(1, 1),
        ffn_dim=1,
    )
    model = empty_model(spec)
    for key, target in model.state_dict().items():
        if part_of(key) == "text":
            target.copy_(raw.tensors[key])
    return model.eval()


def _metadata(before: ModelSpec, after: ModelSpec, phrases: Sequence[str]) -> dict[str, Any]:
    bank = after.text.bank
    return {
        "cut_to": "bank" if bank else "vocabulary",
        "phrases": list(bank.phrases) if bank else with_boxes_only(phrases),
        "vocab_size": [before.text.vocab_size, after.text.vocab_size],
    }


def _params(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    counts = dict.fromkeys(by_part(tensors), 0)
    for key, tensor in tensors.items():
        counts[part_of(key)] += tensor.numel()
    return counts
