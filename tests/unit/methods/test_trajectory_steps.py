"""What a step of trajectory matching does beside its gradient: areas, gate, average, stretches."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from stillroom.artefacts.experts import Trajectory
from stillroom.artefacts.opened import nets_for
from stillroom.artefacts.originals import Original, opened
from stillroom.artefacts.store import Store
from stillroom.data.benchmarks import Benchmark
from stillroom.distilled import load
from stillroom.errors import StillroomError
from stillroom.methods import areas
from stillroom.methods.areas import emphasis
from stillroom.methods.trajectory_options import Window
from stillroom.methods.trajectory_student import stretch
from stillroom.nets.maps import AT_ONCE, activation_maps, deepest
from stillroom.nets.zoo import resolve
from stillroom.recipe import from_preset
from stillroom.rng import rng
from stillroom.run.distil import Plan, distil, plan
from stillroom.run.options import Machine
from stillroom.runtime import Runtime
from stillroom.session import Session
from toy import FOLLOWED

MACHINE = Machine(threads=1)
SHORT = {**FOLLOWED, "schooling": {**FOLLOWED["schooling"], "epochs": 2}, "init": "real"}
LR = 1000.0


def ran(bench: Benchmark, store: Path, steps: int = 1, **method: Any) -> tuple[Plan, list[Tensor]]:
    """The images before the first step and after each; momentum 0, so a step is a gradient."""
    images = {"lr": LR, "momentum": 0.0}
    outer = {"steps": steps, "keep": list(range(1, steps + 1)), "images": images}
    given = {"arch": "convnet1-w4", "method": {**SHORT, **method}, "outer": outer}
    recipe, _ = from_preset("mtt", "toy", 2, given)
    planned = plan(recipe, bench, MACHINE, Session(), store=Store(store))
    distil(planned, MACHINE)
    folder = planned.store.folder(planned.stage.key())
    kept = [load(folder / "steps" / str(s)).images for s in range(1, steps + 1)]
    still = {"steps": 1, "images": {"lr": 1e-12}}
    first, _ = from_preset("mtt", "toy", 2, {**given, "outer": still})
    begun = distil(plan(first, bench, MACHINE, Session(), store=Store(store)), MACHINE)
    return planned, [begun.images, *kept]


def looks(beta: float, threshold: float | None) -> dict[str, Any]:
    schooling = {"epochs": 3, "batch": 8, "lr": 0.05}
    return {"beta": beta, "threshold": threshold, "net": "convnet1-w8", "schooling": schooling}


def test_neutral_areas_are_the_plain_gradient(bench: Benchmark, store: Path) -> None:
    """beta 0 and a threshold of 1: the factor is 1 where a map is highest, and 1 elsewhere."""
    _, plain = ran(bench, store, 2)
    _, neutral = ran(bench, store, 2, areas=looks(0.0, 1.0))
    for one, other in zip(plain, neutral, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("threshold", [None, 0.3])
def test_active_pixels_move_more(bench: Benchmark, store: Path, threshold: float | None) -> None:
    """By beta plus the map that the trained network has of these images, of their classes."""
    _, plain = ran(bench, store)
    planned, made = ran(bench, store, areas=looks(1.5, threshold))
    (stage,) = [s for s in planned.stage.wants().values() if isinstance(s, Original)]
    model = stage.load(Store(store).folder(stage.key()))
    nets = opened(model, bench, Runtime(device=torch.device("cpu"), threads=1))
    of_class = torch.tensor([0, 0, 1, 1])
    maps = activation_maps(nets, deepest(nets), plain[0], of_class)
    factor = emphasis(maps, 1.5, threshold)
    assert factor.unique().numel() > 4
    moved = made[1] - made[0]
    torch.testing.assert_close(moved, factor * (plain[1] - plain[0]), rtol=2e-3, atol=2e-5)


def test_maps_are_made_anew_every_few_steps(
    bench: Benchmark, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, Tensor]] = []
    usual = areas.look

    def watched(ctx: Any, asked: Any, synth: Any, it: int) -> Tensor:
        seen.append((it, synth.images.detach().clone()))
        return usual(ctx, asked, synth, it)

    monkeypatch.setattr(areas, "look", watched)
    _, made = ran(bench, store, 5, areas={**looks(1.0, None), "every": 2})
    taken = [(it, images) for it, images in seen if not torch.equal(images, made[0]) or it == 0]
    assert [it for it, _ in taken][:3] == [0, 2, 4]
    for it, images in taken[:3]:
        torch.testing.assert_close(images, made[it], rtol=1e-6, atol=1e-6)


def test_steps_above_the_gate_are_dropped_and_counted(bench: Benchmark, store: Path) -> None:
    planned, made = ran(bench, store, 3, gate=1e-6)
    for images in made[1:]:
        torch.testing.assert_close(images, made[0], rtol=0, atol=1e-6)
    logged = (planned.store.folder(planned.stage.key()) / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["dropped"] for line in logged][-1] == 3
    planned, made = ran(bench, store, 3, gate=1e6)
    assert not torch.allclose(made[1], made[0])
    logged = (planned.store.folder(planned.stage.key()) / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["dropped"] for line in logged][-1] == 0


@pytest.mark.parametrize(("gate", "heard"), [(1e-6, 1), (1e6, 0)])
def test_a_run_of_which_every_step_is_dropped_says_so(
    gate: float, heard: int, bench: Benchmark, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After twenty of them and at the end: nothing else would show it."""
    said: list[str] = []
    monkeypatch.setattr(Session, "say", lambda _, text: said.append(text))
    ran(bench, store, 23, gate=gate)
    for told in ("20 of 20 steps were dropped", "23 of 23 steps were dropped"):
        assert len([text for text in said if told in text]) == heard


