"""Architecture spec → model, or the names and shapes of its tensors."""

from __future__ import annotations

from functools import lru_cache

import torch
from transformers.initialization import no_init_weights

from sam3slim.models.configuration import to_sam3_config
from sam3slim.models.regularise import set_regularisation
from sam3slim.models.sam3 import Sam3
from sam3slim.specs import ModelSpec
from sam3slim.text.bank import TextBank


def build_model(spec: ModelSpec, *, device: str | torch.device | None = None) -> Sam3:
    """A model with transformers' own random weights (see ``init.init_for_training`` for training from scratch).

    ``device="meta"`` builds shapes only: nothing is allocated.
    """
    with torch.device(device or "cpu"):
        bank = None if spec.text.bank is None else TextBank(spec.text.bank, spec.text.context_length, spec.d_model)
        model = Sam3(to_sam3_config(spec), bank)
    model.spec = spec
    set_regularisation(model, spec)
    return model


def empty_model(spec: ModelSpec, *, device: str | torch.device | None = None) -> Sam3:
    """``build_model`` without drawing random weights: parameters hold whatever was in memory.

    Drawing 840 M normals takes longer than reading them. Buffers (RoPE, position ids) are computed as usual.
    """
    with no_init_weights():
        return build_model(spec, device=device)


@lru_cache(maxsize=32)
def state_shapes(spec: ModelSpec) -> dict[str, torch.Size]:
    """Key → shape of every tensor in a model's ``state_dict``, in its order, without allocating. Not to be changed."""
    return {key: tensor.shape for key, tensor in empty_model(spec, device="meta").state_dict().items()}
