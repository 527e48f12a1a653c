"""`Score`: the stage that trains students on one set and tests them on real images."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file, save
from torch import Tensor

import stillroom
from stillroom.artefacts.opened import nets_for, open_bench, real_images
from stillroom.artefacts.stage import COMMON, Stage
from stillroom.data.augment import parse
from stillroom.data.benchmarks import Benchmark
from stillroom.data.source import ImageSource
from stillroom.distilled import load, set_digest
from stillroom.errors import DivergedError, StillroomError
from stillroom.evaluation.lessons import Labelling, Lesson, Taught, of_set
from stillroom.evaluation.protocol import Protocol
from stillroom.evaluation.students import Judged, Kept, files_of, write_student
from stillroom.files import read_json, write_atomic, write_json
from stillroom.nets.ensemble import Backend, Ensemble
from stillroom.nets.losses import Objective
from stillroom.nets.train import Training, predict, train
from stillroom.nets.zoo import Arch
from stillroom.runtime import Numerics, Runtime, environment, forget_peak, peak_memory
from stillroom.types import LabelKind, Preprocess

FULL = "full"


@dataclass(frozen=True)
class Score(Stage):
    """Accuracies of one set (or of the full data) under one protocol and architecture.

    `set_folder` is None for the full-data row; `set_digest` is the digest of what students see, and
    a folder that holds another set by the time it is read is refused.
    `students` is "loop" (networks in turn) or "vmap" (all at once). Seeds whose students do not
    share a stage keep their artefacts when more seeds are asked for. With `models` the artefact
    holds their weights too.
    """

    kind: ClassVar[str] = "scores"
    version: ClassVar[int] = 2
    sources: ClassVar[tuple[str, ...]] = (
        *COMMON,
        "evaluation/score.py",
        "evaluation/protocol.py",
        "evaluation/published.py",
        "evaluation/matching_protocols.py",
        "evaluation/decoupled_protocols.py",
        "evaluation/students.py",
        "evaluation/lessons.py",
        "artefacts/relabels.py",
        "artefacts/carried.py",
        "artefacts/codecs.py",
        "artefacts/label_header.py",
        "artefacts/label_shards.py",
        "artefacts/labels.py",
        "nets/teaching.py",
    )

    protocol: Protocol
    bench: dict[str, Any]
    set_digest: str
    arch: Arch
    seeds: tuple[int, ...]
    numerics: Numerics
    students: Backend
    augment: str  # of the full data, for protocols that leave it to the set
    set_folder: Path | None = field(compare=False)
    store: Path = field(compare=False)
    models: bool = False
    labelling: Labelling | None = None  # where students get others than the set's own
    images: int = 0  # of the set, for those

    def identity(self) -> dict[str, Any]:
        """Everything that determines the accuracies."""
        own = {"augment": self.augment} if self.set_folder is None else {}  # a set has its own
        more: dict[str, Any] = {"models": True} if self.models else {}  # later; keys stay without
        if self.labelling is not None:
            more["labels"] = self.labelling.identity()
        return {
            **own,
            **more,
            "protocol": self.protocol.model_dump(mode="json"),
            "data": self.bench["digest"],
            "set": self.set_digest,
            "arch": self.arch.name,
            "seeds": list(self.seeds),
            "numerics": self.numerics,
            "students": self.students,
        }

    def about(self) -> str:
        """What it scores, for a listing."""
        row = FULL if self.set_folder is None else f"set {self.set_digest[:8]}"
        seeds = ", ".join(map(str, self.seeds))
        return f"{row}, {self.protocol.id}, {self.arch.name}, student {seeds}"

    def needs(self) -> Sequence[Stage]:
        """Labels, or the teachers that give them."""
        lesson = self.lesson()
        return () if lesson is None else lesson.needs()

    def settled(self) -> Protocol:
        """The protocol with the batch and the rate that it has for this set and student."""
        return self.protocol.settled(self.images, len(self.bench["classes"]), self.arch.name)

    def lesson(self) -> Lesson | None:
        """The set with the labels of trained networks, where it gets some."""
        if self.labelling is None or self.set_folder is None:
            return None
        return Lesson(
            labelling=self.labelling,
            protocol=self.settled(),
            bench=self.bench,
            set_digest=self.set_digest,
            images=self.images,
            set_folder=self.set_folder,
            store=self.store,
        )

    def make(self, shard: int, out: Path, rt: Runtime) -> None:
        """Train the students (at every rate that is searched) and write how they were tested.

        Raises: StillroomError if the set is not the one of `set_digest` any more, or if a student
        diverges; where rates are searched, if it diverges at all of them.
        """
        began = time.perf_counter()
        known = forget_peak(rt.device)
        bench = open_bench(self.bench, self.store, rt)
        taught = self._taught(bench, rt)
        rates = self.settled().rates_of(taught.lr)
        tried = [self._trained(rate, taught, bench, rt) for rate in rates]
        chosen = [
            _chosen(seed, rates, same)
            for seed, same in zip(self.seeds, zip(*tried, strict=True), strict=True)
        ]
        predicted = torch.stack([student.pop("predicted") for student in chosen])
        tensors = {"predicted": predicted.to(torch.int32), "labels": bench.test.labels.cpu()}
        write_atomic(out / "predicted.safetensors", save(tensors))
        if self.models:
            self._write_students(out, chosen, taught, bench)
        write_json(out / "scores.json", chosen)
        seconds = (time.perf_counter() - began) / len(self.seeds)
        made = {
            "device": rt.device.type,
            "name": environment(rt)["device_name"],
            "threads": rt.threads,
            "compile": "on" if rt.compile else "off",
            "torch": torch.__version__,
            "stillroom": stillroom.__version__,
        }
        cost = {"seconds": seconds, "memory": peak_memory(rt.device) if known else 0, "made": made}
        sizes = {name: getattr(taught, name) for name in ("label_bytes", "teacher_bytes")}
        told = None if self.labelling is None else self.labelling.told(self.protocol.passes)
        write_json(out / "timing.json", {**cost, **sizes, "told": told})

    def load(self, folder: Path) -> list[dict[str, Any]]:
        """One dict a seed.

        seed, rate; curve, a list of {epoch, test, val} (fractions; val None without such images);
        last, best and val, the entry of the curve that each rule selects; predicted, int32 [N]
        test classes where the protocol's rule stopped; labels int64 [N]; seconds, a student's share
        of the stage's (with all rates of a search, and opening the data); memory, the peak in bytes
        while they were trained (see `peak_memory`; 0: not known); made, the machine side: device
        and its name, threads, compile, torch; label_bytes and teacher_bytes, see `Taught`; told,
        what `Labelling` says of itself, None of a set's own labels. With `models`, files, where the
        weights lie and what tells of them.
        """
        timing = read_json(folder / "0000" / "timing.json")
        tensors = load_file(folder / "0000" / "predicted.safetensors")
        rows = read_json(folder / "0000" / "scores.json")
        return [
            {
                **row,
                **timing,
                "predicted": predicted,
                "labels": tensors["labels"],
                **({"files": files_of(folder / "0000", row["seed"])} if self.models else {}),
            }
            for row, predicted in zip(rows, tensors["predicted"], strict=True)
        ]

    def _write_students(
        self, out: Path, chosen: Sequence[dict[str, Any]], taught: Taught, bench: Benchmark
    ) -> None:
        """Take the weights out of what is kept of students, and write them."""
        for student in chosen:
            told = {
                "arch": self.arch.name,
                "classes": list(bench.classes),
                "channels": bench.channels,
                "size": bench.size,
                "preprocess": taught.preprocess.describe(),
                "protocol": self.protocol.id,
                "protocol_hash": self.protocol.digest(),
                "seed": student["seed"],
                "set": self.set_digest,
                "accuracy": student[self.protocol.select]["test"],
                "key": self.key(),
            }
            write_student(out, student["seed"], student.pop("weights"), told)

    def _trained(
        self, lr: float, taught: Taught, bench: Benchmark, rt: Runtime
    ) -> list[dict[str, Any] | None]:
        """What is kept of every student at one rate; None of one that diverged in a search."""
        protocol, seeds, session = self.protocol, self.seeds, rt.session
        nets = nets_for(self.arch, bench, rt, self.students).seeded(seeds, "student")
        training = training_of(self.settled(), lr, taught.augment, taught.kind)
        session.begin(f"student {', '.join(map(str, seeds))}", training.passes)
        checks = set(protocol.check_epochs())
        tests: list[_Test] = []
        lost: set[int] = set()  # of diverged students, which their neighbours do not feel
        judged = Judged(protocol, nets, taught.images, training, seeds)
        kept = Kept(protocol.select) if self.models else None

        def on_epoch(done: int, loss: float) -> None:
            session.update(done, loss=loss)
            session.check()
            if loss != loss or done == training.passes:
                lost.update(_diverged(nets, loss))
            if lost and protocol.lr != "search":
                raise _divergence([seeds[i] for i in sorted(lost)], f"by epoch {done}")
            if len(lost) == len(seeds):
                raise _AllLostError
            if done in checks:
                with judged.weights(done):
                    tests.append(_test(nets, done, taught.preprocess, bench, rt))
                    if kept is not None:
                        kept.see(nets, tests[-1].test, tests[-1].val)

        with contextlib.suppress(_AllLostError):
            train(nets, taught.images, training, seeds, on_epoch, keep=judged.keep)
        session.end()
        found = [
            None if i in lost else _student(protocol, seed, lr, [test.of(i) for test in tests])
            for i, seed in enumerate(seeds)
        ]
        if kept is not None:
            for i, student in enumerate(found):
                if student is not None:
                    student["weights"] = kept.weights[i]
        return found

    def _taught(self, bench: Benchmark, rt: Runtime) -> Taught:
        if self.set_folder is None:
            real = real_images(bench.train, bench.preprocess, bench.size, rt)
            return Taught(real, "hard", bench.preprocess, self.augment, None)
        # Before and after, for the files may be replaced by another set's at any moment.
        self._refuse_another(self.set_folder)
        data = load(self.set_folder)
        self._refuse_another(self.set_folder)
        lesson = self.lesson()
        return of_set(data, rt) if lesson is None else lesson.taught(data, rt, len(self.seeds))

    def _refuse_another(self, folder: Path) -> None:
        found = set_digest(folder)
        if found != self.set_digest:
            raise StillroomError(
                f"{folder}: the set changed while it was judged ({self.set_digest} -> {found}); "
                "judge it again"
            )


class _AllLostError(Exception):
    """Every student of a rate has diverged, so that the rate need not be trained to its end."""


def _diverged(nets: Ensemble, loss: float) -> set[int]:
    """Networks that have NaN among their weights, which stays; all, if only the loss shows it."""
    found = {
        i for i in range(nets.k) if any(bool(p.isnan().any()) for p in nets.member(i)[0].values())
    }
    return found if found or loss == loss else set(range(nets.k))


def _divergence(seeds: list[int], when: str) -> DivergedError:
    return DivergedError(
        f"student {', '.join(map(str, seeds))} diverged {when}: its loss is NaN; the set may hold "
        "extreme values (look with: stillroom inspect)"
    )


def _chosen(
    seed: int, rates: tuple[float, ...], same: Sequence[dict[str, Any] | None]
) -> dict[str, Any]:
    """Of one student at all rates the one that is best on validation; diverged ones are out.

    Raises: StillroomError if it diverged at every rate.
    """
    left = [student for student in same if student is not None]
    if not left:
        raise _divergence([seed], f"at every rate ({', '.join(f'{r:g}' for r in rates)})")
    return left[0] if len(rates) == 1 else max(left, key=_by_val)


def training_of(
    protocol: Protocol, lr: float, augment: str = "none", labels: LabelKind = "hard"
) -> Training:
    """What a protocol asks of the trainer; `augment` is the set's, for protocols that take it."""
    return Training(
        epochs=protocol.epochs,
        batch=protocol.batch,
        lr=lr,
        momentum=protocol.momentum,
        weight_decay=protocol.weight_decay,
        schedule=protocol.schedule,
        augment=parse(augment if protocol.augment == "set" else protocol.augment),
        labels=labels,
        one_extra_epoch="one_extra_epoch" in protocol.quirks,
        reset_at_drop="optim_reset_at_drop" in protocol.quirks,
        norms_twice="norms_twice" in protocol.quirks,
        milestones=protocol.milestones,
        factor=protocol.factor,
        zeta=protocol.zeta,
        warmup=protocol.warmup,
        objective=Objective(
            protocol.loss, protocol.temperature, protocol.ce_weight, protocol.t_squared
        ),
        optimiser=protocol.optimiser,
        decay=protocol.decay,
        ema=protocol.ema,
        pieces=protocol.pieces,
    )


