"""Who teaches students under protocols whose labels are those of trained networks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from stillroom.artefacts.carried import carried
from stillroom.artefacts.given import DIGEST
from stillroom.artefacts.label_header import Told
from stillroom.artefacts.labels import Relabels, misfit
from stillroom.artefacts.originals import Original
from stillroom.artefacts.relabels import unlike
from stillroom.artefacts.schooling import SCHOOLINGS, NamedSchooling, Schooling
from stillroom.artefacts.store import Store
from stillroom.config import Model
from stillroom.data.benchmarks import Benchmark
from stillroom.distilled import Distilled, load
from stillroom.errors import StillroomError
from stillroom.evaluation.lessons import Labelling, Regime
from stillroom.evaluation.protocol import Protocol
from stillroom.nets.zoo import canonical as canonical_name
from stillroom.nets.zoo import resolve, split_weights
from stillroom.run.prepare import originals

NO_FULL = "{} judges sets by teachers; it has no full-data row"
MOST = 64  # of one set; foreign metadata may name more


class Faculty(Model):
    """Teachers as a user names them; without networks those that the set tells of.

    `num` models of each of `archs`, trained as the named `schooling` says.
    `soft`: they give one label of every image, under protocols that take soft labels.
    """

    archs: tuple[str, ...] = ()
    num: int | None = Field(None, ge=1, le=1000, strict=True)
    schooling: NamedSchooling | None = None
    soft: bool = False


def labelling(
    asked: Faculty,
    made: Distilled | None,
    protocol: Protocol,
    bench: Benchmark,
    store: Store,
    folder: Path | None = None,
) -> Labelling | None:
    """Whose labels students get; None under a protocol that trains on the set's own.

    Those of the networks that are named; else the labels that the set in `folder` carries, and for
    other sets beside it labels of the same networks; else of those that it was recovered by.
    Raises: StillroomError if the protocol needs teachers and nobody names them, or the other way
    round; or if the labels that the set carries do not fit the protocol.
    """
    regime = _regime(asked, protocol)
    if regime is None:
        return None
    found = None if folder is None or asked.archs else carried(folder)
    if found is None:
        stages = faculty(asked, made, protocol, bench, store)
        return Labelling(regime, tuple(stage.key() for stage in stages), stages)
    _refuse_parts(asked)
    return _of_carried(found, regime, protocol, bench, store)


def faculty(
    asked: Faculty, made: Distilled | None, protocol: Protocol, bench: Benchmark, store: Store
) -> tuple[Original, ...]:
    """The networks that are named, else those that the set was recovered by.

    Raises: StillroomError if there are none.
    """
    if asked.archs:
        schooling = asked.schooling or SCHOOLINGS["default"]
        return tuple(originals(bench, asked.archs, asked.num or 1, schooling, store))
    _refuse_parts(asked)
    if made is None:
        raise StillroomError(NO_FULL.format(protocol.id))
    return tuple(_own(made, protocol, bench, store))


def check_alike(
    asked: Faculty,
    folder: Path,
    rivals: Sequence[Path],
    protocol: Protocol,
    bench: Benchmark,
    store: Store,
) -> None:
    """Refuse to compare sets that would get labels of different teachers, or kept differently.

    Raises: StillroomError naming both kinds and the remedy.
    """
    told: list[str] = []
    for path in (folder, *rivals):
        found = labelling(asked, load(path), protocol, bench, store, path)
        if found is None:
            return
        told.append(found.kind(protocol.passes))
        if told[-1] != told[0]:
            raise StillroomError(
                f"{path} would get labels {told[-1]} and {folder} {told[0]}; a difference might be "
                "the labels', so name who labels both: --teachers"
            )


def labellers(
    asked: Faculty,
    folder: Path,
    made: Distilled,
    protocol: Protocol,
    bench: Benchmark,
    store: Store,
) -> tuple[Original, ...]:
    """The networks that are to label a set anew: named, of its labels so far, or those it is by.

    Raises: StillroomError as `faculty`.
    """
    if not asked.archs:
        _refuse_parts(asked)
        try:
            found = carried(folder)
        except StillroomError:  # damaged; it is about to be replaced
            found = None
        if found is not None and (stages := made_again(found, bench, store)):
            return stages
    return faculty(asked, made, protocol, bench, store)


def _regime(asked: Faculty, protocol: Protocol) -> Regime | None:
    if protocol.labels == "relabels" or protocol.labels == "teachers":
        if asked.soft:
            raise StillroomError(
                f"{protocol.id} has labels of drawn views; --soft-labels belong to protocols that "
                "take a soft label an image, such as quick@1"
            )
        return protocol.labels
    if asked.soft:
        if protocol.labels == "hard":
            raise StillroomError(
                f"{protocol.id} trains on hard labels; --soft-labels belong to protocols that take "
                "soft ones, such as quick@1"
            )
        return "soft"
    if asked != Faculty():
        raise StillroomError(
            f"{protocol.id} trains on the set's own labels; --teachers belong to protocols "
            "such as edc@1, or to --soft-labels"
        )
    return None


def _refuse_parts(asked: Faculty) -> None:
    if asked.num is not None or asked.schooling is not None:
        raise StillroomError("--teacher-num and --schooling belong to --teachers; name them too")


def _of_carried(
    found: Relabels, regime: Regime, protocol: Protocol, bench: Benchmark, store: Store
) -> Labelling:
    """The labels that a set carries; its teachers too, as far as they can be made here."""
    header = found.header
    if regime == "relabels" and (wrong := unfit(found, protocol, bench)):
        raise StillroomError(
            f"{found.folder}: {wrong}; make others with stillroom prepare relabels "
            f"{found.folder.parent} --protocol {protocol.id} --force, or name who labels anew: "
            "--teachers"
        )
    stages = made_again(found, bench, store)
    if regime == "teachers" and not stages:
        raise StillroomError(
            f"{protocol.id}: those who labelled the set cannot be made here; name some: --teachers"
        )
    return Labelling(
        regime,
        header.teachers,
        stages,
        codec=header.codec,
        keep=header.kept if header.kept < protocol.passes else None,
        seed=header.seed,
        carried="" if regime == "teachers" else found.digest,
        set_digest=header.set_digest,
    )


def unfit(found: Relabels, protocol: Protocol, bench: Benchmark) -> str:
    """Why stored labels are not those that a protocol asks for, or nothing."""
    assert protocol.view is not None
    header = found.header
    wrong = misfit(
        header,
        classes=len(bench.classes),
        policy=protocol.view.policy(bench.size),
        batch=min(protocol.settled(header.images, len(bench.classes)).batch, header.images),
        epochs=protocol.passes,
    )
    return wrong or unlike(header.codec, protocol.loss)


def made_again(found: Relabels, bench: Benchmark, store: Store) -> tuple[Original, ...]:
    """Those who gave some labels, as networks that can be made here; empty if they cannot.

    What the labels tell of them is foreign: it counts where it leads to the very keys.
    """
    try:
        stages = tuple(_again(told, bench, store) for told in found.told)
    except (TypeError, ValueError):  # pydantic's errors and StillroomError are ValueErrors
        return ()
    return stages if tuple(s.key() for s in stages) == found.header.teachers else ()


def _again(told: Told, bench: Benchmark, store: Store) -> Original:
    arch = resolve(canonical_name(told.arch))  # a name of the zoo, never an import path
    schooling = Schooling(**told.schooling)
    described = bench.describe()
    return Original(schooling, described, arch, told.index, store.root, told.weights)


def _own(made: Distilled, protocol: Protocol, bench: Benchmark, store: Store) -> Sequence[Original]:
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
