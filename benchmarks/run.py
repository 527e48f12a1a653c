"""Time the fast paths against plain twins in the same run: `make bench`, or one by name.

    python benchmarks/run.py [dm-step] [dc-step] [dc-step-100] [student-epoch] [students-vmap]
                             [originals-vmap] [expert-epoch] [test-pass] [recover-step]
                             [relabel-epoch] [relabel-epoch-64] [relabel-epoch-224]
                             [--json FILE]

Every line is a ratio to the plain twin: eager float32, one class or one batch at a time, PyTorch's
default allocator. "floor" is the time of the same multiply-adds at the rate of a large matrix
product of that dtype, measured here; "of floor" is the fraction of that rate which is reached. The
order is twin first, so that the allocator hint (`runtime.keep_freed_memory`) does not help it.
Compile time is shown apart, with the number of steps after which it is repaid; of a recover step
also the number from which on the library compiles it by itself (`Runtime.sized`). Peak memory of
two jobs compares only where each ran in a process of its own: freed blocks stay.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import io
import json
import math
import platform
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from stillroom.artefacts.opened import real_images
from stillroom.artefacts.originals import OriginalModel
from stillroom.artefacts.statistics import Observed
from stillroom.config import DSA
from stillroom.data.augment import apply, draw, parse
from stillroom.data.benchmarks import Benchmark, from_arrays
from stillroom.data.policy import Policy
from stillroom.data.replay import epoch_draws
from stillroom.data.views import apply as views_of
from stillroom.methods.context import RunContext
from stillroom.methods.distribution_matching import DistributionMatching
from stillroom.methods.gradient_distance import layerwise
from stillroom.methods.gradient_matching import GradientMatching
from stillroom.methods.statistics_matching import StatisticsMatching
from stillroom.nets.ensemble import Backend, Nets
from stillroom.nets.hooks import Sums, layers
from stillroom.nets.inner import flat
from stillroom.nets.sources import Images
from stillroom.nets.train import Progress, Training, predict, train
from stillroom.nets.zoo import feature_function, resolve
from stillroom.rng import rng
from stillroom.runtime import (
    COMPILE_FLOPS,
    Numerics,
    Runtime,
    can_compile,
    default_threads,
    forget_peak,
    peak_memory,
)

CLASSES, IPC, REAL, SIZE = 10, 10, 256, 32
MANY = 100  # classes of dc-step-100: time and memory against their number
BATCH = 25  # images of a batch of labels
NAMES = (
    "dm-step",
    "dc-step",
    "dc-step-100",
    "student-epoch",
    "challenge-epoch",
    "students-vmap",
    "originals-vmap",
    "expert-epoch",
    "test-pass",
    "recover-step",
    "relabel-epoch",
    "relabel-epoch-64",
    "relabel-epoch-224",
)


@dataclass(frozen=True)
class Timing:
    """One line of the table."""

    job: str
    variant: str
    seconds: float
    ratio: float
    compile_seconds: float
    flops: float
    of_floor: float
    peak: int  # bytes: of tensors on a GPU; on a CPU of the process, with all that it held before
    compiled_from: int = 0  # steps; 0: no rule of that kind


def clock(
    work: Callable[[], object], repeats: int, device: torch.device
) -> tuple[float, float, int]:
    """(seconds of the first call, best of `repeats` later ones, peak bytes)."""

    def once() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - began

    forget_peak(device)
    first = once()
    best = min(once() for _ in range(repeats))
    return first, best, peak_memory(device)


def matmul_rate(dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s of a 2048 x 2048 matrix product: what the floor is measured against."""
    a = torch.randn(2048, 2048, device=device).to(dtype)
    out = torch.empty_like(a)  # a fresh one would be zeroed page by page, which is no arithmetic
    _, best, _ = clock(lambda: torch.mm(a, a, out=out), 9, device)
    return 2 * 2048**3 / best


def variants(device: torch.device) -> list[tuple[str, Numerics, bool]]:
    """What is timed beside the twin; bf16 where the device computes in it."""
    numerics: list[Numerics] = ["float32"]
    if device.type != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported():
        numerics.append("bf16")
    ways = [("eager", False)] + ([("compiled", True)] if can_compile(device) else [])
    return [(f"{n} {way}", n, compiled) for way, compiled in ways for n in numerics]


