"""What every typed part of a recipe is made of. No torch here: flags are made from such models."""

from __future__ import annotations

import importlib
import inspect
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer

DSA = "dsa:color_crop_cutout_flip_scale_rotate"
"""The augmentation of DSA, DM and their successors (Zhao and Bilen 2021, arXiv:2102.08259)."""

DSA_WIDE = "dsa:color_widecrop_cutout_flip_scale_rotate"
"""The same with crops that shift twice as far: EDF's code (Wang et al. 2025, arXiv:2410.17193)."""

DSA_UNMIRRORED = "dsa:color_crop_cutout_scale_rotate"
"""The same for images that mean something else in the mirror: digits."""


class Model(BaseModel):
    """Frozen, and unknown keys are errors."""

    # defer_build: a model's validator is built when it is first used, which --help never does:
    # therefore our own defaults are made by `model_construct`.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)


class Grown(Model):
    """A model that got fields after artefacts were keyed by it.

    Of those, which `later` names, whatever dumps the model leaves out the ones at their default: a
    key or a hash of before is what it was, and what dumped before is read as it was meant.
    """

    later: ClassVar[tuple[str, ...]] = ()

    def unsaid(self) -> tuple[str, ...]:
        """Fields that mean nothing beside the others, and stand in no key and no set."""
        return ()

    @model_serializer(mode="wrap")
    def _as_before(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        found: dict[str, Any] = dump(self)
        for name in self.unsaid():
            found.pop(name, None)
        for name in self.later:
            if getattr(self, name) == type(self).model_fields[name].default:
                found.pop(name, None)
        return found


def class_at(kind: str, base: type[Any]) -> Any:
    """The class at an import path, of which the user's own recipe, flag or call names it."""
    module, _, name = kind.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:  # a user's module may raise anything while it is imported
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ValueError(f"kind {kind!r} does not import ({why})") from None
    if not (isinstance(found, type) and issubclass(found, base)) or inspect.isabstract(found):
        raise ValueError(
            f"kind {kind!r} is not a finished subclass of {base.__module__}.{base.__name__}"
        )
    return found
