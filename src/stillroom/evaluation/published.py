"""The protocols that there are, frozen and versioned, and how one is named; no torch here."""

from __future__ import annotations

from stillroom.errors import StillroomError, suggest
from stillroom.evaluation.decoupled_protocols import DECOUPLED
from stillroom.evaluation.matching_protocols import MATCHING
from stillroom.evaluation.protocol import MAX_EPOCHS, Protocol

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

    `name@version+epochs=N` is that protocol with N epochs, its drops at the same shares of them:
    another hash, and another name.
    Raises: StillroomError with the known names.
    """
    if not isinstance(name, str):
        raise StillroomError(f"protocol={name!r} must be text, such as 'quick@1'")
    base, plus, change = name.partition("+")
    found = PROTOCOLS.get(base)
    if found is None:
        versions = [p for p in PROTOCOLS.values() if p.name == base]
        if not versions:
            raise StillroomError(
                f"protocol={name[:80]!r} is unknown; known: {', '.join(PROTOCOLS)}"
                f"{suggest(base, PROTOCOLS)}"
            )
        found = max(versions, key=lambda p: p.version)
    return _changed(found, name, change) if plus else found


def _changed(protocol: Protocol, name: str, change: str) -> Protocol:
    field, _, value = change.partition("=")
    count = int(value) if value.isascii() and value.isdigit() and len(value) < 7 else 0
    if field != "epochs" or not 1 <= count <= MAX_EPOCHS:
        raise StillroomError(
            f"protocol={name[:80]!r}: only +epochs=N can be changed, N in 1..{MAX_EPOCHS}"
        )
    share = count / protocol.epochs
    changed = {
        "epochs": count,
        "checks": min(protocol.checks, count),
        "milestones": tuple(round(m * share) for m in protocol.milestones),
        "warmup": round(protocol.warmup * share),
    }
    return protocol.model_copy(update=changed)
