"""`stillroom assess`: what can be said of a set without training a student on it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch

import stillroom
from stillroom.artefacts.features import RealFeatures
from stillroom.artefacts.originals import Original
from stillroom.artefacts.schooling import Schooling
from stillroom.artefacts.stage import COMMON, code_digest
from stillroom.artefacts.store import Store, obtain_all
from stillroom.data.benchmarks import Benchmark
from stillroom.distilled import Distilled, load, set_bytes, set_digest
from stillroom.errors import StillroomError
from stillroom.files import canonical, sha256
from stillroom.methods.original_loss import VERDICTS
from stillroom.nets.zoo import split_weights
from stillroom.records import LEDGER, add_records
from stillroom.run import machine as machines
from stillroom.run.asked import first_in_words, pool_in_words
from stillroom.run.exhibits import write_maps
from stillroom.run.fits import check_fits, check_read_alike
from stillroom.run.measures import RANDOM_NETS, REAL, Measured, held_at_once, measure
from stillroom.run.options import Machine
from stillroom.run.prepare import cost_of_originals, obtain_originals, originals
from stillroom.run.publish import EXHIBITS
from stillroom.runtime import Runtime, refuse_too_large
from stillroom.session import Session
from stillroom.tables import plural
from stillroom.types import Record

VERSION = "assess@1"
SOURCES = (  # what decides a number: networks, their training, every measure
    *COMMON,
    "artefacts/features.py",
    "artefacts/given.py",
    "artefacts/originals.py",
    "artefacts/schooling.py",
    "evaluation/assessments.py",
    "methods/distribution_matching.py",
    "methods/gradient_distance.py",
    "methods/original_loss.py",
    "nets/verdicts.py",
    "run/assess.py",
    "run/measures.py",
)


def held_out(
    made: Distilled,
    bench: Benchmark,
    archs: Sequence[str],
    num: int,
    schooling: Schooling,
    store: Store,
) -> list[Original]:
    """`num` models of every network, without those that the set was made with.

    What such a model says of the set is what was minimised. They are known by architecture and
    number: of one number, a model that was trained otherwise began with the same weights.
    """
    return without(made.models, bench, archs, num, schooling, store)


def without(
    used: Sequence[tuple[str, int]],
    bench: Benchmark,
    archs: Sequence[str],
    num: int,
    schooling: Schooling,
    store: Store,
) -> list[Original]:
    """`num` models of every network, none of which is (architecture, number) of `used`."""
    found = []
    for arch in archs:
        many = 1 if split_weights(arch)[1] else num + len(used)  # given weights are one model
        more = originals(bench, [arch], many, schooling, store)
        free = [stage for stage in more if (stage.name, stage.index) not in used][:num]
        if not free:
            raise StillroomError(
                f"{more[0].name}: the set was made with these weights, which say of it only that; "
                "name others"
            )
        found += free
    if len({(s.name, s.index) for s in found}) < len(found):
        raise StillroomError(f"{', '.join(archs)}: a network is named twice; name it once")
    return found


def assess(
    folder: Path,
    bench: Benchmark,
    stages: Sequence[Original],
    store: Store,
    machine: Machine,
    session: Session,
    ledger: Path | None = None,
) -> tuple[list[Measured], list[Record]]:
    """Every measure of a set; the pool of `stages` is trained now where it is not in the store.

    The numbers are added to `ledger` as records, if one is given; if it is the set's own, where one
    of the models sees the classes of images goes into the set's `exhibits/`.
    """
    found, records = measured(folder, bench, stages, store, machine, session)
    if ledger is not None:
        add_records(ledger, records)
    if ledger == folder / LEDGER:
        _draw(folder, bench, stages, store, machine, session)
    return found, records


def _draw(
    folder: Path,
    bench: Benchmark,
    stages: Sequence[Original],
    store: Store,
    machine: Machine,
    session: Session,
) -> None:
    """Write the maps of the first model of a network that has any."""
    first = {stage.name: stage for stage in reversed(stages)}
    chosen = [stage for stage in stages if stage is first[stage.name]]
    _, rt = cost_of_originals(chosen, machine, session, store)
    rt = dataclasses.replace(rt, compile=False)
    made, key = load(folder), set_digest(folder)
    for (model,) in obtain_originals(chosen, machine, store, rt).values():
        with rt.activate():
            if write_maps(folder / EXHIBITS, made, key, model, bench, rt):
                return
    session.say(f"no activation maps: no layer of {', '.join(first)} is a map")


def measured(
    folder: Path,
    bench: Benchmark,
    stages: Sequence[Original],
    store: Store,
    machine: Machine,
    session: Session,
) -> tuple[list[Measured], list[Record]]:
    """Every measure of a set, and its record."""
    made = load(folder)
    check_fits(made, bench, folder.name)
    check_read_alike(made, bench, folder.name)
    cost, rt = cost_of_originals(stages, machine, session, store)
    need, remedy = held_at_once(made, bench, stages, rt), "name smaller ones with --models-pool"
    refuse_too_large(need, "measuring on these networks needs about", rt.device, remedy)
    if cost.left:
        session.say(cost.in_words())
    pool = obtain_originals(stages, machine, store, rt)
    first = {stage.name: RealFeatures(stage, REAL) for stage in reversed(stages)}
    seen = obtain_all(store, list(first.values()), machines.executor(machine), rt)
    real = dict(zip(first, seen, strict=True))
    rt = dataclasses.replace(rt, compile=False)
    with rt.activate():
        found = [_told(m, stages) for m in measure(made, bench, pool, real, rt)]
    key, size = set_digest(folder), set_bytes(folder)
    of = [(folder, key, size, _question(m.arch, stages)) for m in found]
    return found, [_record(m, made, bench, one, rt) for m, one in zip(found, of, strict=True)]


def _question(arch: str, stages: Sequence[Original]) -> str:
    """A digest of what decides the numbers of one network beside set and data.

    Not of all: the same question is the same one, whatever else was asked along with it.
    """
    same = [s for s in stages if s.name == arch]
    asked = [[s.schooling.model_dump(mode="json"), s.name, s.index] for s in same]
    return sha256(canonical([VERSION, REAL, RANDOM_NETS, asked]))[:12]


def _told(m: Measured, stages: Sequence[Original]) -> Measured:
    """The same number with what it was asked of, in words."""
    same = [s for s in stages if s.name == m.arch]
    asked = ""
    if m.name in VERDICTS:
        asked = pool_in_words(same)
    elif m.name.endswith("-matching-loss"):
        asked = plural(RANDOM_NETS, "fresh network")
    elif same:
        asked = first_in_words(same)
    return dataclasses.replace(m, asked=asked)


def _record(
    m: Measured, made: Distilled, bench: Benchmark, of: tuple[Path, str, int, str], rt: Runtime
) -> Record:
    folder, key, size, how = of
    step = made.provenance.get("step")
    return Record(
        benchmark=bench.name,
        data_digest=bench.digest,
        ipc=made.ipc,
        row=str(made.provenance.get("label") or folder.name)[:80],
        set_key=key,
        step=step if isinstance(step, int) and not isinstance(step, bool) else 0,
        draw=None,
        protocol=VERSION,
        protocol_hash=how,
        arch=m.arch,
        seed=0,
        metric=m.name,
        value=m.value,
        unit=m.unit,
        selection="last",
        source="measured",
        bytes=size,
        seconds=0.0,
        device=rt.device.type,
        numerics="float32",
        code=code_digest(SOURCES),
        split=bench.split,
        versions={"stillroom": stillroom.__version__, "torch": torch.__version__},
        note=m.asked,
    )
