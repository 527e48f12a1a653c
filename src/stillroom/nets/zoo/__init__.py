"""The model zoo, and the door through which a user's own networks come in.

`build` makes a network by name, `resolve` turns what a user wrote (a name, `pkg.mod:Factory`, a
callable) into something that builds, `feature_function` finds the features of any network. torch
is imported inside the functions, so that `stillroom.nets.zoo.names` stays free of it.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stillroom.code import digest
from stillroom.errors import StillroomError, suggest
from stillroom.nets.zoo.names import canonical, default_arch, depth_for, known_names, parse

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = [
    "Arch",
    "build",
    "canonical",
    "default_arch",
    "depth_for",
    "feature_function",
    "from_factory",
    "known_names",
    "resolve",
]

MAX_NAME = 200  # letters of a qualified name; a record holds 300
_NAMES_OF = {  # what we pass -> the names under which a factory may take it
    "classes": ("classes", "num_classes"),
    "channels": ("channels", "in_channels"),
    "size": ("size", "image_size"),
}


@dataclass(frozen=True)
class Arch:
    """Something that builds networks. `name` is the canonical text that goes into keys.

    For a user's code it is `user:<qualified name>-<12 hex digits>`, the head of `code.digest`. That
    is never read back: no name of the zoo looks so, and metadata are not to be imported.
    """

    name: str
    factory: Callable[..., object] | None = None

    def build(self, classes: int, channels: int, size: int) -> nn.Module:
        """Return a fresh network on the CPU; see `build` and `from_factory`."""
        if self.factory is None:
            return build(self.name, classes, channels, size)
        return from_factory(self.factory, classes, channels, size)


def build(name: str, classes: int, channels: int, size: int) -> nn.Module:
    """Build a network of the zoo for square images: x [B,channels,size,size] -> logits [B,classes].

    The net has `features(x)` -> [B,D] and a head (`classifier`, `fc` in ResNets) on top of it.
    Randomness: PyTorch's default initialisation from the *global* generator; wrap the call in
    `stillroom.rng.global_rng`.
    Raises: StillroomError for an unknown name, or a size too small for it.
    """
    from stillroom.nets.zoo import classic, convnet, resnet

    for what, value in (("classes", classes), ("channels", channels), ("size", size)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise StillroomError(f"{what}={value!r} of arch {name!r}; it must be a whole number")
    families: dict[str, Callable[..., nn.Module]] = {
        "convnet": convnet.convnet,
        "mlp": classic.mlp,
        "lenet": classic.lenet,
        "alexnet": classic.alexnet,
        "vgg11": classic.vgg11,
        "resnet18": resnet.resnet18,
    }
    spec = parse(name)
    return families[spec.family](spec, classes, channels, size)


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
    from torch import nn

    label = _qualname(factory)
    arguments = _arguments(factory, label, {"classes": classes, "channels": channels, "size": size})
    try:
        net = factory(**arguments)
    except Exception as error:
        raise StillroomError(
            f"arch {label} failed when called with {arguments}: {_line(error)}"
        ) from error
    if not isinstance(net, nn.Module):
        raise StillroomError(f"arch {label} returned a {type(net).__name__}; return an nn.Module")
    _dry_run(net, label, classes, channels, size)
    return net


def feature_function(net: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return a function x [B,ch,H,W] -> features [B,D] of any network.

    `net.features(x)` flattened, if it is callable and keeps the batch; otherwise the flattened
    input of the network's last nn.Linear (in order of registration), seen by a forward pre-hook
    that lives only as long as the call.
    Gradient: through the features.
    Raises: StillroomError, here or at the call, if neither exists.
    """
    import torch
    from torch import nn

    method = getattr(net, "features", None)
    # containers without a forward are callable to Python but not to anyone else
    direct = callable(method) and not isinstance(method, (nn.ModuleList, nn.ModuleDict))
    linear = [module for module in net.modules() if isinstance(module, nn.Linear)]
    if not direct and not linear:
        raise _featureless(net)

    def features(x: Tensor) -> Tensor:
        if direct and method is not None:
            out = method(x)
            if isinstance(out, torch.Tensor) and out.ndim > 1 and out.shape[0] == x.shape[0]:
                return out.flatten(1)
        if not linear:
            raise _featureless(net)
        return _input_of(net, linear[-1], x)

    return features


def resolve(arch: str | Callable[..., object]) -> Arch:
    """Turn what a user wrote into an `Arch`.

    A zoo name; an import path `package.module:Factory`, imported because the user names it (never
    call this with text from metadata or a store); or a class or function that makes networks.
    Raises: StillroomError for an unknown name, a failing import, or something not callable.
    """
    from torch import nn

    if isinstance(arch, str):
        if ":" not in arch:
            return Arch(canonical(arch))
        arch = _import(arch)
    if isinstance(arch, nn.Module):
        raise StillroomError(
            f"arch is a {type(arch).__name__} object; pass its class or a factory, because every "
            "seed needs a fresh network"
        )
    if not callable(arch):
        raise StillroomError(f"arch={arch!r} is not callable; pass an nn.Module class or factory")
    return Arch(f"user:{_qualname(arch)[:MAX_NAME]}-{digest(arch)[:12]}", arch)


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
            f"arch {label} fails on two images {channels}x{size}x{size}: {_line(error)}"
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


def _input_of(net: nn.Module, layer: nn.Module, x: Tensor) -> Tensor:
    seen: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        net(x)
    finally:
        hook.remove()
    if not seen:
        raise _featureless(net)
    return seen[-1].flatten(1)


def _featureless(net: nn.Module) -> StillroomError:
    return StillroomError(
        f"{type(net).__name__} has no features: add a method features(x) that returns [B,D]"
    )


def _import(path: str) -> Any:
    module_name, _, attribute = path.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:  # a user's module may raise anything while it is imported
        raise StillroomError(f"arch={path!r} does not import: {_line(error)}") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise StillroomError(
                f"arch={path!r}: {module_name} has no {part!r}{suggest(part, dir(found))}"
            )
        found = getattr(found, part)
    return found


def _qualname(factory: object) -> str:
    if isinstance(factory, functools.partial):
        return _qualname(factory.func)
    return str(getattr(factory, "__qualname__", type(factory).__qualname__))


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
