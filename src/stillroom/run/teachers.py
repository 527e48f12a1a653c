"""Who teaches students under protocols whose labels are those of trained networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stillroom.artefacts.given import DIGEST
from stillroom.artefacts.originals import Original
from stillroom.artefacts.schooling import Schooling, find_schooling
from stillroom.artefacts.store import Store
from stillroom.config import Model
from stillroom.data.benchmarks import Benchmark
from stillroom.distilled import Distilled
from stillroom.errors import StillroomError
from stillroom.evaluation.protocol import TAUGHT, Protocol
from stillroom.files import canonical, sha256
from stillroom.nets.zoo import canonical as canonical_name
from stillroom.nets.zoo import split_weights
from stillroom.run.prepare import originals

MOST = 64  # of one set; foreign metadata may name more


class Faculty(Model):
    """Teachers as a user names them; without networks those that the set was made with."""

    archs: tuple[str, ...] = ()
    num: int | None = None
    schooling: str | None = None


def faculty(
    asked: Faculty, made: Distilled | None, protocol: Protocol, bench: Benchmark, store: Store
) -> tuple[Original, ...]:
    """The networks whose labels students get; none under a protocol that has its own.

    Raises: StillroomError if the protocol needs some and nobody names them, or the other way round.
    """
    given = asked != Faculty()
    if protocol.labels not in TAUGHT:
        if given:
            raise StillroomError(
                f"{protocol.id} trains on the set's own labels; --teachers belong to protocols "
                "such as edc@1"
            )
        return ()
    if made is None:
        raise StillroomError(f"{protocol.id} judges sets by teachers; it has no full-data row")
    if asked.archs:
        schooling = find_schooling(asked.schooling or "default")
        return tuple(originals(bench, asked.archs, asked.num or 1, schooling, store))
    if given:
        raise StillroomError("--teacher-num and --schooling belong to --teachers; name them too")
    return tuple(_own(made, protocol, bench, store))


def digest(teachers: Sequence[Original]) -> str:
    """Eight hex digits over the keys of all."""
    return sha256(canonical([teacher.key() for teacher in teachers]))[:8]


def _own(made: Distilled, protocol: Protocol, bench: Benchmark, store: Store) -> list[Original]:
    """The networks that a set was recovered by, as its provenance tells; inert text until read."""
    recipe = made.provenance.get("recipe")
    method = recipe.get("method") if isinstance(recipe, dict) else None
    names = method.get("observers") if isinstance(method, dict) else None
    if not isinstance(names, list) or not 1 <= len(names) <= MOST or not isinstance(method, dict):
        raise StillroomError(
            f"{protocol.id} needs teachers and the set names none; name them: --teachers convnet3 "
            "--schooling edc"
        )
    try:
        archs = [_told(str(n), made.arch) for n in names]
        told: dict[str, Any] = method["schooling"]
        schooling = Schooling(**told)
        num = method.get("num", 1)
        if not isinstance(num, int) or not 1 <= num <= MOST:
            raise ValueError(f"num={num!r}")
    except (KeyError, TypeError, ValueError) as error:  # StillroomError is a ValueError
        why = " ".join(str(error).split())[:120]
        raise StillroomError(
            f"{protocol.id}: the set's own teachers cannot be told ({why}); name some: --teachers"
        ) from None
    return originals(bench, archs, num, schooling, store)


def _told(name: str, own: str) -> str:
    """A network that foreign metadata name; with weights only by a digest, never a file.

    Raises: StillroomError for anything else.
    """
    network, weights = split_weights(name)
    known = canonical_name(own if network == "auto" else network)
    if weights and not DIGEST.fullmatch(weights):
        raise StillroomError(f"{known}={weights[:40]!r} is no digest of weights")
    return f"{known}={weights}" if weights else known
