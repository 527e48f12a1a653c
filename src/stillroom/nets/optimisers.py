"""The one place where an optimiser of networks is built, and where its memory is read and given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from stillroom.nets.ensemble import Ensemble

if TYPE_CHECKING:
    from stillroom.nets.train import Training

Optimiser = Literal["sgd", "adamw"]
Decay = Literal["all", "matrices"]
Memory = dict[str, Tensor]
"""What an optimiser remembers of one parameter: momentum_buffer; or step, exp_avg, exp_avg_sq."""


def optimiser_of(nets: Ensemble, training: Training) -> torch.optim.Optimizer:
    """A fresh optimiser of all networks, at the base rate."""
    groups = parameter_groups(nets, training.weight_decay, training.decay)
    if training.optimiser == "adamw":
        return torch.optim.AdamW(groups, lr=training.lr, betas=training.betas, eps=training.eps)
    return torch.optim.SGD(groups, lr=training.lr, momentum=training.momentum)


def parameter_groups(nets: Ensemble, weight_decay: float, decay: Decay) -> list[dict[str, Any]]:
    """Parameters by their weight decay: every one is in exactly one group.

    "matrices": only weights of two dimensions or more decay, no bias and nothing of a norm.
    Source: EDC's released trainers.
    """
    leaves = nets.leaves()
    if decay == "all":
        return [{"params": leaves, "weight_decay": weight_decay}]
    ones = 1 + nets.stacked  # the first dimension of stacked tensors numbers the networks
    names = [name for member in nets.params for name in member]
    matrices: list[Tensor] = []
    others: list[Tensor] = []
    for name, leaf in zip(names, leaves, strict=True):
        (matrices if "weight" in name and leaf.ndim > ones else others).append(leaf)
    groups = ((matrices, weight_decay), (others, 0.0))
    return [{"params": some, "weight_decay": own} for some, own in groups if some]


def memory_of(optimiser: torch.optim.Optimizer, leaves: Sequence[Tensor]) -> tuple[Memory, ...]:
    """What the optimiser remembers, leaf by leaf: its own tensors, which go on changing."""
    slots = (optimiser.state.get(leaf, {}) for leaf in leaves)
    return tuple({k: v for k, v in own.items() if isinstance(v, Tensor)} for own in slots)


def remind(
    optimiser: torch.optim.Optimizer, leaves: Sequence[Tensor], memory: Sequence[Memory]
) -> None:
    """Give an optimiser what another one remembered of the same leaves."""
    for leaf, own in zip(leaves, memory, strict=True):
        optimiser.state[leaf].update(own)
