"""Reading a pre-trained plain ViT: transformers' Dinov2 (with or without registers), or timm's VisionTransformer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sam3slim.checkpoints.load_report import CheckpointError
from sam3slim.checkpoints.locating import locate, read_metadata
from sam3slim.models.plain_vit import PlainVit, PlainVitSizes

TIMM = "timm:"  # in front of a model's name in timm
DINOV2 = ("dinov2", "dinov2_with_registers")
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])  # mean and deviation of what a ViT usually sees
HOW = "give a folder or hub id of transformers' Dinov2Model (facebook/dinov2-small), or timm:NAME of a plain timm ViT"


@torch.no_grad()
def read_plain_vit(source: str) -> PlainVit:
    """The ViT at ``source``, float32, in eval mode.

    Args:
        source: a folder or a hub id in transformers' or timm's layout, or ``timm:NAME``.

    Raises:
        CheckpointError: nothing there, no weights, another kind of model, or a ViT that is more than plain.
    """
    if source.startswith(TIMM):
        return _from_timm(source.removeprefix(TIMM), source).eval()
    try:
        folder = locate(source).path
    except CheckpointError as error:
        raise CheckpointError(f"init.vision: {error}") from error
    config = read_metadata(folder / "config.json") if (folder / "config.json").is_file() else {}
    if "architecture" in config:
        return _from_timm(f"local-dir:{folder}", source).eval()
    kind = config.get("model_type")
    if kind not in DINOV2:
        raise CheckpointError(f"init.vision={source} is {f'a {kind} model' if kind else 'no plain ViT'}; {HOW}")
    return _from_dinov2(folder, source).eval()


def _from_dinov2(folder: Path, source: str) -> PlainVit:
    from transformers import AutoModel

    if not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
        raise CheckpointError(
            f"init.vision={source} has a config.json but no weights; copy model.safetensors beside it"
        )
    try:
        loaded: Any = AutoModel.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    except Exception as error:  # what transformers raises depends on what is wrong with the files
        raise CheckpointError(f"init.vision={source} cannot be read: {' '.join(str(error).split())[:200]}") from error
    model, report = loaded
    missing = sorted(set(report["missing_keys"]) - {"embeddings.mask_token"})
    if missing:
        raise CheckpointError(
            f"init.vision={source} lacks {len(missing)} tensors, the first {missing[0]}; copy the whole file"
        )
    config: Any = model.config
    if config.use_swiglu_ffn:
        raise CheckpointError(f"init.vision={source} has gated MLPs (SwiGLU), and SAM 3's tower has none; {HOW}")
    if config.hidden_act != "gelu":
        raise CheckpointError(f"init.vision={source} computes with {config.hidden_act}, SAM 3's tower with gelu; {HOW}")
    registers = getattr(model.embeddings, "register_tokens", None)
    positions = model.embeddings.position_embeddings[0]
    prefix = [model.embeddings.cls_token[0] + positions[:1], *([] if registers is None else [registers[0]])]
    vit = PlainVit(
        PlainVitSizes(
            config.hidden_size, config.num_hidden_layers, config.num_attention_heads,
            int(config.hidden_size * config.mlp_ratio), config.patch_size, config.image_size // config.patch_size,
            sum(map(len, prefix)), config.layer_norm_eps,
            antialias=registers is not None,
        ),
        source,
    )  # fmt: skip
    projection = model.embeddings.patch_embeddings.projection
    _put(vit, projection, torch.cat(prefix), positions[1:])
    blocks: Any = zip(vit.layers, model.encoder.layer, strict=True)
    for mine, its in blocks:
        attention: Any = its.attention
        if hasattr(attention, "attention"):  # nested as BERT's, in the model with registers
            inner, out = attention.attention, attention.output.dense
            q, k, v = inner.query, inner.key, inner.value
        else:
            q, k, v, out = attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj
        _put_block(mine, its.norm1, its.norm2, {"q_proj": q, "k_proj": k, "v_proj": v}, out, its.mlp,
                   its.layer_scale1.lambda1, its.layer_scale2.lambda1)  # fmt: skip
    vit.final_norm.load_state_dict(model.layernorm.state_dict())
    given = folder / "preprocessor_config.json"
    seen = read_metadata(given) if given.is_file() else {}
    vit.fold_normalisation(*(torch.tensor(seen.get(key) or usual) for key, usual in
                             zip(("image_mean", "image_std"), IMAGENET, strict=True)))  # fmt: skip
    return vit


def _from_timm(name: str, source: str) -> PlainVit:
    try:
        import timm
        from timm.models.vision_transformer import VisionTransformer
    except ImportError as error:
        raise CheckpointError(f"init.vision={source} needs timm; pip install 'sam3slim[timm]'") from error
    try:
        model: Any = timm.create_model(name, pretrained=True, num_classes=0)
    except Exception as error:  # unknown names, no network, broken files
        raise CheckpointError(f"init.vision={source} cannot be read: {' '.join(str(error).split())[:200]}") from error
    if not issubclass(type(model), VisionTransformer):
        raise CheckpointError(
            f"init.vision={source} is timm's {type(model).__name__}, not its VisionTransformer; {HOW}"
        )
    first: Any = model.blocks[0]
    more = [
        what for what, there in (
            ("no position table", model.pos_embed is None),
            ("norms of queries and keys", not isinstance(getattr(first.attn, "q_norm", nn.Identity()), nn.Identity)),
            ("gated MLPs", not hasattr(first.mlp, "fc2") or hasattr(first.mlp, "fc1_g")),
            ("norms inside MLPs", not isinstance(getattr(first.mlp, "norm", nn.Identity()), nn.Identity)),
            ("another activation than GELU", not isinstance(getattr(first.mlp, "act", None), nn.GELU)),
        ) if there
    ]  # fmt: skip
    if more:
        raise CheckpointError(f"init.vision={source} has {more[0]}, and SAM 3's tower does without; {HOW}")
    width, prefix = model.embed_dim, [token[0] for token in (model.cls_token, model.reg_token) if token is not None]
    positions = model.pos_embed[0]
    tokens = torch.cat(prefix) if prefix else torch.zeros(0, width)
    with_positions = len(positions) - model.patch_embed.num_patches  # tokens that have a position of their own
    tokens[:with_positions] += positions[:with_positions]
    vit = PlainVit(
        PlainVitSizes(
            width, len(model.blocks), first.attn.num_heads, first.mlp.fc1.out_features,
            model.patch_embed.patch_size[0], model.patch_embed.grid_size[0], len(tokens), first.norm1.eps,
            first_norm=not isinstance(model.norm_pre, nn.Identity), antialias=True,
        ),
        source,
    )  # fmt: skip
    _put(vit, model.patch_embed.proj, tokens, positions[with_positions:])
    if vit.sizes.first_norm:
        vit.first_norm.load_state_dict(model.norm_pre.state_dict())
    for mine, its in zip(vit.layers, model.blocks, strict=True):
        parts = its.attn.qkv.weight.chunk(3)
        biases = torch.zeros(3 * width) if its.attn.qkv.bias is None else its.attn.qkv.bias
        qkv = {
            key: {"weight": weight, "bias": bias}
            for key, weight, bias in zip(("q_proj", "k_proj", "v_proj"), parts, biases.chunk(3), strict=True)
        }
        scales = [getattr(getattr(its, key), "gamma", torch.ones(width)) for key in ("ls1", "ls2")]
        _put_block(mine, its.norm1, its.norm2, qkv, its.attn.proj, its.mlp, *scales)
    if not isinstance(model.norm, nn.Identity):
        vit.final_norm.load_state_dict(model.norm.state_dict())
    seen = model.pretrained_cfg
    vit.fold_normalisation(torch.tensor(seen.get("mean", IMAGENET[0])), torch.tensor(seen.get("std", IMAGENET[1])))
    return vit


def _put(vit: PlainVit, projection: nn.Conv2d, prefix: Tensor, positions: Tensor) -> None:
    vit.kernel.copy_(projection.weight)
    if projection.bias is not None:
        vit.bias.copy_(projection.bias)
    vit.prefix.copy_(prefix)
    vit.positions.copy_(positions)


def _put_block(
    mine: Any, norm1: nn.Module, norm2: nn.Module, qkv: Mapping[str, Any], out: Any, mlp: Any, scale1: Tensor,
    scale2: Tensor,
) -> None:  # fmt: skip
    """Fill a block; the scale of a residual branch goes into the layer that writes it."""
    mine.layer_norm1.load_state_dict(norm1.state_dict())
    mine.layer_norm2.load_state_dict(norm2.state_dict())
    for name, given in qkv.items():
        layer = mine.attention.get_submodule(name)
        values = given if isinstance(given, dict) else given.state_dict()
        layer.weight.copy_(values["weight"])
        layer.bias.zero_() if values.get("bias") is None else layer.bias.copy_(values["bias"])
    mine.mlp.fc1.load_state_dict(mlp.fc1.state_dict())
    for layer, its, scale in ((mine.attention.o_proj, out, scale1), (mine.mlp.fc2, mlp.fc2, scale2)):
        layer.weight.copy_(its.weight * scale[:, None])
        layer.bias.copy_(its.bias * scale)
