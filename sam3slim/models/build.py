"""Architecture spec → model."""

from __future__ import annotations

import torch

from sam3slim.models.bank import TextBank
from sam3slim.models.configuration import to_sam3_config
from sam3slim.models.regularise import set_regularisation
from sam3slim.models.sam3 import Sam3
from sam3slim.specs import ModelSpec


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
