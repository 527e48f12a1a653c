"""A user's own network: its factory called with what it takes, and what comes back checked.

torch is imported inside the functions, as in the package's `__init__`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from stillroom.errors import StillroomError

if TYPE_CHECKING:
    from torch import nn

_NAMES_OF = {  # what we pass -> the names under which a factory may take it
    "classes": ("classes", "num_classes"),
    "channels": ("channels", "in_channels"),
    "size": ("size", "image_size"),
}


def from_factory(
    factory: Callable[..., object], classes: int, channels: int, size: int
) -> nn.Module:
    """Call a user's `nn.Module` class or factory and check what comes back.

    Of classes (or num_classes), channels (or in_channels) and size (or image_size) it is passed
    those that its signature names. The check is one forward of two zero images in eval mode,
    without gradients; buffers and the modules' modes are as before.
    Randomness: whatever the factory draws, from the global generator; the check draws nothing.
    Raises: StillroomError if the factory needs other arguments, fails, returns no module, or its
    logits are not [2, classes].
    """
    label = qualname(factory)
    arguments = _arguments(factory, label, {"classes": classes, "channels": channels, "size": size})
    return checked_call(label, factory, arguments, classes, channels, size)


def checked_call(
    label: str,
    factory: Callable[..., object],
    arguments: Mapping[str, Any],
    classes: int,
    channels: int,
    size: int,
) -> nn.Module:
    """Call a factory, named `label` in errors, and check its network as `from_factory` does."""
    from torch import nn

    try:
        net = factory(**arguments)
    except Exception as error:
        raise StillroomError(
            f"arch {label} failed when called with {arguments}: {one_line(error)}"
        ) from error
    if not isinstance(net, nn.Module):
        raise StillroomError(f"arch {label} returned a {type(net).__name__}; return an nn.Module")
    _dry_run(net, label, classes, channels, size)
    return net


def qualname(factory: object) -> str:
    """Return the name that a factory was defined under; of a partial, that of its function."""
    if isinstance(factory, functools.partial):
        return qualname(factory.func)
    return str(getattr(factory, "__qualname__", type(factory).__qualname__))


def one_line(error: BaseException) -> str:
    """Return type and text of somebody else's exception in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _arguments(
    factory: Callable[..., object], label: str, values: dict[str, int]
) -> dict[str, int]:
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # some builtins have none
        return {}
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    named = {parameter.name for parameter in parameters if parameter.kind in kinds}
    arguments = {}
    for what, value in values.items():
        taken = next((name for name in _NAMES_OF[what] if name in named), None)
        if taken is not None:
            arguments[taken] = value
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    for parameter in parameters:
        needed = parameter.default is inspect.Parameter.empty and parameter.kind not in variadic
        if needed and parameter.name not in arguments:
            offered = ", ".join("/".join(names) for names in _NAMES_OF.values())
            raise StillroomError(
                f"arch {label} needs an argument {parameter.name!r}; only {offered} are passed, by "
                "name: give it a default or wrap it in a function"
            )
    return arguments


def _dry_run(net: nn.Module, label: str, classes: int, channels: int, size: int) -> None:
    import torch

    like = next(net.parameters(), torch.zeros(()))
    try:  # a lazy parameter has no values yet, but it has a device and a type
        images = torch.zeros(2, channels, size, size, device=like.device, dtype=like.dtype)
        modes = [(module, module.training) for module in net.modules()]
        net.eval()
        with torch.no_grad():
            logits = net(images)
    except Exception as error:
        raise StillroomError(
            f"arch {label} fails on two images {channels}x{size}x{size}: {one_line(error)}"
        ) from error
    for module, training in modes:
        module.training = training
    if not isinstance(logits, torch.Tensor):
        raise StillroomError(
            f"arch {label} returns a {type(logits).__name__}; its forward must return logits [B,C]"
        )
    if tuple(logits.shape) != (2, classes):
        raise StillroomError(
            f"arch {label} returns {list(logits.shape)} for two images, not [2, {classes}]; let it "
            "take an argument named classes or num_classes"
        )
