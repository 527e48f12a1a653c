"""The protocols that there are, frozen and versioned, and how one is named; no torch here."""

from __future__ import annotations

import re
from typing import Any

from pydantic import ValidationError

from stillroom.errors import StillroomError, suggest
from stillroom.evaluation.decoupled_protocols import DECOUPLED
from stillroom.evaluation.matching_protocols import MATCHING
from stillroom.evaluation.protocol import CHANGEABLE, LIMITS, LOSSES, TAUGHT, WHOLES, Protocol

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
    values = [_asked(found, name, text) for text in changes]
    if len(dict(values)) < len(values):
        raise StillroomError(f"protocol={name[:80]!r} changes one thing twice")
    try:
        return changed(found, dict(values))
    except StillroomError as error:
        raise StillroomError(f"protocol={name[:80]!r}: {error}") from None


def changed(protocol: Protocol, values: dict[str, Any]) -> Protocol:
    """The same with other values; what belongs to the old ones goes with them.

    Of other epochs checks, milestones and warm-up keep their shares. With another loss go the
    temperature and the weights of the old one.
    Raises: StillroomError if nothing would read a value.
    """
    for field in CHANGEABLE:
        if field in values and values[field] != getattr(protocol, field):
            protocol = _with(protocol, field, values[field])
    return protocol


def spelled(published: Protocol, made: Protocol) -> str:
    """What stands behind the name of a published protocol that was changed into another."""
    told = ""
    for field in CHANGEABLE:
        value = getattr(made, field)
        if field not in published.ruled and value != getattr(published, field):
            told += f"+{field}={_text(value)}"
            published = published.model_copy(update=_along(published, field, value))
    return told


def _text(value: float | str) -> str:
    """So that it is read back as the same value."""
    whole = isinstance(value, float) and value.is_integer()
    return str(int(value)) if whole else str(value)


def _asked(protocol: Protocol, name: str, text: str) -> tuple[str, float | str]:
    """What one `field=value` behind a protocol's name asks for."""
    field, _, value = text.partition("=")
    if field not in CHANGEABLE:
        raise StillroomError(
            f"protocol={name[:80]!r}: only {', '.join(f'+{one}=' for one in CHANGEABLE)} can "
            f"follow a name{suggest(field, CHANGEABLE)}"
        )
    if field in protocol.ruled:
        raise StillroomError(
            f"protocol={name[:80]!r}: the {field} of {protocol.id} follows from set and student"
        )
    if field == "loss":
        if value not in LOSSES or protocol.labels not in TAUGHT:
            raise StillroomError(
                f"protocol={name[:80]!r}: loss is of protocols where teachers label, one of "
                f"{', '.join(LOSSES)}"
            )
        return field, value
    pattern = r"\d{1,6}" if field in WHOLES else r"\d{1,6}(\.\d{1,20})?(e[+-]?\d{1,2})?"
    number = float(value) if re.fullmatch(pattern, value, re.ASCII) else -1.0
    least, most = LIMITS[field]
    if not least <= number <= most:
        kind = "a whole number" if field in WHOLES else "a number"
        raise StillroomError(
            f"protocol={name[:80]!r}: {field}={value[:20]} must be {kind} in {least:g}..{most:g}"
        )
    return field, int(number) if field in WHOLES else number


def _with(protocol: Protocol, field: str, value: Any) -> Protocol:
    if field == "momentum" and protocol.optimiser != "sgd":
        raise StillroomError(f"momentum is of sgd, and {protocol.name} has {protocol.optimiser}")
    try:
        return Protocol.model_validate({**dict(protocol), **_along(protocol, field, value)})
    except ValidationError as error:
        why = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
        raise StillroomError(why) from None


def _along(protocol: Protocol, field: str, value: Any) -> dict[str, Any]:
    """A value, and those that go with it."""
    found = {field: value}
    if field == "epochs":
        share = value / protocol.epochs
        found |= {
            "checks": min(protocol.checks, value),
            "milestones": tuple(round(m * share) for m in protocol.milestones),
            "warmup": round(protocol.warmup * share),
        }
    if field == "loss":
        fields = Protocol.model_fields
        found |= {n: fields[n].default for n in ("temperature", "ce_weight", "t_squared")}
    return found
