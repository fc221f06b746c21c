"""The three graphs behind the calls of ``Sam3``, so that evaluation and prediction need not know."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from transformers.models.sam3.modeling_sam3 import Sam3VisionEncoderOutput

from sam3slim.graphs.modules import Signature, signatures
from sam3slim.graphs.packages import require
from sam3slim.models import Sam3Prediction
from sam3slim.models.prompted import PromptedModel
from sam3slim.specs import ModelSpec


class GraphSam3(nn.Module, PromptedModel):
    """``vision``, ``text`` and ``prompts`` of an artifact, run on the CPU by whatever ``_run`` calls.

    Args:
        spec: the architecture they were exported from.

    Attributes:
        what: the graphs, in words.
        computes_in: the arithmetic, where a runtime was told one.
    """

    what: ClassVar[str]
    device = torch.device("cpu")
    computes_in: str | None = None
    dtype = torch.float32

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec, self.signatures = spec, signatures(spec)

    def get_vision_features(self, pixel_values: Tensor) -> Sam3VisionEncoderOutput:
        """Feature maps of images [B, 3, S, S], for ``vision_embeds``; without position encodings."""
        return Sam3VisionEncoderOutput(
            fpn_hidden_states=tuple(self._run("vision", {"pixel_values": pixel_values}).values())
        )

    def text_features(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        return self._run("text", {"input_ids": input_ids, "attention_mask": mask})["text_features"]

    def forward(
        self,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        input_boxes: Tensor | None = None,
        input_boxes_labels: Tensor | None = None,
        *,
        image_index: Tensor | None = None,
        vision_embeds: Sam3VisionEncoderOutput | None = None,
        text_embeds: Tensor | None = None,
        with_masks: bool | Literal["asked"] = True,
    ) -> Sam3Prediction:
        """Answer P prompts about B images; the arguments are those of ``Sam3.forward``.

        ``with_masks=False`` leaves the masks out of the answer; the graph computes all of them in any case.

        Raises:
            ValueError: inputs that exclude each other, or whose sizes do not fit.
        """
        vision_embeds = self.vision_of(pixel_values, vision_embeds)
        assert vision_embeds is not None
        levels = tuple(vision_embeds.fpn_hidden_states)[: len(self.signatures["vision"].outputs)]
        text, mask = self.encode_text(input_ids, attention_mask, text_embeds)
        index = self.image_index_of(image_index, len(text), len(levels[0]))
        boxes = torch.zeros(len(text), 0, 4) if input_boxes is None else input_boxes
        labels = torch.ones(boxes.shape[:2]) if input_boxes_labels is None else input_boxes_labels
        predictions = self._run("prompts", {
            **{f"fpn_{number}": level for number, level in enumerate(levels)},
            "text_features": text,
            "attention_mask": mask,
            "image_index": torch.arange(len(text)) if index is None else index,
            "input_boxes": boxes,
            "input_boxes_labels": labels,
        })  # fmt: skip
        prediction = Sam3Prediction(**predictions)
        if not with_masks:
            prediction.pred_masks = prediction.semantic_seg = None
        return prediction

    def _run(self, graph: str, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Outputs by name of the graph called ``graph``; inputs of any type and place."""
        raise NotImplementedError


class OnnxSam3(GraphSam3):
    """``vision.onnx``, ``text.onnx`` and ``prompts.onnx`` of a folder, run by ONNX Runtime on the CPU.

    Args:
        folder: holds the graphs.
        spec: the architecture they were exported from.
        threads: of a graph's operations; None: as many as torch uses now.
        lean: give memory back after every operation, slower: for checking a model that barely fits.

    Raises:
        UserError: onnxruntime is not installed.
    """

    what = "ONNX graphs, run by ONNX Runtime"

    def __init__(self, folder: Path, spec: ModelSpec, *, threads: int | None = None, lean: bool = False) -> None:
        super().__init__(spec)
        runtime = require("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads or torch.get_num_threads()
        # Below warnings: ONNX Runtime's remarks about its own optimisations are of no use to a user.
        options.log_severity_level = 3
        if lean:
            # The arena keeps its largest extent, and packed weights are a second copy of them.
            options.enable_cpu_mem_arena = False
            options.add_session_config_entry("session.disable_prepacking", "1")
        self.sessions: dict[str, Any] = {
            name: runtime.InferenceSession(str(folder / f"{name}.onnx"), options, providers=["CPUExecutionProvider"])
            for name in self.signatures
        }
        self.eval()

    def _run(self, graph: str, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        signature = self.signatures[graph]
        outputs = self.sessions[graph].run(list(signature.outputs), arrays_of(inputs, signature))
        return {name: torch.from_numpy(value) for name, value in zip(signature.outputs, outputs, strict=True)}


def arrays_of(inputs: Mapping[str, Tensor], signature: Signature) -> dict[str, np.ndarray]:
    """``plain_inputs`` as NumPy has them."""
    return {name: tensor.numpy() for name, tensor in plain_inputs(inputs, signature).items()}


def plain_inputs(inputs: Mapping[str, Tensor], signature: Signature) -> dict[str, Tensor]:
    """``inputs`` on the CPU, contiguous, in the types of ``signature``."""
    return {
        name: tensor.detach().to("cpu", torch.int64 if name in signature.integers else torch.float32).contiguous()
        for name, tensor in inputs.items()
    }
