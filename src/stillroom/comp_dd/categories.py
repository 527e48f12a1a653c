"""A table of categories: which classes belong together, and what they are called."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

from stillroom.errors import StillroomError
from stillroom.files import read_limited, user_path

MAX_TABLE = 2**20  # bytes
MAX_CATEGORY = 60  # letters, of the name of a class too
NAME = re.compile(r"\w[\w -]*")
HEADS = (["class", "category"], ["class", "category", "name"])
PACKAGED = {"tiny-imagenet": "tiny-imagenet.csv"}


@dataclass(frozen=True)
class Categories:
    """Class numbers by category; what classes are called, if the table says it.

    `others`: how many rows of the table are of classes that the data do not have.
    """

    classes: dict[str, list[int]]
    names: dict[str, str]
    others: int


def refuse_odd(category: str, where: str) -> None:
    """Raise StillroomError unless a category can be part of a file's name everywhere."""
    if not 0 < len(category) <= MAX_CATEGORY or not NAME.fullmatch(category):
        raise StillroomError(
            f"{where}: category {category[:80]!r} becomes the name of a file: letters, digits, "
            f"spaces, - and _, {MAX_CATEGORY} at most"
        )


def read_categories(source: str, classes: Sequence[str]) -> Categories:
    """Read a CSV file `class,category` or `class,category,name`.

    source: a path, or the name of a table that comes with the package.
    Raises: StillroomError if it is absent or malformed, names a class twice, or none of `classes`.
    """
    rows = _rows(source)
    if not rows or rows[0][1] not in HEADS:
        raise StillroomError(
            f"{source}: its first line must be: class,category, or class,category,name"
        )
    width = len(rows[0][1])
    position = {name: at for at, name in enumerate(classes)}
    found: dict[str, list[int]] = {}
    names: dict[str, str] = {}
    seen: set[str] = set()
    for number, cells in rows[1:]:
        if len(cells) != width or not all(cells[:2]):
            raise StillroomError(f"{source}: line {number} is not {','.join(rows[0][1])}")
        own, category, called = (*cells, "")[:3]
        refuse_odd(category, f"{source}: line {number}")
        if not called.isprintable() or len(called) > MAX_CATEGORY:
            told = f"name {called[:80]!r} is not {MAX_CATEGORY} printable letters at most"
            raise StillroomError(f"{source}: line {number}: {told}")
        if own in seen:
            raise StillroomError(f"{source}: {own[:80]!r} is there twice; name it once")
        seen.add(own)
        if own in position:
            found.setdefault(category, []).append(position[own])
            names |= {own: called} if called else {}
    if len({name.casefold() for name in found}) < len(found):
        raise StillroomError(f"{source}: two categories differ by capital letters alone")
    if not found:
        raise StillroomError(
            f"{source}: none of its classes is in the data, such as {classes[0]!r}"
        )
    return Categories(found, names, len(seen) - sum(map(len, found.values())))


def _rows(source: str) -> list[tuple[int, list[str]]]:
    """Lines that say something, with their numbers."""
    if source in PACKAGED:
        text = files("stillroom.comp_dd").joinpath(PACKAGED[source]).read_text(encoding="utf-8")
    else:
        path = user_path(source, "categories")
        data = read_limited(path, MAX_TABLE, "which is no table of classes; not read")
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise StillroomError(f"{source}: no text in UTF-8") from None
    reader = csv.reader(io.StringIO(text, newline=""))
    try:
        rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except csv.Error as error:
        raise StillroomError(f"{source}: line {reader.line_num} is no CSV ({error})") from None
    return [(number, cells) for number, cells in rows if any(cells)]
