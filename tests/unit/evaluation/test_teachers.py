"""Protocols whose labels are those of trained networks: stored, or as students are trained."""

from __future__ import annotations

import dataclasses
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from stillroom.artefacts.executor import Serial
from stillroom.artefacts.labels import Relabels
from stillroom.artefacts.opened import nets_for
from stillroom.artefacts.originals import opened
from stillroom.artefacts.relabels import teachers_of
from stillroom.artefacts.store import Store, obtain
from stillroom.data.augment import parse
from stillroom.data.benchmarks import Benchmark
from stillroom.data.replay import draw
from stillroom.data.views import apply
from stillroom.distilled import load
from stillroom.errors import StillroomError
from stillroom.evaluation.lessons import online
from stillroom.evaluation.published import PROTOCOLS, find_protocol
from stillroom.nets.train import Training
from stillroom.recipe import from_preset
from stillroom.run.distil import distil, plan
from stillroom.run.evaluations import asked_of, costs_of_evaluations
from stillroom.run.fits import check_row, full_row
from stillroom.run.judge import evaluate, prepared
from stillroom.run.judging import Asked, cost_of, cost_of_teachers
from stillroom.run.options import Machine
from stillroom.run.teachers import Faculty, check_alike, faculty, labelling
from stillroom.runtime import COMPILE_FLOPS, Runtime
from stillroom.session import Session
from stillroom.tables import lines

MACHINE = Machine(threads=1)
STORED = find_protocol("edc@1+epochs=4")
ONLINE = find_protocol("edc-cifar10@1+epochs=4")


@pytest.fixture
def made(bench: Benchmark, store: Path, tmp_path: Path) -> Path:
    """A recovered set: its provenance names the network that it was recovered by."""
    given = {
        "outer": {"steps": 2},
        "arch": "convnet1-w4",
        "method": {"observers": ["auto", "convnet2-w4"], "schooling": {"epochs": 2, "batch": 8}},
    }
    recipe, _ = from_preset("edc", "toy", 2, given)
    folder = tmp_path / "set"
    distil(plan(recipe, bench, MACHINE, Session(), store=Store(store), out=folder), MACHINE)
    return folder


def asked(protocol, **more: Any) -> Asked:
    return Asked(protocol=protocol, archs=("convnet1-w4",), seeds=2, **more)


OTHER = find_protocol("edc@1+epochs=4+loss=dist+temperature=4")


@pytest.mark.parametrize("protocol", [STORED, ONLINE, OTHER], ids=lambda p: p.id)
def test_a_set_and_its_baselines_have_one_kind_of_labels(
    bench: Benchmark, store: Path, made: Path, protocol
) -> None:
    """The set's own networks teach all rows, random images too."""
    found = evaluate(made, bench, asked(protocol, baselines=True), Store(store), MACHINE, Session())
    kinds = {r.labels for r in found}
    assert len(kinds) == 1
    assert kinds.pop().startswith(f"{protocol.labels}:")
    rows = {line.row: line for line in lines(found)}
    assert rows["edc@2"].gap is not None
    assert rows["random"].summary.n == 5
    again = evaluate(made, bench, asked(protocol), Store(store), MACHINE, Session())
    assert [r.value for r in again] == [r.value for r in found if r.row == "edc@2"]


def test_stored_labels_are_those_of_the_sets_networks(
    bench: Benchmark, store: Path, made: Path
) -> None:
    evaluate(made, bench, asked(STORED), Store(store), MACHINE, Session())
    (folder,) = [p for p in store.glob("relabels-*") if p.suffix != ".part"]
    stored = Relabels.open(folder)
    assert (stored.header.epochs, stored.header.batch, stored.header.images) == (4, 4, 4)
    assert stored.header.policy.scale == (0.5, 1.0)
    data = load(made)
    wants = data.provenance["recipe"]["wants"]
    assert list(stored.header.teachers) == [wants["observer/0"], wants["observer/1"]]


