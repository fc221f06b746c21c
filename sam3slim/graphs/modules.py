"""The three graphs: what goes in, what comes out, and the modules that are exported.

Lengths written as words change from call to call: ``images`` B, ``phrases`` and ``prompts`` P, ``tokens`` T,
``boxes`` N (0 is allowed).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import roi_align
from transformers.models.sam3.modeling_sam3 import Sam3VisionEncoderOutput, box_cxcywh_to_xyxy

from sam3slim.errors import UserError
from sam3slim.models import Sam3
from sam3slim.specs import PADDED_BOX_LABEL, ModelSpec

Shape = tuple[str | int, ...]
LEVELS = (4, 2, 1)  # sides of the feature maps in grids of the ViT, fine to coarse
# Two of everything: torch.export would take a single one for a constant.
EXAMPLE = {"images": 2, "phrases": 3, "prompts": 3, "tokens": 6, "boxes": 4}


@dataclass(frozen=True)
class Signature:
    """Names of a graph's inputs and outputs with their shapes; what ``integers`` names is int64, all else float32."""

    inputs: dict[str, Shape]
    outputs: dict[str, Shape]
    integers: tuple[str, ...] = ()

    def metadata(self) -> dict[str, Any]:
        """JSON values for ``sam3slim.json``."""

        def rows(shapes: dict[str, Shape]) -> dict[str, Any]:
            return {
                name: {"dtype": "int64" if name in self.integers else "float32", "shape": list(shape)}
                for name, shape in shapes.items()
            }

        return {"inputs": rows(self.inputs), "outputs": rows(self.outputs)}

    def examples(self) -> tuple[Tensor, ...]:
        """Inputs to trace with; their values are of no account."""
        return tuple(
            torch.zeros([_length(side) for side in shape], dtype=torch.int64 if name in self.integers else None)
            for name, shape in self.inputs.items()
        )

    def dynamic_shapes(self, limits: dict[str, int]) -> tuple[dict[int, Any], ...]:
        """What ``torch.export`` calls them; ``limits`` are the largest lengths there are."""
        sides = {side for shape in self.inputs.values() for side in shape if isinstance(side, str)}
        dims = {side: torch.export.Dim(side, max=limits.get(side)) for side in sides}
        return tuple(
            {axis: dims[side] for axis, side in enumerate(shape) if isinstance(side, str)}
            for shape in self.inputs.values()
        )


def _length(side: str | int) -> int:
    return EXAMPLE[side] if isinstance(side, str) else side


@dataclass(frozen=True)
class Lengths:
    """Of static graphs: every call has so many images, prompts (and phrases) and boxes per prompt, and whole contexts.

    Raises:
        UserError: one below 1.
    """

    images: int = 1
    prompts: int = 32
    boxes: int = 1

    def __post_init__(self) -> None:
        for name in ("images", "prompts", "boxes"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} of static graphs: expected at least 1")

    def of(self, spec: ModelSpec) -> dict[str, int]:
        """Word → length."""
        return {
            "images": self.images, "phrases": self.prompts, "prompts": self.prompts, "boxes": self.boxes,
            "tokens": spec.text.context_length,
        }  # fmt: skip


def signatures(spec: ModelSpec, fixed: Lengths | None = None) -> dict[str, Signature]:
    """Inputs and outputs of ``vision``, ``text`` and ``prompts`` for an architecture; ``fixed`` of static graphs."""
    found = _signatures(spec)
    return found if fixed is None else {name: _fixed(one, fixed.of(spec)) for name, one in found.items()}


def _fixed(signature: Signature, lengths: dict[str, int]) -> Signature:
    def numbers(shapes: dict[str, Shape]) -> dict[str, Shape]:
        return {
            name: tuple(lengths[side] if isinstance(side, str) else side for side in shape)
            for name, shape in shapes.items()
        }

    return Signature(numbers(signature.inputs), numbers(signature.outputs), signature.integers)


def _signatures(spec: ModelSpec) -> dict[str, Signature]:
    size, width, queries = spec.vit.image_size, spec.d_model, spec.decoder.num_queries
    sides = [spec.vit.grid_size * level for level in LEVELS]
    # The rows of a prompt bank are compared whole.
    tokens = "tokens" if spec.text.bank is None else spec.text.context_length
    fpn: dict[str, Shape] = {f"fpn_{i}": ("images", width, side, side) for i, side in enumerate(sides)}
    return {
        "vision": Signature({"pixel_values": ("images", 3, size, size)}, fpn),
        "text": Signature(
            {"input_ids": ("phrases", tokens), "attention_mask": ("phrases", tokens)},
            {"text_features": ("phrases", tokens, width)},
            integers=("input_ids", "attention_mask"),
        ),
        "prompts": Signature(
            {
                **fpn,
                "text_features": ("prompts", "tokens", width),
                "attention_mask": ("prompts", "tokens"),
                "image_index": ("prompts",),
                "input_boxes": ("prompts", "boxes", 4),
                "input_boxes_labels": ("prompts", "boxes"),
            },
            {
                "pred_logits": ("prompts", queries),
                "pred_boxes": ("prompts", queries, 4),
                "presence_logits": ("prompts", 1),
                "pred_masks": ("prompts", queries, sides[0], sides[0]),
                "semantic_seg": ("prompts", 1, sides[0], sides[0]),
            },
            integers=("attention_mask", "image_index", "input_boxes_labels"),
        ),
    }


