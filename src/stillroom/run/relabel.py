"""`stillroom prepare relabels`: labels of teachers for a set, made alone, put into its folder."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import Field

from stillroom.artefacts.carried import carried, carry, holds_labels
from stillroom.artefacts.codecs import find_codec
from stillroom.artefacts.label_header import Header, fit
from stillroom.artefacts.labels import Relabels
from stillroom.artefacts.opened import nets_for
from stillroom.artefacts.relabels import SEED, Relabel, RelabelSpec, unlike
from stillroom.artefacts.store import Store, obtain
from stillroom.config import Model
from stillroom.data.benchmarks import Benchmark
from stillroom.distilled import RELABELS, Distilled, load, set_bytes, set_digest
from stillroom.errors import StillroomError
from stillroom.evaluation.protocol import MAX_EPOCHS, Protocol
from stillroom.evaluation.published import PROTOCOLS
from stillroom.files import fresh_folder
from stillroom.run import machine as machines
from stillroom.run.estimate import Cost, seconds
from stillroom.run.fits import check_fits, check_read_alike
from stillroom.run.options import Machine
from stillroom.run.prepare import cost_of_originals
from stillroom.run.publish import SET_FILES, export_folder
from stillroom.run.teachers import Faculty, labellers
from stillroom.runtime import Runtime
from stillroom.session import Session
from stillroom.tables import plural, size


class Relabelling(Model):
    """What labels are asked for, beside the set and the data."""

    protocol: Protocol
    teachers: Faculty = Faculty()
    epochs: int | None = Field(None, ge=1, le=MAX_EPOCHS, strict=True)
    codec: str | None = None
    budget: int | None = Field(None, ge=1, strict=True)
    seed: int = Field(SEED, ge=0, strict=True)
    force: bool = False


@dataclass(frozen=True)
class Planned:
    """Labels that are to be made, and where they go: `target` is a set's folder, or will be one."""

    folder: Path
    target: Path
    stage: Relabel
    teachers: Cost
    flops: float  # of labelling, the training of teachers apart
    rt: Runtime
    store: Store
    said: str  # what a budget chose; empty without one

    @property
    def header(self) -> Header:
        """What the labels will be."""
        return self.stage.header()

    def pairs(self) -> list[tuple[str, str]]:
        """What `--plan` shows."""
        of, images = self.header, set_bytes(self.folder)
        kept = "all of them kept" if of.kept == of.epochs else f"{of.kept} kept, used again in turn"
        cost = Cost("epoch", of.kept, 0 if self.made() else of.kept, self.flops, self._seconds())
        return [
            ("set", f"{plural(of.images, 'image')}, {size(images)}"),
            ("teachers", ", ".join(f"{t.arch.name} {t.index}" for t in self.stage.teachers)),
            ("training them", self.teachers.in_words()),
            ("labels", f"{plural(of.epochs, 'epoch')}, {kept}, in batches of {of.batch}"),
            ("stored as", of.codec + (f": {self.said}" if self.said else "")),
            ("bytes", f"{size(of.nbytes)}, {of.nbytes / images:.3g} times those of the set"),
            ("labelling", cost.in_words().replace("to train", "to label")),
            ("into", f"{self.target / RELABELS}"),
        ]

    def made(self) -> bool:
        """Whether the store has the labels."""
        return self.store.complete(self.stage.key())

    def _seconds(self) -> float:
        return 0.0 if self.made() else seconds(self.flops, self.rt)


