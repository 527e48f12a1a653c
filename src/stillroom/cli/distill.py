"""`stillroom distill METHOD ...` and `stillroom distill RECIPE.yaml [key=value ...]`."""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from stillroom.artefacts.schooling import find_schooling
from stillroom.cli import flags
from stillroom.config import Model
from stillroom.errors import StillroomError
from stillroom.files import user_path
from stillroom.methods import METHODS, PRESETS, Preset
from stillroom.methods.base import Outer
from stillroom.methods.regularisers import Watchable
from stillroom.recipe import Recipe
from stillroom.run.options import DataOptions, Machine

if TYPE_CHECKING:
    from stillroom.data.benchmarks import Benchmark
    from stillroom.session import Session

app = App(name="distill", help="Make a set: METHOD with flags, or a recipe.")

RECIPE_FLAGS = ("arch", "seed", "numerics", "storage")
RUN_FLAGS = [
    flags.keyword("out", flags.flag(Path | None, "folder to publish the set in")),
    flags.keyword("keep", flags.flag(str | None, "publish these steps too: 100,300 or every:500")),
    flags.keyword(
        "init_from", flags.flag(Path | None, "start from the images of a set or class folder")
    ),
    flags.keyword("plan", flags.flag(bool, "show the cost and stop", switch=True), False),
    flags.keyword("force", flags.flag(bool, "overwrite another run in --out", switch=True), False),
    flags.keyword("quiet", flags.flag(bool, "no progress, no notes", switch=True), False),
]
CLOM_FLAGS = [  # named as in the paper's command line
    flags.keyword(
        "alphas",
        flags.several(
            float,
            "add CLOM, the loss of original models on the images: its weight, one for all "
            "architectures of the pool or one each",
            "Regulariser",
        ),
    ),
    flags.keyword(
        "models_pool",
        flags.several(str, "their architectures [default: the distiller's]", "Regulariser"),
    ),
    flags.keyword(
        "model_num",
        Annotated[
            int | None,
            Parameter(
                help="models of each [default: 5]",
                group=flags.PANELS["Regulariser"],
                converter=flags.whole,
            ),
        ],
    ),
    flags.keyword(
        "originals",
        Annotated[
            str | None,
            Parameter(
                help=f"how they are trained: {flags.SCHOOLED} [default: default]",
                group=flags.PANELS["Regulariser"],
            ),
        ],
    ),
]
WATCH_FLAG = flags.keyword(
    "watch",
    flags.several(
        Watchable, "log what an original model that no term uses says of the images", "Regulariser"
    ),
)
COMMON_FLAGS = [
    *flags.of_model(DataOptions, "options", "Data"),
    *flags.of_model(Machine, "machine", "Machine"),
]


class Started(Model):
    """How a distillation is started, apart from its recipe."""

    data: str
    out: Path | None = None
    init_from: Path | None = None
    plan: bool = False
    force: bool = False
    quiet: bool = False
    options: DataOptions
    machine: Machine


def _started(values: dict[str, Any], data: str) -> Started:
    for name in ("out", "init_from"):
        if values.get(name) is not None:
            values[name] = user_path(values[name], name)
    return Started(
        data=data,
        options=flags.settle(DataOptions, values, "options"),
        machine=flags.settle(Machine, values, "machine"),
        **{k: values[k] for k in ("out", "init_from", "plan", "force", "quiet") if k in values},
    )


def _command(name: str, preset: Preset) -> Callable[..., None]:
    """The subcommand of one preset; its flags are its family's fields."""
    family = METHODS[preset.kind]
    made = family.model_construct(**preset.method)  # trusted: see config.Model
    iterates = made.steps(Outer.model_construct(steps=1)) > 0
    skip = [f for f in Recipe.model_fields if f not in RECIPE_FLAGS]
    data_help = "digits, a named benchmark, hf:owner/name, or a folder"
    parameters = [
        flags.keyword("data", flags.flag(str, data_help), inspect.Parameter.empty),
        flags.keyword("ipc", flags.flag(int, "images per class"), inspect.Parameter.empty),
        *(p for p in RUN_FLAGS if iterates or p.name not in ("keep", "init_from")),
        *flags.of_model(family, "method", "Method", preset.method, ("kind", "rule")),
        *(
            flags.of_model(Outer, "outer", "Outer loop", preset.outer, ("keep",))
            if iterates
            else ()
        ),
        *([*CLOM_FLAGS, WATCH_FLAG] if iterates else ()),
        *flags.of_model(Recipe, "recipe", "Recipe", skip=skip),
        *COMMON_FLAGS,
    ]

    def run(**values: Any) -> None:
        distil_preset(name, values)

    return flags.with_signature(run, parameters, preset.about)


for _name, _preset in PRESETS.items():
    app.command(_command(_name, _preset), name=_name)


