"""What a plan says before anything is made."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from stillroom.artefacts.executor import Serial
from stillroom.artefacts.store import Store, obtain_all
from stillroom.cli import run
from stillroom.data.benchmarks import Benchmark, from_arrays
from stillroom.nets.ensemble import Nets
from stillroom.nets.zoo import resolve
from stillroom.recipe import from_preset
from stillroom.run.distil import Plan, plan
from stillroom.run.estimate import distil_estimate
from stillroom.run.options import Machine
from stillroom.run.prepare import costs_of_stages
from stillroom.runtime import Runtime
from stillroom.session import Session


def test_memory_of_gradient_matching_holds_a_class_of_real_images() -> None:
    """Its gradient keeps every layer's output of them, whatever the network."""
    images = torch.zeros(600, 3, 32, 32, dtype=torch.uint8)
    bench = from_arrays(images, torch.arange(600) % 2, images, torch.arange(600) % 2)
    nets = Nets(resolve("convnet3"), 2, 3, 32, Runtime(torch.device("cpu")))
    found = {}
    for name in ("dc", "dm"):
        recipe, _ = from_preset(name, "toy", 1, {"arch": "convnet3"})
        found[name] = distil_estimate(recipe, bench, lambda _: nets).memory
    assert found["dc"] >= 256 * nets.activation_bytes()
    term = {"kind": "clom", "weights": [1.0]}
    given = {"arch": "convnet3", "regularisers": [term]}
    with_term, _ = from_preset("dm", "toy", 300, given)
    without, _ = from_preset("dm", "toy", 300, {"arch": "convnet3"})
    more, less = (distil_estimate(r, bench, lambda _: nets) for r in (with_term, without))
    assert more.memory >= 600 * nets.activation_bytes()
    assert more.flops - less.flops == pytest.approx(2 * 1000 * 600 * nets.forward_flops())


def test_statistics_of_all_classes_are_part_of_the_memory() -> None:
    """Of BatchNorm in gradient matching: 16 real images of every class in one forward."""
    images = torch.zeros(600, 3, 32, 32, dtype=torch.uint8)
    bench = from_arrays(images, torch.arange(600) % 300, images, torch.arange(600) % 300)
    memory = {}
    for arch in ("convnet3-w32", "convnet3-w32-bn"):
        nets = Nets(resolve(arch), 300, 3, 32, Runtime(torch.device("cpu")))
        recipe, _ = from_preset("dc", "toy", 1, {"arch": arch, "method": {"batch_real": 2}})
        memory[arch] = distil_estimate(recipe, bench, lambda _, n=nets: n).memory
        most = 16 * 300 * 2 * nets.largest_activation()
        assert (memory[arch] > most) == arch.endswith("-bn")


def test_a_term_is_priced_with_the_networks_that_it_asks() -> None:
    """Those of its pool, as often as they are drawn with a weight; `cos` shows real images too."""
    images = torch.zeros(40, 3, 16, 16, dtype=torch.uint8)
    bench = from_arrays(images, torch.arange(40) % 2, images, torch.arange(40) % 2)
    known = {a: Nets(resolve(a), 2, 3, 16, Runtime(torch.device("cpu"))) for a in ("mlp", "lenet")}
    known["auto"] = Nets(resolve("convnet1-w4"), 2, 3, 16, Runtime(torch.device("cpu")))

    def flops(**term: Any) -> float:
        terms = [{"kind": "clom", "num": 1, **term}] if term else []
        given = {"arch": "convnet1-w4", "regularisers": terms, "outer": {"steps": 10}}
        recipe, _ = from_preset("dm", "toy", 3, given)
        return distil_estimate(recipe, bench, known.__getitem__).flops

    plain, one = flops(), {name: nets.forward_flops() for name, nets in known.items()}
    mean = (one["mlp"] + one["lenet"]) / 2
    assert flops(weights=5) - plain == pytest.approx(10 * 12 * one["auto"])
    assert flops(weights=5, pool=["mlp", "lenet"]) - plain == pytest.approx(10 * 12 * mean)
    assert flops(weights=[0, 5], pool=["mlp", "lenet"]) - plain == pytest.approx(
        10 * 12 / 2 * one["lenet"]
    )
    assert flops(weights=5, pool="mlp", distance="cos", batch_real=30) - plain == pytest.approx(
        10 * (12 + 30) * one["mlp"]
    )
    assert flops(weights=0) == plain


def a_bench(store: Path) -> Benchmark:
    images = torch.zeros(40, 3, 16, 16, dtype=torch.uint8)
    return from_arrays(images, torch.arange(40) % 2, images, torch.arange(40) % 2, store=store)


