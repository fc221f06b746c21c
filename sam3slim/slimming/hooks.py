"""What passes through a model: squared activations per unit, and how much a block turns its input."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sam3slim.models import Sam3
from sam3slim.slimming.axes import STACKS, Member

# Modules whose input is padded → where their forward finds the mask [P, T] of real tokens.
MASKED = {"text_encoder": "attention_mask", "dot_product_scoring": "text_mask"}
# They read exactly what q_proj reads.
SAME_INPUT = (".k_proj.weight", ".v_proj.weight")


class _Hooks:
    """Hooks that live as long as the ``with`` block, and the masks of padded inputs."""

    def __init__(self, model: Sam3) -> None:
        self.model = model
        self._handles: list[RemovableHandle] = []
        self._masks: dict[str, Tensor | None] = {}

    def __enter__(self) -> Any:
        self._shares, self.model.shares_images = self.model.shares_images, False
        for name, argument in MASKED.items():
            module = self.model.get_submodule(name)
            self._handles.append(module.register_forward_pre_hook(self._remember(name, argument), with_kwargs=True))
        self.attach()
        return self

    def __exit__(self, *_: object) -> None:
        self.model.shares_images = self._shares
        for handle in self._handles:
            handle.remove()

    def attach(self) -> None:
        raise NotImplementedError

    def _remember(self, name: str, argument: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            mask = kwargs.get(argument)
            self._masks[name] = None if mask is None else mask.bool()

        return hook

    def real(self, key: str, value: Tensor) -> Tensor:
        """[..., C] → [N, C] without padding; float32, no graph."""
        value = value.detach().float()
        part = key.split(".")[0]
        mask = self._masks.get("text_encoder" if part == "text_projection" else part)
        return value.flatten(0, -2) if mask is None or mask.shape != value.shape[:-1] else value[mask]


class Activations(_Hooks):
    """Mean squared activation of each unit in front of the tensors that read it.

    For a neuron that is its output after the activation function, for a head its values before the output
    projection, for a residual channel what the layer norms hand on (Minitron, arXiv:2407.14679, section 2.2,
    with squares where it has absolute values). A channel has many readers; each counts the same.
    """

    def __init__(self, model: Sam3, readers: dict[str, tuple[list[Member], int]], on: bool) -> None:
        super().__init__(model)
        self._readers = {
            axis: ([m.key for m in reading if not m.key.endswith(SAME_INPUT)], unit)
            for axis, (reading, unit) in readers.items()
        }
        self._on = on
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def attach(self) -> None:
        for key in {key for keys, _ in self._readers.values() for key in keys} if self._on else ():
            module = self.model.get_submodule(key.removesuffix(".weight"))
            self._handles.append(module.register_forward_pre_hook(self._see(key)))

    def _see(self, key: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            value = args[0] if isinstance(module, nn.Linear) else args[0].movedim(1, -1)
            rows = self.real(key, value)
            squares = rows.square().sum(0, dtype=torch.float64).cpu()
            self._sums[key] = self._sums.get(key, torch.zeros_like(squares)) + squares
            self._counts[key] = self._counts.get(key, 0) + len(rows)

        return hook

    def scores(self) -> dict[str, Tensor]:
        """Axis → [units] float64; one reader: the mean square; several: the mean of their shares."""
        found = {}
        for axis, (keys, unit) in self._readers.items():
            means = [self._sums[key] / max(self._counts[key], 1) for key in keys if key in self._sums]
            if not means:
                continue
            if len(means) > 1:
                means = [mean / mean.sum().clamp_min(torch.finfo(torch.float64).tiny) for mean in means]
            found[axis] = (torch.stack(means).sum(0) / len(means)).reshape(-1, unit).sum(1)
        return found


class BlockInfluence(_Hooks):
    """1 − mean cosine similarity of a block's input and output tokens (ShortGPT, arXiv:2403.03853, equation 1).

    0 for a block that only passes its input on, at most 2.
    """

    def __init__(self, model: Sam3) -> None:
        super().__init__(model)
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor] = {}

    def attach(self) -> None:
        for stack, prefix in STACKS.items():
            layers = self.model.get_submodule(prefix.removesuffix("."))
            assert isinstance(layers, nn.ModuleList)
            self._sums[stack] = torch.zeros(len(layers), dtype=torch.float64)
            self._counts[stack] = torch.zeros(len(layers), dtype=torch.float64)
            for number, block in enumerate(layers):
                hook = self._see(stack, number)
                self._handles.append(block.register_forward_hook(hook, with_kwargs=True))

    def _see(self, stack: str, number: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            before = args[0] if args else next(iter(kwargs.values()))
            after = output if isinstance(output, Tensor) else output[0]
            key = STACKS[stack]
            similar = torch.cosine_similarity(self.real(key, before), self.real(key, after), dim=-1)
            self._sums[stack][number] += (1 - similar.double()).sum().cpu()
            self._counts[stack][number] += similar.numel()

        return hook

    def scores(self) -> dict[str, Tensor]:
        """Stack → [depth] float64, >= 0."""
        return {stack: (self._sums[stack] / self._counts[stack].clamp_min(1)).clamp_min(0) for stack in STACKS}
