"""`stillroom evaluate SET`: students on a set and on what it is compared with."""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from stillroom.cli import flags
from stillroom.errors import StillroomError
from stillroom.files import user_path
from stillroom.run.options import DataOptions, Machine

if TYPE_CHECKING:
    from stillroom.evaluation.statistics import Paired
    from stillroom.session import Session
    from stillroom.types import Record

Numbers = Literal["float32", "tf32", "bf16", "float64"]


_ASKED = ("seeds", "steps", "baselines", "numerics", "students", "real_jpegs")


def _evaluate(**values: Any) -> None:
    if values["protocols"]:
        _list_protocols()
        return
    source = values["source"]
    if source is None:
        raise StillroomError("evaluate needs a SET folder, or full:DATA")
    from stillroom.evaluation.published import find_protocol
    from stillroom.progress import Shown
    from stillroom.recipe import settled
    from stillroom.records import LEDGER, read_records
    from stillroom.run import fits
    from stillroom.run import machine as machines
    from stillroom.run.judging import Asked
    from stillroom.run.teachers import check_alike

    machine = flags.settle(Machine, values, "machine")
    folder, bench, own = _source(source, values, machines.store(machine))
    fields = {k: values[k] for k in _ASKED}
    fields["protocol"] = find_protocol(values["protocol"])
    fields |= {"archs": values["arch"] or [own], "real_images": not values["no_real_images"]}
    if values["save_models"] is not None:
        fields["save_models"] = user_path(values["save_models"], "save-models")
        fields["force"] = values["force"]
    elif values["force"]:
        raise StillroomError("--force belongs to --save-models")
    fields["teachers"] = {
        "archs": tuple(values["teachers"] or ()),
        "num": values["teacher_num"],
        "schooling": values["schooling"],
        "soft": values["soft_labels"],
    }
    asked = settled(Asked, fields, "evaluate")
    rivals = [user_path(other, "against") for other in values["against"] or ()]
    named = None if values["records"] is None else user_path(values["records"], "records")
    ledgers = {path: named or path / LEDGER for path in [folder, *rivals] if path}
    if folder is not None and rivals:  # before anything is trained for the first
        taught = asked.protocol.view is not None or asked.teachers.soft
        fits.check_rivals(folder, asked.steps, rivals, asked.protocol, bench, taught)
        store = machines.store(machine)
        check_alike(asked.teachers, folder, rivals, asked.protocol, bench, store)
    if named is not None and not named.parent.is_dir():
        raise StillroomError(f"records={named}: its folder {named.parent} does not exist; make it")
    for path in {*ledgers.values(), *filter(None, [named])}:
        if path.exists():
            read_records(path)  # what cannot be added to is said before the work
    if values["plan"]:
        _show_cost(folder, bench, asked, machine, rivals)
        return
    ledger, shown = ledgers[folder] if folder is not None else named, Shown(values["quiet"])
    with shown.interruptible(machine.minutes):  # of all sets together
        records = judge_and_show(folder, bench, asked, machine, shown, ledger)
        for path in rivals:
            rival = _of_rivals(asked)
            found = judge_and_show(path, bench, rival, machine, shown, ledgers[path])
            _show_comparison(records, found, (str(folder), str(path)))


def _of_rivals(asked: Any) -> Any:
    alone = {"steps": "last", "baselines": False, "real_jpegs": False, "save_models": None}
    return asked.model_copy(update=alone)


def _show_cost(
    folder: Path | None, bench: Any, asked: Any, machine: Machine, rivals: Sequence[Path]
) -> None:
    """Print what an evaluation takes; baselines are chosen for it, nobody is trained."""
    from stillroom.cli.show import key_values
    from stillroom.progress import Shown
    from stillroom.run import judge as judges
    from stillroom.run import machine as machines
    from stillroom.run.judging import cost_of, cost_of_teachers

    store, shown = machines.store(machine), Shown(True)
    wanted = [(folder, asked), *((path, _of_rivals(asked)) for path in rivals)]
    with shown.interruptible():
        for path, what in wanted:
            how, rows = judges.prepared(path, bench, what, store, machine, shown)
            cost, taught = cost_of(how, rows), cost_of_teachers(how, rows)
            pairs = [
                ("rows", ", ".join(dict.fromkeys(row.name for row in rows))),
                ("networks", ", ".join(arch.name for arch in how.archs)),
                ("students", cost.in_words()),
                ("work", f"{cost.flops / 1e12:.2f} TFLOP, {what.numerics} on {how.rt.device}"),
            ]
            if taught is not None:
                pairs.insert(2, ("teachers", taught.in_words()))
            what_for = path or f"full:{bench.name}"
            key_values(f"{what_for} under {what.protocol.id} (estimates; nobody trained)", pairs)


