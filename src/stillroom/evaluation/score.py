"""`Score`: the stage that trains students on one set and tests them on real images."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from stillroom.artefacts.opened import nets_for, open_bench
from stillroom.artefacts.stage import COMMON, Stage
from stillroom.config import DSA
from stillroom.data.augment import parse
from stillroom.data.benchmarks import Benchmark
from stillroom.data.source import ImageSource
from stillroom.distilled import load
from stillroom.errors import StillroomError
from stillroom.evaluation.protocol import Protocol
from stillroom.files import read_json, write_atomic, write_json
from stillroom.nets.ensemble import Backend, Ensemble
from stillroom.nets.train import Images, Training, predict, train
from stillroom.nets.zoo import Arch
from stillroom.runtime import Numerics, Runtime
from stillroom.types import LabelKind, Preprocess

FULL = "full"


@dataclass(frozen=True)
class Taught:
    """What students learn from: images in network space, and how the set wants them used."""

    images: Images
    kind: LabelKind
    preprocess: Preprocess
    augment: str
    lr: float | None


@dataclass(frozen=True)
class Score(Stage):
    """Accuracies of one set (or of the full data) under one protocol and architecture.

    `set_folder` is None for the full-data row; `set_digest` is the digest of what students see.
    `students` is "loop" (networks in turn) or "vmap" (all at once). Seeds whose students do not
    share a stage keep their artefacts when more seeds are asked for.
    """

    kind: ClassVar[str] = "scores"
    version: ClassVar[int] = 2
    sources: ClassVar[tuple[str, ...]] = (
        *COMMON,
        "nets/train.py",
        "evaluation/score.py",
        "evaluation/protocol.py",
    )

    protocol: Protocol
    bench: dict[str, Any]
    set_digest: str
    arch: Arch
    seeds: tuple[int, ...]
    numerics: Numerics
    students: Backend
    set_folder: Path | None = field(compare=False)
    store: Path = field(compare=False)

    def identity(self) -> dict[str, Any]:
        """Everything that determines the accuracies."""
        own = {"augment": DSA} if self.set_folder is None else {}  # a set's digest has its own
        return {
            **own,
            "protocol": self.protocol.model_dump(mode="json"),
            "data": self.bench["digest"],
            "set": self.set_digest,
            "arch": self.arch.name,
            "seeds": list(self.seeds),
            "numerics": self.numerics,
            "students": self.students,
        }

    def make(self, shard: int, out: Path, rt: Runtime) -> None:
        """Train the students (at every rate that is searched) and write how they were tested."""
        began = time.perf_counter()
        bench = open_bench(self.bench, self.store, rt)
        taught = self._taught(bench, rt)
        rates = _rates(self.protocol, taught.lr)
        tried = [self._trained(rate, taught, bench, rt) for rate in rates]
        by_seed = zip(*tried, strict=True)
        chosen = [same[0] if len(rates) == 1 else max(same, key=_by_val) for same in by_seed]
        predicted = torch.stack([student.pop("predicted") for student in chosen])
        tensors = {"predicted": predicted.to(torch.int32), "labels": bench.test.labels.cpu()}
        write_atomic(out / "predicted.safetensors", save(tensors))
        write_json(out / "scores.json", chosen)
        seconds = (time.perf_counter() - began) / len(self.seeds)
        write_json(out / "timing.json", {"seconds": seconds})

    def load(self, folder: Path) -> list[dict[str, Any]]:
        """One dict a seed.

        seed, rate; curve, a list of {epoch, test, val} (fractions; val None without such images);
        last, best and val, the entry of the curve that each rule selects; predicted, int32 [N]
        test classes where the protocol's rule stopped; labels int64 [N]; seconds.
        """
        timing = read_json(folder / "0000" / "timing.json")
        tensors = load_file(folder / "0000" / "predicted.safetensors")
        rows = read_json(folder / "0000" / "scores.json")
        return [
            {**row, **timing, "predicted": predicted, "labels": tensors["labels"]}
            for row, predicted in zip(rows, tensors["predicted"], strict=True)
        ]

    def _trained(
        self, lr: float, taught: Taught, bench: Benchmark, rt: Runtime
    ) -> list[dict[str, Any]]:
        protocol, seeds, session = self.protocol, self.seeds, rt.session
        nets = nets_for(self.arch, bench, rt, self.students).seeded(seeds, "student")
        training = training_of(protocol, lr, taught.augment, taught.kind)
        session.begin(f"student {', '.join(map(str, seeds))}", training.passes)
        checks = set(protocol.check_epochs())
        tests: list[_Test] = []

        def on_epoch(done: int, loss: float) -> None:
            session.update(done, loss=loss)
            session.check()
            if loss != loss:
                raise StillroomError(
                    f"student {seeds} diverged in epoch {done}: its loss is NaN; the set may hold "
                    "extreme values (look with: stillroom inspect)"
                )
            if done in checks:
                tests.append(_test(nets, done, taught.preprocess, bench, rt))

        train(nets, taught.images, training, seeds, on_epoch)
        session.end()
        return [
            _student(protocol, seed, lr, [test.of(i) for test in tests])
            for i, seed in enumerate(seeds)
        ]

    def _taught(self, bench: Benchmark, rt: Runtime) -> Taught:
        if self.set_folder is None:
            real = real_images(bench.train, bench.preprocess, bench.size, rt)
            return Taught(real, "hard", bench.preprocess, DSA, None)
        data = load(self.set_folder)
        images = data.images.to(rt.device, rt.dtype)
        labels = data.labels.to(rt.device)
        labels = labels.to(rt.dtype) if labels.is_floating_point() else labels
        return Taught(
            Images(lambda rows: images[rows.to(images.device)], labels, bench.size),
            data.label_kind,
            data.preprocess,
            data.augment,
            data.lr,
        )


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


def _rates(protocol: Protocol, learned: float | None) -> tuple[float, ...]:
    """The rates that a student is trained at; more than one only where the protocol searches."""
    if protocol.lr == "search":
        return protocol.rates
    if protocol.lr == "set":
        return (protocol.rates[0] if learned is None else learned,)
    return (protocol.lr,)


def real_images(source: ImageSource, preprocess: Preprocess, size: int, rt: Runtime) -> Images:
    """Real images in the network space of the set that is judged, not of the benchmark."""

    def take(rows: Tensor) -> Tensor:
        return preprocess.apply(source.take(rows, rt.device)).to(rt.dtype)

    return Images(take, source.labels.to(rt.device), size)
