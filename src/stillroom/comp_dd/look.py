"""The networks that look at data, as the commands ask for them: named, made, and asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from stillroom.artefacts.schooling import MOST_MODELS, find_schooling
from stillroom.artefacts.store import Store, obtain_all
from stillroom.comp_dd.complexity import WORTH_SAYING, empty
from stillroom.comp_dd.measure import Complexities, layer_of
from stillroom.data.benchmarks import Benchmark
from stillroom.errors import StillroomError
from stillroom.run import machine as machines
from stillroom.run.options import Machine
from stillroom.run.prepare import cost_of_originals, originals
from stillroom.runtime import Runtime
from stillroom.session import Session


@dataclass(frozen=True)
class Looking:
    """Networks with the layer of each, `num` models of every network, and how they look."""

    where: tuple[tuple[str, str], ...]
    originals: str
    how: dict[str, Any]  # fields of `Complexities`
    num: int = 1


@dataclass(frozen=True)
class Seen:
    """What was seen: the stages, the images int64 [M], by network the complexity [M] of each."""

    stages: list[Complexities]
    rows: Tensor
    by_network: dict[str, Tensor]
    rt: Runtime


def settled(archs: list[str], layers: list[str], how: dict[str, Any], **more: Any) -> Looking:
    """What is asked of which networks: one layer for all of them, or one of each.

    Raises: StillroomError for numbers that cannot be.
    """
    if not 0 < how["threshold"] <= 1 or how["each"] < 1:
        raise StillroomError("--threshold must lie above 0 and up to 1, --each must be at least 1")
    if not 1 <= more.get("num", 1) <= MOST_MODELS:
        raise StillroomError(f"--num {more['num']} must lie in 1..{MOST_MODELS}")
    if len(layers) not in (1, len(archs)):
        told = f"--layer names {len(layers)} layers of {len(archs)} networks"
        raise StillroomError(f"{told}; name one, or one of each")
    layers = layers * len(archs) if len(layers) == 1 else layers
    return Looking(tuple(zip(archs, layers, strict=True)), how=how, **more)


def look(
    asked: Looking, bench: Benchmark, store: Store, machine: Machine, session: Session
) -> Seen:
    """Train what lacks, and look at every image; says which maps are often empty."""
    schooling = find_schooling(asked.originals)
    models = originals(bench, [arch for arch, _ in asked.where], asked.num, schooling, store)
    cost, rt = cost_of_originals(models, machine, session, store)
    wanted = [layer for _, layer in asked.where for _ in range(asked.num)]
    layers = [layer_of(*one, bench, rt) for one in zip(wanted, models, strict=True)]
    if cost.left:
        session.say(cost.in_words())
    stages = [Complexities(m, layer, **asked.how) for m, layer in zip(models, layers, strict=True)]
    names = [f"{m.name} ({m.index + 1})" if asked.num > 1 else m.name for m in models]
    for name, stage in zip(names, stages, strict=True):
        session.say(f"{name}: {stage.in_words()}")
    found = obtain_all(store, stages, machines.executor(machine), rt)
    by_network = {name: value for name, (_, value) in zip(names, found, strict=True)}
    for name, value in by_network.items():
        if (share := empty(value)) > WORTH_SAYING:
            session.say(
                f"{name}: no pixel is active in {share:.0%} of the images, so 100 % complex"
            )
    return Seen(stages, found[0][0], by_network, rt)