@pytest.mark.parametrize("protocol", [ONLINE, find_protocol("edc-cifar10@2+epochs=4")])
def test_online_teachers_say_what_they_say_of_the_view(
    bench: Benchmark, store: Path, made: Path, protocol
) -> None:
    data, rt = load(made), Runtime(torch.device("cpu"))
    stages = faculty(Faculty(), data, protocol, bench, Store(store))
    models = [obtain(Store(store), stage, Serial(), rt) for stage in stages]
    teachers = teachers_of(stages, data.preprocess, bench.describe(), store, 1, rt)
    policy = protocol.view.policy(bench.size)
    source = online(data, policy, teachers, rt)
    training = Training(
        epochs=4, batch=4, lr=1e-3, momentum=0.9, weight_decay=0.0, schedule="constant",
        augment=parse("none"),
    )  # fmt: skip
    seen = {(s, e): list(source.batches(training, s, e)) for s in (0, 1) for e in (0, 1)}
    for (seed, epoch), (batch,) in seen.items():
        drawn = draw(policy, 4, (bench.size, bench.size), seed, "student", epoch, 0)
        (rows,) = source.images.rows(4, seed, epoch)
        assert torch.equal(batch.images, apply(data.images[rows], drawn, data.preprocess))
        assert drawn.ops.shape[1] == (2 if protocol.version == 2 else 0)
        said = [opened(m, bench, rt).logits(batch.images)[0] for m in models]
        assert torch.allclose(batch.target.labels, torch.stack(said).mean(0), atol=1e-5)
    firsts = [batch.images.sum().item() for (batch,) in seen.values()]
    assert len(set(firsts)) == 4, "every student and epoch has views of its own"
    (again,) = source.batches(training, 1, 1)
    assert torch.equal(again.images, seen[1, 1][0].images)


def test_online_teachers_are_compiled_where_their_own_work_repays_it(
    bench: Benchmark, store: Path, made: Path
) -> None:
    """Whatever the students are: by a forward of every view, for each of the teachers."""
    data, rt = load(made), Runtime(torch.device("cpu"), by_size=True, numerics="bf16")
    stages = faculty(Faculty(), data, ONLINE, bench, Store(store))
    forward = sum(nets_for(s.arch, bench, rt).forward_flops() for s in stages)
    enough = int(len(stages) * COMPILE_FLOPS / forward) + 1
    for views, compiled in ((enough, True), (enough - 2, False)):
        found = teachers_of(stages, data.preprocess, bench.describe(), store, views, rt)
        made_for = {(t.nets.nets.rt.compile, t.nets.nets.rt.numerics) for t in found}
        assert made_for == {(compiled, "float32")}
    off = Runtime(torch.device("cpu"))
    (one, *_) = teachers_of(stages, data.preprocess, bench.describe(), store, 10**15, off)
    assert not one.nets.nets.rt.compile


def test_named_teachers_take_the_place_of_the_sets_own(
    bench: Benchmark, store: Path, made: Path
) -> None:
    given = Faculty(archs=("mlp",), num=2, schooling="default+epochs=2+batch=8")
    how, rows = prepared(
        made, bench, asked(STORED, teachers=given), Store(store), MACHINE, Session()
    )
    assert how.labelling is not None
    assert [(t.arch.name, t.index, t.schooling.epochs) for t in how.labelling.teachers] == [
        ("mlp", 0, 2), ("mlp", 1, 2),
    ]  # fmt: skip
    cost = cost_of_teachers(how, rows)
    assert cost is not None
    assert (cost.total, cost.left) == (2, 2)
    cost = cost_of_teachers(*prepared(made, bench, asked(STORED), Store(store), MACHINE, Session()))
    assert cost is not None
    assert cost.left == 0, "those that recovered the set are there"
    plain = asked(find_protocol("quick@1"))
    assert cost_of_teachers(*prepared(made, bench, plain, Store(store), MACHINE, Session())) is None


def test_who_cannot_be_told_is_one_line(
    bench: Benchmark, store: Path, made: Path, tmp_path: Path
) -> None:
    data = load(made)
    recipe, _ = from_preset("random", "toy", 2, {})
    plain = tmp_path / "plain"
    distil(plan(recipe, bench, MACHINE, Session(), store=Store(store), out=plain), MACHINE)
    own = data.provenance["recipe"]
    foreign = {
        "the set names none": load(plain),
        "cannot be told": replace(
            data,
            provenance={"recipe": {**own, "method": {**own["method"], "observers": ["nope"]}}},
        ),
        "num=10": replace(
            data, provenance={"recipe": {**own, "method": {**own["method"], "num": 10**9}}}
        ),
    }
    for told, some in foreign.items():
        with pytest.raises(StillroomError, match=told):
            faculty(Faculty(), some, STORED, bench, Store(store))
    with pytest.raises(StillroomError, match="no full-data row"):
        labelling(Faculty(), None, STORED, bench, Store(store))
    with pytest.raises(StillroomError, match="no full-data row"):
        check_row(full_row(bench), bench, STORED, taught=True)
    with pytest.raises(StillroomError, match="--teachers belong to protocols"):
        labelling(Faculty(archs=("mlp",)), data, find_protocol("quick@1"), bench, Store(store))
    with pytest.raises(StillroomError, match="belong to --teachers"):
        faculty(Faculty(num=2), data, STORED, bench, Store(store))