def toy_bench(classes: int = CLASSES) -> Benchmark:
    """The shapes of CIFAR-10 or -100; the values do not change the time."""
    gen = rng(0, "benchmark")
    images = torch.randint(0, 256, (classes * 300, 3, SIZE, SIZE), generator=gen).to(torch.uint8)
    labels = torch.arange(classes).repeat_interleave(300)
    return from_arrays(images, labels, images[:2000], labels[:2000], normalise="cifar10")


def runtime(device: torch.device, numerics: Numerics, compiled: bool) -> Runtime:
    return Runtime(device, numerics, compiled, threads=default_threads())


# -- the plain twins: what one writes without the library's parts -----------------------------


def plain_dm_step(bench: Benchmark, device: torch.device) -> Callable[[], object]:
    """One class at a time, eager float32, a fresh module a step."""
    synthetic = torch.randn(CLASSES * IPC, 3, SIZE, SIZE, device=device, requires_grad=True)
    sgd = torch.optim.SGD([synthetic], lr=1.0, momentum=0.5)
    strategy, step = parse(DSA), iter(range(10**9))
    arch = resolve("convnet3")

    def work() -> None:
        it = next(step)
        net = arch.build(CLASSES, 3, SIZE).to(device)
        for parameter in net.parameters():
            parameter.requires_grad_(False)
        loss = torch.zeros((), device=device)
        for c in range(CLASSES):
            rows = bench.train.rows_of(c)[torch.randperm(300)[:REAL]]
            real = bench.preprocess.apply(bench.train.take(rows, device))
            drawn = draw(strategy, 1, SIZE, rng(0, it, c), siamese=True)
            features = feature_function(net)
            with torch.no_grad():
                target = features(apply(real, drawn)).mean(0)
            made = features(apply(synthetic[c * IPC : (c + 1) * IPC], drawn)).mean(0)
            loss = loss + (target - made).square().sum()
        sgd.zero_grad()
        loss.backward()
        sgd.step()

    return work


def plain_dc_step(bench: Benchmark, device: torch.device) -> Callable[[], object]:
    """One image a class; one class at a time, double backward through autograd, eager float32."""
    classes = len(bench.classes)
    synthetic = torch.randn(classes, 3, SIZE, SIZE, device=device, requires_grad=True)
    sgd = torch.optim.SGD([synthetic], lr=0.1, momentum=0.5)
    strategy, step = parse(DSA), iter(range(10**9))
    arch = resolve("convnet3")

    def work() -> None:
        it = next(step)
        net = arch.build(classes, 3, SIZE).to(device)
        weights = list(net.parameters())
        sgd.zero_grad()
        for c in range(classes):
            rows = bench.train.rows_of(c)[torch.randperm(300)[:REAL]]
            real = bench.preprocess.apply(bench.train.take(rows, device))
            drawn = draw(strategy, 1, SIZE, rng(0, it, c), siamese=True)
            one = torch.full((len(real),), c, device=device)
            loss = F.cross_entropy(net(apply(real, drawn)), one)
            target = torch.autograd.grad(loss, weights)
            loss = F.cross_entropy(net(apply(synthetic[c : c + 1], drawn)), one[:1])
            made = torch.autograd.grad(loss, weights, create_graph=True)
            names = [str(i) for i in range(len(weights))]
            both = (dict(zip(names, some, strict=True)) for some in (made, target))
            layerwise(*both).backward()
        sgd.step()

    return work


def plain_epoch(device: torch.device) -> Callable[[], object]:
    """An epoch of a student on 100 images."""
    net = resolve("convnet3").build(CLASSES, 3, SIZE).to(device)
    sgd = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    x = torch.randn(CLASSES * IPC, 3, SIZE, SIZE, device=device)
    y = torch.arange(CLASSES, device=device).repeat_interleave(IPC)
    strategy, step = parse(DSA), iter(range(10**9))

    def work() -> None:
        order = torch.randperm(len(x))
        drawn = draw(strategy, len(x), SIZE, rng(0, next(step)))
        sgd.zero_grad()
        F.cross_entropy(net(apply(x[order], drawn)), y[order]).backward()
        sgd.step()

    return work


