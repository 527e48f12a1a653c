"""The score of a submission: students on each part, tested on the organisers' images."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from stillroom.artefacts.store import Store
from stillroom.challenge.parts import ARCH, PARTS, PROTOCOL, TESTS, Part
from stillroom.challenge.reader import MOST_TOLD
from stillroom.challenge.submission import Submitted, read_submission
from stillroom.challenge.truth import copies, preprocess, read_truth
from stillroom.data.benchmarks import Benchmark
from stillroom.distilled import Distilled
from stillroom.errors import DivergedError, StillroomError
from stillroom.evaluation.published import find_protocol
from stillroom.evaluation.statistics import Summary, summarise
from stillroom.files import locked, readable_os_errors, write_atomic, write_json
from stillroom.run.estimate import Cost
from stillroom.run.judge import judge
from stillroom.run.judging import Asked, Judging, cost_of, judging, wanted
from stillroom.run.options import Machine
from stillroom.run.rows import Row, row_of
from stillroom.session import Session

RUNS = 3  # by the rules
LOCK = ".scores.lock"
SCORES, DETAILS = "scores.txt", "scores.json"
REFERENCE = Path("reference_data")  # as the organisers' archive is called
Mode = Literal["fast", "faithful"]


@dataclass(frozen=True)
class Scored:
    """One part: accuracies of its students, or the reason why it scores zero.

    `digest` is of the set that was judged, "" of a part that was not taken.
    """

    part: Part
    accuracies: tuple[float, ...] = ()
    reason: str = ""
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    digest: str = ""

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
        for name, bench in self.truths.items():
            if len(bench.test) != TESTS:
                why.append(f"{len(bench.test)} of {TESTS} test images of {name}")
        return ", ".join(why)


def prepared(
    submission: Path,
    truth: Path | None,
    store: Store,
    machine: Machine,
    session: Session,
    *,
    epochs: int | None = None,
    runs: int = RUNS,
    mode: Mode = "fast",
) -> Evaluation:
    """Read a submission and the test images of the parts that can be taken.

    Both layouts of the organisers are known: two folders, or `res/` beside `ref/` in one, where the
    latter is to be named as `truth`. None is `reference_data` of the working folder.
    Raises: StillroomError if the submission is not there, or test images are not or are damaged.
    """
    parts = tuple(read_submission(submission))
    truth = _truth_of(submission) if truth is None else truth
    truths: dict[str, Benchmark] = {}
    notes: list[str] = []
    for one in parts:
        if one.images is not None:
            truths[one.part.name], told = read_truth(truth, one.part, store.root)
            notes += told
    parts = tuple(with_copies(one, truths.get(one.part.name)) for one in parts)
    if mode == "faithful":
        machine = machine.model_copy(update={"compile": "off"})
    return Evaluation(parts, truths, epochs, runs, mode, machine, store, session, tuple(notes))


def refuse(submission: Path, epochs: int | None) -> None:
    """Raise StillroomError for what is wrong at once: before an earlier score is removed."""
    if not (submission.is_dir() or submission.is_file()):
        raise StillroomError(f"{submission}: neither a folder nor a zip archive")
    find_protocol(PROTOCOL if epochs is None else f"{PROTOCOL}+epochs={epochs}")


def _truth_of(submission: Path) -> Path:
    """The test images where nobody named any; never those that a submission brings along.

    Raises: StillroomError with the remedy.
    """
    inside = REFERENCE.resolve().is_relative_to(submission.resolve())
    if REFERENCE.is_dir() and not inside:
        return REFERENCE
    brought = REFERENCE if REFERENCE.is_dir() else submission / "ref"
    own = (
        f"; {brought} came with the submission: name it if it is yours" if brought.is_dir() else ""
    )
    raise StillroomError(f"no {REFERENCE} here{own}; name the test images: --truth_dir FOLDER")


def with_copies(one: Submitted, bench: Benchmark | None) -> Submitted:
    """A part that says so where its images are test images."""
    if one.images is None or bench is None or not (same := copies(one.images, one.part, bench)):
        return one
    told = f"{same} of {len(one.images)} images are test images"
    return dataclasses.replace(one, notes=(*one.notes, told))


def plan(asked: Evaluation, scratch: Path) -> list[tuple[str, Cost]]:
    """What scoring each part takes, of those that can be taken."""
    found = []
    for one in asked.parts:
        if one.images is not None:
            how, row = _judging(asked, one, scratch)
            again = _compiled(asked, how, row)
            found.append((one.part.name, cost_of(how, [row], again)))
    return found


def score(asked: Evaluation, scratch: Path) -> list[Scored]:
    """Train and test the students of every part; `scratch` is a folder for its sets."""
    found = []
    for one in asked.parts:
        if one.images is None:
            found.append(Scored(one.part, reason=one.reason))
            continue
        how, row = _judging(asked, one, scratch)
        for key in _compiled(asked, how, row):
            asked.store.discard(key)
        try:
            students = judge(how, [row])
        except DivergedError as error:  # the submission's fault, unlike a full disk
            reason = str(error)[:MOST_TOLD]
            found.append(Scored(one.part, reason=reason, notes=one.notes, digest=row.digest))
            continue
        records = [r for s in students for r in s.records if r.metric == "accuracy"]
        values = tuple(r.value for r in sorted(records, key=lambda r: r.seed))
        seconds = sum(r.seconds for r in records)
        found.append(Scored(one.part, values, "", one.notes, seconds, row.digest))
    return found


def _compiled(asked: Evaluation, how: Judging, row: Row) -> list[str]:
    """Students in the store that are not faithful: compiled code has the same key as eager."""
    if asked.mode != "faithful":
        return []
    there = {stage.key(): stage for _, stage in wanted(how, [row])}
    kept = {key: stage for key, stage in there.items() if asked.store.complete(key)}
    students = {key: stage.load(asked.store.folder(key)) for key, stage in kept.items()}
    return [
        key for key, some in students.items() if any(s["made"]["compile"] == "on" for s in some)
    ]


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


@contextlib.contextmanager
def output(folder: Path) -> Iterator[None]:
    """Hold the folder of the scores; those of an earlier evaluation go before this one begins.

    Raises: StillroomError if nothing can be written there, or another evaluation is at it.
    """
    try:
        with locked(folder / LOCK, wait=False, remove=True):
            for name in (SCORES, DETAILS):
                with readable_os_errors(folder / name):
                    (folder / name).unlink(missing_ok=True)
            yield
    except BlockingIOError:
        raise StillroomError(
            f"--output_dir {folder}: another evaluation writes there; wait for it, or name another"
        ) from None


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
        "test_images": {name: bench.digest for name, bench in asked.truths.items()},
        "parts": {one.part.name: _told(one) for one in scored},
        "notes": list(asked.notes),
    }


def _told(one: Scored) -> dict[str, Any]:
    own = {"digest": one.digest, "notes": list(one.notes)}
    if one.summary is None:
        return {"correct": 0.0, "reason": one.reason, **own}
    s = dataclasses.asdict(one.summary)
    return {
        "correct": s["mean"],
        "runs": list(one.accuracies),
        "std": s["std"],
        "half_of_95_percent_interval": s["half"],
        "seconds": round(one.seconds, 1),
        **own,
    }
