"""What the GPU benchmark measures: SAM 3's architectures with random weights, or tiny ones of the same form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn

from sam3slim.checkpoints.int8 import is_quantised, set_weight
from sam3slim.compression import Bf16, Fp8Dynamic, Fp16, Int8Dynamic, Int8Weight
from sam3slim.compression.casts import cast
from sam3slim.compression.fp8_dynamic import fp8_dynamic
from sam3slim.compression.int8_dynamic import int8_dynamic
from sam3slim.compression.int8_weight import int8_weight
from sam3slim.data.batch import Batch
from sam3slim.launch.compose import compose_model, conf_dir
from sam3slim.models import Sam3, init_for_training
from sam3slim.models.build import empty_model
from sam3slim.models.compiled import STACKS, Compile
from sam3slim.planning.request import INSTANCES, planned_spec
from sam3slim.planning.step import make_batch
from sam3slim.runs.measure import back_to_cpu
from sam3slim.runs.specs import TrainSpec
from sam3slim.specs import ModelSpec

TINY = (
    "model.vit.embed_dim=32", "model.vit.depth=2", "model.vit.num_heads=2", "model.vit.mlp_ratio=2",
    "model.vit.patch_size=8", "model.vit.image_size=32", "model.vit.pretrain_image_size=32", "model.vit.window_size=2",
    "model.vit.num_global_blocks=1", "model.text.width=32", "model.text.layers=1", "model.text.num_heads=2",
    "model.text.context_length=16", "model.text.vocab_size=600", "model.text.projection_dim=32",
    "model.geometry.num_layers=1", "model.encoder.num_layers=1", "model.decoder.num_layers=2",
    "model.decoder.num_queries=6", "model.d_model=32", "model.num_heads=4", "model.ffn_dim=32",
)  # fmt: skip
METHODS = {
    "bf16": (cast, Bf16()), "fp16": (cast, Fp16()),
    "int8_weight": (int8_weight, Int8Weight()), "int8_dynamic": (int8_dynamic, Int8Dynamic()),
    "fp8_dynamic": (fp8_dynamic, Fp8Dynamic()),
}  # fmt: skip


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        overrides: of every model.
        experiments: names in conf/experiment.
        images: of a training step; the first number that memory suffices for.
        prompts: of every image of it.
        steps: that are timed.
        compile, stacks: see ``compile_layers``.
        pictures, side: drawn for evaluation and prediction, and their pixels.
        repeats: of a forward whose latency is measured.
    """

    overrides: tuple[str, ...]
    experiments: tuple[str, ...]
    images: tuple[int, ...]
    prompts: int
    steps: int
    compile: Compile
    stacks: Sequence[str]
    pictures: int
    side: int
    repeats: int


def full_sizes() -> Sizes:
    """SAM 3's own, and every experiment that cuts it."""
    experiments = tuple(sorted(path.stem for path in (conf_dir() / "experiment").glob("slim*.yaml")))
    return Sizes((), experiments, (8, 4, 2, 1), 16, 3, True, STACKS, 16, 480, 10)


def small_sizes() -> Sizes:
    """Seconds on one core. Layers are traced, which needs no compiler."""
    return Sizes(TINY, ("slim",), (2, 1), 3, 1, "eager", STACKS[:1], 4, 64, 2)


class Subjects:
    """The device, and models on demand."""

    def __init__(self, sizes: Sizes, device: torch.device) -> None:
        self.sizes, self.device = sizes, device

    @cached_property
    def full(self) -> Sam3:
        """The one full model that is never trained, in eval mode; made on the CPU, and left where it was used last."""
        return random_model(compose_model(["model=full", *self.sizes.overrides])).eval()

    def back_to_cpu(self) -> None:
        """The full model, if it has been made; the GPU's memory is for others."""
        if "full" in vars(self):
            back_to_cpu(self.full)

    def settings(self, chosen: Sequence[str], images: int, prompts: int) -> list[str]:
        """Overrides of ``train.py``: of one process, so that one card is what is measured."""
        batch = [f"data.batch_size={images}", f"data.max_prompts={prompts}", "trainer.devices=1"]
        return [*chosen, *self.sizes.overrides, *batch]

    def spec(self, chosen: Sequence[str], images: int, prompts: int | None = None) -> TrainSpec:
        """The checked configuration of a run whose data and checkpoints need not be there."""
        return planned_spec(self.settings(chosen, images, self.sizes.prompts if prompts is None else prompts))

    def question(self, prompts: int) -> Batch:
        """A picture of noise, and phrases."""
        batch = make_batch(self.spec(["model=full"], 1, prompts), INSTANCES)
        noise = torch.rand(batch.pixel_values.shape, generator=torch.Generator().manual_seed(0))
        return replace(batch, pixel_values=2 * noise - 1)


def random_model(spec: ModelSpec) -> Sam3:
    """What training from scratch starts with, without drawing the weights that it would replace: half the time."""
    model = empty_model(spec)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm | nn.GroupNorm):
            module.reset_parameters()
    return init_for_training(model)


def stored(model: Sam3, method: str) -> Sam3:
    """``model`` (on the CPU, FP32) as it is loaded from an artifact of ``method``, without the way over the disk."""
    handler, options = METHODS[method]
    convert: Any = handler(model, options)  # type: ignore[operator]
    copy = empty_model(model.spec)
    targets = copy.state_dict()
    with torch.no_grad():
        for key, weight in model.state_dict().items():
            made = convert(key, weight.detach()).tensor
            if is_quantised(made):
                set_weight(copy, key, made)
            else:
                targets[key].copy_(made)
    return copy.eval()


def wait(device: torch.device) -> None:
    """CUDA returns before it has computed."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
