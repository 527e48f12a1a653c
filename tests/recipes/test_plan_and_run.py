"""Rows of the decoupled papers: each prints its plan, and each method's runs from end to end."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from stillroom.artefacts import opened, originals
from stillroom.cli import run
from stillroom.data.benchmarks import Benchmark
from stillroom.data.named import NAMED
from stillroom.data.preprocess import CONSTANTS
from stillroom.data.source import ImageSource
from stillroom.distilled import load
from stillroom.nets.ensemble import Nets
from stillroom.recipe import find_row, packaged, read_yaml, validate
from stillroom.records import read_records
from stillroom.run import distil, estimate, prepare
from stillroom.run import machine as machines
from stillroom.runtime import Runtime
from stillroom.types import Preprocess

DECOUPLED = ("sre2l", "cda", "gvbsm", "rded", "edc-paper", "edc-released")
SETS = ("cifar10", "cifar100", "tiny-imagenet", "imagenet-10", "imagenet-1k")
IPCS = (1, 10, 50)


def test_there_is_a_row_for_each_method_data_set_and_size() -> None:
    rows = {f"{m}/{d}-ipc{k}" for m in DECOUPLED for d in SETS for k in IPCS}
    assert rows == {r.name for r in packaged() if r.name.partition("/")[0] in DECOUPLED}


# Specification of the decoupled methods, 3.9 and 7: steps, rate, weight, moving average, least
# crop, batch. One image a class, where that matters.
TOLD = {
    "edc-paper/cifar10": (75, 0.05, 0.01, 0.8, 0.08, 10),
    "edc-paper/cifar100": (2000, 0.05, 0.01, 0.8, 0.5, 100),
    "edc-paper/tiny-imagenet": (2000, 0.05, 0.01, 0.8, 0.5, 100),
    "edc-paper/imagenet-10": (2000, 0.05, 0.01, 0.0, 0.5, 100),
    "edc-paper/imagenet-1k": (2000, 0.05, 0.01, 0.8, 0.5, 80 // 4),
    "edc-released/imagenet-10": (50, 0.05, 0.01, 0.0, 0.5, 100),
    "edc-released/imagenet-1k": (1000, 0.05, 0.1, 0.8, 0.5, 80 // 2),
    "sre2l/cifar100": (1000, 0.25, 0.01, 0.0, 1.0, 100),
    "sre2l/tiny-imagenet": (4000, 0.1, 1.0, 0.0, 0.08, 100),
    "sre2l/imagenet-1k": (4000, 0.25, 0.01, 0.0, 0.08, 100),
    "cda/tiny-imagenet": (4000, 0.4, 0.05, 0.0, 0.08, 100),
    "cda/imagenet-1k": (4000, 0.25, 0.01, 0.0, 0.08, 100),
    "gvbsm/cifar10": (4000, 0.05, 0.01, 0.8, 1.0, 100),
    "gvbsm/tiny-imagenet": (4000, 0.05, 0.01, 0.8, 1.0, 100),
    "gvbsm/imagenet-1k": (4000, 0.1, 0.01, 0.4, 0.08, 80 // 2),
}


@pytest.mark.parametrize("name", TOLD)
def test_what_the_papers_and_scripts_say(name: str) -> None:
    row = find_row(*name.split("/"), 1)
    assert row is not None
    made = validate(read_yaml(row.path), row.name)
    m: Any = made.method
    told = (made.outer.steps, made.outer.images.lr, m.weight, m.momentum, m.views.crop, m.batch)
    assert told == TOLD[name]
    assert (m.flat.weight > 0) == name.startswith("edc-paper")
    released = not name.startswith("edc-paper")
    assert (m.average_start == "zero") == (released and m.layers == "all")


def fake(name: str) -> Benchmark:
    """A named benchmark of as many classes and pixels, fifty images each that take no memory."""
    named = NAMED[name]
    labels = torch.arange(named.classes).repeat_interleave(500)  # mosaics take four an image
    one = torch.zeros(1, 3, named.size, named.size, dtype=torch.uint8)
    source = ImageSource(one.expand(len(labels), -1, -1, -1), labels)
    return Benchmark(
        name=name,
        classes=tuple(map(str, range(named.classes))),
        channels=3,
        size=named.size,
        preprocess=Preprocess(named.constants or "", *CONSTANTS[named.constants or ""]),
        train=source,
        val=None,
        test=source,
        digest="d",
        split="given",
        notes=(),
        content="c",
        val_share=0.0,
        split_seed=0,
        duplicates=0,
        known=name,
    )


def absent(data: str, monkeypatch: pytest.MonkeyPatch) -> Benchmark:
    """Named data that are not here, on a machine with memory for them; nothing is timed."""
    bench = fake(data)

    @functools.cache
    def nets(arch: Any) -> Nets:
        rt = Runtime(device=torch.device("cpu"))
        return Nets(arch, len(bench.classes), bench.channels, bench.size, rt)

    monkeypatch.setattr(machines, "benchmark", lambda *_: bench)
    monkeypatch.setattr(opened, "reopen", lambda *_: bench)
    for module in (distil, originals):
        monkeypatch.setattr(module, "nets_for", lambda arch, *_: nets(arch))
    for module in (estimate, prepare):
        monkeypatch.setattr(module, "seconds", lambda *_: 60.0)
    monkeypatch.setattr("stillroom.runtime.available_memory", lambda _: 2**50)
    return bench


ALL = [pytest.param(data, IPCS, id=f"{data}-all", marks=pytest.mark.slow) for data in SETS]


@pytest.mark.parametrize(("data", "ipcs"), [pytest.param("cifar10", (10,), id="cifar10"), *ALL])
def test_every_row_prints_its_plan(
    data: str,
    ipcs: tuple[int, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of data that are not here, on a machine with memory for them; networks are looked at once."""
    bench = absent(data, monkeypatch)
    for method in DECOUPLED:
        for ipc in ipcs:
            row = f"{method}/{data}-ipc{ipc}"
            assert run(["distill", row, "--plan", "--store", f"{tmp_path}/store"]) == 0
            told = " ".join(capsys.readouterr().out.replace("│", "").split())
            assert f"settings recipe {row}" in told
            assert f"images {ipc * len(bench.classes)} (uint8)" in told
            assert "to train" in told
    assert not list((tmp_path / "store").glob("*/"))