def plain_challenge(device: torch.device) -> Callable[[], object]:
    """An epoch of the organisers' loop: a data loader over 1,000 images of 100 classes."""
    net = resolve("convnet3").build(MANY, 3, SIZE).to(device)
    sgd = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    x, y = torch.randn(MANY * IPC, 3, SIZE, SIZE), torch.arange(MANY).repeat_interleave(IPC)
    loader = DataLoader(TensorDataset(x, y), batch_size=256, shuffle=True)
    strategy, step = parse(DSA), iter(range(10**9))

    def work() -> None:
        net.train()
        for images, labels in loader:
            drawn = draw(strategy, len(images), SIZE, rng(0, next(step)))
            loss = F.cross_entropy(net(apply(images.to(device), drawn)), labels.to(device))
            sgd.zero_grad()
            loss.backward()
            sgd.step()

    return work


def plain_epochs(device: torch.device, k: int) -> Callable[[], object]:
    """An epoch of k students, one after another."""
    students = [plain_epoch(device) for _ in range(k)]
    return lambda: [student() for student in students]


def plain_originals(bench: Benchmark, device: torch.device, k: int) -> Callable[[], object]:
    """An epoch of k networks on the real images, one after another."""
    nets = [resolve("convnet3").build(CLASSES, 3, SIZE).to(device) for _ in range(k)]
    sgds = [torch.optim.SGD(n.parameters(), 0.02, momentum=0.9, weight_decay=5e-4) for n in nets]
    labels = bench.train.labels.to(device)

    def work() -> None:
        for net, sgd in zip(nets, sgds, strict=True):
            for rows in torch.randperm(len(labels)).split(256):
                x = bench.preprocess.apply(bench.train.take(rows, device))
                sgd.zero_grad()
                F.cross_entropy(net(x), labels[rows]).backward()
                sgd.step()

    return work


def plain_expert(bench: Benchmark, device: torch.device) -> Callable[[], object]:
    """An epoch of an expert: a data loader over the real images, parameters kept at its end."""
    net = resolve("convnet3").build(CLASSES, 3, SIZE).to(device)
    sgd = torch.optim.SGD(net.parameters(), lr=0.01)
    images = bench.preprocess.apply(bench.train.take(torch.arange(len(bench.train)), device))
    data = TensorDataset(images, bench.train.labels.to(device))
    loader, strategy = DataLoader(data, batch_size=256, shuffle=True), parse(DSA)
    kept, step = list[list[torch.Tensor]](), iter(range(10**9))

    def work() -> None:
        for x, y in loader:
            drawn = draw(strategy, len(x), SIZE, rng(0, next(step)))
            sgd.zero_grad()
            F.cross_entropy(net(apply(x, drawn)), y).backward()
            sgd.step()
        kept[:] = [[p.detach().cpu().clone() for p in net.parameters()]]

    return work


def plain_test(bench: Benchmark, device: torch.device) -> Callable[[], object]:
    """Logits of 2,000 test images in batches of 256."""
    net = resolve("convnet3").build(CLASSES, 3, SIZE).to(device).eval()

    def work() -> None:
        with torch.no_grad():
            for i in range(0, 2000, 256):
                rows = torch.arange(i, min(i + 256, 2000))
                net(bench.preprocess.apply(bench.test.take(rows, device))).argmax(1)

    return work