def _source(source: str, values: dict[str, Any], store: Any) -> tuple[Path | None, Any, str]:
    """The set's folder (None: full data), the real data, and the usual student."""
    from stillroom.cli.show import say
    from stillroom.data.named import NAMED
    from stillroom.distilled import load
    from stillroom.evaluation.published import find_protocol
    from stillroom.run import fits
    from stillroom.run import machine as machines

    options = flags.settle(DataOptions, values, "options")
    if source.startswith("full:"):
        unread = [f"--{name}" for name in ("baselines", "data", "against") if values[name]]
        switches = ("real_jpegs", "no_real_images")
        unread += [f"--{name.replace('_', '-')}" for name in switches if values[name]]
        unread += ["--steps"] if values["steps"] != "last" else []
        if unread:
            raise StillroomError(f"{unread[0]} belongs to a set, not to full data; leave it out")
        bench = machines.benchmark(source.removeprefix("full:"), options, store)
        return None, bench, "auto"
    folder = user_path(source, "SET")
    if source in ("full", *NAMED) and not folder.exists():
        data = source if source in NAMED else "DATA"
        raise StillroomError(f"{source!r} is no set; for all of the real data say full:{data}")
    made = load(folder)
    flags.refuse_unread_data(values)
    bench = fits.bench_of(folder, values["data"], options, store)
    if made.arch.startswith("user:") and not values["arch"]:
        say(f"note: its own network {made.arch} is code; name it with --arch to train that one")
    asked = str(values["protocol"])
    told = values["quiet"] or "+lr=" in asked
    if made.lr is not None and not told and find_protocol(asked).lr != "set":
        others = "mtt@1" if made.label_kind == "hard" else "datm@1 or edf@1"
        say(
            f"note: students take the rate of {asked}, not {made.lr:.4g}, which was learned with "
            f"the set; --protocol {others} takes that"
        )
    return folder, bench, fits.student_of(made)


evaluate = flags.with_signature(
    _evaluate,
    [
        inspect.Parameter(
            "source",
            inspect.Parameter.POSITIONAL_ONLY,
            default=None,
            annotation=Annotated[
                str | None, Parameter(name="SET", help="a set's folder, or full:DATA")
            ],
        ),
        flags.keyword("data", flags.flag(str | None, "real data, if not in the store any more")),
        flags.keyword("protocol", flags.flag(str, "see --protocols"), "quick@1"),
        flags.keyword("arch", flags.several(str, "students [default: the set's network]")),
        flags.keyword("seeds", flags.flag(int | None, "students [default: the protocol's]")),
        flags.keyword("steps", flags.flag(str, "which kept steps: last, all, or 100,300"), "last"),
        flags.keyword(
            "baselines",
            flags.flag(bool, "random (5 draws) and coreset rows beside it", switch=True),
            False,
        ),
        flags.keyword(
            "real_jpegs",
            flags.flag(bool, "random real images as JPEG, up to the set's bytes", switch=True),
            False,
        ),
        flags.keyword(
            "no_real_images",
            flags.flag(bool, "keep no real image beside the set for its page", switch=True),
            False,
        ),
        flags.keyword(
            "against",
            flags.several(Path, "other sets, judged alike and compared seed by seed"),
        ),
        flags.keyword(
            "teachers",
            flags.several(
                str,
                "networks whose labels students get, under protocols that want some [default: the "
                "labels that the set carries, or of those that made it]",
            ),
        ),
        flags.keyword("teacher_num", flags.flag(int | None, "models of each [default: 1]")),
        flags.keyword("schooling", flags.flag(str | None, f"how trained: {flags.SCHOOLED}")),
        flags.keyword(
            "soft_labels",
            flags.flag(
                bool,
                "one soft label an image by teachers, in place of the set's own, under protocols "
                "that take any labels",
                switch=True,
            ),
            False,
        ),
        flags.keyword("numerics", flags.flag(Numbers, "of the students"), "float32"),
        flags.keyword(
            "students",
            flags.flag(Literal["loop", "vmap"], "in turn (faster on CPU) or all at once"),
            "loop",
        ),
        flags.keyword(
            "records",
            flags.flag(Path | None, "ledger to add to [default: SET/records.jsonl; full: none]"),
        ),
        flags.keyword(
            "save_models",
            flags.flag(
                Path | None,
                "folder for the students' weights, of the set and its baselines; students that "
                "were trained without it are trained again",
            ),
        ),
        flags.keyword(
            "force",
            flags.flag(bool, "overwrite other students in --save-models", switch=True),
            False,
        ),
        flags.keyword("plan", flags.flag(bool, "show the cost and stop", switch=True), False),
        flags.keyword(
            "protocols", flags.flag(bool, "list the protocols and stop", switch=True), False
        ),
        flags.keyword("quiet", flags.flag(bool, "no progress, no notes", switch=True), False),
        *flags.of_model(DataOptions, "options", "Data"),
        *flags.of_model(Machine, "machine", "Machine"),
    ],
    "Train students on a set and test them on real images; adds to SET/records.jsonl.",
)


