"""The ledger `records.jsonl`: one record a line, every line checked. No torch work here."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from stillroom.errors import StillroomError
from stillroom.files import (
    MAX_JSON_BYTES,
    canonical,
    finite,
    locked,
    no_constant,
    read_limited,
    refuse_deep,
    remove_leftovers,
    write_atomic,
)
from stillroom.types import Record

_TEXTS = (
    *("data_digest", "set_key", "protocol_hash", "unit", "device", "code", "split", "note"),
    *("augment", "family", "labels"),
)
_NAMES = ("benchmark", "row", "protocol", "arch", "metric", "selection", "numerics", *_TEXTS)
_COUNTS = ("ipc", "seed", "bytes", "memory", "label_bytes", "teacher_bytes")
MAX_TEXT = 2000
LEDGER = "records.jsonl"  # the name of a set's own
# What a line leaves out: what is nearly always so, and what says nothing.
_USUAL = {"draw": None, "unit": "fraction", "split": "given", "selection": "last"}
_UNSAID = {f.name: f.default for f in fields(Record) if f.default is not MISSING} | _USUAL
# Row and metric of a network that was trained on the real data, alone.
NETWORK, NETWORK_ACCURACY = "network", "network-accuracy"


def read_records(path: Path) -> list[Record]:
    """Read a ledger.

    Of lines that measure the same thing the last one counts, and of a row that two codes measured
    the last one's numbers, as if `add_records` had added line by line: a ledger may have been
    joined by hand.
    Raises: StillroomError naming file and line.
    """
    return _merged(_lines(path))


def _lines(path: Path) -> list[Record]:
    records = []
    for number, line in enumerate(_text(path).splitlines(), 1):
        where = f"{path}:{number}"
        try:
            value = json.loads(line, parse_float=finite, parse_constant=no_constant)
            refuse_deep(value)
        except (ValueError, RecursionError):
            raise StillroomError(f"{where}: not a line of JSON; is it cut off?") from None
        if isinstance(value, dict):
            value = {**_USUAL, **value}
        record = Record.from_dict(value, where)
        if problem := _problem(record):
            raise StillroomError(f"{where}: {problem}")
        records.append(record)
    return records


def add_records(path: Path, records: Sequence[Record]) -> int:
    """Add records to a ledger; one that measures the same thing again replaces the old.

    What other code measured of the same row goes: numbers of two codes are not averaged. Two
    processes may add to one ledger; each waits for the other.
    Returns how many records of other code went.
    Raises: StillroomError if the ledger is damaged or cannot be written, or a record is one that
    nobody could read again.
    """
    for record in records:
        if problem := _problem(record):
            raise StillroomError(f"{path}: {problem}; not added")
    with locked(path.with_name(f".{path.stem}.lock"), remove=True):
        remove_leftovers(path.parent, path.name)
        old = _lines(path) if path.exists() else []
        merged = _merged([*old, *records])
        write_atomic(path, "".join(_line(r) + "\n" for r in merged))
        kept = {_student(r) for r in merged}
        return sum(_student(r) not in kept for r in old)


def _line(r: Record) -> str:
    return canonical({k: v for k, v in r.to_dict().items() if k not in _UNSAID or v != _UNSAID[k]})


def _merged(records: Sequence[Record]) -> list[Record]:
    """Everything measured once, by one code a row; papers' numbers beside it."""
    codes = {_row(r): r.code for r in records}
    same_code = [r for r in records if codes[_row(r)] == r.code]
    return list({_student(r): r for r in same_code}.values())


def _student(r: Record) -> tuple[Any, ...]:
    return (*_row(r), r.seed, r.draw, r.metric)


def _row(r: Record) -> tuple[Any, ...]:
    """What a record measures, but for the student. A baseline made anew is the same baseline."""
    own = r.set_key if r.step is not None else None
    judged = (r.protocol_hash, r.arch, r.numerics, r.data_digest, r.augment, r.taught)
    paper = r.note if r.source == "reported" else None
    return (r.row, r.benchmark, r.ipc, r.step, own, r.source, paper, *judged)


def _text(path: Path) -> str:
    try:
        return read_limited(path, MAX_JSON_BYTES).decode("utf-8")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise StillroomError(f"{path}:{line}: not text in UTF-8; is the file damaged?") from None


def _problem(r: Record) -> str:
    """Return what is wrong with the types that `Record.from_dict` leaves open, or nothing."""
    for name in _TEXTS:
        if not isinstance(getattr(r, name), str) or len(getattr(r, name)) > MAX_TEXT:
            return f"{name} of a record must be text of <= {MAX_TEXT} letters"
    for name in _COUNTS:
        if not _is_count(getattr(r, name)):
            return f"{name} of a record must be a whole number >= 0"
    for name in ("step", "draw", "set_seed"):
        if getattr(r, name) is not None and not _is_count(getattr(r, name)):
            return f"{name} of a record must be a whole number >= 0 or null"
    if not re.fullmatch(r"[a-z0-9/]{0,40}", r.numerics):
        return f"numerics={r.numerics[:40]!r} of a record must be a name such as float32"
    if r.source not in ("measured", "reported"):
        return f"source={str(r.source)[:40]!r} of a record must be measured or reported"
    if not is_finite(r.seconds) or r.seconds < 0:
        return "seconds of a record must be a number >= 0"
    if not is_finite(r.value):
        return "value of a record must be a finite number"
    if r.metric.startswith("accuracy") and not 0 <= r.value <= 1:
        return f"value={r.value:g} of an accuracy must be a fraction in 0..1"
    if not isinstance(r.versions, dict) or not all(map(_is_text, r.versions.values())):
        return "versions of a record must be an object of texts"
    if not all(map(_is_text, (*r.versions, *(getattr(r, name) for name in _NAMES)))):
        return "a record holds text that is none (half of a surrogate pair)"
    return ""


def _is_text(value: Any) -> bool:
    """Text that can be written: a JSON escape may name half of a surrogate pair."""
    return isinstance(value, str) and not any("\ud800" <= c <= "\udfff" for c in value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def is_finite(value: Any) -> bool:
    """Whether a value of JSON is a number that can be drawn."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) < 1e300 and math.isfinite(value)
