"""`stillroom report DIR...`: the page, or its tables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from stillroom.errors import StillroomError
from stillroom.files import user_path


def report(
    folders: Annotated[list[Path], Parameter(name="DIR", help="sets to show")],
    /,
    *,
    out: Annotated[
        Path | None,
        Parameter(help=".html, or .md, .tex, .csv: its tables [default: report.html in the first]"),
    ] = None,
    table: Annotated[
        Literal[
            "accuracy",
            "networks",
            "differences",
            "classes",
            "confusion",
            "reported",
            "selection",
            "others",
        ]
        | None,
        Parameter(help="which table [default: all, in .csv accuracy]"),
    ] = None,
    records: Annotated[
        Path | None,
        Parameter(help="a ledger of many sets [default: the records.jsonl of each]"),
    ] = None,
    no_real_images: Annotated[
        bool,
        Parameter(
            help="leave out the nearest real training images", negative="", show_default=False
        ),
    ] = False,
) -> None:
    """Write one self-contained page: images, accuracies, curve, provenance, how to load."""
    from stillroom.cli.show import say
    from stillroom.report import write_report

    if not folders:
        raise StillroomError("report needs at least one set folder")
    target = user_path(out, "out") if out else user_path(folders[0], "set") / "report.html"
    kind = "page" if target.suffix == ".html" else "table"
    say(f"{kind}: {write_report(folders, target, not no_real_images, table, records)}")