def judge_and_show(
    folder: Path | None,
    bench: Any,
    asked: Any,
    machine: Machine,
    session: Session,
    ledger: Path | None = None,
) -> list[Record]:
    """Judge a set (or the full data), store the records, print the table."""
    from stillroom.cli.show import accuracy_table, say
    from stillroom.records import read_records
    from stillroom.run import judge as judges
    from stillroom.run import machine as machines
    from stillroom.tables import lines_of

    store = machines.store(machine)
    records = judges.evaluate(folder, bench, asked, store, machine, session, ledger)
    protocol = asked.protocol
    title = f"{bench.name}, {protocol.id} ({protocol.digest()}), {asked.numerics}"
    title += "".join(f", {taught}" for taught in {r.taught for r in records} if taught)
    known = records if ledger is None else read_records(ledger)  # baselines of an earlier time too
    accuracy_table(lines_of(records, known), f"{title}, test: {bench.split}")
    if ledger is not None:
        page = f"; page: {shlex.join(['stillroom', 'report', str(folder)])}" if folder else ""
        say(f"records in {ledger}{page}")
    elif folder is None:
        say("not kept: name a ledger with --records FILE")
    if asked.save_models is not None:
        say(f"weights of the students in {asked.save_models}")
    return records


def _show_comparison(
    records: Sequence[Record], others: Sequence[Record], names: tuple[str, str]
) -> None:
    """Print how the last step of one set compares with another set, on every network."""
    from stillroom.cli.show import say
    from stillroom.tables import compare, other_labels

    last = max(r.step or 0 for r in records)
    own = [r for r in records if r.draw is None and (r.step or 0) == last and r.step is not None]
    for arch in dict.fromkeys(r.arch for r in own):
        mine, other = ([r for r in some if r.arch == arch] for some in (own, others))
        first, second = (
            f"{name} ({some[0].row})" for name, some in zip(names, (mine, other), strict=True)
        )
        say(f"{first} - {second} on {arch}: {in_words(compare(mine, other))}")
    if told := other_labels([some[0].labels for some in (own, others)], names):
        say(told)


def in_words(found: Paired | None) -> str:
    """A paired comparison as a clause, in points."""
    from stillroom.tables import percent, plural

    if found is None:
        return "no student of one seed on both, so nothing to compare"
    gap = found.difference
    text = f"{percent(gap.mean, sign=True)} points"
    if gap.half is None or found.p is None:
        why = "all differences are equal" if gap.n > 2 else "it needs three"
        return f"{text}, over {plural(gap.n, 'student')} of equal seed; no p-value: {why}"
    low, high = percent(gap.low, sign=True), percent(gap.high, sign=True)
    told = f"{text} ({low} .. {high}), paired t test p = {found.p:.2g}"
    return f"{told}, over {gap.n} students of these two sets"


def _list_protocols() -> None:
    from stillroom.cli.show import rows, say
    from stillroom.evaluation.protocol import CHANGEABLE, QUIRKS
    from stillroom.evaluation.published import PROTOCOLS

    heads = ("protocol", "epochs", "rate", "schedule", "augmentation", "labels", "headline", "n")
    cells = []
    for p in PROTOCOLS.values():
        several = ", ".join(f"{rate:g}" for rate in p.rates)
        rate = {"set": f"the set's, else {several}", "search": f"best of {several}"}
        told = rate[p.lr] if isinstance(p.lr, str) else f"{p.lr:g}"
        steps = f"{p.schedule} at {', '.join(map(str, p.milestones))}" if p.milestones else ""
        augment = "the set's" if p.augment == "set" else p.augment.partition(":")[0]
        if p.view is not None:
            augment = "views, RandAugment" if p.view.ops else "views"
        own = (p.id, f"{p.passes:,}", told, steps or p.schedule, augment, p.labels, p.select)
        cells.append((*own, str(p.seeds)))
    more = ", ".join(CHANGEABLE[1:])
    rows(f"protocols (+epochs=N behind a name; so {more})", heads, cells)
    for p in PROTOCOLS.values():
        quirks = "".join(f" Quirk {name}: {QUIRKS[name]}." for name in p.quirks)
        papers = f" Papers: {', '.join(p.papers)}." if p.papers else ""
        size = "batches by the set" if p.batches is not None else f"batch {p.batch}"
        pace = f"momentum {p.momentum:g}" if p.optimiser == "sgd" else p.optimiser
        batch = f"{size}, {pace}, weight decay {p.weight_decay:g}"
        checks = f"tested {p.checks} times" if p.checks > 1 else "tested once"
        say(f"{p.id} (hash {p.digest()}; {batch}; {checks}): {p.why}{quirks}{papers}")
