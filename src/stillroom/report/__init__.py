"""`stillroom report DIR...`: one self-contained page out of run folders; it computes no accuracy.

The only importer of matplotlib and jinja2. Everything that a folder holds is foreign text here:
the template escapes it, and a content security policy lets no script but the page's own run.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stillroom.errors import StillroomError
from stillroom.files import user_path, write_atomic

__all__ = ["write_report"]


def write_report(
    folders: Sequence[str | Path],
    out: str | Path,
    real_images: bool = True,
    table: str | None = None,
    records: str | Path | None = None,
) -> Path:
    """Write the page of one or several sets to `out`, whole or not at all; returns `out`.

    A name in .md or .tex gets the tables of the page, one in .csv that of accuracies; or the one
    that `table` names ("accuracy", "networks", "differences" of sets, "classes", "confusion",
    "reported", "selection", "others"). `real_images`: show the nearest real training images.
    `records`: a ledger of many sets, in place of the folders' own `records.jsonl`. The
    same folders give the same bytes: the page holds no date and no path, only folder names.
    Raises: StillroomError if a folder is no set or a file of it is damaged (naming file and line),
    or if there is no such table.
    """
    from stillroom.report.exports import SUFFIXES, chosen, export, tables
    from stillroom.report.gather import gather

    out = Path(out)
    suffix = out.suffix.lower()
    if suffix not in (".html", *SUFFIXES):
        raise StillroomError(f"out={out.name[-80:]!r} must end in .html, {', '.join(SUFFIXES)}")
    if table is not None and suffix == ".html":
        raise StillroomError(f"table={table[:80]!r} is for {', '.join(SUFFIXES)}; name such an out")
    ledger = None if records is None else user_path(Path(records), "records")
    if ledger is not None and not ledger.is_file():
        raise StillroomError(f"records={ledger}: there is no such file")
    sets = gather([Path(folder) for folder in folders], ledger)
    if suffix == ".html":
        from stillroom.report.page import render

        text = render(sets, real_images)
    else:
        # A CSV has no caption, so what its numbers were measured under must be in its columns.
        some = chosen(tables(sets, every=suffix == ".csv"), table, suffix, len(sets) > 1)
        text = "\n".join(export(grid, suffix) for grid in some)
    write_atomic(out, text)
    return out
