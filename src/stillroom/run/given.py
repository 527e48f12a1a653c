"""What a user brings to a run: trained weights and released statistics, and whether to trust them.

Both go into the store by what they are; a recipe, a key and a set then hold digests and no paths.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from stillroom.artefacts.buffers import GivenExpert, find_buffers
from stillroom.artefacts.executor import Serial
from stillroom.artefacts.experts import Trajectory
from stillroom.artefacts.given import settled
from stillroom.artefacts.npz_tree import Tree
from stillroom.artefacts.originals import Original, OriginalModel
from stillroom.artefacts.released import ReleasedStatistics
from stillroom.artefacts.released_names import Repair
from stillroom.artefacts.statistics import Observed
from stillroom.artefacts.store import Store, obtain, obtain_all
from stillroom.data.benchmarks import Benchmark
from stillroom.errors import StillroomError
from stillroom.files import user_path
from stillroom.methods.statistics_matching import StatisticsMatching
from stillroom.methods.trajectory_matching import TrajectoryMatching
from stillroom.nets.zoo import Arch
from stillroom.recipe import Recipe
from stillroom.run import machine as machines
from stillroom.run.options import Machine
from stillroom.runtime import Runtime, refuse_full
from stillroom.session import Session
from stillroom.tables import percent

SURE = 3  # standard deviations of guessing, above which an accuracy is better than that
_DIGEST = re.compile(r"[0-9a-f]{16}")


def settle(recipe: Recipe, bench: Benchmark, arch: Arch, store: Store, rt: Runtime) -> Recipe:
    """The recipe with every file that it names brought into the store and named by its digest.

    Raises: StillroomError if one is absent, damaged, or of another network or other data.
    """
    rename = functools.partial(settled, bench=bench, root=store.root, auto=arch)
    method = recipe.method.renamed(rename)
    if isinstance(method, StatisticsMatching) and method.statistics:
        method = _with_statistics(method, bench, arch, store, rt)
    if isinstance(method, TrajectoryMatching) and method.buffers:
        method = _with_buffers(method, bench, arch, store, rt)
    added = tuple(one.renamed(rename) for one in recipe.regularisers)
    return recipe.model_copy(update={"method": method, "regularisers": added})


def _with_statistics(
    method: StatisticsMatching, bench: Benchmark, arch: Arch, store: Store, rt: Runtime
) -> StatisticsMatching:
    if _DIGEST.fullmatch(method.statistics):  # of a recipe that was settled before
        tree, source = method.statistics, None
    else:
        source = user_path(method.statistics, "statistics")
        with Tree.open(source) as opened:
            tree = opened.digest()
    settled_one = method.model_copy(update={"statistics": tree})
    for stage in settled_one.stages(bench.describe(), arch, store.root).values():
        if isinstance(stage, ReleasedStatistics):
            bring(stage, source, store, rt)
    return settled_one


def _with_buffers(
    method: TrajectoryMatching, bench: Benchmark, arch: Arch, store: Store, rt: Runtime
) -> TrajectoryMatching:
    if _DIGEST.fullmatch(method.buffers):
        digest, source = method.buffers, None
    else:
        source = find_buffers(user_path(method.buffers, "buffers"))
        source.refuse_short(method.experts, method.reads)
        digest = source.digest
    settled_one = method.model_copy(update={"buffers": digest})
    stages = [
        dataclasses.replace(stage, source=source)
        for stage in settled_one.stages(bench.describe(), arch, store.root).values()
        if isinstance(stage, GivenExpert)
    ]
    lacking = [stage for stage in stages if not store.complete(stage.key())]
    if source is not None and lacking:
        need = len(lacking) * lacking[0].nbytes()
        refuse_full(need, store.root, "name a larger one with --store, or follow fewer --experts")
    for stage in lacking:
        rt.session.check()
        obtain(store, stage, Serial(), rt)
    return settled_one


def check_experts(
    stages: Sequence[GivenExpert], store: Store, bench: Benchmark, machine: Machine, rt: Runtime
) -> None:
    """Say how accurate given experts are at their ends on the test images.

    Raises: StillroomError as `check_given`.
    """
    found: list[Trajectory] = [stage.load(store.folder(stage.key())) for stage in stages]
    right = [one.accuracy for one in found]
    rt.session.say(
        f"{len(found)} given experts: right on {percent(min(right))} to {percent(max(right))} % of "
        f"{len(bench.test)} test images of {bench.name}"
    )
    for stage, one in zip(stages, found, strict=True):
        if (problem := _problem(one, bench)) and not machine.allow_guessing:
            raise StillroomError(
                f"given expert {stage.index} is right on {percent(one.accuracy)} %: {problem}; "
                "--allow-guessing takes it"
            )


def say_guessing(experts: Sequence[Trajectory], bench: Benchmark, session: Session) -> None:
    """Say if some that were trained here are no better than guessing: nobody else would."""
    guessing = [one for one in experts if one.accuracy <= _guess(bench)]
    if guessing:
        session.say(
            f"{len(guessing)} of {len(experts)} experts are no better than guessing on "
            f"{bench.name}, and lead nowhere; train them longer, or at another --lr"
        )


def bring(
    stage: ReleasedStatistics, source: Path | None, store: Store, rt: Runtime
) -> Observed | None:
    """Read released statistics into the store, if they are not there; None if they were.

    Raises: StillroomError as the stage, or if they are for a network that is trained here.
    """
    if not stage.model.weights:
        raise StillroomError(
            f"released statistics are of the weights that they were collected with, and "
            f"{stage.model.name} would be trained here; name weights: {stage.model.name}=published "
            "or =FILE"
        )
    if store.complete(stage.key()):
        return None
    found: Observed = obtain(store, dataclasses.replace(stage, source=source), Serial(), rt)
    rt.session.say(f"{stage.model.name}: {in_words(found)}")
    return found


def of_tree(
    models: Sequence[Original], source: Path, repair: Sequence[Repair], by_class: bool
) -> list[ReleasedStatistics]:
    """The stages that read a tree for some networks."""
    with Tree.open(source) as opened:
        tree = opened.digest()
    return [ReleasedStatistics(model, tree, tuple(repair), by_class, source) for model in models]


def in_words(found: Observed) -> str:
    """What was mended of released statistics."""
    return f"repairs: {', '.join(found.repairs) or 'none'}"


def check_given(
    stages: Sequence[Original],
    models: Sequence[OriginalModel],
    bench: Benchmark,
    machine: Machine,
    session: Session,
) -> dict[str, float]:
    """Say how accurate given weights are on the test images; returns the accuracies by name.

    Raises: StillroomError if they do no better than guessing, or know the classes in another order,
    unless the machine's `allow_guessing` takes them.
    """
    found: dict[str, float] = {}
    for stage, model in zip(stages, models, strict=True):
        if not stage.weights or stage.name in found:
            continue
        found[stage.name] = model.accuracy
        tests = f"{percent(model.accuracy)} % of {len(bench.test)} test images of {bench.name}"
        session.say(f"{stage.name}: right on {tests}")
        if (problem := _problem(model, bench)) and not machine.allow_guessing:
            raise StillroomError(
                f"{stage.name} is right on {tests}: {problem}; --allow-guessing takes it"
            )
    return found


def trusted(
    teachers: Sequence[Original], bench: Benchmark, store: Store, machine: Machine, rt: Runtime
) -> dict[str, float]:
    """The accuracies of those whose weights were given, after they were found fit to teach.

    Raises: StillroomError as `check_given`.
    """
    given = [teacher for teacher in teachers if teacher.weights]
    models = obtain_all(store, given, machines.executor(machine), rt)
    return check_given(given, models, bench, machine, rt.session)


def in_a_note(accuracies: Mapping[str, float]) -> str:
    """How accurate given teachers are, for a record."""
    told = (f"{name} {percent(value)} %" for name, value in accuracies.items())
    return f"teachers on the test images: {', '.join(told)}" if accuracies else ""


def _problem(model: OriginalModel | Trajectory, bench: Benchmark) -> str:
    """Why given weights are not to be trusted, or an empty string."""
    if model.moved:
        first = model.moved[0]
        more = f", and {len(model.moved) - 1} more" if len(model.moved) > 1 else ""
        return (
            f"it knows the classes in another order (class {first.own}, "
            f"{bench.classes[first.own]!r}, is its {first.said}{more}); order data and weights "
            "alike"
        )
    if model.accuracy <= _guess(bench):
        return (
            f"no better than guessing ({percent(1 / len(bench.classes))} %); are classes, their "
            "order and the normalisation those that it was trained on?"
        )
    return ""


def _guess(bench: Benchmark) -> float:
    """The accuracy up to which a network may be guessing."""
    guess = 1 / len(bench.classes)
    return guess + SURE * float((guess * (1 - guess) / max(1, len(bench.test))) ** 0.5)
