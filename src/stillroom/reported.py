"""Numbers of papers, to stand beside measured ones: never mixed with them, never averaged."""

from __future__ import annotations

import functools
import json
from importlib import resources

from stillroom.types import Record


def find(benchmark: str, ipc: int) -> tuple[Record, ...]:
    """What papers report for a benchmark and a number of images a class, full data included.

    `note` names paper and table; `versions["std"]` is the reported deviation, as a fraction, where
    there is one.
    """
    return tuple(r for r in reported() if r.benchmark == benchmark and r.ipc in (0, ipc))


def row_of(preset: str) -> str:
    """What papers call what a preset makes: the numbers of EDC's paper are of `edc-paper`."""
    return preset.removesuffix("-paper")


@functools.cache
def reported() -> tuple[Record, ...]:
    """All numbers of `recipes/reported.jsonl`."""
    text = (resources.files("stillroom") / "recipes" / "reported.jsonl").read_text("utf-8")
    return tuple(_record(json.loads(line)) for line in text.splitlines())


def _record(line: dict[str, str | int | float | None]) -> Record:
    own = {k: line[k] for k in ("benchmark", "ipc", "row", "arch", "protocol", "value", "note")}
    std = line["std"]
    return Record.from_dict(
        {
            **own,
            "data_digest": "",
            "set_key": "",
            "step": None,
            "draw": None,
            "protocol_hash": "",
            "seed": 0,
            "metric": "accuracy",
            "unit": "fraction",
            "selection": "",
            "source": "reported",
            "bytes": 0,
            "seconds": 0.0,
            "device": "",
            "numerics": "",
            "code": "",
            "split": "",
            "versions": {} if std is None else {"std": f"{std:g}"},
        },
        "reported.jsonl",
    )
