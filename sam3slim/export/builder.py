"""The sizes that the reference implementation's builder must be given to load a ``reference`` export strictly.

Its ``build_sam3_image_model`` has SAM 3's sizes written into it; what it calls takes them as keyword arguments.
"""

from __future__ import annotations

from pprint import pformat
from typing import Any

from sam3slim.specs import ModelSpec

MODULE, TEXT_MODULE = "sam3.model_builder", "sam3.model.text_encoder_ve"


def builder_sizes(spec: ModelSpec) -> dict[str, dict[str, dict[str, Any]]]:
    """{module: {class: keyword arguments}} of the reference implementation for an architecture.

    Classes that the builder calls several times (attention, encoder layers) have the same sizes everywhere.
    """
    vit, text, width = spec.vit, spec.text, spec.d_model
    layer = {"d_model": width, "dim_feedforward": spec.ffn_dim}
    sizes: dict[str, dict[str, Any]] = {
        "ViT": {
            "img_size": vit.image_size, "pretrain_img_size": vit.pretrain_image_size, "patch_size": vit.patch_size,
            "embed_dim": vit.embed_dim, "depth": vit.depth, "num_heads": vit.num_heads, "mlp_ratio": vit.mlp_ratio,
            "global_att_blocks": vit.global_blocks, "window_size": vit.window_size,
        },
        "Sam3DualViTDetNeck": {"d_model": width},
        # The two None are caches for compilation, which only a machine with a GPU can build.
        "PositionEmbeddingSine": {"num_pos_feats": width, "precompute_resolution": None},
        "VETextEncoder": {
            "d_model": width, "width": text.width, "heads": text.num_heads, "layers": text.layers,
            "context_length": text.context_length, "vocab_size": text.vocab_size,
        },
        "TransformerEncoderLayer": layer,
        "MultiheadAttention": {"num_heads": spec.num_heads, "embed_dim": width},
        "TransformerEncoderFusion": {"num_layers": spec.encoder.num_layers, "d_model": width},
        "TransformerDecoderLayer": {**layer, "n_heads": spec.num_heads},
        "TransformerDecoder": {
            "num_layers": spec.decoder.num_layers, "num_queries": spec.decoder.num_queries, "d_model": width,
            "resolution": None, "stride": None,
        },
        "TransformerWrapper": {"d_model": width},
        "SequenceGeometryEncoder": {
            "d_model": width, "num_layers": spec.geometry.num_layers, "roi_size": spec.geometry.roi_size,
        },
        "MLP": {"input_dim": width, "hidden_dim": spec.ffn_dim, "output_dim": width},
        "DotProductScoring": {"d_model": width, "d_proj": width},
        "PixelDecoder": {"hidden_dim": width},
        "UniversalSegmentationHead": {"hidden_dim": width},
    }  # fmt: skip
    transformer = {"TextTransformer": {"mlp_ratio": text.mlp_ratio, "output_dim": text.projection_dim}}
    return {MODULE: sizes, TEXT_MODULE: transformer}


def builder_lines(spec: ModelSpec, file: str) -> list[str]:
    """Python that builds the reference implementation with these sizes and loads ``file`` strictly."""
    return [
        "import importlib",
        "",
        "import torch",
        "from torch import nn",
        "",
        f"SIZES = {pformat(builder_sizes(spec), width=110, sort_dicts=False)}",
        "for module, classes in SIZES.items():",
        "    module = importlib.import_module(module)",
        "    for name, sizes in classes.items():",
        '        extra = {"out_norm": nn.LayerNorm(sizes["output_dim"])} if name == "MLP" else {}',
        "        made = getattr(module, name)",
        "        setattr(module, name, lambda *a, made=made, own={**sizes, **extra}, **k: made(*a, **{**k, **own}))",
        "",
        f"from {MODULE} import build_sam3_image_model",
        "",
        'model = build_sam3_image_model(load_from_HF=False, checkpoint_path=None, device="cpu")',
        f'state = torch.load("{file}", weights_only=True)',
        'model.load_state_dict({key.removeprefix("detector."): value for key, value in state.items()}, strict=True)',
    ]