class VisionGraph(nn.Module):
    """Pixels → the three levels of the feature pyramid that prompts look at."""

    def __init__(self, model: Sam3) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.model.get_vision_features(pixel_values).fpn_hidden_states[: len(LEVELS)])


class TextGraph(nn.Module):
    """Tokens → projected text features."""

    def __init__(self, model: Sam3) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        encoded = self.model.get_text_features(input_ids=input_ids, attention_mask=attention_mask, return_dict=True)
        features: Tensor = encoded.pooler_output
        return features


class PromptsGraph(nn.Module):
    """Feature maps, text and boxes → the last layer's answers. Position encodings are constants of the graph."""

    def __init__(self, model: Sam3) -> None:
        super().__init__()
        self.model = model
        encode, grid = model.vision_encoder.neck.position_encoding, model.spec.vit.grid_size
        for number, level in enumerate(LEVELS):
            shape = torch.Size((1, model.spec.d_model, grid * level, grid * level))
            self.register_buffer(f"position_{number}", encode(shape, "cpu", torch.float32).contiguous().clone())

    def forward(
        self,
        fpn_0: Tensor,
        fpn_1: Tensor,
        fpn_2: Tensor,
        text_features: Tensor,
        attention_mask: Tensor,
        image_index: Tensor,
        input_boxes: Tensor,
        input_boxes_labels: Tensor,
    ) -> tuple[Tensor, ...]:
        prompts = text_features.shape[0]
        # A padded box more, so that a prompt without boxes takes the same path through the graph.
        boxes = torch.cat([input_boxes, input_boxes.new_full((prompts, 1, 4), 0.5)], dim=1)
        padding = input_boxes_labels.new_full((prompts, 1), PADDED_BOX_LABEL)
        output = self.model(
            vision_embeds=self._vision(fpn_0, fpn_1, fpn_2),
            text_embeds=text_features,
            attention_mask=attention_mask,
            input_boxes=boxes,
            input_boxes_labels=torch.cat([input_boxes_labels, padding], dim=1),
            image_index=image_index,
        )
        return tuple(getattr(output, name) for name in signatures(self.model.spec)["prompts"].outputs)

    def _vision(self, *levels: Tensor) -> Sam3VisionEncoderOutput:
        positions = [
            self.get_buffer(f"position_{number}").expand(level.shape[0], -1, -1, -1)
            for number, level in enumerate(levels)
        ]
        # The model drops the last of its levels, so there must be one more.
        return Sam3VisionEncoderOutput(
            fpn_hidden_states=(*levels, levels[-1]), fpn_position_encoding=(*positions, positions[-1])
        )


MODULES: dict[str, type[nn.Module]] = {"vision": VisionGraph, "text": TextGraph, "prompts": PromptsGraph}
# (features [P, C, h, w], corners [K, 4] in their pixels, rows [K] of features, side) → [K, C, side, side]
Pool = Callable[[Tensor, Tensor, Tensor, int], Tensor]


def onnx_pool(features: Tensor, corners: Tensor, rows: Tensor, side: int) -> Tensor:
    """ONNX's RoiAlign; ``roi_align(aligned=False)`` with its adaptive number of samples is ``output_half_pixel`` and a
    sampling ratio of 0 there."""
    return torch.onnx.ops.symbolic(
        "RoiAlign",
        [features, corners, rows],
        attrs={
            "coordinate_transformation_mode": "output_half_pixel", "mode": "avg", "output_height": side,
            "output_width": side, "sampling_ratio": 0, "spatial_scale": 1.0,
        },
        dtype=features.dtype,
        shape=(corners.shape[0], features.shape[1], side, side),
        version=16,
    )  # fmt: skip


def torch_pool(features: Tensor, corners: Tensor, rows: Tensor, side: int) -> Tensor:
    """torchvision's, which a program of torch.export calls."""
    pooled: Tensor = roi_align(features, torch.cat([rows[:, None].to(corners.dtype), corners], dim=1), side)
    return pooled


@contextmanager
def traceable(model: Sam3, pool: Pool = onnx_pool) -> Iterator[None]:
    """For the body, boxes of any number of prompts are pooled by one call of ``pool``."""
    geometry: Any = model.geometry_encoder
    geometry._encode_boxes = partial(_encode_boxes, geometry, pool)
    try:
        yield
    finally:
        del geometry._encode_boxes  # the class's own is found again


def _encode_boxes(
    geometry: Any, pool: Pool, boxes: Tensor, mask: Tensor, labels: Tensor, features: Tensor
) -> tuple[Tensor, ...]:
    """``Sam3GeometryEncoder._encode_boxes`` without its loop over prompts."""
    prompts, count = boxes.shape[:2]
    height, width = features.shape[-2:]
    corners = box_cxcywh_to_xyxy(boxes) * boxes.new_tensor([width, height, width, height])
    rows = torch.arange(prompts)[:, None].expand(prompts, count).flatten()
    pooled = pool(features, corners.flatten(0, 1), rows, geometry.roi_size)
    embedded = geometry.boxes_direct_project(boxes)
    embedded = embedded + geometry.boxes_pool_project(pooled).view(prompts, count, geometry.hidden_size)
    encoded = geometry._encode_box_coordinates(*boxes.flatten(0, 1).unbind(-1))
    embedded = embedded + geometry.boxes_pos_enc_project(encoded.view(prompts, count, encoded.shape[-1]))
    return geometry.label_embed(labels) + embedded, mask