def _recipe(**values: Any) -> None:
    from stillroom.recipe import load_recipe, merged, validate, with_overrides

    source = values["source"]
    if problem := unknown_method(source):
        raise StillroomError(problem)
    value, where = load_recipe(source)
    if "syn_steps" in value or "expert_epochs" in value:
        raise StillroomError(
            f"{source}: a configuration of EDF, DATM or PAD; make a recipe of it with: stillroom "
            f"recipes convert edf {source} --out mine.yaml"
        )
    value = with_overrides(value, list(values.get("rest", ())))
    checked = validate(value, where)
    if values["keep"] is not None:
        steps = _keep(values["keep"], checked.method.steps(checked.outer))
        checked = validate(merged(value, {"outer": {"keep": steps}}), where)
    started = _started(values, values["data"] or checked.benchmark)
    if checked.zca:
        whitened = started.options.model_copy(update={"zca": True})
        started = started.model_copy(update={"options": whitened})
    _run(lambda bench: (checked, where), started)


def unknown_method(source: str) -> str:
    """What is wrong with a text that is neither a method nor the name or file of a recipe."""
    from stillroom.errors import suggest
    from stillroom.recipe import packaged

    known = [*PRESETS, *(r.name for r in packaged())]
    if source in known or Path(source).suffix:
        return ""
    return (
        f"{source[:80]!r} is neither a method nor a recipe; methods: {', '.join(PRESETS)}; "
        f"recipes: stillroom recipes list{suggest(source, known)}"
    )


app.default(
    flags.with_signature(
        _recipe,
        [
            inspect.Parameter(
                "source",
                inspect.Parameter.POSITIONAL_ONLY,
                annotation=Annotated[
                    str, Parameter(help="a YAML file, or a name from `stillroom recipes list`")
                ],
            ),
            inspect.Parameter(
                "overrides",
                inspect.Parameter.VAR_POSITIONAL,
                annotation=Annotated[
                    str, Parameter(help="key.sub=value, such as method.batch_real=128")
                ],
            ),
            flags.keyword("data", flags.flag(str | None, "read the data from here")),
            *RUN_FLAGS,
            *COMMON_FLAGS,
        ],
        "Make a set: METHOD with flags, or a recipe file or name with overrides.",
    )
)


def distil_preset(name: str, values: dict[str, Any]) -> None:
    """From parsed flags to a run."""
    from stillroom.recipe import from_preset, merged

    data, ipc = values["data"], values["ipc"]
    given = flags.chosen(values, "recipe")
    for slot in ("method", "outer"):
        given[slot] = flags.chosen(values, slot)
    if clom := _clom(values):
        given["regularisers"] = [clom]
    if values.get("watch"):
        schooling = find_schooling(values.get("originals") or "default")
        given["watch"] = {"measures": values["watch"], "schooling": schooling}

    def settle(bench: Benchmark) -> tuple[Recipe, str | None]:
        made, row = from_preset(name, bench.name, ipc, given, bench.known)
        if values.get("keep") is not None:
            kept = {"outer": {"keep": _keep(values["keep"], made.outer.steps)}}
            made, row = from_preset(name, bench.name, ipc, merged(given, kept), bench.known)
        return made, row

    with flags.as_flags():
        from_preset(name, data, ipc, given)  # what is wrong is said before the data are read
        _run(settle, _started(values, data))


def _clom(values: dict[str, Any]) -> dict[str, Any]:
    """The regulariser that the flags describe, if any does."""
    names = {"alphas": "weights", "models_pool": "pool", "model_num": "num"}
    found = {new: values[old] for old, new in names.items() if values.get(old) is not None}
    if "weights" not in found:
        if found:
            raise StillroomError("--models-pool and --model-num belong to --alphas")
        if values.get("originals") and not values.get("watch"):
            raise StillroomError("--originals belongs to --alphas or --watch")
        return {}
    schooling = find_schooling(values.get("originals") or "default")
    return {"kind": "clom", **found, "schooling": schooling}


