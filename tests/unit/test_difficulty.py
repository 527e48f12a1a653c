"""PAD's ordered data: what difficulty is, which images an epoch sees, and that experts see them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F

from stillroom.artefacts.difficulty import Difficulty, by_difficulty, difficulty_of, scores
from stillroom.artefacts.executor import Serial
from stillroom.artefacts.experts import TRAJECTORY, Expert
from stillroom.artefacts.opened import nets_for
from stillroom.artefacts.originals import Original
from stillroom.artefacts.schooling import SCHOOLINGS, Order, Schooling, changed
from stillroom.artefacts.store import Store, obtain
from stillroom.data.benchmarks import Benchmark
from stillroom.errors import StillroomError
from stillroom.nets.sources import Images
from stillroom.nets.zoo import resolve
from stillroom.recipe import from_preset
from stillroom.rng import rng
from stillroom.run.options import Machine
from stillroom.run.prepare import costs_of_stages
from stillroom.runtime import Runtime
from stillroom.session import Interrupted, Session
from toy import StopAt

ARCH = "convnet1-w4"
ORDER = {"scores": "grand", "models": 2, "epochs": 1, "first": 0.5, "grow": 2, "after": (2,),
         "without": (0.25,)}  # fmt: skip


def runtime(**changes) -> Runtime:
    return Runtime(device=torch.device("cpu"), threads=1, **changes)


def expert(bench: Benchmark, store: Path, **order) -> Expert:
    given = {"epochs": 4, "batch": 16, "lr": 0.05, "momentum": 0.0, "schedule": "constant"}
    schooling = Schooling(**given, order={**ORDER, **order})
    return Expert(schooling, bench.describe(), resolve(ARCH), 0, 4, False, store)


@pytest.mark.parametrize("size", [5000, 500, 7])
@pytest.mark.parametrize("epoch", [0, 1, 10, 20, 21, 40, 41, 60, 61, 99])
def test_what_an_epoch_sees_is_the_published_schedule(size: int, epoch: int) -> None:
    """Specification of trajectory matching, 3.6, written out for the published command."""
    seen = Order(scores="grand").seen(epoch, size)
    if epoch <= 20:
        wanted = range(int(min(1.0, 0.75 + 0.25 * epoch / 20) * size))
    elif epoch <= 40:
        wanted = range(size)
    else:
        wanted = range(int((0.1 if epoch <= 60 else 0.2) * size), size)
    assert seen == wanted
    assert len(seen) > 0


def test_the_first_epoch_and_the_last_of_the_climb() -> None:
    order = Order(scores="el2n", first=0.4, grow=3, after=(), without=())
    assert [len(order.seen(e, 10)) for e in range(5)] == [4, 6, 8, 10, 10]
    assert len(Order(scores="el2n", first=0.01, grow=3).seen(0, 3)) == 1  # never none at all


def test_grand_is_the_gradient_of_the_last_layer() -> None:
    """Against autograd, an image at a time, in float64."""
    draws = rng(0, "grand")
    features = torch.randn((6, 5), generator=draws, dtype=torch.float64)
    labels = torch.randint(3, (6,), generator=draws)
    head = torch.nn.Linear(5, 3, dtype=torch.float64)
    found = scores(head(features).detach(), labels, features)
    for i in range(6):
        loss = F.cross_entropy(head(features[i : i + 1]), labels[i : i + 1])
        slopes = torch.autograd.grad(loss, list(head.parameters()))
        norm = torch.cat([s.flatten() for s in slopes]).norm()
        torch.testing.assert_close(found[i], norm, rtol=1e-12, atol=0)
    error = scores(head(features).detach(), labels)
    sure = torch.tensor([[50.0, 0.0, 0.0]])
    assert float(scores(sure, torch.tensor([0]))) == pytest.approx(0, abs=1e-6)
    assert float(scores(sure, torch.tensor([1]))) == pytest.approx(2**0.5)
    assert bool((error < found).all())


def test_every_class_in_order() -> None:
    ranked = by_difficulty(torch.tensor([3.0, 1, 2, 0, 1]), torch.tensor([0, 0, 2, 0, 2]))
    assert [rows.tolist() for rows in ranked] == [[3, 1, 0], [4, 2]]  # class 1 has no image
    ties = by_difficulty(torch.ones(4), torch.zeros(4, dtype=torch.int64))
    assert ties[0].tolist() == [0, 1, 2, 3]


def test_scores_are_means_over_networks(bench: Benchmark, store: Path, tmp_path: Path) -> None:
    stage = difficulty_of(Order(**ORDER), bench.describe(), resolve(ARCH), store)
    assert stage is not None
    held = Store(store)
    both = obtain(held, stage, Serial(), runtime())
    each = [
        obtain(held, Difficulty("grand", (model,)), Serial(), runtime()) for model in stage.models
    ]
    torch.testing.assert_close(both, (each[0] + each[1]) / 2)
    assert not torch.equal(each[0], each[1])
    assert both.shape == (len(bench.train),)


def test_an_epoch_of_an_expert_sees_its_part(bench: Benchmark, store: Path) -> None:
    """Batches of every epoch hold the rows that the schedule names, each once."""
    one = expert(bench, store)
    stage = one.difficulty
    assert stage is not None
    assert one.needs() == (stage,)
    found = obtain(Store(store), stage, Serial(), runtime())
    labels = bench.train.labels
    data = Images(lambda rows: rows, labels, bench.size, seen=one._seen(labels))
    per_class = torch.bincount(labels).tolist()
    for epoch in range(4):
        rows = torch.cat(list(data.rows(16, 0, epoch)))
        assert len(rows.unique()) == len(rows)
        for c, size in enumerate(per_class):
            mine = rows[labels[rows] == c]
            order = (labels == c).nonzero().squeeze(1)
            order = order[found[order].argsort(stable=True)]
            places = one.schooling.order.seen(epoch, size)
            assert set(mine.tolist()) == set(order[list(places)].tolist())


def test_the_order_decides_and_a_stopped_one_goes_on(bench: Benchmark, store: Path) -> None:
    one = expert(bench, store)
    other = expert(bench, store, first=1.0, grow=0)
    assert len({one.key(), other.key(), expert(bench, store, models=1).key()}) == 3
    straight = obtain(Store(store), one, Serial(), runtime())
    assert not torch.equal(
        straight.after(1), obtain(Store(store), other, Serial(), runtime()).after(1)
    )
    rows = (Store(store).folder(one.key()) / "0000" / TRAJECTORY).read_bytes()
    for path in sorted(Store(store).folder(one.key()).rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    Store(store).folder(one.key()).rmdir()
    with pytest.raises(Interrupted):
        obtain(Store(store), one, Serial(), runtime(session=StopAt(2)))
    obtain(Store(store), one, Serial(), runtime())
    assert (Store(store).folder(one.key()) / "0000" / TRAJECTORY).read_bytes() == rows


def test_keys_of_before_stay() -> None:
    """A schooling without an order dumps as it did when there was none."""
    assert "order" not in SCHOOLINGS["mtt"].model_dump(mode="json")
    assert SCHOOLINGS["pad"].model_dump(mode="json")["order"]["scores"] == "grand"


def test_original_models_have_no_order(bench: Benchmark, store: Path) -> None:
    with pytest.raises(StillroomError, match=r"order\.scores=grand: ordered data are of experts"):
        Original(SCHOOLINGS["pad"], bench.describe(), resolve(ARCH), 0, store)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"first": 0.5}, "belong to order.scores grand"),
        ({"scores": "grand", "after": (40,)}, "names 1 epochs and without 2 shares"),
        ({"scores": "grand", "after": (60, 40)}, "must climb"),
        ({"scores": "grand", "after": (10, 40)}, "must climb from 20"),
        ({"scores": "grand", "without": (0.1, 1.0)}, "from 0 to below 1"),
        ({"scores": "grand", "grow": 0}, "first belongs to grow"),
    ],
)
def test_refusals(given: dict, told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        Order(**given)


def test_one_field_of_a_named_order_can_change() -> None:
    found = changed(SCHOOLINGS["pad"], {"order": {"models": 2}})
    assert (found.order.scores, found.order.models) == ("grand", 2)
    shorter = changed(SCHOOLINGS["pad"], {"epochs": 10})
    assert (shorter.order.grow, shorter.order.after) == (2, (4, 6))
    with pytest.raises(StillroomError, match="order changes what is seen up to epoch 60 of 50"):
        changed(SCHOOLINGS["pad"], {"epochs": 50, "order": {"after": (40, 60)}})


@pytest.mark.parametrize(("preset", "epochs"), [("datm", 60), ("mtt", 60), ("pad", 50)])
def test_one_flag_changes_one_field_of_a_rows_schooling(preset: str, epochs: int) -> None:
    """Rows name their schooling; a flag beside it must not replace all of it."""
    row, name = from_preset(preset, "cifar10", 10, {}, "cifar10")
    assert name == f"{preset}/cifar10-ipc10"
    given = {"method": {"schooling": {"epochs": epochs}}}
    made, _ = from_preset(preset, "cifar10", 10, given, "cifar10")
    assert made.method.schooling == changed(row.method.schooling, {"epochs": epochs})
    if preset == "pad":
        given = {"method": {"schooling": {"order": {"models": 2}}}}
        made, _ = from_preset(preset, "cifar10", 10, given, "cifar10")
        assert made.method.schooling.order.models == 2
        assert made.method.schooling.order.scores == "grand"


def test_a_presets_order_is_scaled_as_a_named_one_is() -> None:
    """Whoever begins with PAD's schooling, by its name or by the preset's, gets the same."""
    given = {"method": {"schooling": {"epochs": 10}}}
    made, _ = from_preset("pad", "nothing-published", 1, given)
    assert made.method.schooling == changed(SCHOOLINGS["pad"], {"epochs": 10})


def test_scorers_are_stopped_early_in_a_usual_run() -> None:
    stage = difficulty_of(Order(scores="el2n", epochs=4), {"digest": "d"}, resolve(ARCH), Path())
    assert stage is not None
    for model in stage.models:
        assert (model.schooling.epochs, model.schooling.stop) == (30, 4)


def test_what_is_there_needs_nothing_more(bench: Benchmark, store: Path) -> None:
    """An expert that is made is not planned with scorers that are gone."""
    one, held = expert(bench, store), Store(store)
    obtain(held, one, Serial(), runtime())
    for path in [*store.glob("original-*"), *store.glob("difficulty-*")]:
        shutil.rmtree(path)
    costs = costs_of_stages([one], Machine(), Session(), held)
    assert [(c.what, c.total, c.left) for c in costs] == [("expert", 1, 0)]


def test_networks_are_counted_before(bench: Benchmark, store: Path) -> None:
    costs = costs_of_stages([expert(bench, store)], Machine(), Session(), Store(store))
    assert [(c.what, c.total, c.left) for c in costs] == [
        ("original model", 2, 2),
        ("expert", 1, 1),
        ("real-image pass", 1, 1),
    ]
    nets = nets_for(resolve(ARCH), bench, runtime())
    assert costs[2].flops == pytest.approx(2 * 2 * len(bench.train) * nets.forward_flops())
