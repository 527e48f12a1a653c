"""The model zoo, and the door through which a user's own networks come in.

`build` makes a network by name, `resolve` turns what a user wrote (a name, `pkg.mod:Factory`, a
callable) into something that builds, `feature_function` finds the features of any network. torch
is imported inside the functions, so that `stillroom.nets.zoo.names` stays free of it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stillroom.code import digest
from stillroom.errors import StillroomError, suggest
from stillroom.nets.zoo.factories import from_factory, one_line, qualname
from stillroom.nets.zoo.names import (
    LIBRARIES,
    canonical,
    default_arch,
    depth_for,
    known_names,
    of_library,
    parse,
    refuse_weights,
    split_weights,
)

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
    "of_library",
    "resolve",
    "split_weights",
]

MAX_NAME = 200  # letters of a qualified name; a record holds 300


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

    The net has `features(x)` -> [B,D] and a head (`classifier`, or `fc`) on top of it; those of
    torchvision and timm are as their library has them, and `feature_function` finds the features.
    Randomness: initialisation (PyTorch's default, or what the network's source prescribes) from the
    *global* generator; wrap the call in `stillroom.rng.global_rng`.
    Raises: StillroomError for an unknown name, a size too small for it, or a library that is not
    installed.
    """
    from stillroom.nets.zoo import (
        classic,
        convnet,
        efficient,
        libraries,
        mobile,
        resnet,
        shuffle,
        wide,
    )

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
        "mobilenetv2-x0.5": mobile.mobilenetv2_half,
        "shufflenetv2-x0.5": shuffle.shufflenetv2_half,
        "wrn16-2": wide.wrn16_2,
        "imagenet/resnet18": resnet.imagenet_resnet18,
        "imagenet/mobilenet_v2": mobile.mobilenet_v2,
        "imagenet/efficientnet_b0": efficient.efficientnet_b0,
        "imagenet/shufflenet_v2_x0_5": shuffle.shufflenet_v2_x0_5,
        "imagenet/alexnet": classic.imagenet_alexnet,
        "torchvision": libraries.torchvision,
        "timm": libraries.timm,
    }
    spec = parse(name)
    return families[spec.family](spec, classes, channels, size)


def feature_function(net: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return a function x [B,ch,H,W] -> features [B,D] of any network.

    `net.features(x)` flattened, if it is callable and keeps the batch; otherwise the flattened
    input of the network's last nn.Linear (in order of registration), seen by a forward pre-hook
    that lives only as long as the call. Of a network of torchvision or timm always that input, if
    there is one: what they call `features` is a map before pooling.
    Gradient: through the features.
    Raises: StillroomError, here or at the call, if neither exists.
    """
    import torch
    from torch import nn

    method = getattr(net, "features", None)
    # containers without a forward are callable to Python but not to anyone else
    direct = callable(method) and not isinstance(method, (nn.ModuleList, nn.ModuleDict))
    linear = [module for module in net.modules() if isinstance(module, nn.Linear)]
    if type(net).__module__.partition(".")[0] in LIBRARIES and linear:
        direct = False
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
        refuse_weights(arch)
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
    return Arch(f"user:{qualname(arch)[:MAX_NAME]}-{digest(arch)[:12]}", arch)


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
        raise StillroomError(f"arch={path!r} does not import: {one_line(error)}") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise StillroomError(
                f"arch={path!r}: {module_name} has no {part!r}{suggest(part, dir(found))}"
            )
        found = getattr(found, part)
    return found