def plain_views(side: int, batch: int) -> Callable[[], object]:
    """The views of an epoch of 100 images, image by image as a data loader makes them; CutMix.

    Decode a JPEG (from memory, no disk), crop, resize and flip by Pillow, to a tensor, normalise.
    Images are smooth: noise makes files that take twice as long to decode.
    The teachers' passes would be the same on both sides and are left out.
    """
    files = []
    for array in np.random.default_rng(0).integers(0, 256, (CLASSES * IPC, 8, 8, 3), np.uint8):
        picture = Image.fromarray(array).resize((side, side), Image.Resampling.BICUBIC)
        picture.save(made := io.BytesIO(), "JPEG", quality=95)
        files.append(made.getvalue())
    mean, std = torch.full((3, 1, 1), 0.5), torch.full((3, 1, 1), 0.25)

    def view(file: bytes) -> torch.Tensor:
        image, box = Image.open(io.BytesIO(file)).convert("RGB"), (0, 0, side, side)
        for _ in range(10):
            area = side * side * random.uniform(0.08, 1)
            aspect = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
            h, w = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
            if 0 < h <= side and 0 < w <= side:
                top, left = random.randint(0, side - h), random.randint(0, side - w)
                box = (left, top, left + w, top + h)
                break
        image = image.resize((side, side), Image.Resampling.BILINEAR, box)
        if random.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return (torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255 - mean) / std

    def work() -> None:
        for rows in torch.randperm(len(files)).split(batch):
            views = torch.stack([view(files[i]) for i in rows.tolist()])
            half = int(side * math.sqrt(1 - random.random())) // 2
            r, c = random.randrange(side), random.randrange(side)
            cut = (slice(max(r - half, 0), r + half), slice(max(c - half, 0), c + half))
            views[:, :, *cut] = views[torch.randperm(len(rows))][:, :, *cut]

    return work


def plain_recover_step(device: torch.device) -> Callable[[], object]:
    """A step of EDC on 100 images and a ConvNet: hooks, moving averages, the term for flatness."""
    net = resolve("convnet3").build(CLASSES, 3, SIZE).to(device).eval()
    convs = [m for m in net.modules() if isinstance(m, torch.nn.Conv2d)]
    x = torch.randn(CLASSES * IPC, 3, SIZE, SIZE, device=device, requires_grad=True)
    y = torch.arange(CLASSES, device=device).repeat_interleave(IPC)
    adam = torch.optim.Adam([x], lr=0.05, betas=(0.5, 0.9))
    averages: dict[tuple[int, int], torch.Tensor] = {}
    state = {"images": x.detach().clone()}
    losses: list[torch.Tensor] = []

    def hook(number: int, given: torch.Tensor) -> None:
        cells = given.unflatten(3, (-1, 4)).unflatten(2, (-1, 4))
        dims = ((0, 2, 3), (0, 1, 3, 5))
        found = [s for t, d in zip((given, cells), dims, strict=True)
                 for s in torch.var_mean(t, dim=d, correction=0)]  # fmt: skip
        for i, value in enumerate(found):
            old = averages.get((number, i), torch.zeros_like(value))
            new = averages[number, i] = 0.8 * old + 0.2 * value.detach()
            shown = new + value - value.detach()
            for target in (0.0, 1.0):  # of all data, of the classes
                losses.append((10 if number == 0 else 1) * 0.5 * (shown - target).norm())

    def work() -> None:
        losses.clear()
        side = random.randint(23, SIZE)
        top, left = random.randint(0, SIZE - side), random.randint(0, SIZE - side)
        crop = (..., slice(top, top + side), slice(left, left + side))
        views = [F.interpolate(t[crop], (SIZE, SIZE), mode="bilinear", antialias=True)
                 for t in (x, state["images"])]  # fmt: skip
        hooks = [conv.register_forward_pre_hook(lambda _, given, i=i: hook(i, given[0]))
                 for i, conv in enumerate(convs)]  # fmt: skip
        logits = net(views[0])
        for one in hooks:
            one.remove()
        with torch.no_grad():
            theirs = (net(views[1]) / 4).log_softmax(1)
        flat = F.kl_div(theirs, (logits / 4).log_softmax(1), reduction="batchmean", log_target=True)
        adam.zero_grad()
        (F.cross_entropy(logits, y) + 0.01 * torch.stack(losses).sum() + 0.25 * flat).backward()
        adam.step()
        with torch.no_grad():
            x.clamp_(-2.5, 2.5)
            state["images"] = 0.99 * state["images"] + 0.01 * x

    return work


# -- the same jobs through the library -----------------------------------------------------------


