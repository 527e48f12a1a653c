"""How a run uses the machine: device, numerics, threads, compilation. Never what it computes.

`numerics` changes the result, so it is part of an artefact's key; everything else here is not and
goes to `run.json` and into snapshots (docs/architecture.md, "Keys").
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

import stillroom
from stillroom.errors import StillroomError
from stillroom.session import Session

Numerics = Literal["float32", "tf32", "bf16", "float64"]
COMPILE_FLOPS = 3e13  # about five minutes of two CPU cores: compiling (20 to 60 s) then pays
MOST_COMPILATIONS = 256  # of one piece of code; as many as torch's second limit lets through


@dataclass(frozen=True)
class Runtime:
    """The machine side of a run.

    rank and world number the processes that share one chunk; a chunk run by one process has
    rank 0 of 1. `compile` is decided (True or False) before a Runtime is made; where `by_size`, a
    stage that knows what it alone costs decides again (`sized`), so that it is the same whatever
    else a command makes.
    """

    device: torch.device
    numerics: Numerics = "float32"
    compile: bool = False
    by_size: bool = False
    threads: int = 1
    deterministic: bool = False
    allow_drift: bool = False
    rank: int = 0
    world: int = 1
    session: Session = field(default_factory=Session, compare=False, repr=False)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of master values: float64 under "float64", else float32."""
        return torch.float64 if self.numerics == "float64" else torch.float32

    def sized(self, flops: float, functions: int = 1) -> Runtime:
        """The same for work of so many operations: where size decides, compiled if it pays.

        Compiling costs the same for each of `functions`, and saves a share of the operations.
        """
        pays = flops >= COMPILE_FLOPS * functions
        return replace(self, compile=pays) if self.by_size else self

    def under(self, numerics: Numerics) -> Runtime:
        """The same with other numerics.

        Raises: StillroomError if the device has none such.
        """
        if numerics == "tf32" and self.device.type != "cuda":
            raise StillroomError("numerics=tf32 exists on CUDA only; use float32 or bf16 here")
        return replace(self, numerics=numerics)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Forward passes run under this: bfloat16 convolutions under "bf16", else nothing."""
        if self.numerics == "bf16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return contextlib.nullcontext()

    def conditions(self) -> dict[str, Any]:
        """What a snapshot must be resumed under, because bytes may depend on it."""
        cuda = self.device.type == "cuda"
        return {
            "device": torch.cuda.get_device_name(self.device) if cuda else self.device.type,
            "cuda": torch.version.cuda if cuda else None,
            "compile": self.compile,
            "threads": self.threads,
            "deterministic": self.deterministic,
            "torch": torch.__version__,
            "cpu": torch.backends.cpu.get_cpu_capability(),
        }

    @contextlib.contextmanager
    def activate(self) -> Iterator[None]:
        """Set threads, TF32, determinism and the compiler for a block, then restore what was there.

        The hint to the allocator stays: glibc has no way to ask what it was.
        """
        threads = torch.get_num_threads()
        precision = torch.get_float32_matmul_precision()
        conv = torch.backends.cudnn.allow_tf32
        deterministic = torch.are_deterministic_algorithms_enabled()
        keep_freed_memory()
        torch.set_num_threads(self.threads)
        torch.set_float32_matmul_precision("high" if self.numerics == "tf32" else "highest")
        torch.backends.cudnn.allow_tf32 = self.numerics == "tf32"
        if self.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
        try:
            with many_compilations() if self.compile else contextlib.nullcontext():
                yield
        finally:
            torch.set_num_threads(threads)
            torch.set_float32_matmul_precision(precision)
            torch.backends.cudnn.allow_tf32 = conv
            if self.deterministic:  # the call itself imports dynamo, a second of every command
                torch.use_deterministic_algorithms(deterministic)


def pick_device(name: str) -> torch.device:
    """Turn "auto", "cpu", "cuda" or "cuda:1" into a device that exists here.

    Raises: StillroomError if it does not.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise StillroomError(f"device={name!r} is not a device; use auto, cpu or cuda") from None
    if device.type == "cuda" and (
        not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()
    ):
        raise StillroomError(f"device={name!r} but this machine has no such GPU; use --device cpu")
    if device.type not in ("cpu", "cuda"):
        raise StillroomError(f"device={name!r} is not supported; use cpu or cuda")
    return device


