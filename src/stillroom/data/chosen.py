"""Some classes of any data, in an order of one's own: a file that names one a line."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

from stillroom.data.named import Found
from stillroom.data.raw import check, select
from stillroom.errors import StillroomError, suggest
from stillroom.files import read_limited, user_path

MAX_FILE = 2**20  # bytes
FEWEST = 2


def read_classes(path: Path) -> tuple[str, ...]:
    """The names in a file, one a line, in its order; empty lines are none.

    Raises: StillroomError if it is absent, no text, too large, or names one twice or under two.
    """
    path = user_path(path, "classes")
    data = read_limited(path, MAX_FILE, "which is no list of classes; not read")
    try:
        lines = [line.removesuffix("\r") for line in data.decode("utf-8-sig").split("\n")]
    except UnicodeDecodeError:
        raise StillroomError(f"{path}: no text in UTF-8; write one class a line") from None
    names = tuple(line for line in lines if line.strip())
    if len(names) < FEWEST:
        raise StillroomError(
            f"{path}: names {len(names)} classes; write at least {FEWEST}, one a line"
        )
    if len({*names}) < len(names):
        twice = Counter(names).most_common(1)[0][0]
        raise StillroomError(f"{path}: names {twice[:80]!r} twice")
    return names


def only(found: Found, path: Path) -> Found:
    """The classes that a file names, cut out of data; they are called by both names.

    Raises: StillroomError as `read_classes`, or naming the first class that the data have not.
    """
    names = read_classes(path)
    position = {name: at for at, name in enumerate(found.raw.classes)}
    names = tuple(name if name in position else name.strip() for name in names)
    for name in names:
        if name not in position:
            raise StillroomError(
                f"{path}: {found.name} has no class {name[:80]!r}{suggest(name, position)}"
            )
    raw = select(found.raw, {position[name]: name for name in names})
    called = f"{found.name}/{user_path(path, 'classes').stem}"
    return replace(found, raw=check(raw, called), name=called)
