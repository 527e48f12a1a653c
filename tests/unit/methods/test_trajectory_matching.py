"""Trajectory matching: what sets of its settings hold, and which setting a name stands for."""

from __future__ import annotations

import contextlib
import io
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from stillroom.artefacts.experts import Expert
from stillroom.artefacts.opened import nets_for
from stillroom.artefacts.originals import Original, opened
from stillroom.artefacts.schooling import find_schooling
from stillroom.artefacts.store import Store
from stillroom.cli import run
from stillroom.data.benchmarks import Benchmark
from stillroom.distilled import Distilled, load
from stillroom.errors import StillroomError
from stillroom.methods import PRESETS
from stillroom.methods.trajectory_start import misjudged
from stillroom.nets.ensemble import Nets
from stillroom.nets.inner import views
from stillroom.nets.zoo import resolve
from stillroom.recipe import from_preset, load_recipe, validate, with_overrides
from stillroom.run.distil import Plan, distil, plan
from stillroom.run.estimate import distil_estimate
from stillroom.run.options import Machine
from stillroom.run.prepare import costs_of_stages
from stillroom.runtime import Runtime
from stillroom.session import Session
from toy import FOLLOWED

MACHINE = Machine(threads=1)


def test_assigned_labels_are_what_the_last_expert_said(bench: Benchmark, store: Path) -> None:
    """Images that barely move: the labels are the logits of the target for them, not classes."""
    method = {**FOLLOWED, "labels": "assigned", "engine": "tesla"}
    outer = {"steps": 2, "images": {"lr": 1e-12}}
    given = {"arch": "convnet1-w4", "method": method, "outer": outer}
    recipe, _ = from_preset("tesla", "toy", 2, given)
    planned = plan(recipe, bench, MACHINE, Session(), store=Store(store))
    made = distil(planned, MACHINE)
    assert made.label_kind == "logits"
    (stage,) = [s for s in planned.stage.wants().values() if isinstance(s, Expert)]
    expert = stage.load(Store(store).folder(stage.key()))
    rt = Runtime(device=torch.device("cpu"), threads=1)
    nets = nets_for(stage.arch, bench, rt).make(1, 0, "any")
    params = nets.member(0)[0]
    for name, value in views(expert.after(1), params).items():
        params[name].copy_(value)
    with torch.no_grad():
        wanted = nets.logits(made.images)[0]
    torch.testing.assert_close(made.labels, wanted, rtol=1e-4, atol=1e-5)
    assert made.of_class.tolist() == [0, 0, 1, 1]