@dataclass(frozen=True)
class _Test:
    """All students after some epochs: predicted int64 [K,N], accuracies [K]."""

    epoch: int
    predicted: Tensor
    test: Tensor
    val: Tensor | None

    def of(self, i: int) -> tuple[dict[str, Any], Tensor]:
        val = None if self.val is None else float(self.val[i])
        point = {"epoch": self.epoch, "test": float(self.test[i]), "val": val}
        return point, self.predicted[i]


def _test(
    nets: Ensemble, epoch: int, preprocess: Preprocess, bench: Benchmark, rt: Runtime
) -> _Test:
    predicted, test = _accuracies(nets, bench.test, preprocess, bench.size, rt)
    val = None
    if bench.val is not None:
        _, val = _accuracies(nets, bench.val, preprocess, bench.size, rt)
    return _Test(epoch, predicted, test, val)


def _accuracies(
    nets: Ensemble, source: ImageSource, preprocess: Preprocess, size: int, rt: Runtime
) -> tuple[Tensor, Tensor]:
    predicted = predict(nets, real_images(source, preprocess, size, rt))
    return predicted, (predicted == source.labels.cpu()).double().mean(1)


def _student(
    protocol: Protocol, seed: int, lr: float, tests: list[tuple[dict[str, Any], Tensor]]
) -> dict[str, Any]:
    """What is kept of one student; of equal accuracies the earlier one is selected."""
    curve = [point for point, _ in tests]
    chosen: dict[str, dict[str, Any] | None] = {
        "last": curve[-1],
        "best": max(curve, key=lambda point: point["test"]),
        "val": None if curve[0]["val"] is None else max(curve, key=_by_val_of_point),
    }
    headline = chosen[protocol.select]
    at = curve.index(headline) if headline is not None else -1
    return {"seed": seed, "rate": lr, "curve": curve, **chosen, "predicted": tests[at][1]}


def _by_val_of_point(point: dict[str, Any]) -> float:
    return float(point["val"])


def _by_val(student: dict[str, Any]) -> float:
    return float(student["val"]["val"])
