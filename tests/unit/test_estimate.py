"""What a plan says before anything is made."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stillroom.artefacts.store import Store
from stillroom.data.benchmarks import from_arrays
from stillroom.nets.ensemble import Nets
from stillroom.nets.zoo import resolve
from stillroom.recipe import from_preset
from stillroom.run.distil import plan
from stillroom.run.estimate import distil_estimate
from stillroom.run.options import Machine
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
        found[name] = distil_estimate(recipe, bench, nets).memory
    assert found["dc"] >= 256 * nets.activation_bytes()
    term = {"kind": "clom", "weights": [1.0]}
    given = {"arch": "convnet3", "regularisers": [term]}
    with_term, _ = from_preset("dm", "toy", 300, given)
    without, _ = from_preset("dm", "toy", 300, {"arch": "convnet3"})
    more, less = (distil_estimate(r, bench, nets) for r in (with_term, without))
    assert more.memory >= 600 * nets.activation_bytes()
    assert more.flops - less.flops == pytest.approx(3 * 1000 * 600 * nets.forward_flops())


def test_a_plan_counts_the_network_that_images_are_shown_to(tmp_path: Path) -> None:
    """The largest of the observers, not the one that the recipe names for students."""
    images = torch.zeros(40, 3, 16, 16, dtype=torch.uint8)
    bench = from_arrays(images, torch.arange(40) % 2, images, torch.arange(40) % 2, store=tmp_path)
    work = {}
    for observers in (["convnet1-w4"], ["convnet2-w32", "convnet1-w4"]):
        given = {"arch": "convnet1-w4", "method": {"observers": observers}}
        recipe, _ = from_preset("edc", "toy", 1, given)
        store = Store(tmp_path)
        planned = plan(recipe, bench, Machine(threads=1), Session(), store=store)
        work[len(observers)] = planned.estimate.flops
    small, large = (
        Nets(resolve(a), 2, 3, 16, Runtime(torch.device("cpu"))).forward_flops()
        for a in ("convnet1-w4", "convnet2-w32")
    )
    assert work[2] / work[1] == pytest.approx(large / small)
