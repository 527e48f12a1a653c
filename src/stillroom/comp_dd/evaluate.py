"""Judging three files on a subset, as the benchmark's page has it: cross-entropy, no teachers.

Labels are classes or logits, whose softmax is the target. Protocol `edf@1`, or without
augmentation `edf-plain@1`; a rate that is asked for goes before that of the file.
"""

from __future__ import annotations

import dataclasses
import tempfile
from dataclasses import dataclass
from pathlib import Path

from stillroom.comp_dd.subsets import NINE, REPEATED, as_released, subset_name
from stillroom.distilled import Distilled, set_digest
from stillroom.errors import StillroomError
from stillroom.evaluation.published import find_protocol
from stillroom.interchange.tensors import MOST_RATE, imported
from stillroom.nets.zoo import canonical, resolve
from stillroom.recipe import settled
from stillroom.records import LEDGER
from stillroom.run import judge as judges
from stillroom.run import machine as machines
from stillroom.run.judging import Asked
from stillroom.run.options import DataOptions, Machine
from stillroom.session import Session
from stillroom.tables import Line, lines


@dataclass(frozen=True)
class Files:
    """What is judged, and how."""

    data_path: Path
    data_dir: Path
    label_dir: Path
    lr_dir: Path | None
    category: str
    subset: str
    model: str
    lr_net: float | None
    dsa: bool
    epochs: int | None
    batch_size: int | None
    seeds: int | None
    size: int
    out: Path | None
    strict_reference: bool = False

    @property
    def protocol(self) -> str:
        """By name, with what is changed behind it."""
        changes = {"epochs": self.epochs, "batch": self.batch_size}
        told = "".join(f"+{name}={v}" for name, v in changes.items() if v is not None)
        return ("edf@1" if self.dsa else "edf-plain@1") + told


@dataclass(frozen=True)
class Result:
    """The folder of the set, which is gone where `out` is None; its lines, and what they are of."""

    folder: Path
    lines: list[Line]
    title: str


def judge(asked: Files, machine: Machine, session: Session) -> Result:
    """Import the files and train students on them.

    Raises: StillroomError as `imported` and `evaluate`.
    """
    try:
        name = subset_name(asked.category, asked.subset)
    except ValueError as error:
        raise StillroomError(f"--{error}") from None
    if asked.lr_net is not None and not 0 < asked.lr_net < MOST_RATE:
        raise StillroomError(f"--lr-net {asked.lr_net:g} must lie above 0 and below {MOST_RATE:g}")
    protocol = find_protocol(asked.protocol)
    store = machines.store(machine)
    options = settled(
        DataOptions, {"data_root": asked.data_path, "size": asked.size}, "comp-dd evaluate"
    )
    fields = {"protocol": protocol, "archs": (canonical(asked.model),), "seeds": asked.seeds}
    how = settled(Asked, fields, "evaluate")
    resolve(canonical(asked.model))
    machines.runtime(machine, "float32", 0, session)  # or nothing is written
    try:
        bench = machines.benchmark(name, options, store)
    except StillroomError as error:
        raise StillroomError(str(error).replace("--data-root", "--data_path")) from None
    if name in REPEATED:
        session.say(NINE)
    if asked.strict_reference:
        bench = as_released(bench, name, store.root)
    made, notes = imported(
        bench,
        asked.data_dir,
        asked.label_dir,
        asked.lr_dir if asked.lr_net is None else None,
        kind="auto",
        arch=canonical(asked.model),
        augment=protocol.augment,
    )
    if made.label_kind == "probs":  # rows of logits that happen to sum to one are not expected
        raise StillroomError(
            f"{asked.label_dir}: rows sum to 1: these look like probabilities, and logits are "
            "expected; bring the set in with `stillroom import --kind probs`"
        )
    if asked.lr_net is not None:
        made = dataclasses.replace(made, lr=asked.lr_net)
    for note in notes:
        session.say(note)
    with tempfile.TemporaryDirectory() as scratch:
        folder = _keep(made, Path(scratch) / "set", asked.out)
        ledger = folder / LEDGER
        records = judges.evaluate(folder, bench, how, store, machine, session, ledger)
    (rate,) = protocol.rates_of(made.lr)
    title = f"{name}, {protocol.id} ({protocol.digest()}), float32, rate {rate:g}, {bench.size} px"
    return Result(folder, lines(records), title)


def _keep(made: Distilled, scratch: Path, out: Path | None) -> Path:
    """Save the set; a folder that holds this very one already, of a stopped run, is gone on with.

    Raises: StillroomError if it holds anything else.
    """
    made.save(scratch)
    if out is None:
        return scratch
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        if not (out / "meta.json").is_file() or set_digest(out) != set_digest(scratch):
            raise StillroomError(f"--out {out} exists and holds something else; name a new folder")
    else:
        made.save(out)
    return out