def test_learned_labels_of_a_given_start_are_of_its_images(
    bench: Benchmark, store: Path, tmp_path: Path
) -> None:
    """What the first expert says of them, not of the images that they replace."""
    recipe, _ = from_preset("random", "toy", 2, {})
    kept = Store(store)
    distil(plan(recipe, bench, MACHINE, Session(), store=kept, out=tmp_path / "given"), MACHINE)
    still = {"lr": 1e-12}
    outer = {"steps": 1, "images": still, "labels": still, "rate": still}
    method = {**FOLLOWED, "labels": "learned", "gate": None}
    given = {"arch": "convnet1-w4", "method": method, "outer": outer}
    recipe, _ = from_preset("datm", "toy", 2, given)
    planned = plan(recipe, bench, MACHINE, Session(), store=kept, init_from=tmp_path / "given")
    made = distil(planned, MACHINE)
    (stage,) = [s for s in planned.stage.wants().values() if isinstance(s, Expert)]
    expert = stage.load(kept.folder(stage.key()))
    nets = nets_for(stage.arch, bench, Runtime(device=torch.device("cpu"), threads=1))
    one = nets.make(1, 0, "any")
    params = one.member(0)[0]
    for name, value in views(expert.last(), params).items():
        params[name].copy_(value)
    images = load(tmp_path / "given").images
    torch.testing.assert_close(made.images, images, rtol=0, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(made.labels, one.logits(images)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["mtt", "ftd", "tesla", "datm", "pad", "edf"])
def test_a_preset_is_called_by_its_name(name: str) -> None:
    made, _ = from_preset(name, "nothing-published", 1, {})
    assert made.method.name() == name
    assert PRESETS[name].kind == "trajectory_matching"


STILL = {"lr": 1e-12}
HELD = {"steps": 1, "images": STILL, "labels": STILL, "rate": STILL}


def known(bench: Benchmark, store: Path, **labeller: Any) -> tuple[Plan, Distilled]:
    """The first images and labels of DATM, by whoever is asked."""
    method = {**FOLLOWED, "labels": "learned", "init": "known", "gate": None, "labeller": labeller}
    method["schooling"] = {**FOLLOWED["schooling"], "epochs": 8, "lr": 0.1}
    given = {"arch": "convnet1-w4", "method": method, "outer": HELD}
    recipe, _ = from_preset("datm", "toy", 2, given)
    planned = plan(recipe, bench, MACHINE, Session(), store=Store(store))
    return planned, distil(planned, MACHINE)


@pytest.mark.parametrize("raw", [False, True])
def test_another_network_labels(bench: Benchmark, store: Path, raw: bool) -> None:
    """It classifies every first image rightly, and its logits are their labels."""
    schooling = {"epochs": 20, "batch": 8, "lr": 0.05, "raw_pixels": raw}
    planned, made = known(bench, store, net="convnet1-w8", schooling=schooling)
    (stage,) = [s for s in planned.stage.wants().values() if isinstance(s, Original)]
    model = stage.load(Store(store).folder(stage.key()))
    nets = opened(model, bench, Runtime(device=torch.device("cpu"), threads=1))
    with torch.no_grad():
        images = model.space(bench).apply(bench.preprocess.invert(made.images))
        wanted = nets.logits(images)[0]
    torch.testing.assert_close(made.labels, wanted, rtol=1e-3, atol=1e-4)
    assert made.labels.argmax(1).tolist() == made.of_class.tolist() == [0, 0, 1, 1]
    experts = [s for s in planned.stage.wants().values() if isinstance(s, Expert)]
    assert {s.epochs for s in experts} == {(0, 1)}  # as far as they are read, not to their end


def test_experts_label_before_their_end(bench: Benchmark, store: Path) -> None:
    planned, made = known(bench, store, epoch=6)
    (stage,) = [s for s in planned.stage.wants().values() if isinstance(s, Expert)]
    assert stage.epochs == tuple(range(7))
    expert = stage.load(Store(store).folder(stage.key()))
    nets = nets_for(stage.arch, bench, Runtime(device=torch.device("cpu"), threads=1))
    one = nets.make(1, 0, "any")
    for name, value in views(expert.after(6), one.member(0)[0]).items():
        one.member(0)[0][name].copy_(value)
    with torch.no_grad():
        wanted = one.logits(made.images)[0]
    torch.testing.assert_close(made.labels, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("method", "told"),
    [
        ({"labeller": {"net": "convnet2"}}, "labeller belongs to init known or to labels learned"),
        ({"init": "known", "labeller": {"schooling": "clom"}}, "schooling is of a network"),
        ({"init": "known", "labeller": {"net": "convnet2", "epoch": 2}}, "epoch is of the experts"),
    ],
)
def test_a_labeller_that_nothing_asks_is_refused(method: dict[str, Any], told: str) -> None:
    with pytest.raises(StillroomError, match=told):
        from_preset("mtt", "toy", 2, {"arch": "convnet1-w4", "method": method})


def test_a_labeller_changes_no_key_where_there_is_none() -> None:
    recipe, _ = from_preset("mtt", "toy", 2, {})
    assert "labeller" not in recipe.method.model_dump()


def set_up(preset: str, **given: Any) -> Any:
    return from_preset(preset, "nothing-published", 1, given)[0]


def test_what_is_switched_off_takes_its_group_along() -> None:
    """Of a preset; and each flag that may be nothing can say so."""
    edf = set_up("edf").method
    assert (edf.gate, edf.areas.beta, edf.parameters.share) == (1.5, 1.0, 0.25)
    off = {"areas": {"beta": None}, "parameters": {"drop": "none"}, "gate": None}
    plain = set_up("edf", method=off).method
    assert (plain.gate, plain.areas.beta, plain.parameters.share) == (None, None, 0.0)
    assert plain.name() == "datm"
    hard = set_up("datm", method={"labels": "hard", "init": "real"})
    assert hard.outer.labels is None
    row = load_recipe("edf/digits-ipc1")[0]  # nor of a row with an override
    changed_row = with_overrides(row, ["method.labels=hard"])
    assert validate(changed_row, "row").outer.labels is None
    flags = ["--gate", "none", "--areas.beta", "none", "--parameters.drop", "none"]
    shown = ["distill", "edf", "--data", "digits", "--ipc", "3", "--plan"]
    keys = [key_of([*shown, *more]) for more in ([], flags, flags[:2], flags[2:4], flags[4:])]
    assert len({*keys}) == 5


def key_of(line: list[str]) -> str:
    """As its plan tells it."""
    stream = io.StringIO()
    with contextlib.redirect_stdout(stream):
        assert run(line) == 0
    (found,) = {*re.findall(r"distilled-[0-9a-f]{16}", stream.getvalue())}
    return found


@pytest.mark.parametrize(
    ("method", "outer", "told"),
    [
        ({"parameters": {"drop": "easy"}}, {}, "drop easy leaves out a share"),
        ({"parameters": {"drop": "easy", "share": 0.0}}, {}, "or drop none"),
        (
            {"areas": {"beta": 1.0, "net": "resnet18=FILE", "schooling": {"epochs": 3}}},
            {},
            "has weights already",
        ),
        (
            {"window": {"last": 60}},
            {},
            r"read up to epoch 61 \(window.last 60 - 1 \+ window.epochs 2\), and trained for 50",
        ),
    ],
)
def test_what_nothing_would_read_is_refused(
    method: dict[str, Any], outer: dict[str, Any], told: str
) -> None:
    with pytest.raises(StillroomError, match=told):
        set_up("mtt", method=method, outer=outer)


@pytest.mark.parametrize(
    "method",
    [
        {"labels": "learned", "init": "known"},
        {"labels": "hard", "init": "known"},
        {"labels": "assigned", "init": "real"},
    ],
)
def test_experts_with_batchnorm_are_not_asked(
    bench: Benchmark, store: Path, method: dict[str, Any]
) -> None:
    """They are kept without its statistics, so what they would say is not what they learned."""
    given = {"arch": "convnet1-w4-bn", "method": {**FOLLOWED, **method}}
    recipe, _ = from_preset("datm", "toy", 1, given)
    with pytest.raises(StillroomError, match="convnet1-w4-bn has BatchNorm, whose statistics"):
        plan(recipe, bench, MACHINE, Session(), store=Store(store))
    assert not list(store.glob("expert-*"))


def test_only_experts_that_are_asked_train_to_their_end(bench: Benchmark, store: Path) -> None:
    method = {**FOLLOWED, "experts": 3, "labels": "learned", "gate": None}
    method["schooling"] = {**FOLLOWED["schooling"], "epochs": 6}
    ends = {}
    for init in ("known", "real"):
        given = {"arch": "convnet1-w4", "method": {**method, "init": init}}
        recipe, _ = from_preset("datm", "toy", 1, given)
        wants = plan(recipe, bench, MACHINE, Session(), store=Store(store)).stage.wants()
        experts = [stage for stage in wants.values() if isinstance(stage, Expert)]
        ends[init] = [stage.epochs for stage in experts]
    assert ends == {"known": [(0, 1, 6)] * 3, "real": [(0, 1, 6), (0, 1), (0, 1)]}


def test_the_network_that_looks_is_in_the_plan(bench: Benchmark, store: Path) -> None:
    memory = {}
    for net in (None, "convnet1-w4", "convnet1-w256"):
        areas = {} if net is None else {"areas": {"beta": 1.0, "net": net}}
        given = {"arch": "convnet1-w4", "method": {**FOLLOWED, **areas, "batch": 1}}
        given["outer"] = {"steps": 1}
        recipe, _ = from_preset("mtt", "toy", 10, given)
        nets = partial(nets_of, bench)
        memory[net] = distil_estimate(recipe, bench, nets).memory
    looked = 20 * nets_of(bench, "convnet1-w256").activation_bytes()
    assert memory["convnet1-w256"] >= looked > 2 * memory[None]
    assert memory["convnet1-w4"] < looked / 4


def nets_of(bench: Benchmark, name: str) -> Nets:
    rt = Runtime(device=torch.device("cpu"), threads=1)
    return nets_for(resolve("convnet1-w4" if name == "auto" else name), bench, rt)


def test_trainings_are_in_the_plan(bench: Benchmark, store: Path) -> None:
    """A batch with its graph: in proportion to the batch, half of it in bf16."""
    rt = Runtime(device=torch.device("cpu"), threads=1)
    sizes = {}
    for batch, numerics in ((8, "float32"), (16, "float32"), (16, "bf16")):
        schooling = find_schooling(f"mtt+epochs=3+batch={batch}+numerics={numerics}")
        one = Expert(schooling, bench.describe(), resolve("convnet3"), 0, 3, False, store)
        sizes[batch, numerics] = one.memory(rt)
    graph = 8 * nets_for(resolve("convnet3"), bench, rt).activation_bytes()
    grown = sizes[16, "float32"] - sizes[8, "float32"]
    assert graph <= grown < 1.1 * graph
    assert 0.65 < sizes[16, "bf16"] / sizes[16, "float32"] < 1
    (cost,) = costs_of_stages([one], MACHINE, Session(), Store(store))
    assert cost.memory == sizes[16, "bf16"]
    assert "of memory" in cost.in_words()


@pytest.mark.parametrize(("lr", "heard"), [(1e-9, True), (0.1, False)])
def test_experts_that_guess_are_named(
    lr: float, heard: bool, bench: Benchmark, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(Session, "say", lambda _, text: said.append(text))
    schooling = {**FOLLOWED["schooling"], "epochs": 8, "lr": lr}
    given = {"arch": "convnet1-w4", "method": {**FOLLOWED, "schooling": schooling}}
    given |= {"method": {**given["method"], "window": {"last": 7, "epochs": 2}}, "outer": HELD_HARD}
    recipe, _ = from_preset("mtt", "toy", 1, given)
    distil(plan(recipe, bench, MACHINE, Session(), store=Store(store)), MACHINE)
    told = "1 of 1 experts are no better than guessing on toy"
    assert any(told in text for text in said) is heard


HELD_HARD = {name: value for name, value in HELD.items() if name != "labels"}


def test_first_labels_of_another_class_are_counted() -> None:
    labels = torch.tensor([[2.0, 1.0], [2.0, 1.0], [0.0, 1.0]])
    assert misjudged(labels, torch.tensor([0, 0, 1])) == ""
    assert misjudged(labels, torch.tensor([0, 1, 1])).startswith("1 of 3 first labels name")


@pytest.mark.parametrize(
    ("protocol", "heard"), [("quick@1", True), ("mtt@1", False), ("datm@1+epochs=2", False)]
)
def test_a_learned_rate_that_is_not_taken_is_said(
    protocol: str, heard: bool, bench: Benchmark, store: Path, tmp_path: Path
) -> None:
    given = {"arch": "convnet1-w4", "method": FOLLOWED, "outer": HELD_HARD}
    recipe, _ = from_preset("mtt", "toy", 1, given)
    out = tmp_path / "set"
    distil(plan(recipe, bench, MACHINE, Session(), store=Store(store), out=out), MACHINE)
    stream = io.StringIO()
    with contextlib.redirect_stdout(stream):
        code = run(["evaluate", str(out), "--protocol", protocol, "--plan", "--store", str(store)])
    assert code == 0
    told = f"students take the rate of {protocol}, not 0.01, which was learned with the set"
    assert (told in " ".join(stream.getvalue().split())) is heard