def test_published_protocols_of_teachers_are_whole() -> None:
    taught = {p.id: p for p in PROTOCOLS.values() if p.view is not None}
    assert {name.partition("@")[0].partition("-")[0] for name in taught} == {
        "cda", "edc", "gvbsm", "rded", "sre2l",
    }  # fmt: skip
    assert json.loads(taught["edc@1"].model_dump_json())["view"]["mix"] == "cutmix"
    sides = {s: taught["edc@1"].view.policy(s).size for s in (8, 224)}
    assert sides == {8: 8, 224: 224}


def test_comparing_asks_for_no_teacher_that_is_not_made(
    bench: Benchmark, store: Path, made: Path
) -> None:
    """Nor does a table of students that are in the store, when their teachers are gone."""
    one = Faculty(archs=("mlp",), num=1, schooling="default+epochs=1+batch=8")
    check_alike(one, made, [made], ONLINE, bench, Store(store))
    first = evaluate(made, bench, asked(ONLINE, teachers=one), Store(store), MACHINE, Session())
    for folder in store.glob("original-*"):
        if "mlp" in (folder / "stage.json").read_text():
            shutil.rmtree(folder)
    again = evaluate(made, bench, asked(ONLINE, teachers=one), Store(store), MACHINE, Session())
    assert [(r.value, r.labels) for r in again] == [(r.value, r.labels) for r in first]
    assert first[0].labels.startswith("teachers:")


@pytest.mark.parametrize("protocol", ["edc@1+epochs=4", "edc-cifar10@2+epochs=4", "quick@1"])
@pytest.mark.parametrize("baselines", [True, False])
def test_a_plan_foresees_what_a_recipe_judges(
    bench: Benchmark, store: Path, tmp_path: Path, protocol: str, baselines: bool
) -> None:
    """As many students and operations as the evaluation itself counts once the set is there."""
    given = {
        "outer": {"steps": 2},
        "arch": "convnet1-w4",
        "method": {"observers": ["auto", "convnet2-w4"], "schooling": {"epochs": 1, "batch": 8}},
        "evaluate": [{"protocol": protocol, "seeds": 2, "baselines": baselines}],
    }
    recipe, _ = from_preset("edc", "toy", 2, given)
    planned = plan(recipe, bench, MACHINE, Session(), store=Store(store), out=tmp_path / "set")
    ((name, foreseen),) = costs_of_evaluations(recipe.evaluate, planned, MACHINE)
    assert name == protocol
    made = distil(planned, MACHINE)
    what = asked_of(recipe.evaluate[0], planned.stage.method, made)
    counted = cost_of(*prepared(tmp_path / "set", bench, what, Store(store), MACHINE, Session()))
    assert foreseen.total == foreseen.left == counted.total == (11 if baselines else 2)
    stored = protocol.startswith("edc@1")  # with the one soft label an image, which is left out
    assert foreseen.flops == pytest.approx(counted.flops, rel=0.2 if stored else 1e-9)
    assert foreseen.flops <= counted.flops


def test_a_teachers_forwards_are_counted(bench: Benchmark, store: Path, made: Path) -> None:
    """Of every view of every student where they label online; once a set where it is stored."""
    flops = {}
    for protocol in (STORED, ONLINE):
        how, rows = prepared(made, bench, asked(protocol), Store(store), MACHINE, Session())
        flops[protocol.name] = cost_of(how, rows).flops
        alone = dataclasses.replace(how, teaching=0.0)
        views = {"edc": 4 + 1, "edc-cifar10": 2 * 4}[protocol.name]  # epochs; two students
        assert how.teaching > 0
        taught = flops[protocol.name] - cost_of(alone, rows).flops
        assert taught == pytest.approx(views * 4 * how.teaching)
