"""Protocols: how a student is trained and scored. Data, frozen and versioned; no torch here."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stillroom.config import Model
from stillroom.errors import StillroomError, suggest
from stillroom.files import canonical, sha256


class Protocol(Model):
    """One way to judge a set. Two numbers of different hashes never share a column unmarked."""

    name: str
    version: int
    epochs: int
    batch: int
    lr: float
    momentum: float
    weight_decay: float
    schedule: Literal["constant", "cosine", "step"]
    augment: str = Field(description="a strategy, or 'set': the one that the set names")
    select: Literal["last"] = "last"
    seeds: int
    why: str = Field(exclude=True)

    @property
    def id(self) -> str:
        """`name@version`, as records quote it."""
        return f"{self.name}@{self.version}"

    def digest(self) -> str:
        """Twelve hex digits over every field that changes a number."""
        return sha256(canonical(self.model_dump(mode="json")))[:12]


PROTOCOLS: dict[str, Protocol] = {
    p.id: p
    for p in (
        Protocol(
            name="quick",
            version=1,
            epochs=100,
            batch=256,
            lr=0.02,
            momentum=0.9,
            weight_decay=5e-4,
            schedule="cosine",
            augment="set",
            seeds=3,
            why="A short student for the loop of everyday work: the set's own augmentation (its "
            "baselines get the same), cosine rate, last epoch. Not a published protocol; compare "
            "its numbers with each other only.",
        ),
    )
}


def find_protocol(name: str) -> Protocol:
    """Look a protocol up by `name@version`, or by name for the newest version.

    Raises: StillroomError with the known names.
    """
    if name in PROTOCOLS:
        return PROTOCOLS[name]
    versions = [p for p in PROTOCOLS.values() if p.name == name]
    if versions:
        return max(versions, key=lambda p: p.version)
    raise StillroomError(
        f"protocol={name!r} is unknown; known: {', '.join(PROTOCOLS)}{suggest(name, PROTOCOLS)}"
    )