def fast_dm_step(bench: Benchmark, rt: Runtime) -> Callable[[], object]:
    ctx = RunContext(bench, IPC, 0, rt, Nets(resolve("convnet3"), CLASSES, 3, SIZE, rt))
    method = DistributionMatching(batch_real=REAL)
    synth = method.start(ctx, torch.arange(CLASSES * IPC))
    sgd = torch.optim.SGD([synth.images], lr=1.0, momentum=0.5)
    step = iter(range(10**9))

    def work() -> None:
        sgd.zero_grad()
        for term in method.loss(ctx, synth, next(step)):
            term.backward()
        sgd.step()

    return work


def fast_dc_step(bench: Benchmark, rt: Runtime) -> Callable[[], object]:
    classes = len(bench.classes)
    ctx = RunContext(bench, 1, 0, rt, Nets(resolve("convnet3"), classes, 3, SIZE, rt))
    method = GradientMatching(batch_real=REAL, augment=DSA)
    synth = method.start(ctx, torch.arange(classes))
    sgd = torch.optim.SGD([synth.images], lr=0.1, momentum=0.5)
    step = iter(range(10**9))

    def work() -> None:
        sgd.zero_grad()
        for term in method.loss(ctx, synth, next(step)):
            term.backward()
        sgd.step()

    return work


def fast_epoch(
    rt: Runtime, backend: Backend = "loop", k: int = 1, classes: int = CLASSES
) -> Callable[[], object]:
    x = torch.randn(classes * IPC, 3, SIZE, SIZE, device=rt.device)
    y = torch.arange(classes, device=rt.device).repeat_interleave(IPC)
    data = Images(lambda rows: x[rows.to(x.device)], y, SIZE)
    training = Training(1, 256, 0.01, 0.9, 5e-4, "constant", parse(DSA))
    seeds = list(range(k))
    nets = Nets(resolve("convnet3"), classes, 3, SIZE, rt, backend).seeded(seeds, "student")
    return lambda: train(nets, data, training, seeds)


def fast_originals(bench: Benchmark, rt: Runtime, k: int) -> Callable[[], object]:
    """The same, all together as stacked tensors."""
    data = real_images(bench.train, bench.preprocess, SIZE, rt)
    training = Training(1, 256, 0.02, 0.9, 5e-4, "constant", parse("none"))
    seeds = list(range(k))
    nets = Nets(resolve("convnet3"), CLASSES, 3, SIZE, rt, "vmap").seeded(seeds, "original")
    return lambda: train(nets, data, training, seeds)


def fast_expert(bench: Benchmark, rt: Runtime) -> Callable[[], object]:
    data = real_images(bench.train, bench.preprocess, SIZE, rt)
    training = Training(1, 256, 0.01, 0.0, 0.0, "constant", parse(DSA))
    nets = Nets(resolve("convnet3"), CLASSES, 3, SIZE, rt).seeded([0], "expert")
    kept = list[torch.Tensor]()

    def keep(_: Progress) -> None:
        kept[:] = [flat(nets.member(0)[0]).float().cpu()]

    return lambda: train(nets, data, training, [0], keep=keep)


def fast_test(bench: Benchmark, rt: Runtime) -> Callable[[], object]:
    nets = Nets(resolve("convnet3"), CLASSES, 3, SIZE, rt).seeded([0], "student")

    def take(rows: torch.Tensor) -> torch.Tensor:
        return bench.preprocess.apply(bench.test.take(rows, rt.device))

    return lambda: predict(nets, Images(take, bench.test.labels, SIZE))


