"""The score of a submission: students on each part, tested on the organisers' images."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from stillroom.artefacts.store import Store
from stillroom.challenge.parts import ARCH, PARTS, PROTOCOL, Part
from stillroom.challenge.submission import Submitted, read_submission
from stillroom.challenge.truth import preprocess, read_truth
from stillroom.data.benchmarks import Benchmark
from stillroom.distilled import Distilled
from stillroom.errors import StillroomError
from stillroom.evaluation.published import find_protocol
from stillroom.evaluation.statistics import Summary, summarise
from stillroom.files import write_atomic, write_json
from stillroom.run.estimate import Cost
from stillroom.run.judge import judge
from stillroom.run.judging import Asked, Judging, cost_of, judging
from stillroom.run.options import Machine
from stillroom.run.rows import Row, row_of
from stillroom.session import Session

RUNS = 3  # by the rules
SCORES, DETAILS = "scores.txt", "scores.json"
Mode = Literal["fast", "faithful"]


@dataclass(frozen=True)
class Scored:
    """One part: accuracies of its students, or the reason why it scores zero."""

    part: Part
    accuracies: tuple[float, ...] = ()
    reason: str = ""
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def summary(self) -> Summary | None:
        """Mean and interval over runs; None of a part that was not taken."""
        return summarise(self.accuracies) if self.accuracies else None

    @property
    def value(self) -> float:
        """The mean accuracy, a fraction; zero of a part that was not taken."""
        return self.summary.mean if self.summary else 0.0


@dataclass(frozen=True)
class Evaluation:
    """A submission ready to be scored: what was read, on what it is tested, and how."""

    parts: tuple[Submitted, ...]
    truths: dict[str, Benchmark]
    epochs: int | None
    runs: int
    mode: Mode
    machine: Machine
    store: Store
    session: Session
    notes: tuple[str, ...] = ()

    @property
    def protocol(self) -> str:
        """The protocol, with other epochs where some were asked for."""
        return PROTOCOL if self.epochs is None else f"{PROTOCOL}+epochs={self.epochs}"

    @property
    def unofficial(self) -> str:
        """Why the score is no official one, in words; empty if it is by the rules."""
        usual = find_protocol(PROTOCOL).epochs
        why = []
        if self.epochs not in (None, usual):
            why.append(f"{self.epochs} of {usual} epochs")
        if self.runs < RUNS:
            why.append(f"{self.runs} of {RUNS} runs")
        return ", ".join(why)


def prepared(
    submission: Path,
    truth: Path,
    store: Store,
    machine: Machine,
    session: Session,
    *,
    epochs: int | None = None,
    runs: int = RUNS,
    mode: Mode = "fast",
) -> Evaluation:
    """Read a submission and the test images of the parts that can be taken.

    Both layouts of the organisers are known: two folders, or one with `res/` and `ref/` in it.
    Raises: StillroomError if the submission is not there, or test images are not or are damaged.
    """
    parts = tuple(read_submission(submission))
    if (submission / "ref").is_dir() and not truth.is_dir():
        truth = submission / "ref"
    truths, notes = {}, []
    for one in parts:
        if one.images is not None:
            truths[one.part.name], told = read_truth(truth, one.part, store.root)
            notes += told
    if mode == "faithful":
        machine = machine.model_copy(update={"compile": "off"})
    return Evaluation(parts, truths, epochs, runs, mode, machine, store, session, tuple(notes))


def plan(asked: Evaluation, scratch: Path) -> list[tuple[str, Cost]]:
    """What scoring each part takes, of those that can be taken."""
    found = []
    for one in asked.parts:
        if one.images is not None:
            how, row = _judging(asked, one, scratch)
            found.append((one.part.name, cost_of(how, [row])))
    return found


def score(asked: Evaluation, scratch: Path) -> list[Scored]:
    """Train and test the students of every part; `scratch` is a folder for its sets."""
    found = []
    for one in asked.parts:
        if one.images is None:
            found.append(Scored(one.part, reason=one.reason))
            continue
        try:
            how, row = _judging(asked, one, scratch)
            students = judge(how, [row])
        except StillroomError as error:  # such as students that diverge
            found.append(Scored(one.part, reason=str(error)[:300], notes=one.notes))
            continue
        records = [r for s in students for r in s.records if r.metric == "accuracy"]
        values = tuple(r.value for r in sorted(records, key=lambda r: r.seed))
        seconds = sum(r.seconds for r in records)
        found.append(Scored(one.part, values, notes=one.notes, seconds=seconds))
    return found


def _judging(asked: Evaluation, one: Submitted, scratch: Path) -> tuple[Judging, Row]:
    """How one part is judged, and its row: the part as a set, labels by position."""
    assert one.images is not None
    bench, part = asked.truths[one.part.name], one.part
    labels = torch.arange(part.classes).repeat_interleave(len(one.images) // part.classes)
    folder = scratch / part.name
    made = Distilled(
        images=one.images,
        labels=labels,
        label_kind="hard",
        of_class=labels,
        classes=bench.classes,
        preprocess=preprocess(part),
        arch=ARCH,
        provenance={"label": part.name, "papers": []},
    )
    made.save(folder)
    told = Asked(protocol=find_protocol(asked.protocol), archs=(ARCH,), seeds=asked.runs)
    how = judging(bench, told, asked.store, asked.machine, asked.session, len(made))
    return how, row_of(part.name, folder, made.ipc, None)


def total(scored: list[Scored]) -> float:
    """The score: the mean over both parts, a fraction."""
    return sum(one.value for one in scored) / len(PARTS)


def write(asked: Evaluation, scored: list[Scored], folder: Path) -> None:
    """Write `scores.txt` as the platform reads it, and `scores.json` with everything.

    A score that is no official one says so in a second line.
    """
    text = f"correct: {total(scored)}"
    if asked.unofficial:
        text += f"\nnot official: {asked.unofficial}"
    write_json(folder / DETAILS, details(asked, scored))
    write_atomic(folder / SCORES, text)


def details(asked: Evaluation, scored: list[Scored]) -> dict[str, Any]:
    """Everything about a score, as JSON."""
    return {
        "correct": total(scored),
        "official": not asked.unofficial,
        **({"not_official": asked.unofficial} if asked.unofficial else {}),
        "protocol": asked.protocol,
        "protocol_hash": find_protocol(asked.protocol).digest(),
        "mode": asked.mode,
        "parts": {one.part.name: _told(one) for one in scored},
        "notes": list(asked.notes),
    }


def _told(one: Scored) -> dict[str, Any]:
    if one.summary is None:
        return {"correct": 0.0, "reason": one.reason}
    s = dataclasses.asdict(one.summary)
    return {
        "correct": s["mean"],
        "runs": list(one.accuracies),
        "std": s["std"],
        "half_of_95_percent_interval": s["half"],
        "seconds": round(one.seconds, 1),
        "notes": list(one.notes),
    }
