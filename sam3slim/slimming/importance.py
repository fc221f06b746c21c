"""Magnitude importance: how much weight a unit carries (Han et al., arXiv:1506.02626; Li et al., arXiv:1608.08710)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sam3slim.slimming.axes import Member

# Scores of attention weights say where a head looks, not what it adds to the stream.
NOT_PRODUCING = (".q_proj.weight", ".q_proj.bias", ".k_proj.weight", ".k_proj.bias")


def energy(tensor: Tensor, dim: int) -> Tensor:
    """Squared norm of each slice of ``tensor`` along ``dim``: [n] float64."""
    others = [d for d in range(tensor.ndim) if d != dim]
    norm = torch.linalg.vector_norm(tensor.float(), dim=others) if others else tensor.float().abs()
    return norm.double() ** 2


def stream_scores(state: Mapping[str, Tensor], members: Sequence[Member]) -> Tensor:
    """Score of each residual channel: its share of every matrix that writes or reads the stream, summed.

    Each matrix counts the same whatever its scale. Norm weights and biases are left out: a channel's
    scale after a norm says nothing about what is in it.
    """
    total = torch.zeros(())
    for member in members:
        tensor = state[member.key]
        if tensor.ndim < 2:
            continue
        part = energy(tensor, member.dim)
        total = total + part / part.sum().clamp_min(torch.finfo(torch.float64).tiny)
    return total


def hidden_scores(state: Mapping[str, Tensor], members: Sequence[Member], unit: int = 1) -> Tensor:
    """Score of each hidden unit of ``unit`` consecutive entries: norm of what writes it × of what reads it.

    Zero when either side is zero: such a unit adds nothing (or a constant) to the output.
    """
    writes: Tensor = torch.zeros(())
    reads: Tensor = torch.zeros(())
    for member in members:
        if member.key.endswith(NOT_PRODUCING):
            continue
        part = energy(state[member.key], member.dim)
        if member.reads:
            reads = reads + part
        else:
            writes = writes + part
    grouped = [side.reshape(-1, unit).sum(1).sqrt() for side in (writes, reads)]
    return grouped[0] * grouped[1]


def block_energy(state: Mapping[str, Tensor], prefix: str) -> Tensor:
    """Squared norm of all matrices of each block under ``prefix``: [depth] float64."""
    totals: dict[int, float] = {}
    for key, tensor in state.items():
        if key.startswith(prefix) and tensor.ndim >= 2:
            number = int(key.removeprefix(prefix).split(".", 1)[0])
            totals[number] = totals.get(number, 0.0) + float(torch.linalg.vector_norm(tensor.float())) ** 2
    return torch.tensor([totals[number] for number in sorted(totals)], dtype=torch.float64)