def default_threads(workers: int = 1) -> int:
    """Threads of one process: the cores that this process may use, shared out over workers.

    At most as many as OMP_NUM_THREADS says, which torch would heed if nobody set its threads.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    own = max(1, (cores or 1) // workers)
    told = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()  # others: nested ones
    return min(own, int(told)) if told.isdecimal() and int(told) else own


def can_compile(device: torch.device) -> bool:
    """Whether torch.compile has what it needs here: a C++ compiler on CPU, triton on CUDA."""
    import importlib.util
    import shutil

    if device.type == "cuda":
        return importlib.util.find_spec("triton") is not None
    compiler = os.environ.get("CXX", "g++")
    return any(shutil.which(c) for c in (compiler, "g++", "clang++"))


def many_compilations() -> contextlib.AbstractContextManager[Any]:
    """Within this block one piece of code may be compiled for many networks and image counts."""
    import torch._dynamo  # takes a second, so only where something is compiled

    # All networks share the code of a few functions (nets/ensemble.py). After eight compilations
    # of one of them torch would go on eager, without an error: a command that judges several
    # architectures would slow down, and bytes would depend on what it judged before.
    config: Any = torch._dynamo.config
    name = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"
    patch: contextlib.AbstractContextManager[Any] = config.patch({name: MOST_COMPILATIONS})
    return patch


def keep_freed_memory() -> None:
    """Ask glibc to reuse large blocks instead of handing them back to the kernel.

    Activations of 8 to 134 MB are otherwise mapped, zeroed page by page and unmapped at every
    layer (benchmarks/, the line "twin + allocator"). Results do not change. Elsewhere than
    glibc this does nothing.
    """
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return
    m_trim_threshold, m_mmap_max = -1, -4
    libc = ctypes.CDLL(None)
    libc.mallopt(m_mmap_max, 0)
    libc.mallopt(m_trim_threshold, 2**31 - 1)


def available_memory(device: torch.device) -> int:
    """Bytes that a run may hope for now; used to refuse a run, never to choose its shape."""
    if device.type == "cuda":  # what torch holds for its next tensors is free too
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    with contextlib.suppress(OSError, ValueError, StopIteration):
        with open("/proc/meminfo", encoding="ascii") as stream:
            line = next(row for row in stream if row.startswith("MemAvailable"))
        return int(line.split()[1]) * 1024
    return 2**63 - 1  # unknown: nothing is refused


def refuse_too_large(need: int, what: str, device: torch.device, remedy: str) -> None:
    """Refuse before work starts what cannot fit: `what` says who needs it, and how surely.

    Raises: StillroomError naming need, supply and the remedy.
    """
    supply = available_memory(device)
    if need > supply:
        raise StillroomError(
            f"{what} {need / 2**30:.1f} GiB of memory on {device} and {supply / 2**30:.1f} GiB are "
            f"free; {remedy}"
        )


def refuse_full(need: int, folder: Path, remedy: str) -> None:
    """Refuse before work starts what the disk of an existing folder has no room for.

    Raises: StillroomError naming need, room and the remedy.
    """
    room = shutil.disk_usage(folder).free
    if need > room:
        raise StillroomError(
            f"about {need / 1e9:.1f} GB are to be written below {folder} and {room / 1e9:.1f} GB "
            f"are free there; {remedy}"
        )


def peak_memory(device: torch.device) -> int:
    """The most bytes since `forget_peak`: of tensors on a GPU, of this process on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    found = re.search(r"^VmHWM:\s*(\d+) kB", status, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def forget_peak(device: torch.device) -> bool:
    """Start `peak_memory` anew; False where that cannot be done (a CPU of another system)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def environment(runtime: Runtime) -> dict[str, Any]:
    """What `run.json` says of the machine: no host name, no user, no path."""
    name = platform.processor() or platform.machine()
    if runtime.device.type == "cuda":
        name = torch.cuda.get_device_name(runtime.device)
    return {
        **runtime.conditions(),
        "device_name": name,
        "numerics": runtime.numerics,
        "python": platform.python_version(),
        "stillroom": stillroom.__version__,
        "system": platform.system(),
    }
