"""From flags to a `Runtime`, a `Store`, an `Executor`, data and networks."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stillroom.artefacts.executor import Executor, Processes, Serial
from stillroom.artefacts.store import Store, default_store
from stillroom.data.benchmarks import Benchmark, DataSpec, load_benchmark
from stillroom.data.named import NAMED
from stillroom.errors import StillroomError
from stillroom.files import readable_os_errors, user_path
from stillroom.nets.zoo import Arch, default_arch, resolve
from stillroom.run.options import DataOptions, Machine
from stillroom.runtime import Numerics, Runtime, can_compile, default_threads, pick_device
from stillroom.session import Session


def runtime(machine: Machine, numerics: Numerics, flops: float, session: Session) -> Runtime:
    """Decide device, threads and compilation; all from what is static, none from a timing.

    Raises: StillroomError if what is asked for does not exist here.
    """
    if machine.deterministic:  # cuBLAS reads it when it is first used
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    device = pick_device(machine.device)
    able = can_compile(device)
    if machine.compile == "on" and not able:
        raise StillroomError(
            "--compile on needs a C++ compiler (CPU) or triton (CUDA), and there is none; "
            "install one or use --compile off"
        )
    made = Runtime(
        device=device,
        compile=able and machine.compile == "on",
        by_size=able and machine.compile == "auto" and device.type == "cpu",
        threads=machine.threads or default_threads(machine.workers),
        deterministic=machine.deterministic,
        allow_drift=machine.allow_drift,
        session=session,
    )
    return made.under(numerics).sized(flops)


def store(machine: Machine) -> Store:
    """The store that the flags name, made if need be.

    Raises: StillroomError if it cannot be made.
    """
    root = user_path(machine.store or default_store(), "store")
    if root.exists() and not root.is_dir():
        raise StillroomError(f"store={root} is a file; name a folder with --store")
    with readable_os_errors(root):
        root.mkdir(parents=True, exist_ok=True)
    return Store(root)


def executor(machine: Machine) -> Executor:
    """Serial for one worker, processes for more."""
    return Serial() if machine.workers == 1 else Processes(machine.workers)


def benchmark(data: str, options: DataOptions, store: Store) -> Benchmark:
    """Read (or reopen) the real data that a run asks for."""
    spec = DataSpec(
        data=data,
        data_root=options.data_root,
        size=options.size,
        normalise=options.normalise,
        zca=options.zca,
        val=options.val,
        split_seed=options.split_seed,
        skip_bad=options.skip_bad,
        classes=options.classes,
    )
    return load_benchmark(spec, Path(store.root))


def choose_arch(arch: str | Callable[..., Any], bench: Benchmark) -> Arch:
    """The architecture that a name, import path or callable stands for.

    "auto" is the network of a named benchmark, also of some of its classes, else one by image size.
    """
    like = bench.like
    usual = NAMED[like].arch if like and NAMED[like].size == bench.size else "auto"
    named = usual if arch == "auto" else arch
    return resolve(default_arch(bench.size) if named == "auto" else named)