@pytest.mark.parametrize(("level", "heard"), [(0.0, 2), (0.5, 0)])
def test_a_network_that_sees_nothing_is_named(
    level: float, heard: int, bench: Benchmark, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Empty maps weigh all pixels alike, which no number would show; once a run, of two."""
    said: list[str] = []
    monkeypatch.setattr(Session, "say", lambda _, text: said.append(text))

    def level_maps(nets: object, layer: str, images: Tensor, *_: object) -> Tensor:
        return torch.full((len(images), 8, 8), level)

    monkeypatch.setattr(areas, "activation_maps", level_maps)
    ran(bench, store, 2, areas=looks(1.0, None))
    told = [text for text in said if "convnet1-w8 sees the class nowhere in 4 of 4" in text]
    assert len(told) == heard


@pytest.mark.parametrize(("threshold", "heard"), [(0.6, True), (0.5, False), (None, False)])
def test_a_threshold_that_no_map_reaches_is_said(
    threshold: float | None,
    heard: bool,
    bench: Benchmark,
    store: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []
    monkeypatch.setattr(Session, "say", lambda _, text: said.append(text))

    def level_maps(nets: object, layer: str, images: Tensor, *_: object) -> Tensor:
        return torch.full((len(images), 8, 8), 0.5)

    monkeypatch.setattr(areas, "activation_maps", level_maps)
    ran(bench, store, 2, areas=looks(1.0, threshold))
    assert any("no map reaches --areas.threshold 0.6" in text for text in said) is heard


def test_the_set_is_the_average_of_the_images(bench: Benchmark, store: Path) -> None:
    """d of what it was and 1 - d of the images, after every step; they themselves go on as ever."""
    _, plain = ran(bench, store, 4)
    _, made = ran(bench, store, 4, ema=0.9)
    average = plain[1]
    for now, found in zip(plain[1:], made[1:], strict=True):
        average = 0.9 * average + 0.1 * now
        torch.testing.assert_close(found, average, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("window", [{"last": 3, "epochs": 2}, {"first": 2, "last": 5, "epochs": 3}])
def test_a_stretch_is_of_as_many_epochs(window: dict[str, int]) -> None:
    """Starts are all of [first, last), and the target lies `epochs` later."""
    rows = np.arange(9, dtype=np.float32)[:, None]
    expert = Trajectory(resolve("convnet1"), tuple(range(9)), rows, 0.5, 1.0)
    ctx: Any = SimpleNamespace(
        device="cpu", rt=SimpleNamespace(dtype=torch.float32), rng=lambda *key: rng(0, *key)
    )
    pairs = [stretch(ctx, expert, Window(**window), it) for it in range(60)]
    starts = {int(first) for first, _ in pairs}
    assert starts == set(range(window.get("first", 0), window["last"]))
    assert {int(end - first) for first, end in pairs} == {window["epochs"]}


def test_an_expert_that_stands_still_is_named() -> None:
    rows = np.array([[0.0], [1.0], [1.0]], dtype=np.float32)
    expert = Trajectory(resolve("convnet1"), (0, 1, 2), rows, 0.5, 1.0)
    ctx: Any = SimpleNamespace(
        device="cpu", rt=SimpleNamespace(dtype=torch.float32), rng=lambda *key: rng(0, *key)
    )
    assert [float(t) for t in stretch(ctx, expert, Window(last=1, epochs=1), 0)] == [0.0, 1.0]
    with pytest.raises(StillroomError, match="stood still from epoch 1 to 2"):
        stretch(ctx, expert, Window(first=1, last=2, epochs=1), 0)


@pytest.mark.parametrize(
    ("preset", "given", "told"),
    [
        ("mtt", {"method": {"labels": "learned"}}, "learned labels need an optimiser"),
        ("edf", {"numerics": "bf16"}, "numerics bf16 changes nothing of edf"),
    ],
)
def test_what_could_not_run_is_said_before_experts(
    preset: str, given: dict[str, Any], told: str
) -> None:
    with pytest.raises(StillroomError, match=told):
        from_preset(preset, "toy", 2, given)


@pytest.mark.parametrize(
    ("method", "ipc", "told"),
    [
        ({"areas": {**looks(1.0, None), "layer": "features.9"}}, 1,
         r"areas.layer='features.9' is no map of convnet1-w8, whose maps are features.0, "),
        ({"init": "known"}, 10**5, r"ipc=100000 but class '\w+' has \d+ training images"),
    ],
)  # fmt: skip
def test_what_data_and_network_do_not_have_is_said_before_experts(
    bench: Benchmark, store: Path, method: dict[str, Any], ipc: int, told: str
) -> None:
    recipe, _ = from_preset("edf", "toy", ipc, {"arch": "convnet1-w4", "method": method})
    with pytest.raises(StillroomError, match=told):
        plan(recipe, bench, MACHINE, Session(), store=Store(store))


def test_few_images_are_shown_together(bench: Benchmark, monkeypatch: pytest.MonkeyPatch) -> None:
    """Maps of many images are those of each, and memory holds the graph of few."""
    rt = Runtime(device=torch.device("cpu"), threads=1)
    nets = nets_for(resolve("convnet2-w4"), bench, rt).make(1, 3, "any")
    images = torch.randn((2 * AT_ONCE + 3, 3, 8, 8), generator=rng(0, "many"))
    of_class = torch.arange(len(images)) % 2
    shown: list[int] = []
    usual = type(nets).observed

    def watched(self: Any, x: Tensor, *args: Any, **more: Any) -> Any:
        shown.append(len(x))
        return usual(self, x, *args, **more)

    layer = deepest(nets)
    monkeypatch.setattr(type(nets), "observed", watched)
    whole = activation_maps(nets, layer, images, of_class)
    assert max(shown) == AT_ONCE
    assert sum(shown) == len(images)
    alone = [
        activation_maps(nets, layer, images[i : i + 1], of_class[i : i + 1])
        for i in range(0, len(images), 17)
    ]
    torch.testing.assert_close(whole[::17], torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_where_parameters_are_kept_changes_no_byte_and_no_key(
    bench: Benchmark, store: Path
) -> None:
    made = {}
    for theta in ("device", "host", "recompute"):
        method = {**SHORT, "inner": 7, "theta": theta}
        given = {"arch": "convnet1-w4", "method": method, "outer": {"steps": 2}}
        recipe, _ = from_preset("mtt", "toy", 2, given)
        planned = plan(recipe, bench, MACHINE, Session(), store=Store(store))
        key = planned.stage.key()
        assert not planned.store.complete(key)
        made[theta] = (key, distil(planned, MACHINE).images)
        shutil.rmtree(planned.store.folder(key))
    assert len({key for key, _ in made.values()}) == 1
    for _, images in made.values():
        assert torch.equal(images, made["device"][1])
