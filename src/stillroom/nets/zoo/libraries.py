"""Any classifier of torchvision or timm by its name there, where that library is installed.

Randomly initialised, with the head for the data's classes. Their versions are not in a key, as
torch's is not; they are what `pip` installed (extras `vision` and `timm`).
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

from torch import nn

from stillroom.errors import StillroomError, optional_import, suggest
from stillroom.nets.zoo.factories import checked_call
from stillroom.nets.zoo.names import Spec

_ONE_OUTPUT = {"aux_logits": False, "init_weights": True}  # in train mode too; no warning


def torchvision(spec: Spec, classes: int, channels: int, size: int) -> nn.Module:
    """Return a classifier of torchvision without published weights.

    Raises: StillroomError if torchvision does not import, has no such classifier, the images are
    not of three channels, or the network cannot take them.
    """
    models: Any = getattr(optional_import("torchvision", "vision", _why(spec)), "models", None)
    _check_known(spec, models.list_models(module=models))
    if channels != 3:
        raise StillroomError(
            f"arch={spec.text!r} takes images of 3 channels and these have {channels}; name one of "
            "imagenet/ or timm/, which take any"
        )
    asked: dict[str, Any] = {"weights": None, "num_classes": classes}
    if spec.model in ("googlenet", "inception_v3"):
        asked |= _ONE_OUTPUT
    if spec.model.startswith("vit_"):  # their position embedding is as long as the image is large
        asked["image_size"] = size
    if spec.model.startswith("maxvit_"):
        asked["input_size"] = (size, size)
    factory = functools.partial(models.get_model, spec.model)
    return checked_call(spec.text, factory, asked, classes, channels, size)


def timm(spec: Spec, classes: int, channels: int, size: int) -> nn.Module:
    """Return a network of timm without published weights.

    Raises: StillroomError if timm does not import, has no such network, or it cannot take the
    images.
    """
    library: Any = optional_import("timm", "timm", _why(spec))
    if not library.is_model(spec.model):
        _check_known(spec, library.list_models())
    asked: dict[str, Any] = {"pretrained": False, "num_classes": classes, "in_chans": channels}
    if getattr(library.get_pretrained_cfg(spec.model), "fixed_input_size", False):
        asked["img_size"] = size
    factory = functools.partial(library.create_model, spec.model)
    return checked_call(spec.text, factory, asked, classes, channels, size)


def _why(spec: Spec) -> str:
    return f"arch={spec.text!r}"


def _check_known(spec: Spec, known: Iterable[str]) -> None:
    known = list(known)
    if spec.model not in known:
        raise StillroomError(
            f"arch={spec.text!r}: {spec.family} here has no classifier {spec.model!r}"
            f"{suggest(spec.model, known)}"
        )
