"""`stillroom distill`: obtain what is needed, run the outer loop, publish the set."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from stillroom.artefacts.buffers import GivenExpert
from stillroom.artefacts.experts import Expert, Trajectory
from stillroom.artefacts.opened import nets_for
from stillroom.artefacts.originals import Original, OriginalModel, network_of
from stillroom.artefacts.stage import Stage
from stillroom.artefacts.starts import keep_start
from stillroom.artefacts.store import Store, obtain, obtain_all
from stillroom.data.augment import parse
from stillroom.data.benchmarks import Benchmark
from stillroom.distilled import Distilled, load
from stillroom.errors import StillroomError
from stillroom.files import read_json
from stillroom.methods.distil import Distil
from stillroom.nets.ensemble import Nets
from stillroom.nets.zoo import Arch
from stillroom.recipe import Recipe
from stillroom.run import machine as machines
from stillroom.run.estimate import Estimate, distil_estimate, passes_of, trained_before
from stillroom.run.given import check_experts, check_given, say_guessing, settle
from stillroom.run.options import Machine
from stillroom.run.prepare import costs_of_stages
from stillroom.run.publish import owner_key, publish, refuse_foreign
from stillroom.runtime import Runtime, environment, refuse_full, refuse_too_large
from stillroom.session import Session

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Plan:
    """Everything decided before work starts."""

    stage: Distil
    bench: Benchmark
    rt: Runtime
    store: Store
    estimate: Estimate
    out: Path | None
    row: str | None
    recipe: str = ""
    force: bool = False


def plan(
    recipe: Recipe,
    bench: Benchmark,
    machine: Machine,
    session: Session,
    *,
    store: Store,
    out: Path | None = None,
    net: str | Callable[..., Any] | None = None,
    init_from: Path | None = None,
    row: str | None = None,
    force: bool = False,
) -> Plan:
    """Check everything that can be checked before the first step.

    Raises: StillroomError if a class is too small, memory cannot suffice, `out` holds something
    else (with `force` too, if stillroom did not write it), or a name is unknown.
    """
    arch = machines.choose_arch(net if net is not None else recipe.arch, bench)
    recipe = recipe if init_from is None else _with_given_start(recipe)
    check_ipc(recipe, bench)
    if recipe.zca and bench.preprocess.zca is None:
        session.say("the published settings are of whitened images, which these are not: --zca")
    parse(recipe.method.augment_name())
    bare = machines.runtime(machine, recipe.numerics, 0, session)
    recipe = settle(recipe, bench, arch, store, bare)
    start, start_key, start_models = _start(init_from, bench, recipe, store)
    stage = Distil(
        method=recipe.method,
        outer=recipe.outer,
        bench=bench.describe(),
        ipc=recipe.ipc,
        seed=recipe.seed,
        arch=arch,
        numerics=recipe.numerics,
        storage=recipe.stored_as,
        store=store.root,
        start=start,
        start_key=start_key,
        start_models=start_models,
        regularisers=tuple(term for term in recipe.regularisers if term.adds()),
        watch=recipe.watch,
    )
    wanted = stage.wants()  # what is wrong with its networks is said now
    probe = dataclasses.replace(bare, session=Session())
    steps = recipe.method.steps(recipe.outer)
    nets_of = _nets_of(arch, bench, probe)
    recipe.method.refuse_unread(recipe.ipc, nets_of, steps)
    estimate = distil_estimate(recipe, bench, nets_of)
    passes = passes_of(wanted.values(), store)
    held = [s.memory(probe) for s in passes if not store.complete(s.key())]
    estimate = dataclasses.replace(estimate, memory=max([estimate.memory, *held]))
    rt = machines.runtime(machine, recipe.numerics, estimate.flops, session)
    batch = "--batch" if hasattr(recipe.method, "batch") else "--batch-real"
    remedy = f"lower --ipc, {batch} or --size"
    refuse_too_large(estimate.memory, "this run needs about", rt.device, remedy)
    _refuse_large_trainings(stage, store, machine, rt, probe)
    if out is not None:
        _check_out(out, stage.key(), force)
    return Plan(stage, bench, rt, store, estimate, out, row, recipe.name, force)


def _refuse_large_trainings(
    stage: Distil, store: Store, machine: Machine, rt: Runtime, probe: Runtime
) -> None:
    """Raise StillroomError if what has to be trained first does not fit."""
    wanted = [] if store.complete(stage.key()) else stage.wants().values()
    left = trained_before(wanted, store, probe)
    need = min(machine.workers, len(left)) * max((s.memory(probe) for s in left), default=0)
    what = "training the networks that it needs first takes about"
    refuse_too_large(need, what, rt.device, "lower the batch of their schooling, or --size")


def _nets_of(arch: Arch, bench: Benchmark, rt: Runtime) -> Callable[[str], Nets]:
    """Networks by the names that a method gives; "auto" is `arch`."""
    return lambda name: nets_for(network_of(name, arch), bench, rt)


def distil(planned: Plan, machine: Machine) -> Distilled:
    """Run a plan; returns the last set, and publishes it if the plan has an `out`."""
    key = planned.stage.key()
    cached = planned.store.complete(key)
    if not cached and (wanted := list(planned.stage.wants().values())):
        _say_cost(planned, machine, wanted)
        exact = dataclasses.replace(planned.rt, numerics="float32")  # as their keys say
        _obtain_wanted(planned, wanted, machine, exact)
    data: Distilled = obtain(planned.store, planned.stage, machines.executor(machine), planned.rt)
    if planned.out is not None and (planned.force or owner_key(planned.out) != key):
        final = read_json(planned.store.folder(key) / "final.json")
        run = {
            **environment(planned.rt),
            "seconds": final["seconds"],
            "from_store": cached,
            "workers": machine.workers,
            "row": planned.row,
            "recipe": planned.recipe,
            "notes": list(planned.bench.notes),
            "drift": final["drift"],
            **_accuracies(planned),
        }
        publish(planned.store.folder(key), planned.out, key, run)
    return data


def _obtain_wanted(planned: Plan, wanted: Sequence[Stage], machine: Machine, rt: Runtime) -> None:
    """Make what a distillation needs; given weights are checked before anything follows of them."""
    first = [stage for stage in wanted if isinstance(stage, Original) and stage.weights]
    if first:
        found = obtain_all(planned.store, first, machines.executor(machine), rt)
        check_given(first, found, planned.bench, machine, rt.session)
    given = [stage for stage in wanted if isinstance(stage, GivenExpert)]
    if given:
        check_experts(given, planned.store, planned.bench, machine, rt)
    obtain_all(planned.store, wanted, machines.executor(machine), rt)
    own = [stage for stage in wanted if isinstance(stage, Expert)]
    followed = [stage.load(planned.store.folder(stage.key())) for stage in own]
    say_guessing(followed, planned.bench, rt.session)


def _accuracies(planned: Plan) -> dict[str, Any]:
    """What `run.json` says of given weights: how accurate they are on the test images."""
    found = {}
    for stage in planned.stage.wants().values():
        name = _brought(stage)
        if name and planned.store.complete(stage.key()):
            made: OriginalModel | Trajectory = stage.load(planned.store.folder(stage.key()))
            found[name] = made.accuracy
    return {"given": found} if found else {}


def _brought(stage: Stage) -> str:
    """What a stage that others trained is called; empty if it is trained here."""
    if isinstance(stage, Original) and stage.weights:
        return stage.name
    return f"expert {stage.index}" if isinstance(stage, GivenExpert) else ""


def _say_cost(planned: Plan, machine: Machine, wanted: Sequence[Stage]) -> None:
    """Say what training networks takes before it starts: it may be longer than the distillation."""
    session = planned.rt.session
    costs = costs_of_stages(wanted, machine, session, planned.store)
    for cost in costs:
        if cost.left:
            session.say(cost.in_words())
    need = planned.estimate.disk + sum(cost.disk for cost in costs)
    refuse_full(need, planned.store.root, "name a larger one with --store")


def check_ipc(recipe: Recipe, bench: Benchmark) -> None:
    """Refuse an ipc that a class cannot give.

    Raises: StillroomError naming the smallest class.
    """
    sizes = {c: len(bench.train.rows_of(i)) for i, c in enumerate(bench.classes)}
    name = min(sizes, key=lambda c: sizes[c])
    if why := recipe.method.too_few(sizes[name], recipe.ipc, bench.size):
        raise StillroomError(f"ipc={recipe.ipc} but class {name!r} {why}")


def _check_out(out: Path, key: str, force: bool) -> None:
    """Refuse to overwrite what is not this run's, or to start what cannot be published."""
    near = next(p for p in (out.absolute(), *out.absolute().parents) if p.exists())
    if near != out.absolute():
        if not (near.is_dir() and os.access(near, os.W_OK | os.X_OK)):
            raise StillroomError(f"--out {out}: no folder can be made in {near}; name another one")
        return
    if not out.is_dir():
        raise StillroomError(f"--out {out} is a file; name a folder")
    held = owner_key(out)
    if held == key and not force:
        try:
            load(out)
        except StillroomError as error:
            raise StillroomError(f"{error}; write it again with --force") from None
        return
    if Path.cwd().is_relative_to(out.resolve()):
        raise StillroomError(f"--out {out} holds the current folder; name another one")
    if held is None and any(out.iterdir()):
        raise StillroomError(
            f"--out {out} holds files that are not a stillroom set; name an empty or new folder"
        )
    refuse_foreign(out)
    if held is not None and held != key and not force:
        raise StillroomError(
            f"--out {out} holds another run ({held}, this one is {key}); "
            "name another folder, or overwrite it with --force"
        )