def _run(settle: Callable[[Benchmark], tuple[Recipe, str | None]], how: Started) -> None:
    from stillroom.cli.show import say
    from stillroom.progress import Shown
    from stillroom.run import machine as machines
    from stillroom.run.distil import distil, plan
    from stillroom.run.evaluations import check_evaluations, protocol_of

    shown = Shown(how.quiet)
    store = machines.store(how.machine)
    with shown.interruptible(how.machine.minutes):
        bench = machines.benchmark(how.data, how.options, store)
        recipe, row = settle(bench)
        planned = plan(
            recipe,
            bench,
            how.machine,
            shown,
            store=store,
            out=how.out,
            init_from=how.init_from,
            row=row,
            force=how.force,
        )
        check_evaluations(recipe.evaluate, planned)  # said before the work, not after it
        for note in bench.notes:
            shown.say(note)
        if how.plan:
            _show_plan(planned, recipe.evaluate, how.machine)
            return
        shown.say(f"settings: {f'recipe {row}' if row else 'defaults, no recipe fits these data'}")
        if planned.estimate.flops > 1e12 and not planned.store.complete(planned.stage.key()):
            what = f"{planned.estimate.steps} steps" if planned.estimate.steps else "scoring"
            shown.say(f"{what}, {_time(planned)}")
        made = distil(planned, how.machine)
        say(f"{len(made)} images of {len(made.classes)} classes ({planned.stage.key()})")
        if how.out is not None:
            by = recipe.method.judged_by()
            own = ["--protocol", (row and protocol_of(row)) or by] if by else []
            own += ["--arch", recipe.arch] if ":" in recipe.arch else []  # code of the user's own
            if how.machine.store is not None:
                own += ["--store", str(how.machine.store)]
            judge = shlex.join(["stillroom", "evaluate", str(how.out), *own, "--baselines"])
            say(f"in {how.out}" + ("" if recipe.evaluate else f"; judge it with: {judge}"))
        else:
            say("kept in the store; the same command with --out DIR publishes it at once")
        for spec in recipe.evaluate:
            _evaluate_recipe(spec, planned, how, shown)


def _evaluate_recipe(spec: Any, planned: Any, how: Started, session: Session) -> None:
    from stillroom.cli.evaluate import judge_and_show
    from stillroom.records import LEDGER
    from stillroom.run.evaluations import asked_of

    stage = planned.stage
    held = planned.store.folder(stage.key()) / "steps" / str(stage.method.steps(stage.outer))
    asked = asked_of(spec, stage.method, stage.load(planned.store.folder(stage.key())))
    # Without --out the set lies in the store, to which nothing is added once it is published.
    ledger = how.out / LEDGER if how.out is not None else None
    judge_and_show(how.out or held, planned.bench, asked, how.machine, session, ledger)


def _keep(text: str, steps: int) -> list[int]:
    """Parse `100,300` or `every:500` into sorted steps.

    Raises: StillroomError naming a step outside 1..steps.
    """
    every = text.removeprefix("every:")
    parts = [p.strip() for p in every.split(",")]
    if not all(p.isascii() and p.isdigit() and len(p) < 10 for p in parts) or every == "0":
        raise StillroomError(f"--keep {text[:80]!r} must look like 100,300 or every:500")
    wanted = sorted({int(p) for p in parts})
    if text.startswith("every:") and len(wanted) == 1 and 0 < wanted[0] <= steps:
        return list(range(wanted[0], steps + 1, wanted[0]))
    outside = [s for s in wanted if not 1 <= s <= steps]
    if outside:
        raise StillroomError(f"--keep {outside[0]} lies outside the run's {steps} steps")
    return wanted


def _time(planned: Any) -> str:
    from stillroom.run.estimate import seconds
    from stillroom.tables import about

    time = about(seconds(planned.estimate.flops, planned.rt))
    how = "compiled" if planned.rt.compile else "eager"
    return f"{time} on this {planned.rt.device}, {how} {planned.rt.numerics}"


def _show_plan(planned: Any, judged: Any, machine: Machine) -> None:
    from stillroom.cli.show import key_values
    from stillroom.run.evaluations import costs_of_evaluations
    from stillroom.tables import size

    estimate, stage, bench = planned.estimate, planned.stage, planned.bench
    decoded = bench.train.nbytes + bench.test.nbytes
    whole = planned.store.complete(stage.key())
    key_values(
        "plan (estimates; nothing was run)",
        [
            ("key", stage.key() + (" (in the store already)" if whole else "")),
            ("settings", f"recipe {planned.row}" if planned.row else "defaults, no recipe fits"),
            (
                "data",
                f"{planned.bench.name}: {len(planned.bench.train)} train images, "
                f"{len(planned.bench.test)} test ({planned.bench.split})",
            ),
            ("network", stage.arch.name),
            ("images", f"{estimate.images} ({stage.storage})"),
            ("steps", str(estimate.steps)),
            ("work", f"{estimate.flops / 1e12:.2f} TFLOP"),
            ("time", _time(planned)),
            ("memory", f"about {size(estimate.memory)} of tensors, beside torch itself"),
            ("disk", f"about {size(estimate.disk)}, beside {size(decoded)} of decoded data"),
            *_originals(planned, machine),
            *((n, c.in_words()) for n, c in costs_of_evaluations(judged, planned, machine)),
        ],
    )


PRECEDING = {
    "original model": "originals",
    "expert": "experts",
    "real-image pass": "real-image passes",
}


def _originals(planned: Any, machine: Machine) -> list[tuple[str, str]]:
    """What is made before a distillation costs: trained networks, statistics of their layers."""
    from stillroom.run.prepare import costs_of_stages
    from stillroom.session import Session

    stages = list(planned.stage.wants().values())
    if not stages:
        return []
    costs = costs_of_stages(stages, machine, Session(), planned.store)
    return [(PRECEDING[cost.what], cost.in_words()) for cost in costs]
