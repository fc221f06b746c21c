"""The three graphs behind the calls of ``Sam3``, so that evaluation and prediction need not know."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.sam3.modeling_sam3 import Sam3VisionEncoderOutput

from sam3slim.errors import UserError
from sam3slim.graphs.modules import Lengths, Signature, signatures
from sam3slim.graphs.packages import require
from sam3slim.models import Sam3Prediction
from sam3slim.models.prompted import PromptedModel
from sam3slim.specs import PADDED_BOX_LABEL, ModelSpec


class GraphSam3(nn.Module, PromptedModel):
    """``vision``, ``text`` and ``prompts`` of an artifact, run on the CPU by whatever ``_run`` calls.

    Args:
        spec: the architecture they were exported from.

    Attributes:
        what: the graphs, in words.
        fixed: lengths of static graphs: calls are padded to them and cut into them; None: any length.
        computes_in: the arithmetic, where a runtime was told one.
    """

    what: ClassVar[str]
    device = torch.device("cpu")
    computes_in: str | None = None
    fixed: Lengths | None = None
    dtype = torch.float32

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec, self.signatures = spec, signatures(spec)

    def get_vision_features(self, pixel_values: Tensor) -> Sam3VisionEncoderOutput:
        """Feature maps of images [B, 3, S, S], for ``vision_embeds``; without position encodings."""
        most = None if self.fixed is None else self.fixed.images
        levels = self._in_parts("vision", {"pixel_values": pixel_values}, most)
        return Sam3VisionEncoderOutput(fpn_hidden_states=tuple(levels.values()))

    def text_features(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        tokens = input_ids.shape[1]
        if self.fixed is not None:  # what is masked changes nothing before it
            rest = (0, self.spec.text.context_length - tokens)
            input_ids, mask = F.pad(input_ids, rest), F.pad(mask, rest)
        given = {"input_ids": input_ids, "attention_mask": mask}
        most = None if self.fixed is None else self.fixed.prompts
        return self._in_parts("text", given, most)["text_features"][:, :tokens]

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
        given = {
            "text_features": text, "attention_mask": mask, "input_boxes": boxes, "input_boxes_labels": labels,
            "image_index": torch.arange(len(text)) if index is None else index,
        }  # fmt: skip
        if self.fixed is None:
            maps = {f"fpn_{number}": level for number, level in enumerate(levels)}
            predictions = self._run("prompts", {**maps, **given})
        else:
            predictions = self._fixed_prompts(self.fixed, levels, given)
        prediction = Sam3Prediction(**predictions)
        if not with_masks:
            prediction.pred_masks = prediction.semantic_seg = None
        return prediction

    def _in_parts(self, graph: str, inputs: Mapping[str, Tensor], most: int | None) -> dict[str, Tensor]:
        """``_run``, by static graphs ``most`` rows at a time; the last are padded."""
        if most is None:
            return self._run(graph, inputs)
        rows = len(next(iter(inputs.values())))
        parts = [
            self._run(graph, {name: _padded(value[start : start + most], most) for name, value in inputs.items()})
            for start in range(0, rows, most)
        ]
        return {name: torch.cat([part[name] for part in parts])[:rows] for name in parts[0]}

    def _fixed_prompts(
        self, fixed: Lengths, levels: tuple[Tensor, ...], given: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Answers of static graphs, whose images are asked ``fixed.images`` at a time.

        Raises:
            UserError: more prompts of those images, or more boxes of a prompt, than the graphs were exported for.
        """
        index = given["image_index"].cpu()
        boxes, tokens = given["input_boxes"].shape[1], given["text_features"].shape[1]
        if boxes > fixed.boxes:
            raise UserError(
                f"{boxes} boxes of a prompt, and the static graphs were exported for {fixed.boxes}; give fewer, or "
                f"export again with compress.onnx.boxes={boxes}"
            )
        padding = {
            "text_features": (0, 0, 0, self.spec.text.context_length - tokens),
            "attention_mask": (0, self.spec.text.context_length - tokens),
            "input_boxes": (0, 0, 0, fixed.boxes - boxes), "input_boxes_labels": (0, fixed.boxes - boxes),
        }  # fmt: skip
        whole = {
            name: F.pad(
                value.float() if value.is_floating_point() else value.long(), padding[name],
                value=PADDED_BOX_LABEL if name == "input_boxes_labels" else 0,
            )
            for name, value in given.items()
            if name in padding
        }  # fmt: skip
        order: list[Tensor] = []
        parts: list[dict[str, Tensor]] = []
        for start in range(0, len(levels[0]), fixed.images):
            rows = ((index >= start) & (index < start + fixed.images)).nonzero().squeeze(1)
            if len(rows) > fixed.prompts:
                raise UserError(
                    f"{len(rows)} prompts at once, and the static graphs were exported for {fixed.prompts}; ask fewer "
                    f"(--prompt-chunk {fixed.prompts}), or export again with compress.onnx.prompts={len(rows)}"
                )
            if not len(rows):
                continue
            maps = {
                f"fpn_{number}": _padded(level[start : start + fixed.images], fixed.images)
                for number, level in enumerate(levels)
            }
            asked = {name: _padded(value[rows], fixed.prompts) for name, value in whole.items()}
            asked["image_index"] = _padded(index[rows] - start, fixed.prompts)
            answers = self._run("prompts", {**maps, **asked})
            parts.append({name: value[: len(rows)] for name, value in answers.items()})
            order.append(rows)
        back = torch.cat(order).argsort()
        return {name: torch.cat([part[name] for part in parts])[back] for name in parts[0]}

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


def _padded(value: Tensor, rows: int) -> Tensor:
    """``value`` with its last row repeated up to ``rows`` of them."""
    return value if len(value) == rows else torch.cat([value, value[-1:].expand(rows - len(value), *value.shape[1:])])


def arrays_of(inputs: Mapping[str, Tensor], signature: Signature) -> dict[str, np.ndarray]:
    """``plain_inputs`` as NumPy has them."""
    return {name: tensor.numpy() for name, tensor in plain_inputs(inputs, signature).items()}


def plain_inputs(inputs: Mapping[str, Tensor], signature: Signature) -> dict[str, Tensor]:
    """``inputs`` on the CPU, contiguous, in the types of ``signature``."""
    return {
        name: tensor.detach().to("cpu", torch.int64 if name in signature.integers else torch.float32).contiguous()
        for name, tensor in inputs.items()
    }
