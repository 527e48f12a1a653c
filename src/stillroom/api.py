"""The Python interface: the same runs as the command line, on the user's own objects."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from stillroom import tables
from stillroom.artefacts.schooling import MOST_MODELS, find_schooling
from stillroom.artefacts.store import Store
from stillroom.data.benchmarks import Benchmark, from_arrays, from_dataset
from stillroom.distilled import Distilled, load
from stillroom.errors import StillroomError
from stillroom.evaluation.published import find_protocol
from stillroom.evaluation.statistics import Paired
from stillroom.files import user_path
from stillroom.nets.ensemble import Backend
from stillroom.recipe import from_preset, settled
from stillroom.records import LEDGER
from stillroom.run import assess as assessing
from stillroom.run import fits
from stillroom.run import judge as judges
from stillroom.run import machine as machines
from stillroom.run.distil import distil, plan
from stillroom.run.judging import Asked
from stillroom.run.options import DataOptions, Machine
from stillroom.runtime import Numerics
from stillroom.session import Interrupted, Session
from stillroom.types import Record

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
    keep: Sequence[int] = (),
    init_from: str | Path | None = None,
    force: bool = False,
    progress: bool = False,
    data_options: dict[str, Any] | None = None,
    machine: dict[str, Any] | None = None,
) -> Distilled:
    """Distil `data` to `ipc` images a class.

    method: a preset ("dm", "random", "k-means", ...). data: text as on the command line, a
    `torch.utils.data.Dataset` of (image, label), a pair of arrays (images, labels), or a
    `Benchmark`; `test` likewise, optional. net: a zoo name, "pkg.mod:Factory", or any callable
    that returns an `nn.Module`. options: a partial recipe, such as
    {"method": {"batch_real": 128}, "outer": {"images": {"lr": 0.5}}}. keep: steps that are
    published too. init_from: a set, or a folder of classes, whose images it starts from. force:
    overwrite another run in `out`. progress: a bar and notes on standard error. machine and
    data_options: fields of `Machine` and `DataOptions`, such as {"device": "cuda"} and
    {"size": 32}.
    Returns the set, float32 [N,ch,H,W] in network space, published in `out` if that is given.
    Raises: StillroomError for bad input, in one line; KeyboardInterrupt after Ctrl-C (and after
    `machine["minutes"]`), when everything that the same call needs to go on is on disk.
    """
    settings = settled(Machine, machine, "machine")
    store = machines.store(settings)
    bench = as_benchmark(data, test, settled(DataOptions, data_options, "data_options"), store)
    given = dict(options or {})
    given["seed"], given["numerics"] = seed, numerics
    outer = {"steps": steps, "keep": sorted(set(keep)) or None}
    chosen = {name: value for name, value in outer.items() if value is not None}
    given["outer"] = {**given.get("outer", {}), **chosen}
    recipe, row = from_preset(method, bench.name, ipc, given, bench.known)
    _check_whitening(given, recipe.zca, bench, row)
    with _session(progress, settings) as session:
        planned = plan(
            recipe,
            bench,
            settings,
            session,
            store=store,
            out=None if out is None else Path(out),
            net=None if net == "auto" else net,
            init_from=None if init_from is None else Path(init_from),
            row=row,
            force=force,
        )
        return distil(planned, settings)


def _check_whitening(given: dict[str, Any], wanted: bool, bench: Benchmark, row: Any) -> None:
    """Refuse it as an option; warn where a published row is of whitened images and these are not.

    Raises: StillroomError.
    """
    if "zca" in given:
        raise StillroomError('options["zca"]: whitening is of the data; data_options={"zca": True}')
    if wanted and bench.preprocess.zca is None:
        told = 'is of whitened images, which these are not: data_options={"zca": True}'
        warnings.warn(f"{row} {told}", stacklevel=3)


@contextlib.contextmanager
def _session(progress: bool, settings: Machine) -> Iterator[Session]:
    """A session that Ctrl-C stops cleanly; as Python has it, by a KeyboardInterrupt."""
    from stillroom.progress import Shown

    session = Shown(quiet=not progress)
    try:
        with session.interruptible(settings.minutes):
            yield session
    except Interrupted:
        raise KeyboardInterrupt("stopped; the same call goes on") from None


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
    save_models: str | Path | None = None,
    force: bool = False,
    teachers: dict[str, Any] | None = None,
    progress: bool = False,
    data_options: dict[str, Any] | None = None,
    machine: dict[str, Any] | None = None,
) -> list[Record]:
    """Train students on a set and test them on real images.

    Returns a record for every student and selection rule: "accuracy" is what the protocol quotes.

    folder: a set on disk (`Distilled.save` or `out=`). data: as for `distill`; by default the data
    that the set was made from, if they are in the store. net: students, by default the network
    that the set was made with. real_jpegs: random real images kept as JPEG beside it, up to the
    set's bytes. real_images: keep the nearest real ones for its page. save_models: a folder for the
    students' weights; force: overwrite other students there. teachers: whose labels students get,
    fields of `Faculty` such as {"archs": ["convnet3"], "schooling": "edc"}; by default what the set
    carries, else of those that made it. progress: as for `distill`.
    Records are added to `folder/records.jsonl`; `compare` compares those of two sets.
    Raises: as `distill`.
    """
    settings = settled(Machine, machine, "machine")
    store = machines.store(settings)
    if isinstance(folder, Distilled):
        raise StillroomError("evaluate judges a set on disk; save it, or distil with out=FOLDER")
    made = load(path := user_path(folder, "folder"))
    options = settled(DataOptions, data_options, "data_options")
    bench = _bench_of(made, path, data, test, options, store)
    wanted = fits.student_of(made) if net == "auto" else net
    fields = {
        "protocol": find_protocol(protocol),
        "archs": (wanted,) if isinstance(wanted, str) or callable(wanted) else tuple(wanted),
        "seeds": seeds,
        "steps": steps,
        "baselines": baselines,
        "numerics": numerics,
        "students": students,
        "real_jpegs": real_jpegs,
        "real_images": real_images,
        "save_models": None if save_models is None else user_path(save_models, "save_models"),
        "force": force,
        "teachers": teachers or {},
    }
    asked = settled(Asked, fields, "evaluate")
    with _session(progress, settings) as session:
        return judges.evaluate(path, bench, asked, store, settings, session, path / LEDGER)


def assess(
    folder: str | Path,
    data: Any = None,
    *,
    net: str | Sequence[str] = "auto",
    num: int = 3,
    originals: str = "default",
    test: Any = None,
    progress: bool = False,
    data_options: dict[str, Any] | None = None,
    machine: dict[str, Any] | None = None,
) -> list[Record]:
    """Measure a set without training a student on it.

    Returns a record for every measure and network; `note` says what it was asked of.

    folder, data and test: as for `evaluate`. net: networks of the original models, by name or
    "pkg.mod:Factory", by default the set's own. num: models of each. originals: how they are
    trained, a name such as "clom" or "default+epochs=5"; those that are not in the store are
    trained now. Models that the set was made with are left aside.
    progress: as for `distill`. Records are added to `folder/records.jsonl`.
    Raises: as `distill`.
    """
    settings = settled(Machine, machine, "machine")
    store = machines.store(settings)
    if isinstance(folder, Distilled):
        raise StillroomError("assess measures a set on disk; save it, or distil with out=FOLDER")
    if isinstance(num, bool) or not isinstance(num, int) or not 1 <= num <= MOST_MODELS:
        raise StillroomError(f"num={num!r} must be a whole number in 1..{MOST_MODELS}")
    path = user_path(folder, "folder")
    made = load(path)
    options = settled(DataOptions, data_options, "data_options")
    bench = _bench_of(made, path, data, test, options, store)
    named = [net] if isinstance(net, str) else list(net)
    nets = [fits.student_of(made) if name == "auto" else name for name in named]
    stages = assessing.held_out(made, bench, nets, num, find_schooling(originals), store)
    with _session(progress, settings) as session:
        ledger = path / LEDGER
        return assessing.assess(path, bench, stages, store, settings, session, ledger)[1]


def _bench_of(
    made: Distilled, path: Path, data: Any, test: Any, options: DataOptions, store: Store
) -> Benchmark:
    """The data that are given, else those that the set was made from."""
    if data is None:
        return fits.bench_of_set(made, path, store)
    return as_benchmark(data, test, options, store)


def compare(a: Sequence[Record], b: Sequence[Record]) -> Paired | None:
    """Compare two sets by their records of one network, student by student of the same seed.

    Returns the difference of accuracies (a fraction) with its 95 % interval, and the p-value of a
    paired t test; None where no seed is common. Raises: StillroomError if the sets were not judged
    alike.
    """
    return tables.compare(a, b)


def as_benchmark(data: Any, test: Any, options: DataOptions, store: Store) -> Benchmark:
    """Make a benchmark of text, arrays, a Dataset or a Benchmark."""
    if isinstance(data, Benchmark) and options.classes is None:
        return data
    if isinstance(data, (str, Path)):
        return machines.benchmark(str(data), options, store)
    if options.classes is not None:
        raise StillroomError('data_options["classes"] is of data by name; cut these yourself')
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