def nets_of(*archs: str) -> list[Nets]:
    return [Nets(resolve(a), 2, 3, 16, Runtime(torch.device("cpu"))) for a in archs]


def planned(store: Path, preset: str, **method: Any) -> Plan:
    recipe, _ = from_preset(preset, "toy", 1, {"arch": "convnet1-w4", "method": method})
    machine = Machine(threads=1)
    return plan(recipe, a_bench(store), machine, Session(), store=Store(store))


def test_a_plan_counts_the_networks_that_images_are_shown_to(tmp_path: Path) -> None:
    """The observers, in turn, not the network that the recipe names for students."""
    both = ("convnet2-w32", "convnet1-w4")
    one, two = (planned(tmp_path, "edc", observers=a).estimate for a in (both[1:], both))
    large, small = (nets.forward_flops() for nets in nets_of(*both))
    assert two.flops / one.flops == pytest.approx((large + small) / 2 / small)
    assert two.memory > one.memory, "of the largest"


def test_a_plan_counts_scoring(tmp_path: Path) -> None:
    """Crops of every class by every network; by EDC's rule all images before. No step is taken."""
    (nets,) = nets_of("convnet1-w4")
    crops = {"pool": 5, "crops": 3}
    for rule, images in (("rded", 2 * 5 * 3), ("edc", 2 * 5 * 3 + 40)):
        found = planned(tmp_path, "rded", crops={**crops, "rule": rule}).estimate
        assert found.steps == 0
        assert found.flops == images * nets.forward_flops()
    (other,) = nets_of("convnet1-w8")
    both = planned(tmp_path, "rded", crops=crops, observers=("convnet1-w4", "convnet1-w8"))
    shown = nets.forward_flops() + other.forward_flops()
    assert both.estimate.flops == 2 * 5 * 3 * shown
    many = planned(tmp_path, "rded", crops={"pool": 20, "crops": 1000})
    assert many.estimate.memory > 2 * 20 * 1000 * 3 * 16 * 16 * 4


def test_a_plan_counts_local_targets(tmp_path: Path) -> None:
    """Some images of both classes for the one chunk, for each of two models."""
    (nets,) = nets_of("convnet1-w4")
    asked = {"observers": ("convnet1-w4",), "num": 2}
    plain, local = (
        planned(tmp_path, "edc", **asked, **targets).estimate.flops
        for targets in ({"targets": "whole"}, {"targets": "local", "local_real": 7})
    )
    assert local - plain == 2 * 2 * 7 * nets.forward_flops()


def test_a_plan_counts_passes_over_the_real_images(tmp_path: Path) -> None:
    found = planned(tmp_path, "edc", observers=("convnet1-w4",), num=2)
    stages = list(found.stage.wants().values())
    (nets,) = nets_of("convnet1-w4")
    store, machine = Store(tmp_path), Machine(threads=1)
    trained, passes = costs_of_stages(stages, machine, Session(), store)
    assert (trained.left, passes.left) == (2, 2)
    assert passes.flops == 2 * 40 * nets.forward_flops()
    sums = 3 * 8 * 2 * (3 + 16)  # of 3 channels and 4 x 4 cells of the one convolution
    assert passes.memory >= sums
    assert passes.memory <= found.estimate.memory
    assert re.match(r"2 real-image passes to make, .* of memory$", passes.in_words())


def test_what_is_there_costs_nothing(tmp_path: Path) -> None:
    found = planned(tmp_path, "edc", observers=("convnet1-w4",), schooling={"epochs": 1})
    stages, store = list(found.stage.wants().values()), Store(tmp_path)
    obtain_all(store, stages, Serial(), Runtime(torch.device("cpu"), threads=1))
    costs = costs_of_stages(stages, Machine(threads=1), Session(), store)
    assert [cost.left for cost in costs] == [0, 0]
    assert [cost.seconds for cost in costs] == [0, 0]
    assert costs[1].in_words() == "0 real-image passes to make (1 more are in the store)"


def test_the_plan_of_statistics_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["prepare", "statistics", "--data", "digits", "--arch", "convnet1-w4", "--num", "2"]
    assert run([*line, "--plan", "--threads", "1", "--store", str(tmp_path)]) == 0
    told = " ".join(capsys.readouterr().out.replace("│", "").split())
    assert "2 original models to train" in told
    assert re.search(r"statistics 2 real-image passes to make, .* of memory", told)
    assert not list(tmp_path.glob("statistics-*"))
