"""What a run will cost, before it starts: `--plan`. Estimates are said to be estimates."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from stillroom.artefacts.difficulty import Difficulty
from stillroom.artefacts.experts import Expert
from stillroom.artefacts.originals import Original
from stillroom.artefacts.stage import Stage, with_needs
from stillroom.artefacts.statistics import Statistics
from stillroom.artefacts.store import Store
from stillroom.artefacts.training import parameter_bytes
from stillroom.data.benchmarks import Benchmark
from stillroom.evaluation.protocol import Protocol
from stillroom.methods.context import classes_together
from stillroom.nets.ensemble import Nets
from stillroom.recipe import Recipe
from stillroom.runtime import Runtime
from stillroom.tables import about, plural, size

TOGETHER = 256  # real images of one forward without a graph, at most
Pass = Statistics | Difficulty  # over the real images


@dataclass(frozen=True)
class Estimate:
    """Steps, floating-point operations, peak bytes of memory, bytes on disk."""

    steps: int
    flops: float
    memory: int
    disk: int
    images: int


def passes_of(wanted: Iterable[Stage], store: Store) -> list[Pass]:
    """The passes over the real images that stages consist of or still need, each once."""
    found = [one for one in with_needs(wanted, store.holds) if isinstance(one, Pass)]
    return list({one.key(): one for one in found}.values())


def trained_before(wanted: Iterable[Stage], store: Store, rt: Runtime) -> list[Original | Expert]:
    """The networks that stages consist of or need, each once, that are still to be trained."""
    found = {
        s.key(): s for s in with_needs(wanted, store.holds) if isinstance(s, Original | Expert)
    }
    left = [stage for key, stage in found.items() if not store.complete(key)]
    return [s for s in left if isinstance(s, Original) or s.there(rt) < s.trained.passes]


@dataclass(frozen=True)
class Cost:
    """What making some things takes: all, those not in the store, FLOPs, seconds, bytes.

    `what` they are, as one of them; `verb` what is done to them; memory and disk 0: not estimated.
    """

    what: str
    total: int
    left: int
    flops: float
    seconds: float
    verb: str = "to train"
    memory: int = 0
    disk: int = 0

    def in_words(self) -> str:
        """One line for a person."""
        known = self.total - self.left
        held = f" ({known} more are in the store)" if known else ""
        time = f", {about(self.seconds)}" if self.left else ""
        memory = f", about {size(self.memory)} of memory" if self.left and self.memory else ""
        disk = f", {size(self.disk)} on disk" if self.left and self.disk else ""
        return f"{plural(self.left, self.what)} {self.verb}{held}{time}{memory}{disk}"


def distil_estimate(recipe: Recipe, bench: Benchmark, nets_of: Callable[[str], Nets]) -> Estimate:
    """Static costs of a distillation: real forwards, synthetic forwards and backwards.

    `nets_of`: makes networks by the names that method and terms give ("auto": the recipe's own).
    Where images are shown to several in turn, memory is for the largest of them.
    """
    pool = [nets_of(name) for name in recipe.method.networks()]
    classes = len(bench.classes)
    n = classes * recipe.ipc
    nets = max(pool, key=lambda one: one.forward_flops())
    forwards = [one.forward_flops() for one in pool]
    forward = sum(forwards) / len(forwards)
    pixels = bench.channels * bench.size**2 * 4
    steps = recipe.method.steps(recipe.outer)
    # On a CPU the data are in memory (or mapped) already; on a GPU they move there if they fit.
    on_gpu = nets.rt.device.type == "cuda"
    memory = 3 * n * pixels + (bench.train.nbytes + bench.test.nbytes if on_gpu else 0)
    sizes = [len(bench.train.rows_of(c)) for c in range(classes)]
    shown, held_at_start = recipe.method.start_cost(sizes, recipe.ipc)
    flops = shown * sum(forwards)
    memory += held_at_start * pixels + (2 * TOGETHER * nets.largest_activation() if shown else 0)
    if steps:
        real = min(int(getattr(recipe.method, "batch_real", 0)), max(sizes))
        method = recipe.method.model_copy(update={"batch_real": real} if real else {})
        flops += float(steps) * forward * method.image_forwards(classes, recipe.ipc)
        if copies := method.parameters_held(on_gpu):
            memory += copies * parameter_bytes(nets)
        together = method.images_held(classes, recipe.ipc)
        if together is not None:
            norms = method.norm_images(classes) if nets.has_batchnorm() else 0
            times = method.times_held(nets.rt.sized(flops).compile)
            graph = int(together * (4 * pixels + times * nets.activation_bytes()))
            memory += max(graph, norms * (4 * pixels + 2 * nets.largest_activation()))
        else:
            # BatchNorm takes one batch of all classes, real ones with a graph too; else a group.
            whole = nets.has_batchnorm()
            held = recipe.ipc + (real if whole else 0)
            each = real * 4 * pixels + held * nets.activation_bytes()
            memory += each * (classes if whole else min(classes, classes_together(each)))
        looks = [k * nets_of(name).activation_bytes() for name, k in method.looked_at(n).items()]
        memory = max([memory, *(3 * n * pixels + held for held in looks)])
        for term in recipe.regularisers:  # after the method is done with the step
            asked = [nets_of(name) for name in term.networks()]
            mean = sum(one.forward_flops() for one in asked) / max(1, len(asked))
            flops += steps * mean * term.image_forwards(n)
            held = max((_term_memory(one, n, term.real_images()) for one in asked), default=0)
            memory = max(memory, 3 * n * pixels + held + 2 * term.real_images() * pixels)
    width = {"float32": 4, "float16": 2, "uint8": 1, "jpeg": 1}[recipe.stored_as]
    disk = (n * pixels // 4 * width) * (1 + len(recipe.outer.keep))
    return Estimate(steps, flops, int(memory), disk, n)


def _term_memory(nets: Nets, images: int, real: int) -> int:
    """Bytes of a term that shows so many images a network with a graph, and real ones without."""
    pairs = 3 * images * real * 4  # their distances, those that count, and a gradient
    return (
        images * nets.activation_bytes()
        + bool(real) * 2 * TOGETHER * nets.largest_activation()
        + pairs
    )


def seconds(flops: float, rt: Runtime) -> float:
    """Time of `flops` here: from a half-second probe of a convolution. Only shown, never used."""
    import time

    if flops == 0:
        return 0.0
    x = torch.randn(32, 128, 16, 16, device=rt.device, dtype=rt.dtype)
    net = torch.nn.Conv2d(128, 128, 3, padding=1).to(rt.device, rt.dtype)
    done, began = 0, 0.0
    with torch.no_grad(), rt.autocast(), rt.activate():
        net(x)
        began = time.perf_counter()
        while time.perf_counter() - began < 0.5:
            net(x)
            done += 1
        if rt.device.type == "cuda":
            torch.cuda.synchronize(rt.device)
    rate = done * 2 * 32 * 128 * 128 * 9 * 256 / (time.perf_counter() - began)
    share = 0.5 if rt.compile else 0.35  # of a bare convolution: rough, and only shown
    return flops / (rate * share)


def student_flops(forward: float, protocol: Protocol, bench: Benchmark, images: int) -> float:
    """Of one student, at every rate that it is trained at; a backward pass is two forward ones."""
    tests = protocol.checks * (len(bench.test) + (len(bench.val) if bench.val else 0))
    return forward * (3.0 * protocol.passes * images + tests) * max(1, len(protocol.rates))


def student_steps(protocol: Protocol, images: int) -> int:
    """Training steps of one student, at every rate that it is trained at."""
    return protocol.passes * -(-images // protocol.batch) * max(1, len(protocol.rates))
