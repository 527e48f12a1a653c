"""What an ensemble is made of: the feature half of a network, its norms, pieces of a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.errors import StillroomError
from stillroom.nets.zoo import feature_function

Looks = Mapping[str, Callable[[Tensor], Any]]
"""looks[n](input of module n): what is taken down of it."""


class Features(nn.Module):
    """The feature half of a network as a module of its own, for `functional_call`."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.compute = feature_function(net)

    def forward(self, x: Tensor) -> Tensor:
        """x [B,ch,H,W] -> features [B,D]."""
        return self.compute(x)


class Watched(nn.Module):
    """A network that also gives what `looks` take down: (logits, look by module).

    A look is taken at the call, before anything can change the input in place; or, with `output`,
    at what the module gives. Its hooks are on the network until `close`.
    Raises: StillroomError for a module that is not there.
    """

    def __init__(self, net: nn.Module, looks: Looks, output: bool = False) -> None:
        super().__init__()
        self.net, self.looks = net, dict(looks)
        self.seen: dict[str, Any] = {}
        modules = dict(net.named_modules())
        if missing := [name for name in looks if name not in modules]:
            there = ", ".join(name for name in modules if name)
            raise StillroomError(f"layer {missing[0]!r} is not one of the network: {there[:300]}")
        self.hooks = [
            modules[name].register_forward_hook(self._after(name))
            if output
            else modules[name].register_forward_pre_hook(self._hook(name))
            for name in looks
        ]

    def close(self) -> None:
        """Take the hooks off."""
        for hook in self.hooks:
            hook.remove()

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def take(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self.seen[name] = self.looks[name](inputs[0])

        return take

    def _after(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def take(_: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
            self.seen[name] = self.looks[name](out)

        return take

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """x [B,ch,H,W] -> logits [B,C] and the looks at modules that were called."""
        logits: Tensor = self.net(x)
        seen, self.seen = self.seen, {}  # else the graph would live as long as this
        return logits, seen


def prefixed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights by the names that they have in `Features` and `Watched`."""
    return {f"net.{name}": tensor for name, tensor in tensors.items()}


def batchnorms(net: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """The BatchNorm layers of a network, in module order."""
    return [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def padded(x: Tensor, size: int) -> list[Tensor]:
    """Pieces of x [B,...] of one size, the last filled up with zeros."""
    missing = -len(x) % size
    if missing:
        x = torch.cat([x, x.new_zeros((missing, *x.shape[1:]))])
    return list(x.split(size))
