"""`stillroom report DIR...`: one self-contained page out of run folders; it computes no accuracy.

The only importer of matplotlib and jinja2. Everything that a folder holds is foreign text here:
the template escapes it, and a content security policy lets no script but the page's own run.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stillroom.files import write_atomic

__all__ = ["write_report"]


def write_report(folders: Sequence[Path], out: Path) -> Path:
    """Write the page of one or several sets to `out`, whole or not at all; returns `out`.

    The same folders give the same bytes: the page holds no date and no path, only folder names.
    Raises: StillroomError if a folder is no set or a file of it is damaged (naming file and line).
    """
    from stillroom.report.gather import gather
    from stillroom.report.page import render

    write_atomic(out, render(gather(folders)))
    return out
