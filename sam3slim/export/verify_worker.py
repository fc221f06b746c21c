"""A model opened in a process of its own: its answers to sample inputs, and its mAP on some images.

``python -m sam3slim.export.verify_worker REQUEST`` reads a JSON file and writes what it found where that says. The same
code asks the picked run's model and the export, each in a fresh process, so that nothing of the conversion's is left.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import Sam3Model
from transformers.utils import logging as transformers_logging

from sam3slim.checkpoints import LoadReport
from sam3slim.compression import emulated
from sam3slim.data.spec import recorded_data
from sam3slim.errors import UserError
from sam3slim.evaluation import evaluate
from sam3slim.files import read_json, write_json
from sam3slim.graphs import GraphSam3, load_runnable
from sam3slim.graphs.modules import LEVELS
from sam3slim.graphs.verify import difference, sample_inputs
from sam3slim.models import Sam3

# Images, prompts, boxes: more than one of everything; the least there is; a prompt with a box for every image.
CASES = ((2, 3, 2), (1, 1, 0), (2, 2, 1))
WITH_BOXES = CASES[2]  # what plain transformers answers as we do
OUTPUTS = ("pred_logits", "pred_boxes", "presence_logits", "pred_masks", "semantic_seg")
Runnable = Sam3 | GraphSam3


@dataclass(frozen=True)
class Request:
    """What to do.

    Attributes:
        source: what ``load_runnable`` opens.
        answer: the JSON file to write.
        outputs: the safetensors file to write.
        overrides: sizes to open it with.
        data: the ``data`` entry of a record; None: no images.
        root: where those lie now, if not where the entry says.
        images: how many.
        transformers: open the folder with plain transformers too.
    """

    source: str
    answer: str
    outputs: str
    overrides: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] | None = None
    root: str | None = None
    images: int = 0
    transformers: bool = False


def run(request: Request) -> None:
    """Open, ask, measure, write.

    Raises:
        UserError: it cannot be opened, or answers NaN.
    """
    model, report = load_runnable(request.source, overrides=request.overrides or None)
    on_cpu = emulated(model) if isinstance(model, Sam3) else nullcontext(0)
    with on_cpu, torch.inference_mode():
        outputs = predictions(model)
        sample = _sample(model, request) if request.data is not None and request.images else None
    save_file(outputs, request.outputs)
    plain = None
    if request.transformers:
        spec = model.spec
        del model
        plain = max(_plain_differences(request.source, spec, outputs).values())
    write_json(request.answer, {**_opened(report), "sample": sample, "transformers_difference": plain})


def predictions(model: Runnable) -> dict[str, Tensor]:
    """Outputs for ``CASES``, by case and name."""
    found: dict[str, Tensor] = {}
    for case in CASES:
        given = sample_inputs(model.spec, *case)
        vision = model.get_vision_features(given.pop("pixel_values"))
        text, _ = model.encode_text(given.pop("input_ids"), given["attention_mask"])
        result = model(vision_embeds=vision, text_embeds=text, **given)
        here = {name: getattr(result, name) for name in OUTPUTS} | {"text_features": text}
        here |= {f"fpn_{i}": level for i, level in enumerate(vision.fpn_hidden_states[: len(LEVELS)])}
        found |= {f"{_named(case)}.{name}": value.contiguous().clone() for name, value in here.items()}
    return found


def _named(case: tuple[int, int, int]) -> str:
    return "x".join(map(str, case))


def _opened(report: LoadReport) -> dict[str, Any]:
    return {"spec": report.spec.to_dict(), "kind": report.kind, "precision": report.precision}


def _sample(model: Runnable, request: Request) -> dict[str, Any]:
    """{"metrics", "images", "prompts"}, or {"reason"} where the data cannot be read."""
    try:
        spec = recorded_data(request.data or {}, root=request.root)
        data = spec.build(model.spec)
        loader = data.loader(spec.split)
    except UserError as error:
        return {"reason": str(error)}
    if data.dataset(spec.split).by_model:
        return {"reason": "the images are not annotated; agreement was with what another model found"}
    result = evaluate(model, loader, limit=request.images, progress=sys.stdout.isatty())
    return {"metrics": result.metrics, "images": result.images, "prompts": result.prompts}


def _plain_differences(folder: str, spec: Any, ours: dict[str, Tensor]) -> dict[str, float]:
    """How far ``transformers.Sam3Model`` is from us on prompts with boxes, output by output."""
    given = sample_inputs(spec, *WITH_BOXES)
    del given["image_index"]  # prompt i asks image i
    transformers_logging.disable_progress_bar()
    with _torchao_loads():
        model = Sam3Model.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    with emulated(model), torch.inference_mode():
        result = model(**given)
    return {name: difference(ours[f"{_named(WITH_BOXES)}.{name}"], getattr(result, name)) for name in OUTPUTS}


@contextmanager
def _torchao_loads() -> Iterator[None]:
    """For the body, ``Sam3Model`` has the two methods that transformers' TorchAO loader asks for (see the card)."""
    kept = {name: getattr(Sam3Model, name) for name in ("get_input_embeddings", "get_output_embeddings")}
    Sam3Model.get_input_embeddings = _token_embedding  # type: ignore[method-assign]
    Sam3Model.get_output_embeddings = lambda self: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        for name, method in kept.items():
            setattr(Sam3Model, name, method)


def _token_embedding(self: Any) -> nn.Module:
    embeddings: nn.Module = self.text_encoder.get_input_embeddings()
    return embeddings


def main(arguments: list[str]) -> int:
    """Entry point of the process; a UserError goes into the answer."""
    request = Request(**read_json(arguments[0], "export again"))
    try:
        run(request)
    except UserError as error:
        write_json(request.answer, {"error": " ".join(str(error).split())})
    except KeyboardInterrupt:
        return 130
    return 0


def write_request(request: Request, path: Path) -> Path:
    """As JSON, for ``main``."""
    return write_json(path, asdict(request))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