def plan(
    folder: Path,
    bench: Benchmark,
    asked: Relabelling,
    machine: Machine,
    session: Session,
    store: Store,
    out: Path | None = None,
) -> Planned:
    """Settle what is made, and refuse what cannot be, before anything is run.

    Raises: StillroomError in one line.
    """
    made, target = load(folder), folder if out is None else out
    check_fits(made, bench, folder.name)
    check_read_alike(made, bench, folder.name)
    protocol, size_ = asked.protocol.settled(len(made), len(bench.classes)), bench.size
    if protocol.labels != "relabels" or protocol.view is None:
        takes = ", ".join(p.id for p in PROTOCOLS.values() if p.labels == "relabels")
        raise StillroomError(f"{protocol.id} stores no labels of teachers; name one of {takes}")
    epochs = protocol.passes if asked.epochs is None else asked.epochs
    stages = labellers(asked.teachers, folder, made, protocol, bench, store)
    codec, keep, said = _stored(asked, made, bench, epochs, len(stages), protocol.batch)
    if wrong := unlike(codec, protocol.loss):
        raise StillroomError(f"{protocol.id}: {wrong}")
    stage = Relabel(
        spec=RelabelSpec(
            epochs=epochs,
            batch=protocol.batch,
            policy=protocol.view.policy(size_),
            codec=codec,
            keep=keep,
            seed=asked.seed,
        ),
        teachers=stages,
        bench=bench.describe(),
        set_digest=set_digest(folder),
        images=len(made),
        numerics="float32",
        set_folder=folder,
        store=store.root,
    )
    _refuse_others(folder, target, stage.header(), asked.force)
    cost, rt = cost_of_originals(stages, machine, session, store)
    bare = replace(rt, session=Session())
    each = sum(nets_for(t.arch, bench, bare).forward_flops() for t in stages)
    views = (stage.header().kept + 1) * len(made)
    return Planned(folder, target, stage, cost, each * views, rt, store, said)


def relabel(planned: Planned, machine: Machine) -> Relabels:
    """Make the labels (train the teachers first, where that is to be done) and put them in place.

    What a killed call made is in the store, and the same call goes on from there. The labels, and
    the folder of a new set, appear whole or not at all.
    """
    stage: Relabel = planned.stage
    executor = machines.executor(machine)
    labels: Relabels = obtain(planned.store, stage, executor, planned.rt)
    folder, target = planned.folder, planned.target
    if _is_set(target):
        carry(labels, target)
    else:
        with fresh_folder(target) as fresh:
            for name in (*SET_FILES, "metrics.jsonl", "run.json"):
                if (folder / name).is_file():
                    shutil.copyfile(folder / name, fresh / name)
            export_folder(load(fresh), fresh)
            labels.copy(fresh / RELABELS)
    found = carried(target)
    assert found is not None
    return found


def _stored(
    asked: Relabelling, made: Distilled, bench: Benchmark, epochs: int, teachers: int, batch: int
) -> tuple[str, int | None, str]:
    """Codec and number of epochs that are kept, and what a budget had to do with it."""
    classes, batch = len(bench.classes), min(batch, len(made))
    find_codec(asked.codec or "fp16").layout(classes)  # refuses more classes than there are
    if asked.budget is None:
        return asked.codec or "fp16", None, ""
    codec, kept = fit(
        asked.budget, len(made), classes, batch, epochs, asked.codec, max(1, teachers)
    )
    whole = "all epochs fit" if kept == epochs else f"{kept} of {epochs} epochs fit"
    return codec, kept, f"{whole} into {size(asked.budget)}"


def _is_set(folder: Path) -> bool:
    return (folder / "meta.json").is_file()


def _refuse_others(folder: Path, target: Path, header: Header, force: bool) -> None:
    """Refuse to put labels where something else lies.

    Raises: StillroomError naming what lies there.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        if not _is_set(target) or set_digest(target) != header.set_digest:
            raise StillroomError(
                f"--out {target} holds something else than {folder}; name a new folder"
            )
        if holds_labels(target) and not force and _other(target, header):
            raise StillroomError(
                f"{target} carries other labels of teachers (see stillroom inspect); overwrite "
                "them with --force, or name a new folder with --out"
            )


def _other(target: Path, header: Header) -> bool:
    try:
        found = carried(target)
    except StillroomError:  # damaged, and perhaps not ours to throw away
        return True
    return found is None or found.header != header
