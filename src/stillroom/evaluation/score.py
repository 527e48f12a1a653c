"""`Score`: the stage that trains students on one set and tests them on real images."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from stillroom.artefacts.opened import nets_for, open_bench
from stillroom.artefacts.stage import COMMON, Stage
from stillroom.config import DSA
from stillroom.data.augment import parse
from stillroom.data.benchmarks import Benchmark
from stillroom.distilled import load
from stillroom.errors import StillroomError
from stillroom.evaluation.protocol import Protocol
from stillroom.files import read_json, write_json
from stillroom.nets.ensemble import Backend
from stillroom.nets.train import Images, Training, predict, train
from stillroom.nets.zoo import Arch
from stillroom.runtime import Numerics, Runtime
from stillroom.types import LabelKind, Preprocess

FULL = "full"


@dataclass(frozen=True)
class Score(Stage):
    """Accuracies of one set (or of the full data) under one protocol and architecture.

    `set_folder` is None for the full-data row; `set_digest` is the digest of the set's metadata.
    `students` is "loop" (networks in turn) or "vmap" (all at once). Seeds whose students do not
    share a stage keep their artefacts when more seeds are asked for.
    """

    kind: ClassVar[str] = "scores"
    version: ClassVar[int] = 1
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
        """Train the students and write what they predicted right."""
        began, seeds = time.perf_counter(), self.seeds
        bench = open_bench(self.bench, self.store, rt)
        nets = nets_for(self.arch, bench, rt, self.students).seeded(seeds, "student")
        data, kind, preprocess, own = self._training_images(bench, rt)
        training = Training(
            epochs=self.protocol.epochs,
            batch=self.protocol.batch,
            lr=self.protocol.lr,
            momentum=self.protocol.momentum,
            weight_decay=self.protocol.weight_decay,
            schedule=self.protocol.schedule,
            augment=parse(own if self.protocol.augment == "set" else self.protocol.augment),
            labels=kind,
        )
        session = rt.session
        session.begin(f"student {', '.join(map(str, seeds))}", training.epochs)

        def on_epoch(done: int, loss: float) -> None:
            session.update(done, loss=loss)
            session.check()
            if loss != loss:
                raise StillroomError(
                    f"student {seeds} diverged in epoch {done}: its loss is NaN; the set may hold "
                    "extreme values (look with: stillroom inspect)"
                )

        train(nets, data, training, seeds, on_epoch)
        session.end()
        right = predict(nets, real_images(bench, preprocess, rt)) == bench.test.labels.cpu()
        counts = torch.bincount(bench.test.labels.cpu(), minlength=len(bench.classes))
        scores = [
            {
                "seed": seed,
                "last": float(row.double().mean()),
                "per_class": _per_class(row, bench.test.labels.cpu(), counts),
            }
            for seed, row in zip(seeds, right, strict=True)
        ]
        write_json(out / "scores.json", scores)
        write_json(out / "timing.json", {"seconds": (time.perf_counter() - began) / len(seeds)})

    def load(self, folder: Path) -> list[dict[str, Any]]:
        """One dict a seed: seed, last (a fraction), per_class, seconds."""
        timing = read_json(folder / "0000" / "timing.json")
        return [{**row, **timing} for row in read_json(folder / "0000" / "scores.json")]

    def _training_images(
        self, bench: Benchmark, rt: Runtime
    ) -> tuple[Images, LabelKind, Preprocess, str]:
        if self.set_folder is None:
            train_set = bench.train

            def take_real(rows: Tensor) -> Tensor:
                pixels = train_set.take(rows, rt.device)
                return bench.preprocess.apply(pixels).to(rt.dtype)

            labels = train_set.labels.to(rt.device)
            return Images(take_real, labels, bench.size), "hard", bench.preprocess, DSA
        data = load(self.set_folder)
        images = data.images.to(rt.device, rt.dtype)
        labels = data.labels.to(rt.device)
        labels = labels.to(rt.dtype) if labels.is_floating_point() else labels
        return (
            Images(lambda rows: images[rows.to(images.device)], labels, bench.size),
            data.label_kind,
            data.preprocess,
            data.augment,
        )


def real_images(bench: Benchmark, preprocess: Preprocess, rt: Runtime) -> Images:
    """The test images in the network space of the set that is judged, not of the benchmark."""

    def take(rows: Tensor) -> Tensor:
        return preprocess.apply(bench.test.take(rows, rt.device)).to(rt.dtype)

    return Images(take, bench.test.labels, bench.size)


def _per_class(right: Tensor, labels: Tensor, counts: Tensor) -> list[float]:
    hits = torch.bincount(labels[right], minlength=len(counts)).double()
    return [float(h / n) if n else 0.0 for h, n in zip(hits, counts, strict=True)]
