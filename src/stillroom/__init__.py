"""stillroom: make, judge, compare and ship distilled data sets.

Importing it is quick: torch is loaded when a function is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "distill", "evaluate", "load"]

if TYPE_CHECKING:
    from stillroom.api import distill, evaluate
    from stillroom.distilled import load


def __getattr__(name: str) -> Any:
    if name in ("distill", "evaluate"):
        from stillroom import api

        return getattr(api, name)
    if name == "load":
        from stillroom.distilled import load

        return load
    raise AttributeError(f"module 'stillroom' has no attribute {name!r}")
