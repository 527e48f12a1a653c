"""Time, memory and error of the gradient engines of trajectory matching, at 5, 20 and 80 steps.

    python benchmarks/engines.py [--images 10] [--steps 5 20 80] [--json FILE]

The student is the ConvNet of CIFAR-10 (320,010 parameters), its images are `--images` of 32 x 32
pixels under DSA, as in `distill mtt --data cifar10 --ipc 1`. Every line is a process of its own:
seconds of the better of two gradients after a first one, eager float32; memory is the largest that
the process ever held beyond what it held before the first gradient. The error is that of the
gradient in the images, relative to `unrolled` in float64.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stillroom.config import DSA
from stillroom.data.augment import apply, draw, parse
from stillroom.nets.ensemble import Nets
from stillroom.nets.inner import Inner, flat, through
from stillroom.nets.losses import hard_ce
from stillroom.nets.zoo import resolve
from stillroom.rng import rng
from stillroom.runtime import Runtime, default_threads

CLASSES, SIZE = 10, 32
WAYS = (
    ("unrolled", "device"),
    ("exact", "device"),
    ("exact", "host"),
    ("exact", "recompute"),
    ("tesla", "device"),
)


def problem(images: int, steps: int, dtype: torch.dtype) -> tuple[Inner, Tensor, Tensor]:
    """An inner loop, the images that are learned, and where the student should end."""
    numerics: Any = "float64" if dtype == torch.float64 else "float32"
    rt = Runtime(torch.device("cpu"), numerics, threads=default_threads())
    factory = Nets(resolve("convnet3"), CLASSES, 3, SIZE, rt)
    nets = factory.make(1, 0, "start")
    x = torch.randn((images, 3, SIZE, SIZE), generator=rng(0, "images"), dtype=torch.float32)
    x = x.to(dtype).requires_grad_()
    labels = torch.arange(images) % CLASSES
    strategy = parse(DSA)

    def shown(t: int) -> tuple[Tensor, Tensor]:
        return apply(x, draw(strategy, images, SIZE, rng(0, "augment", t))), labels

    rate = torch.tensor(0.01, dtype=dtype, requires_grad=True)
    start = flat(nets.member(0)[0]).detach().clone()
    end = flat(factory.make(1, 1, "start").member(0)[0]).detach().clone()
    return Inner(nets, start, steps, shown, rate, hard_ce), x, end


def gradient(images: int, steps: int, engine: Any, theta: Any, dtype: torch.dtype) -> Tensor:
    """The gradient [N,3,32,32] of the distance in the images."""
    inner, x, end = problem(images, steps, dtype)

    def distance(last: Tensor) -> Tensor:
        return (last - end).square().sum() / (inner.start - end).square().sum()

    through(inner, distance, [x], engine, theta).backward()
    assert x.grad is not None
    return x.grad


def held() -> int:
    """Bytes that this process held at most so far."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def one(images: int, steps: int, engine: str, theta: str) -> dict[str, Any]:
    """One line: run in a process of its own."""
    torch.set_num_threads(default_threads())
    gradient(1, 1, engine, theta, torch.float32)
    before = held()
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        found = gradient(images, steps, engine, theta, torch.float32)
        seconds.append(time.perf_counter() - began)
    memory = held() - before
    exact = gradient(images, steps, "unrolled", "device", torch.float64)
    error = float((found.double() - exact).norm() / exact.norm())
    return {
        "engine": engine,
        "theta": theta,
        "images": images,
        "steps": steps,
        "seconds": min(seconds[1:]),
        "memory": memory,
        "error": error,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--images", type=int, default=10)
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 20, 80])
    parser.add_argument("--json", type=Path, help="append the lines to this file")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(one(arguments.images, arguments.steps[0], *arguments.one)))
        return
    machine = {
        "torch": torch.__version__,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": default_threads(),
        "python": platform.python_version(),
    }
    print(f"{'steps':>5}  {'engine':<10} {'theta':<10} {'seconds':>8} {'memory':>9}  error")
    for steps in arguments.steps:
        for engine, theta in WAYS:
            line = [sys.executable, __file__, "--images", str(arguments.images)]
            line += ["--steps", str(steps), "--one", engine, theta]
            told = json.loads(subprocess.run(line, check=True, stdout=-1).stdout)
            print(
                f"{steps:5}  {engine:<10} {theta:<10} {told['seconds']:7.2f}s "
                f"{told['memory'] / 1e6:6.0f} MB  {told['error']:.1e}",
                flush=True,
            )
            if arguments.json is not None:
                with arguments.json.open("a", encoding="utf-8") as stream:
                    stream.write(json.dumps({**told, **machine}, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
