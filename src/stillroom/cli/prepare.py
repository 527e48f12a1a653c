"""`stillroom prepare STAGE ...`: what methods need, made alone."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cyclopts import App

from stillroom.artefacts.released_names import Repair
from stillroom.artefacts.schooling import (
    GSAM,
    MOST_MODELS,
    SCHOOLINGS,
    Schooling,
    changed,
    find_schooling,
)
from stillroom.cli import flags
from stillroom.cli.relabels import relabels
from stillroom.errors import StillroomError
from stillroom.files import user_path
from stillroom.run.options import DataOptions, Machine

if TYPE_CHECKING:
    from stillroom.artefacts.originals import Original
    from stillroom.artefacts.store import Store
    from stillroom.data.benchmarks import Benchmark
    from stillroom.runtime import Runtime
    from stillroom.session import Session

NEEDS, REMEDY = "a step of such a training needs about", "lower --batch or --size"

app = App(
    name="prepare",
    help="Make what is needed, alone: trained networks, statistics, labels of teachers.",
)


def _originals(**values: Any) -> None:
    from stillroom.artefacts.opened import open_bench
    from stillroom.cli.show import say
    from stillroom.progress import Shown
    from stillroom.records import add_records
    from stillroom.run.prepare import obtain_originals, records_of
    from stillroom.tables import percent, plural

    machine, shown = flags.settle(Machine, values, "machine"), Shown(values["quiet"])
    ledger = None if values["records"] is None else user_path(values["records"], "records")
    if ledger is not None and (ledger.is_dir() or not ledger.absolute().parent.is_dir()):
        raise StillroomError(f"--records {ledger} is no file in a folder that is there; name one")
    with shown.interruptible(machine.minutes):
        stages, store, rt = _wanted(values, machine, shown)
        if rt is None:
            return
        found = obtain_originals(stages, machine, store, rt)
        if ledger is not None:
            bench = open_bench(stages[0].bench, store.root, rt)
            add_records(ledger, records_of(stages, store, bench, rt))
            say(f"accuracies in {ledger}")
    for arch, models in found.items():
        told = ", ".join(percent(m.accuracy) for m in models[:10])
        more = f" and {len(models) - 10} more" if len(models) > 10 else ""
        seconds = sum(m.seconds for m in models) / len(models)
        many = plural(len(models), "model")
        say(f"{arch}: {many}, test accuracy {told}{more} %, {seconds:.0f} s each")


def _statistics(**values: Any) -> None:
    from stillroom.cli.show import say
    from stillroom.progress import Shown
    from stillroom.run.given import in_words
    from stillroom.run.prepare import obtain_released, obtain_statistics

    machine, shown = flags.settle(Machine, values, "machine"), Shown(values["quiet"])
    released = _released(values)
    with shown.interruptible(machine.minutes):
        models, store, rt = _wanted(values, machine, shown)
        if rt is None:
            return
        by_class, made = values["by_class"], list[Any]()
        if released is not None:
            repair = values["repair"] or ()
            made = obtain_released(models, released, repair, by_class, machine, store, rt)
        else:
            made = obtain_statistics(models, by_class, *_seen(values), machine, store, rt)
    for stage, seen, size in made:
        kinds = [layer.kind for layer in seen.layers]
        repairs = f", {in_words(seen)}" if released is not None else ""
        say(
            f"{stage.model.name} {stage.model.index}: {kinds.count('conv')} convolutions, "
            f"{kinds.count('norm')} norms{repairs}, {size / 1e6:.1f} MB, {stage.key()}"
        )


def _released(values: dict[str, Any]) -> Path | None:
    """The folder or zip that statistics are read from, if they are not collected."""
    if values["from_"] is None:
        if values["repair"] is not None:
            raise StillroomError("--repair belongs to --from")
        return None
    for name in ("seen_batch", "seen_augment"):
        if values[name] is not None:
            flag = name.replace("_", "-")
            raise StillroomError(f"--{flag} is of a pass over the images, which --from is without")
    return user_path(values["from_"], "from")


def _experts(**values: Any) -> None:
    from stillroom.cli.show import key_values, say
    from stillroom.progress import Shown
    from stillroom.run.prepare import cost_of_experts, costs_of_stages, experts, obtain_experts
    from stillroom.runtime import refuse_full, refuse_too_large
    from stillroom.tables import percent

    machine, shown = flags.settle(Machine, values, "machine"), Shown(values["quiet"])
    with shown.interruptible(machine.minutes):
        _, bench, store = _of_data(values, machine)
        schooling = _schooling(values, bench.like)
        archs, num = values["arch"] or ["auto"], values["num"]
        part = (values["upto"], store, values["since"], values["kept"])
        stages = experts(bench, archs, num, schooling, *part)
        rt = cost_of_experts(stages, machine, shown, store)[1]
        costs = costs_of_stages(stages, machine, shown, store)
        if values["plan"]:
            pairs = [("trained as", _in_words(stages[0].schooling))]
            pairs += [("to make", cost.in_words()) for cost in costs]
            key_values(f"experts of {bench.name} (estimates; nothing was run)", pairs)
            return
        for cost in costs:
            if cost.left:
                shown.say(cost.in_words())
                refuse_too_large(cost.memory, NEEDS, rt.device, REMEDY)
        need = sum(cost.disk for cost in costs)
        refuse_full(need, store.root, "name a larger one with --store, or keep less with --upto")
        found = obtain_experts(stages, machine, store, rt)
    for arch, some in found.items():
        told = ", ".join(percent(one.accuracy) for one in some[:10])
        more = f" and {len(some) - 10} more" if len(some) > 10 else ""
        seconds = sum(one.seconds for one in some) / len(some)
        say(
            f"{arch}: {len(some)} experts up to epoch {some[0].epochs[-1]}, test accuracy "
            f"{told}{more} %, {seconds:.0f} s each"
        )


def _of_data(values: dict[str, Any], machine: Machine) -> tuple[Schooling, Benchmark, Store]:
    """How networks are trained, on what, and where they are kept."""
    from stillroom.run import machine as machines

    if not 1 <= values["num"] <= MOST_MODELS:
        raise StillroomError(f"--num {values['num']} must lie in 1..{MOST_MODELS}")
    schooling, store = _schooling(values), machines.store(machine)
    options = flags.settle(DataOptions, values, "options")
    return schooling, machines.benchmark(values["data"], options, store), store


def _wanted(
    values: dict[str, Any], machine: Machine, session: Session
) -> tuple[list[Original], Store, Runtime | None]:
    """The networks that are asked for, where they lie, how to train them; None: only a plan."""
    from stillroom.cli.show import key_values
    from stillroom.run.prepare import cost_of_originals, originals
    from stillroom.runtime import refuse_too_large

    schooling, bench, store = _of_data(values, machine)
    stages = originals(bench, values["arch"] or ["auto"], values["num"], schooling, store)
    if all(stage.weights for stage in stages) and schooling != find_schooling("default"):
        raise StillroomError(
            "every network has given weights, so none is trained; leave out how: --recipe and what "
            "changes it"
        )
    cost, rt = cost_of_originals(stages, machine, session, store)
    if values["plan"]:
        pairs = [("trained as", _in_words(schooling))]
        for name in dict.fromkeys(stage.name for stage in stages):
            some = [stage for stage in stages if stage.name == name]
            one = cost_of_originals(some, machine, session, store)[0]
            pairs.append((name, one.in_words()))
        pairs += [("all of them", cost.in_words())] if len(pairs) > 2 else []
        pairs += _passes(values, stages, machine, store)
        key_values(f"networks of {bench.name} (estimates; nothing was run)", pairs)
        return stages, store, None
    if cost.left:
        session.say(cost.in_words())
        refuse_too_large(cost.memory, NEEDS, rt.device, REMEDY)
    return stages, store, rt


def _in_words(schooling: Schooling) -> str:
    """The name of a schooling, and every field that a listing needs."""
    from stillroom.run.asked import schooling_in_words

    fields = ", ".join(f"{k} {v}" for k, v in schooling.model_dump().items() if v not in ((), None))
    return f"{schooling_in_words(schooling)}: {fields}"


def _passes(
    values: dict[str, Any], models: list[Original], machine: Machine, store: Store
) -> list[tuple[str, str]]:
    """What `prepare statistics` adds to the cost of its networks."""
    from stillroom.artefacts.statistics import Statistics
    from stillroom.run.prepare import cost_of_passes
    from stillroom.session import Session

    if "by_class" not in values or values["from_"] is not None:
        return []
    stages = [Statistics(model, values["by_class"], *_seen(values)) for model in models]
    return [("statistics", cost_of_passes(stages, machine, Session(), store).in_words())]


def _seen(values: dict[str, Any]) -> tuple[int, str]:
    """Images a batch of a pass over the data, and their augmentation."""
    batch = 64 if values["seen_batch"] is None else values["seen_batch"]
    return batch, values["seen_augment"] or "none"


def _schooling(values: dict[str, Any], known: str | None = None) -> Schooling:
    asked, base = flags.chosen(values, "schooling"), find_schooling(values["recipe"], known)
    optim = values.get("optim")
    if optim == "sgd":
        if asked.get("rho") or asked.get("alpha"):
            raise StillroomError("--optim sgd does not look uphill; leave out --rho and --alpha")
        asked |= {"rho": 0.0, "alpha": 0.0}
    if optim == "gsam" and not base.rho:
        asked = {**GSAM, **asked}
    if optim == "gsam" and asked.get("rho", base.rho) == 0:
        raise StillroomError("--optim gsam looks uphill by --rho, which is 0; say --optim sgd")
    return changed(base, asked)


def _command(
    name: str, run: Callable[..., None], about: str, recipe: str, more: list[inspect.Parameter]
) -> None:
    # Experts take images as students do and are kept after every epoch, up to --upto; all others
    # see all images in every epoch.
    unread = ("stop", "select", "raw_pixels") if name == "experts" else ("order",)
    networks = [
        flags.keyword(
            "data",
            flags.flag(str, "digits, a named benchmark, hf:owner/name, or a folder"),
            inspect.Parameter.empty,
        ),
        flags.keyword("arch", flags.several(str, "networks [default: by image size]")),
        flags.keyword("num", flags.flag(int, "models of each network"), 1),
        flags.keyword(
            "recipe",
            flags.flag(
                str,
                "what the flags below change: "
                + (flags.FOLLOWED if name == "experts" else flags.SCHOOLED),
            ),
            recipe,
        ),
        *more,
        flags.keyword("plan", flags.flag(bool, "show the cost and stop", switch=True), False),
        flags.keyword("quiet", flags.flag(bool, "no progress, no notes", switch=True), False),
        *flags.of_model(Schooling, "schooling", "Method", dict(SCHOOLINGS[recipe]), unread),
        *flags.of_model(DataOptions, "options", "Data"),
        *flags.of_model(Machine, "machine", "Machine"),
    ]
    app.command(flags.with_signature(run, networks, about), name=name)


_RECORDED = [
    flags.keyword("records", flags.flag(Path | None, "a ledger that gets their test accuracies"))
]
_command(
    "originals",
    _originals,
    "Train networks on the original data, for CLOM and for assessing sets; cached by key.",
    "default",
    _RECORDED,
)
_command(
    "teachers",
    _originals,
    "Train networks on the original data (squeeze), to recover images by and to label them.",
    "default",
    _RECORDED,
)
_command(
    "experts",
    _experts,
    "Train networks on the original data and keep their parameters after every epoch.",
    "mtt",
    [
        flags.keyword(
            "upto", flags.flag(int | None, "train and keep so many epochs [default: all]")
        ),
        flags.keyword(
            "optim",
            flags.flag(
                Literal["sgd", "gsam"] | None,
                "plain SGD, or GSAM by --rho and --alpha [default: the recipe's]",
            ),
        ),
        flags.keyword("since", flags.flag(int, "keep parameters from this epoch on"), 0),
        flags.keyword(
            "kept",
            flags.flag(
                Literal["float32", "float16"], "as they are, or as differences to the first of them"
            ),
            "float32",
        ),
    ],
)
_command(
    "statistics",
    _statistics,
    "Sum up what the layers of trained networks are given by the real images, in one pass.",
    "default",
    [
        flags.keyword("by_class", flags.flag(bool, "also of every class"), True),
        flags.keyword(
            "seen_batch", flags.flag(int | None, "images a batch of the pass [default: 64]")
        ),
        flags.keyword(
            "seen_augment", flags.flag(str | None, "augmentation in the pass [default: none]")
        ),
        flags.keyword(
            "from_",
            flags.flag(
                Path | None, "read the statistics that EDC released, a folder or zip", name="--from"
            ),
        ),
        flags.keyword(
            "repair",
            flags.several(
                Repair, "of those: what is wrong with them, beside what is found; see the docs"
            ),
        ),
    ],
)
app.command(relabels, name="relabels")
