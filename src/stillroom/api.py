"""The Python interface: the same runs as the command line, on the user's own objects."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pydantic import ValidationError
from torch import Tensor, nn

from stillroom.artefacts.store import Store
from stillroom.config import Model
from stillroom.data.benchmarks import Benchmark, from_arrays, from_dataset
from stillroom.distilled import Distilled, load
from stillroom.errors import StillroomError
from stillroom.evaluation.protocol import find_protocol
from stillroom.nets.ensemble import Backend
from stillroom.recipe import explain, from_preset
from stillroom.run import fits
from stillroom.run import judge as judges
from stillroom.run import machine as machines
from stillroom.run.distil import distil, plan
from stillroom.run.options import DataOptions, Machine
from stillroom.runtime import Numerics, Session
from stillroom.types import Record

M = TypeVar("M", bound=Model)
Net = str | Callable[..., nn.Module]


def distill(
    method: str,
    data: Any,
    *,
    ipc: int,
    net: Net = "auto",
    test: Any = None,
    out: str | Path | None = None,
    seed: int = 0,
    steps: int | None = None,
    numerics: Numerics = "float32",
    options: dict[str, Any] | None = None,
    data_options: dict[str, Any] | None = None,
    machine: dict[str, Any] | None = None,
) -> Distilled:
    """Distil `data` to `ipc` images a class.

    method: a preset ("dm", "random", "k-means", ...). data: text as on the command line, a
    `torch.utils.data.Dataset` of (image, label), a pair of arrays (images, labels), or a
    `Benchmark`; `test` likewise, optional. net: a zoo name, "pkg.mod:Factory", or any callable
    that returns an `nn.Module`. options: a partial recipe, such as
    {"method": {"batch_real": 128}, "outer": {"images": {"lr": 0.5}}}. machine and data_options:
    fields of `Machine` and `DataOptions`, such as {"device": "cuda"} and {"size": 32}.
    Returns the set, published in `out` if that is given.
    Raises: StillroomError for bad input, in one line.
    """
    settings = settled(Machine, machine, "machine")
    store = machines.store(settings)
    bench = as_benchmark(data, test, settled(DataOptions, data_options, "data_options"), store)
    given = dict(options or {})
    given["seed"], given["numerics"] = seed, numerics
    if steps is not None:
        given["outer"] = {**given.get("outer", {}), "steps": steps}
    recipe, row = from_preset(method, bench.name, ipc, given, bench.known)
    planned = plan(
        recipe,
        bench,
        settings,
        Session(),
        store=store,
        out=None if out is None else Path(out),
        net=None if net == "auto" else net,
        row=row,
    )
    return distil(planned, settings)


def evaluate(
    folder: str | Path,
    data: Any = None,
    *,
    protocol: str = "quick@1",
    net: Net | Sequence[Net] = "auto",
    test: Any = None,
    seeds: int | None = None,
    steps: str = "last",
    baselines: bool = False,
    numerics: Numerics = "float32",
    students: Backend = "loop",
    real_jpegs: bool = False,
    real_images: bool = True,
    data_options: dict[str, Any] | None = None,
    machine: dict[str, Any] | None = None,
) -> list[Record]:
    """Train students on a set and test them on real images; one record a student.

    folder: a set on disk (`Distilled.save` or `out=`). data: as for `distill`; by default the data
    that the set was made from, if they are in the store. net: students, by default the network
    that the set was made with. real_jpegs: random real images kept as
    JPEG beside it, up to the set's bytes. real_images: keep the nearest real ones for its page.
    Records are added to `folder/records.jsonl`.
    Raises: StillroomError for bad input, in one line.
    """
    if seeds is not None and not 1 <= seeds <= 1000:
        raise StillroomError(f"seeds={seeds} must lie in 1..1000")
    settings = settled(Machine, machine, "machine")
    store = machines.store(settings)
    if isinstance(folder, Distilled):
        raise StillroomError("evaluate judges a set on disk; save it, or distil with out=FOLDER")
    path = Path(folder)
    made = load(path)
    options = settled(DataOptions, data_options, "data_options")
    bench = (
        fits.bench_of_set(made, path, store)
        if data is None
        else as_benchmark(data, test, options, store)
    )
    wanted = fits.student_of(made, bench) if net == "auto" else net
    nets: Sequence[Net] = [wanted] if isinstance(wanted, str) or callable(wanted) else wanted
    asked = judges.Asked(
        find_protocol(protocol),
        nets,
        seeds,
        steps,
        baselines,
        numerics,
        students,
        real_jpegs,
        real_images,
    )
    ledger = path / "records.jsonl"
    return judges.evaluate(path, bench, asked, store, settings, Session(), ledger)


def settled(model: type[M], values: dict[str, Any] | None, source: str) -> M:
    """Make a model of options.

    Raises: StillroomError naming the option.
    """
    try:
        return model(**(values or {}))
    except ValidationError as error:
        raise StillroomError(f"{source}: {explain(error)}") from None


def as_benchmark(data: Any, test: Any, options: DataOptions, store: Store) -> Benchmark:
    """Make a benchmark of text, arrays, a Dataset or a Benchmark."""
    if isinstance(data, Benchmark):
        return data
    if isinstance(data, (str, Path)):
        return machines.benchmark(str(data), options, store)
    common: dict[str, Any] = {
        "size": options.size,
        "normalise": options.normalise,
        "zca": options.zca,
        "val": options.val,
        "split_seed": options.split_seed,
        "store": store.root,
    }
    if isinstance(data, tuple) and len(data) == 2 and isinstance(data[0], (np.ndarray, Tensor)):
        held = test if test is not None else (None, None)
        return from_arrays(*data, *held, **common)
    if hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        return from_dataset(data, test, name=type(data).__name__, **common)
    raise StillroomError(
        f"data of type {type(data).__name__} is none of: text, (images, labels), Dataset, Benchmark"
    )