def fast_recover_step(bench: Benchmark, rt: Runtime) -> Callable[[], object]:
    """The same with an untrained observer and statistics of its own of some images."""
    nets = Nets(resolve("convnet3"), CLASSES, 3, SIZE, rt)
    one = nets.make(1, 0, "observer")
    weights = {name: t for part in one.member(0) for name, t in part.items()}
    watched = layers(nets.skeleton)
    sums = {layer.name: Sums(CLASSES) for layer in watched}

    def adding(name: str) -> Callable[[torch.Tensor], None]:
        return lambda given: sums[name].add(given, labels, 4)

    rows = torch.arange(0, len(bench.train), 10)
    labels = bench.train.labels[rows].to(rt.device)
    with torch.no_grad():
        x = bench.preprocess.apply(bench.train.take(rows, rt.device))
        one.observed(x, {layer.name: adding(layer.name) for layer in watched})
    told = {f"{i:03d}.{n}": v.float() for i, layer in enumerate(watched)
            for n, v in sums[layer.name].statistics(by_class=True).items()}  # fmt: skip
    artefacts = {
        "observer/0": OriginalModel(nets.arch, weights, False, 0.0, (), 0.0),
        "statistics/0": Observed(tuple(watched), 4, told),
    }
    method = StatisticsMatching(observers=("convnet3",), flat={"weight": 0.25})
    ctx = RunContext(bench, IPC, 0, rt, nets, artefacts=artefacts, steps=1000)
    synth = method.start(ctx, torch.arange(CLASSES * IPC))
    adam = torch.optim.Adam([synth.images], lr=0.05, betas=(0.5, 0.9))
    step = iter(range(10**9))

    def work() -> None:
        adam.zero_grad()
        for term in method.loss(ctx, synth, next(step)):
            term.backward()
        adam.step()
        with torch.no_grad():
            method.project(ctx, synth)

    return work


def fast_views(rt: Runtime, side: int, batch: int) -> Callable[[], object]:
    """Draws and views; neither compiled nor in bf16, so that its lines differ by chance alone."""
    n = CLASSES * IPC
    x = torch.randn(n, 3, side, side, device=rt.device)
    policy, epochs = Policy(size=side), iter(range(10**9))

    def work() -> None:
        for rows, drawn in epoch_draws(policy, n, batch, (side, side), 0, next(epochs)):
            views_of(x[rows.to(x.device)], drawn)

    return work


@dataclass(frozen=True)
class Job:
    """One job: its plain twin, the library's way, and the FLOPs of both; made when it is timed.

    functions: that are compiled, where the library weighs their number against the work.
    """

    plain: Callable[[], Callable[[], object]]
    fast: Callable[[Runtime], Callable[[], object]]
    flops: float
    functions: int = 0


def jobs(device: torch.device) -> dict[str, Job]:
    """All jobs by name."""
    ten, hundred = functools.cache(toy_bench), functools.cache(lambda: toy_bench(MANY))
    probe = Nets(resolve("convnet3"), CLASSES, 3, SIZE, runtime(device, "float32", False))
    forward = probe.forward_flops()
    n = CLASSES * IPC
    one_class = forward * (3.0 * REAL + 9.0)  # of gradient matching at one image a class
    return {
        "dm-step": Job(
            lambda: plain_dm_step(ten(), device),
            lambda rt: fast_dm_step(ten(), rt),
            forward * (CLASSES * REAL + 2.0 * n),
        ),
        "dc-step": Job(
            lambda: plain_dc_step(ten(), device),
            lambda rt: fast_dc_step(ten(), rt),
            CLASSES * one_class,
        ),
        "dc-step-100": Job(
            lambda: plain_dc_step(hundred(), device),
            lambda rt: fast_dc_step(hundred(), rt),
            MANY * one_class,
        ),
        "student-epoch": Job(lambda: plain_epoch(device), fast_epoch, forward * 3.0 * n),
        "challenge-epoch": Job(
            lambda: plain_challenge(device),
            lambda rt: fast_epoch(rt, classes=MANY),
            forward * 3.0 * MANY * IPC,
        ),
        # Three students at once: its ratio against that of one decides `--students`.
        "students-vmap": Job(
            lambda: plain_epochs(device, 3),
            lambda rt: fast_epoch(rt, "vmap", 3),
            forward * 9.0 * n,
        ),
        # Three networks at once on the 3,000 real images; "twin + allocator" is in turn.
        "originals-vmap": Job(
            lambda: plain_originals(ten(), device, 3),
            lambda rt: fast_originals(ten(), rt, 3),
            forward * 9.0 * CLASSES * 300,
        ),
        "expert-epoch": Job(
            lambda: plain_expert(ten(), device),
            lambda rt: fast_expert(ten(), rt),
            forward * 3.0 * CLASSES * 300,
        ),
        "test-pass": Job(
            lambda: plain_test(ten(), device), lambda rt: fast_test(ten(), rt), forward * 2000.0
        ),
        # A forward and a backward pass, and a forward one of the average of the images.
        "recover-step": Job(
            lambda: plain_recover_step(device),
            lambda rt: fast_recover_step(ten(), rt),
            forward * 4.0 * n,
            functions=2,
        ),
        # Seven operations a pixel: two means along rows and one of them.
        "relabel-epoch": Job(
            lambda: plain_views(SIZE, BATCH),
            lambda rt: fast_views(rt, SIZE, BATCH),
            7.0 * n * 3 * SIZE**2,
        ),
        # As Tiny-ImageNet and as ImageNet-1K, in batches of 100.
        "relabel-epoch-64": Job(
            lambda: plain_views(64, 100), lambda rt: fast_views(rt, 64, 100), 7.0 * n * 3 * 64**2
        ),
        "relabel-epoch-224": Job(
            lambda: plain_views(224, 100), lambda rt: fast_views(rt, 224, 100), 7.0 * n * 3 * 224**2
        ),
    }


