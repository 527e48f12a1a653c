"""The one exception that means "the input is wrong", as opposed to "the code is wrong"."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class StillroomError(ValueError):
    """Bad input: one line that names the value and the remedy; the command exits with 2.

    >>> raise StillroomError("ipc=60 but class 'tench' has 50 images; lower --ipc")
    """


class TooFewImagesError(StillroomError):
    """A class has fewer images than were asked for; of another number it may have enough."""


class DivergedError(StillroomError):
    """A student's loss became NaN: of the set's making, not of the machine's."""


def suggest(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for the nearest of `known`, else an empty string."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


def optional_import(name: str, extra: str, why: str) -> object:
    """Import an optional package, or say which extra brings it.

    A broken torchvision raises RuntimeError and a missing shared library OSError, so ImportError
    alone is not enough (docs/architecture.md, "Dependencies").
    """
    import importlib

    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError, OSError) as error:
        raise StillroomError(
            f"{why} needs the package {name!r}, which does not import here "
            f"({type(error).__name__}); install it with: pip install 'stillroom[{extra}]'"
        ) from error