def _with_given_start(recipe: Recipe) -> Recipe:
    """The recipe without what would make first images that are then replaced by given ones."""
    method = recipe.method
    if not method.steps(recipe.outer):
        raise StillroomError(
            f"--init-from: {method.name()} runs no steps, so nothing would start from it; leave it "
            "out"
        )
    fields = type(method).model_fields
    fresh = {n: fields[n].get_default(call_default_factory=True) for n in method.of_init}
    if "init" in fields and "noise" in get_args(fields["init"].annotation):
        fresh["init"] = "noise"  # which costs nothing, and needs no real images
    return recipe.model_copy(update={"method": method.model_copy(update=fresh)})


def _start(
    init_from: Path | None, bench: Benchmark, recipe: Recipe, store: Store
) -> tuple[Path | None, str, tuple[tuple[str, int], ...]]:
    """Bring the images of `--init-from` into the store, in network space, class-major.

    Returns (file, digest, the networks that they were made with).
    """
    if init_from is None:
        return None, "", ()
    images, models = _start_images(init_from, bench, recipe, store)
    return *keep_start(images, store.root), models


def _start_images(
    init_from: Path, bench: Benchmark, recipe: Recipe, store: Store
) -> tuple[Tensor, tuple[tuple[str, int], ...]]:
    import torch

    models: tuple[tuple[str, int], ...] = ()
    if (init_from / "meta.json").is_file():
        given = load(init_from)
        if given.classes != bench.classes:
            raise StillroomError(
                f"--init-from {init_from}: its classes are not those of the data; "
                f"first {given.classes[0]!r} against {bench.classes[0]!r}"
            )
        models = given.models
        pixels = given.preprocess.invert(given.images)
        of_class = given.of_class
    elif init_from.is_dir():
        from stillroom.data.benchmarks import folder_images

        pixels, of_class = folder_images(init_from, bench, store.root)
    else:
        raise StillroomError(f"--init-from {init_from}: neither a set nor a class folder")
    picked = []
    for c, name in enumerate(bench.classes):
        rows = (of_class == c).nonzero().squeeze(1)[: recipe.ipc]
        if len(rows) < recipe.ipc:
            raise StillroomError(
                f"--init-from {init_from}: class {name!r} has {len(rows)} images, "
                f"ipc={recipe.ipc} needs as many; lower --ipc"
            )
        picked.append(pixels[rows])
    return bench.preprocess.apply(torch.cat(picked)), models