CLOM = [row.name for row in packaged() if "-clom" in row.name]


@pytest.mark.parametrize(
    "row",
    [pytest.param(row, marks=() if "pool" in row else pytest.mark.slow) for row in CLOM],
)
def test_every_row_with_clom_prints_its_plan(
    row: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the originals of the paper: ten of each network, four networks of a pool."""
    absent(row.partition("/")[2].rpartition("-ipc")[0], monkeypatch)
    assert run(["distill", row, "--plan", "--store", f"{tmp_path}/store"]) == 0
    told = " ".join(capsys.readouterr().out.replace("│", "").split())
    assert f"settings recipe {row}" in told
    assert f"{40 if 'pool' in row else 10} original models to train" in told


def small(row: str, network: str, schooling: str, *more: str) -> list[str]:
    """The recipe, on small networks and for a few steps, with its evaluation."""
    value = read_yaml(next(r.path for r in packaged() if r.name == row))
    method, (spec,) = value["method"], value["evaluate"]
    epochs = spec["protocol"].partition("+")[0] + "+epochs=1"
    changes = [
        f"arch={network}",
        f"method.schooling={schooling}",
        f"outer.steps={min(2, value['outer']['steps'])}",
        f"evaluate.0.protocol={epochs}",
        "evaluate.0.seeds=1",
        "evaluate.0.baselines=false",
        *more,
    ]
    return [row, *changes, *(["method.crops.pool=40"] if "crops" in method else [])]


def check(folder: Path, row: str) -> None:
    made, records = load(folder), read_records(folder / "records.jsonl")
    method = row.partition("/")[0].partition("-")[0]
    assert made.provenance["label"] == method
    assert made.storage == "uint8"
    assert len(made) == len(made.classes) * made.ipc
    (told,) = [r for r in records if r.metric == "accuracy"]
    spec = read_yaml(next(r.path for r in packaged() if r.name == row))["evaluate"][0]
    assert told.protocol.partition("+")[0] == spec["protocol"].partition("+")[0]


@pytest.mark.parametrize("method", DECOUPLED)
def test_each_method_runs_on_the_digits(method: str, tmp_path: Path) -> None:
    """Squeeze, recover, labels by teachers, a student under the method's own protocol."""
    row, net = f"{method}/cifar10-ipc1", "convnet1-w4-bn"
    line = small(row, net, "default+epochs=1+batch=64", f"method.observers=[{net}]")
    where = ["--data", "digits", "--out", f"{tmp_path}/set", "--store", f"{tmp_path}/store"]
    assert run(["distill", *line, *where, "--threads", "1", "--quiet"]) == 0
    check(tmp_path / "set", row)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of 48 coloured pictures of 64 pixels, and one store for all recipes."""
    root = tmp_path_factory.mktemp("photos")
    draws = np.random.default_rng(0)
    for c in range(2):
        (root / "data" / f"class{c}").mkdir(parents=True)
        for i in range(48):
            low = draws.integers(0, 128, (8, 8, 3)) + np.array([100 * c, 40, 100 - 100 * c])
            image = Image.fromarray(low.astype(np.uint8)).resize((64, 64))
            image.save(root / "data" / f"class{c}" / f"{i}.png")
    return root


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("method", DECOUPLED)
def test_recipes_of_imagenet_run_on_a_small_folder(method: str, photos: Path) -> None:
    """All stages, with the networks of ImageNet about as they begin; their norms have settled.

    At one image a class: what 10 and 50 change is told by their plans.
    """
    row = f"{method}/imagenet-1k-ipc1"
    line = small(row, "imagenet/resnet18", "default+epochs=3+batch=16+lr=0.001")
    out = photos / row.replace("/", "-")
    where = ["--data", f"{photos}/data", "--size", "64", "--out", str(out)]
    assert run(["distill", *line, *where, "--store", f"{photos}/store", "--quiet"]) == 0
    check(out, row)
