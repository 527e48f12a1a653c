"""stillroom: make, judge, compare and ship distilled data sets.

Importing it is quick: torch is loaded when a function is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "assess", "compare", "distill", "evaluate", "load", "write_report"]

if TYPE_CHECKING:
    from stillroom.api import assess, compare, distill, evaluate
    from stillroom.artefacts.carried import load
    from stillroom.report import write_report


def __getattr__(name: str) -> Any:
    if name in ("assess", "compare", "distill", "evaluate"):
        from stillroom import api

        return getattr(api, name)
    if name == "load":
        from stillroom.artefacts.carried import load

        return load
    if name == "write_report":
        from stillroom.report import write_report

        return write_report
    raise AttributeError(f"module 'stillroom' has no attribute {name!r}")
