"""What the graphs read on some images, for INT8 with fixed scales of the activations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sam3slim.data.batch import Batch
from sam3slim.graphs.packages import require
from sam3slim.graphs.runner import GraphSam3, arrays_of

PROMPTS = 8  # that pass the prompts graph together: it answers with all masks


@dataclass(frozen=True)
class CalibrationSet:
    """Images and phrases that the ranges of activations are measured on.

    Attributes:
        batches: unlabelled, at least one. Scales reach over all values that are seen.
    """

    batches: Sequence[Batch]

    @property
    def images(self) -> int:
        return sum(len(batch.pixel_values) for batch in self.batches)

    def reader(self, runner: GraphSam3, graph: str) -> Any:
        """ONNX Runtime's ``CalibrationDataReader`` of the inputs of ``graph``; ``runner`` runs the graphs before it."""
        found = feeds(runner, graph, self.batches)

        class Reader(require("onnxruntime.quantization").CalibrationDataReader):  # type: ignore[misc]
            def get_next(self) -> dict[str, np.ndarray] | None:
                return next(found, None)

        return Reader()


def feeds(runner: GraphSam3, graph: str, batches: Sequence[Batch]) -> Iterator[dict[str, np.ndarray]]:
    """What ``runner`` would give to its ``graph``: single pictures, single phrases (each once), or a few prompts.

    The graphs before it are run.
    """
    signature, phrases = runner.signatures[graph], set()
    for batch in batches:
        if graph == "vision":
            for pixels in batch.pixel_values.split(1):
                yield arrays_of({"pixel_values": pixels}, signature)
        elif graph == "text":
            for ids, mask in zip(batch.input_ids.split(1), batch.attention_mask.split(1), strict=True):
                if (phrase := tuple(ids[0].tolist())) not in phrases:
                    phrases.add(phrase)
                    yield arrays_of({"input_ids": ids, "attention_mask": mask}, signature)
        else:
            with torch.inference_mode():
                yield from _prompts(runner, graph, batch)


def _prompts(runner: GraphSam3, graph: str, batch: Batch) -> Iterator[dict[str, np.ndarray]]:
    vision = runner.get_vision_features(batch.pixel_values)
    for start in range(0, len(batch.input_ids), PROMPTS):
        inputs = batch.part(slice(start, start + PROMPTS)).inputs()
        del inputs["pixel_values"]
        run = runner._run

        def stop(name: str, given: Mapping[str, Tensor], run: Any = run) -> dict[str, Tensor]:
            if name == graph:
                raise _Reached(given)
            answer: dict[str, Tensor] = run(name, given)
            return answer

        runner._run = stop  # type: ignore[method-assign, assignment]
        try:
            runner(vision_embeds=vision, **inputs)
        except _Reached as reached:
            yield arrays_of(reached.given, runner.signatures[graph])
        finally:
            del runner._run


class _Reached(Exception):
    def __init__(self, given: Mapping[str, Tensor]) -> None:
        self.given = given
