"""The protocols that there are, frozen and versioned, and how one is named; no torch here."""

from __future__ import annotations

import re
from typing import Any

from pydantic import ValidationError

from stillroom.errors import StillroomError, suggest
from stillroom.evaluation.decoupled_protocols import DECOUPLED
from stillroom.evaluation.matching_protocols import MATCHING
from stillroom.evaluation.protocol import CHANGEABLE, LOSSES, MAX_EPOCHS, TAUGHT, Protocol

_QUICK = Protocol(
    name="quick",
    version=1,
    epochs=100,  # chosen by benchmarks/calibration.py, and frozen since
    batch=256,
    lr=0.02,
    schedule="cosine",
    augment="set",
    checks=1,
    seeds=3,
    why="A short student for the loop of everyday work: the set's own augmentation (its "
    "baselines get the same), cosine rate, last epoch. Not a published protocol: it orders "
    "sets as vico@1 does, some points lower; compare its numbers with each other only.",
)
_SEARCH = Protocol(
    name="search",
    version=1,
    epochs=100,
    batch=256,
    lr="search",
    rates=(0.005, 0.01, 0.02, 0.05, 0.1),
    schedule="cosine",
    augment="set",
    select="val",
    checks=4,
    seeds=3,
    why="As quick, with the rate and the epoch chosen on validation images, for a set and "
    "its baselines alike, so that neither owes its place to a rate that suits it. A rate "
    "at which a student diverges is out of its search. It needs validation images "
    "(--val 0.1).",
)
PROTOCOLS: dict[str, Protocol] = {
    f"{p.name}@{p.version}": p for p in (_QUICK, *MATCHING, *DECOUPLED, _SEARCH)
}


def find_protocol(name: str) -> Protocol:
    """Look a protocol up by `name@version`, or by name for the newest version.

    `name@version+epochs=N+lr=0.02` is that protocol with other values of `CHANGEABLE` fields, its
    drops at the same shares of its epochs: another hash, and another name.
    Raises: StillroomError with the known names or fields.
    """
    if not isinstance(name, str):
        raise StillroomError(f"protocol={name!r} must be text, such as 'quick@1'")
    base, *changes = name.split("+")
    found = PROTOCOLS.get(base)
    if found is None:
        versions = [p for p in PROTOCOLS.values() if p.name == base]
        if not versions:
            raise StillroomError(
                f"protocol={name[:80]!r} is unknown; known: {', '.join(PROTOCOLS)}"
                f"{suggest(base, PROTOCOLS)}"
            )
        found = max(versions, key=lambda p: p.version)
    return _changed(found, name, dict(_change(found, name, text) for text in changes))


def _change(protocol: Protocol, name: str, text: str) -> tuple[str, float | str]:
    """What one `field=value` behind a protocol's name asks for."""
    field, _, value = text.partition("=")
    if field == "loss" and value in LOSSES and protocol.labels in TAUGHT:
        return field, value
    whole = field in ("epochs", "batch", "pieces")
    least, most = (1, MAX_EPOCHS) if whole else (0.0, 0.999 if field == "momentum" else 1e3)
    plain = re.fullmatch(r"\d{1,6}" if whole else r"\d{1,3}(\.\d{1,9})?(e-?\d)?", value, re.ASCII)
    number = (int if whole else float)(value) if plain else -1
    positive = field in ("lr", "temperature")
    known = field in CHANGEABLE and field != "loss"
    if not known or not least <= number <= most or (positive and not number):
        raise StillroomError(
            f"protocol={name[:80]!r}: only {', '.join(f'+{one}=' for one in CHANGEABLE)} can "
            f"follow a name: epochs, batch and pieces whole numbers in 1..{MAX_EPOCHS}, momentum "
            f"below 1, loss where teachers label: {', '.join(LOSSES)}"
        )
    if field in protocol.ruled:
        raise StillroomError(
            f"protocol={name[:80]!r}: the {field} of {protocol.id} follows from set and student"
        )
    return field, number


def _changed(protocol: Protocol, name: str, values: dict[str, float | str]) -> Protocol:
    changed: dict[str, Any] = dict(values)
    if "epochs" in values:
        count = int(values["epochs"])
        share = count / protocol.epochs
        changed |= {
            "checks": min(protocol.checks, count),
            "milestones": tuple(round(m * share) for m in protocol.milestones),
            "warmup": round(protocol.warmup * share),
        }
    if "loss" in values:  # what belonged to the other loss goes with it
        fields = Protocol.model_fields
        changed = {
            n: fields[n].default for n in ("temperature", "ce_weight", "t_squared")
        } | changed
    try:
        return Protocol.model_validate({**dict(protocol), **changed})
    except ValidationError as error:
        why = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
        raise StillroomError(f"protocol={name[:80]!r}: {why}") from None