def measure(names: list[str], repeats: int, device: torch.device) -> list[Timing]:
    """Every twin first: the hint to the allocator, once given, stays."""
    torch.set_num_threads(default_threads())
    dtypes: dict[Numerics, torch.dtype] = {"float32": torch.float32, "bf16": torch.bfloat16}
    ways = variants(device)
    rates = {n: matmul_rate(dtypes[n], device) for n in dict.fromkeys(n for _, n, _ in ways)}
    chosen = {k: v for k, v in jobs(device).items() if not names or k in names}
    twins = {name: job.plain() for name, job in chosen.items()}
    plain = {name: clock(twin, repeats, device)[1:] for name, twin in twins.items()}
    found = []

    def add(
        name: str, variant: str, numerics: Numerics, best: float, peak: int, compiling: float = 0.0
    ) -> None:
        flops = chosen[name].flops
        floor = flops / rates[numerics]
        least = math.ceil(chosen[name].functions * COMPILE_FLOPS / flops) if compiling else 0
        ratio = plain[name][0] / best
        found.append(
            Timing(name, variant, best, ratio, compiling, flops, floor / best, peak, least)
        )
        print_line(found[-1])

    for name, job in chosen.items():
        add(name, "plain twin", "float32", *plain[name])
        with runtime(device, "float32", False).activate():
            add(name, "twin + allocator", "float32", *clock(twins[name], repeats, device)[1:])
        for label, numerics, compiled in ways:
            rt = runtime(device, numerics, compiled)
            with rt.activate():
                first, best, peak = clock(job.fast(rt), repeats, device)
            add(name, label, numerics, best, peak, first - best if compiled else 0.0)
    return found


def print_line(t: Timing) -> None:
    repaid = ""
    if t.compile_seconds and t.ratio > 1:
        saving = t.seconds * t.ratio - t.seconds
        repaid = f"compile {t.compile_seconds:.0f} s, repaid in {t.compile_seconds / saving:.0f}"
    if t.compiled_from:
        repaid += f" (by itself from {t.compiled_from} on)"
    print(
        f"{t.job:<14} {t.variant:<17} {t.seconds:8.3f} s  {t.ratio:5.2f}x  "
        f"{t.flops / t.seconds / 1e9:7.0f} GFLOP/s  {100 * t.of_floor:3.0f} % of floor  "
        f"{t.peak / 2**20:5.0f} MiB  {repaid}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("names", nargs="*", choices=[*NAMES, []])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="append the lines to this file")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    found = measure(list(arguments.names), arguments.repeats, device)
    if arguments.json is not None:
        machine = {
            "torch": torch.__version__,
            "cpu": torch.backends.cpu.get_cpu_capability(),
            "amx": torch.cpu._is_amx_tile_supported(),
            "threads": default_threads(),
            "device": str(device),
            "python": platform.python_version(),
        }
        with arguments.json.open("a", encoding="utf-8") as stream:
            for timing in found:
                line = {**dataclasses.asdict(timing), **machine}
                stream.write(json.dumps(line, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
