"""`Work`: one network in training on the real data, stoppable, for the stages that want it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Protocol

from torch import Tensor

from stillroom.artefacts import snapshot
from stillroom.artefacts.opened import nets_for, open_bench, real_images
from stillroom.artefacts.schooling import Schooling
from stillroom.artefacts.snapshot import read_snapshot, save_snapshot
from stillroom.data.augment import parse
from stillroom.data.benchmarks import Benchmark
from stillroom.errors import StillroomError
from stillroom.files import write_json
from stillroom.nets.ensemble import Nets
from stillroom.nets.sharpness import Uphill
from stillroom.nets.train import Progress, Training, predict, train
from stillroom.nets.zoo import Arch
from stillroom.runtime import Runtime
from stillroom.session import Interrupted
from stillroom.types import Preprocess

TOLD = "trained.json"  # accuracy and curve of the network
# Bytes that a batch holds with its graph, in those of all layer outputs in float32, by numerics and
# compilation: measured of a ConvNet-3 at 32 pixels on a CPU.
HELD = {
    ("bf16", True): 0.4,
    ("bf16", False): 0.7,
    ("float32", True): 0.75,
    ("float32", False): 1.0,
}
COPIES = 6  # of the parameters: gradient, momentum, an uphill step, what a stop would save


class Trained(Protocol):
    """A stage that trains one network on real data."""

    kind: ClassVar[str]

    @property
    def schooling(self) -> Schooling:
        """How."""

    @property
    def bench(self) -> dict[str, Any]:
        """On what, as `Benchmark.describe` tells it."""

    @property
    def arch(self) -> Arch:
        """Which network."""

    @property
    def index(self) -> int:
        """Its number, which keys every draw."""

    @property
    def store(self) -> Path:
        """Where the data lie."""

    def about(self) -> str:
        """What it is."""


def training_memory(stage: Trained, flops: float, rt: Runtime) -> int:
    """Bytes that a step of a training of so many `flops` holds: a static estimate.

    A batch with its graph, and the network and its optimiser; beside the data.
    """
    bench = open_bench(stage.bench, stage.store, rt)
    nets = nets_for(stage.arch, bench, rt.under(stage.schooling.numerics).sized(flops))
    numerics = "bf16" if stage.schooling.numerics == "bf16" else "float32"
    batch = min(stage.schooling.batch, len(bench.train))
    graph = HELD[numerics, nets.rt.compile] * nets.activation_bytes()
    each = int(graph) + 8 * bench.channels * bench.size**2
    return batch * each + COPIES * parameter_bytes(nets)


def parameter_bytes(nets: Nets) -> int:
    """Of the parameters of one network."""
    return sum(p.numel() * p.element_size() for p in nets.build(0, "plan").parameters())


class Work:
    """One network in training; a snapshot holds all of it.

    `trail` is given the weights after every epoch, and before the first: again, if a run went on.
    """

    def __init__(self, stage: Trained, out: Path, rt: Runtime) -> None:
        self.stage, self.out, self.rt = stage, out, rt
        self.trail: Callable[[int, dict[str, Tensor]], None] | None = None
        bench = open_bench(stage.bench, stage.store, rt)
        space = pixels(bench) if stage.schooling.raw_pixels else bench.preprocess
        self.data = real_images(bench.train, space, bench.size, rt)
        self.tests = real_images(bench.test, space, bench.size, rt)
        # Keyed by architecture too: networks with the same first layers would begin alike.
        name = stage.arch.name
        self.nets = nets_for(stage.arch, bench, rt).make(1, stage.index, stage.kind, name)
        self.progress = Progress()
        self.curve: list[tuple[int, float]] = []
        self.best: dict[str, Tensor] = {}
        self.seconds = 0.0
        self.held: tuple[dict[str, Tensor], dict[str, Any]] | None = None

    def run(self) -> None:
        """Train to the end."""
        schooling, session = self.stage.schooling, self.rt.session
        began = saved = time.monotonic()
        name = f"{self.stage.kind} {self.stage.arch.name}"
        session.begin(name, schooling.passes, self.progress.epochs)
        if self.trail and not self.progress.epochs:
            self.trail(0, self.now())

        def keep(progress: Progress) -> None:
            self.progress = progress
            if self.trail:
                self.trail(progress.epochs, self.now())

        def on_epoch(done: int, loss: float) -> None:
            nonlocal saved
            if loss != loss:
                raise StillroomError(
                    f"{self.stage.about()}: its loss is NaN by epoch {done}; lower --lr, now "
                    f"{schooling.lr:g}"
                )
            if schooling.select == "best" or done == schooling.passes:
                self._test(done)
            session.update(done, loss=loss)
            self.held = self._copied(time.monotonic() - began)
            if time.monotonic() - saved > snapshot.SECONDS:
                self.save()
                saved = time.monotonic()

        try:
            train(
                self.nets,
                self.data,
                self.training(),
                [self.stage.index],
                on_epoch,
                self.progress,
                keep,
                session.check,
            )
        except Interrupted:
            self.save()
            raise
        session.end()
        self.seconds += time.monotonic() - began

    def _copied(self, spent: float) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that the next epoch depends on, as it is now."""
        tensors = {f"now.{k}": v for k, v in self.now().items()}
        tensors |= {f"best.{k}": v for k, v in self.best.items()}
        tensors |= {f"progress.{k}": v for k, v in self.progress.tensors().items()}
        header = {
            "epochs": self.progress.epochs,
            "curve": [list(point) for point in self.curve],
            "seconds": self.seconds + spent,
        }
        return {name: tensor.clone() for name, tensor in tensors.items()}, header

    def save(self) -> None:
        """Write what was left by the last whole epoch of this run, if there is one.

        So that Ctrl-C need not wait for the end of an epoch, which may be hours away.
        """
        if self.held is not None:
            save_snapshot(self.out, *self.held, self.rt)

    def restore(self) -> None:
        """Go on from the snapshot, if there is one."""
        found = read_snapshot(self.out, self.rt)
        if found is None:
            return
        header, tensors = found
        # Counts of steps stay on the CPU, where optimisers keep them.
        here = {k: v.to(self.rt.device) if v.ndim else v for k, v in tensors.items()}
        for name, tensor in self.now().items():
            tensor.copy_(here[f"now.{name}"])
        self.best = _under("best.", here)
        leaves = len(self.nets.member(0)[0])
        self.progress = Progress.of(int(header["epochs"]), _under("progress.", here), leaves)
        self.curve = [(int(epoch), float(value)) for epoch, value in header["curve"]]
        self.seconds = float(header["seconds"])

    def begin_at(self, epochs: int, seconds: float) -> None:
        """Take the weights, which were changed, for those after so many epochs.

        Only of a training whose steps remember nothing. At its end it is tested here, as no epoch
        is left that would be.
        """
        self.progress, self.seconds = Progress(epochs), seconds
        if epochs == self.stage.schooling.passes:
            self._test(epochs)

    def training(self) -> Training:
        """What the schooling says, for the trainer."""
        s = self.stage.schooling
        return Training(
            epochs=s.epochs,
            batch=s.batch,
            lr=s.lr,
            momentum=s.momentum,
            weight_decay=s.weight_decay,
            schedule=s.schedule,
            augment=parse(s.augment),
            milestones=s.milestones,
            warmup=s.warmup,
            stop=s.stop,
            uphill=Uphill(s.rho, s.alpha, s.adaptive) if s.rho else None,
        )

    def now(self) -> dict[str, Tensor]:
        """Weights and buffers as they are."""
        params, buffers = self.nets.member(0)
        return {name: t.detach() for name, t in {**params, **buffers}.items()}

    def _test(self, done: int) -> None:
        """Test the network; of equal accuracies the earlier weights are the best."""
        right = predict(self.nets, self.tests)[0] == self.tests.labels.cpu()
        accuracy = float(right.double().mean())
        if not self.curve or accuracy > max(value for _, value in self.curve):
            self.best = {name: t.clone() for name, t in self.now().items()}
        self.curve.append((done, accuracy))

    def weights(self) -> dict[str, Tensor]:
        """Those that the schooling selects."""
        return self.best if self.stage.schooling.select == "best" else self.now()

    def tell(self) -> None:
        """Write what is told of the training, which is over."""
        values = [value for _, value in self.curve]
        best = self.stage.schooling.select == "best"
        told = {"accuracy": max(values) if best else values[-1], "curve": self.curve}
        write_json(self.out / TOLD, told)
        write_json(self.out / "timing.json", {"seconds": self.seconds})
        (self.out / snapshot.SNAPSHOT).unlink(missing_ok=True)


def pixels(bench: Benchmark) -> Preprocess:
    """Pixels in [0, 1] as they are."""
    return Preprocess("none", (0.0,) * bench.channels, (1.0,) * bench.channels)


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
