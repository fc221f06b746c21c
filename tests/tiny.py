"""A model of SAM 3's shape that runs in milliseconds, for every test that needs one."""

from __future__ import annotations

import torch

from sam3slim.data.batch import Batch, Targets
from sam3slim.models import Sam3, build_model, init_for_training
from sam3slim.specs import DecoderSpec, EncoderSpec, GeometrySpec, ModelSpec, TextSpec, VitSpec

SPEC = ModelSpec(
    name="tiny",
    vit=VitSpec(
        embed_dim=32, depth=2, num_heads=2, mlp_ratio=2.0, patch_size=8, image_size=32,
        pretrain_image_size=32, window_size=2, num_global_blocks=1,
    ),
    text=TextSpec(width=32, layers=1, num_heads=2, context_length=8, vocab_size=600, projection_dim=32),
    geometry=GeometrySpec(1),
    encoder=EncoderSpec(1),
    decoder=DecoderSpec(2, num_queries=6),
    d_model=32,
    num_heads=4,
    ffn_dim=32,
    dropout=0.0,
)  # fmt: skip
# The same architecture on the command line.
OVERRIDES = [
    "model=nano", "model.vit.embed_dim=32", "model.vit.depth=2", "model.vit.num_heads=2", "model.vit.mlp_ratio=2",
    "model.vit.patch_size=8", "model.vit.image_size=32", "model.vit.pretrain_image_size=32",
    "model.vit.window_size=2", "model.vit.num_global_blocks=1", "model.text.width=32", "model.text.layers=1",
    "model.text.context_length=8", "model.text.vocab_size=600", "model.text.projection_dim=32",
    "model.encoder.num_layers=1", "model.decoder.num_layers=2", "model.decoder.num_queries=6",
    "model.d_model=32", "model.ffn_dim=32",
]  # fmt: skip


def tiny_model(seed: int = 0) -> Sam3:
    return init_for_training(build_model(SPEC), seed).eval()


def tokens(prompts: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Start token, random words, end tokens; and the mask."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 597, (prompts, 8), generator=generator)
    lengths = torch.randint(3, 8, (prompts, 1), generator=generator)
    place = torch.arange(8)[None]
    ids = torch.where(place >= lengths - 1, 599, ids)
    ids[:, 0] = 598
    return ids, (place < lengths).long()


def tiny_batch(seed: int = 0) -> Batch:
    """2 images, 3 prompts, of which the last has no instance."""
    generator = torch.Generator().manual_seed(seed)
    ids, mask = tokens(3, seed)
    boxes = torch.rand(3, 4, generator=generator) * 0.3 + 0.3
    return Batch(
        pixel_values=torch.rand(2, 3, 32, 32, generator=generator) * 2 - 1,
        input_ids=ids,
        attention_mask=mask,
        image_index=torch.tensor([0, 0, 1]),
        category_ids=torch.tensor([1, 2, 1]),
        targets=Targets(boxes, torch.rand(3, 32, 32, generator=generator) > 0.5, torch.tensor([0, 0, 1])),
        phrases=["a", "b", "a"],
    )
