"""`Score`: judges the set that it is keyed by, and survives students that diverge in a search."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from stillroom.artefacts.executor import Serial
from stillroom.artefacts.opened import nets_for, real_images
from stillroom.artefacts.store import Store, obtain
from stillroom.data.augment import parse
from stillroom.data.benchmarks import Benchmark, from_arrays
from stillroom.distilled import Distilled, load, set_digest
from stillroom.errors import StillroomError
from stillroom.evaluation import score
from stillroom.evaluation.protocol import Protocol
from stillroom.evaluation.published import find_protocol
from stillroom.evaluation.score import FULL, Score, training_of
from stillroom.nets.losses import Objective
from stillroom.nets.sources import Images
from stillroom.nets.train import Training, predict, train
from stillroom.nets.zoo import resolve
from stillroom.runtime import Runtime
from stillroom.session import Session
from toy import toy_images

RT = Runtime(device=torch.device("cpu"))
HUGE = 1e30  # a rate at which every student diverges in its first epoch


@pytest.fixture
def carved(store: Path) -> Benchmark:
    return from_arrays(*toy_images(), *toy_images(seed=1), name="toy", val=0.5, store=store)


def save_set(folder: Path, bench: Benchmark, seed: int = 0) -> None:
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    labels = torch.tensor([0, 0, 1, 1])
    Distilled(images, labels, "hard", labels, bench.classes, bench.preprocess).save(folder)


def stage(bench: Benchmark, store: Path, folder: Path | None = None, **changes: Any) -> Score:
    fields = {
        "protocol": find_protocol("quick@1+epochs=2"),
        "bench": bench.describe(),
        "set_digest": FULL if folder is None else set_digest(folder),
        "arch": resolve("convnet1-w8"),
        "seeds": (0,),
        "numerics": "float32",
        "students": "loop",
        "augment": "none",
        "set_folder": folder,
        "store": store,
    }
    return Score(**{**fields, **changes})


def search(*rates: float):
    return find_protocol("search@1+epochs=4").model_copy(update={"rates": rates})


# -- the set of the key --------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["before it is read", "while it is read", "after it was read"])
def test_a_set_that_was_replaced_is_refused(when, bench, store, tmp_path, monkeypatch):
    """The artefact of the old set's key never holds the new set's number."""
    folder = tmp_path / "set"
    save_set(folder, bench)
    one = stage(bench, store, folder)
    real = score.load

    def replaced(path: Path) -> Distilled:
        if when == "while it is read":
            save_set(folder, bench, seed=1)
        data = real(path)
        if when == "after it was read":
            save_set(folder, bench, seed=1)
        return data

    monkeypatch.setattr(score, "load", replaced)
    if when == "before it is read":
        save_set(folder, bench, seed=1)
    with pytest.raises(StillroomError, match=r"the set changed while it was judged .*again$"):
        obtain(Store(store), one, Serial(), RT)
    assert not Store(store).complete(one.key())
    monkeypatch.undo()
    save_set(folder, bench)
    assert len(obtain(Store(store), one, Serial(), RT)) == 1


def test_another_author_of_the_same_images_is_no_change(bench, store, tmp_path):
    folder = tmp_path / "set"
    save_set(folder, bench)
    one = stage(bench, store, folder)
    replace(load(folder), provenance={"key": "somebody else"}).save(folder)
    assert obtain(Store(store), one, Serial(), RT)[0]["seed"] == 0


# -- students that diverge -----------------------------------------------------------------------


def test_a_student_that_diverges_is_an_error_that_names_it(bench, store):
    fast = find_protocol("quick@1+epochs=3").model_copy(update={"lr": HUGE})
    with pytest.raises(StillroomError, match=r"^student 7 diverged by epoch \d: its loss is NaN"):
        obtain(Store(store), stage(bench, store, protocol=fast, seeds=(7,)), Serial(), RT)


@pytest.mark.parametrize("rates", [(0.01, HUGE), (HUGE, 0.01)])
@pytest.mark.parametrize("students", ["loop", "vmap"])
def test_a_search_goes_on_without_the_rates_that_diverge(rates, students, carved, store):
    how = {"students": students, "seeds": (0, 1)}
    found = obtain(Store(store), stage(carved, store, protocol=search(*rates), **how), Serial(), RT)
    alone = obtain(Store(store), stage(carved, store, protocol=search(0.01), **how), Serial(), RT)
    assert [row["rate"] for row in found] == [0.01, 0.01]
    for ours, theirs in zip(found, alone, strict=True):
        assert ours["curve"] == theirs["curve"]
        assert torch.equal(ours["predicted"], theirs["predicted"])


def test_a_rate_at_which_all_diverge_is_not_trained_to_its_end(carved, store):
    class Seen(Session):
        def __init__(self) -> None:
            super().__init__()
            self.epochs: list[int] = []

        def update(self, done: int, **metrics: float) -> None:
            self.epochs.append(done)

    session = Seen()
    patient = find_protocol("search@1+epochs=50").model_copy(update={"rates": (HUGE, 0.01)})
    one = stage(carved, store, protocol=patient)
    obtain(Store(store), one, Serial(), replace(RT, session=session))
    assert session.epochs[-50:] == list(range(1, 51))
    assert len(session.epochs) < 55


def test_a_search_of_which_nothing_is_left_is_an_error(carved, store):
    one = stage(carved, store, protocol=search(HUGE, 2 * HUGE), seeds=(3,))
    with pytest.raises(
        StillroomError, match=r"^student 3 diverged at every rate \(1e\+30, 2e\+30\): its loss"
    ):
        obtain(Store(store), one, Serial(), RT)


@pytest.mark.parametrize("students", ["loop", "vmap"])
def test_one_diverged_student_costs_its_neighbours_nothing(students, carved, store, monkeypatch):
    """Of three together one diverges at one rate: only it has to take the other rate."""
    how = {"protocol": search(0.01, 0.02), "students": students, "seeds": (0, 1, 2)}
    healthy = obtain(Store(store), stage(carved, store, **how), Serial(), RT)
    better = healthy[1]["rate"]
    real = score.train

    def spoilt(nets, images, training, seeds, on_epoch, keep):
        if training.lr == better:
            next(iter(nets.member(1)[0].values())).view(-1)[0] = float("nan")
        real(nets, images, training, seeds, on_epoch, keep=keep)

    monkeypatch.setattr(score, "train", spoilt)
    other = Store(store.parent / "other")
    found = obtain(other, stage(carved, store, **how), Serial(), RT)
    assert found[1]["rate"] != better
    for i in (0, 2):
        assert found[i]["rate"] == healthy[i]["rate"]
        assert found[i]["curve"] == healthy[i]["curve"]


# -- losses, optimisers, averages ----------------------------------------------------------------

TAUGHT = {
    "soft_ce": {"temperature": 4.0},
    "kl": {"temperature": 20.0, "t_squared": True},
    "mse_gt": {"ce_weight": 0.025},
    "dist": {"temperature": 4.0},
}


def protocol_of(**fields: Any) -> Protocol:
    plain = find_protocol("quick@1+epochs=6")
    return Protocol(**{**plain.model_dump(), "why": plain.why, **fields})


def with_logits(folder: Path, bench: Benchmark) -> None:
    save_set(folder, bench)
    data = load(folder)
    soft = torch.randn(4, 2, generator=torch.Generator().manual_seed(2))
    replace(data, labels=soft, label_kind="logits").save(folder)


@pytest.mark.parametrize("loss", TAUGHT)
def test_a_student_of_logits_is_the_trainer_s(loss, bench, store, tmp_path):
    """What the stage predicts is what a student trained by hand on the same set predicts."""
    folder = tmp_path / "set"
    with_logits(folder, bench)
    more = {"optimiser": "adamw", "decay": "matrices", "schedule": "smoothing", "zeta": 2.0}
    protocol = protocol_of(lr=0.01, loss=loss, labels="logits", **TAUGHT[loss], **more)
    (found,) = obtain(Store(store), stage(bench, store, folder, protocol=protocol), Serial(), RT)
    data = load(folder)
    objective = Objective(
        loss,
        protocol.temperature,
        protocol.ce_weight,
        t_squared=loss == "kl",
    )
    training = Training(
        6, 256, 0.01, 0.9, 5e-4, "smoothing", parse("none"), "logits",
        zeta=2.0, objective=objective, optimiser="adamw", decay="matrices",
    )  # fmt: skip
    images = Images(lambda rows: data.images[rows], data.labels, bench.size, data.of_class)
    nets = nets_for(resolve("convnet1-w8"), bench, RT).seeded([0], "student")
    train(nets, images, training, [0])
    tests = real_images(bench.test, bench.preprocess, bench.size, RT)
    assert torch.equal(found["predicted"].long(), predict(nets, tests)[0])


@pytest.mark.parametrize("kind", ["hard", "probs"])
def test_labels_without_a_teacher_are_refused_by_the_loss(kind, bench, store, tmp_path):
    folder = tmp_path / "set"
    save_set(folder, bench)
    if kind == "probs":
        data = load(folder)
        replace(data, labels=torch.eye(2)[data.labels], label_kind="probs").save(folder)
    protocol = protocol_of(loss="kl", labels="logits")
    with pytest.raises(StillroomError, match=rf"^loss=kl compares .* labels are {kind}"):
        obtain(Store(store), stage(bench, store, folder, protocol=protocol), Serial(), RT)


BATCHNORM = resolve("convnet1-w8-bn")


@pytest.mark.parametrize("students", ["loop", "vmap"])
def test_an_average_without_memory_is_judged_as_the_live_student(students, bench, store):
    how = {"students": students, "seeds": (0, 1), "arch": BATCHNORM}
    plain = stage(bench, store, protocol=protocol_of(checks=3), **how)
    live = protocol_of(checks=3, ema=0.0, quirks=("live_norms",))
    ours = obtain(Store(store), stage(bench, store, protocol=live, **how), Serial(), RT)
    theirs = obtain(Store(store), plain, Serial(), RT)
    for a, b in zip(ours, theirs, strict=True):
        assert a["curve"] == b["curve"]
        assert torch.equal(a["predicted"], b["predicted"])


@pytest.mark.parametrize("quirks", [(), ("live_norms",)])
def test_students_are_tested_with_averaged_weights(quirks, bench, store, monkeypatch):
    """At each check the test sees the average; the training goes on from the live weights."""
    protocol = protocol_of(checks=3, ema=0.9, quirks=quirks)
    one = stage(bench, store, protocol=protocol, arch=BATCHNORM)
    seen, kept, real = [], [], score._test

    def watched(nets, done, *rest):
        params, buffers = nets.member(0)
        seen.append([value.clone() for value in (*params.values(), *buffers.values())])
        return real(nets, done, *rest)

    monkeypatch.setattr(score, "_test", watched)
    obtain(Store(store), one, Serial(), RT)

    training = training_of(protocol, protocol.lr, "none")
    nets = nets_for(BATCHNORM, bench, RT).seeded([0], "student")
    images = real_images(bench.train, bench.preprocess, bench.size, RT)

    def keep(progress):
        if progress.epochs in protocol.check_epochs():
            average = [value.clone() for value in progress.average]
            kept.append((average, [value.clone() for value in nets.member(0)[1].values()]))

    with RT.activate():  # with as many threads as the stage
        train(nets, images, training, [0], keep=keep)
    assert len(seen) == len(kept) == 3
    for tested, (average, buffers) in zip(seen, kept, strict=True):
        assert all(map(torch.equal, tested[: len(average)], average))
        assert all(map(torch.equal, tested[len(average) :], buffers)) == bool(quirks)


# -- what a session keeps ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change", [{"compile": True}, {"threads": 2}, {"device": torch.device("meta")}], ids=str
)
def test_networks_are_kept_for_one_runtime_only(change, bench, monkeypatch):
    """A second runtime of the session does not get what the first one settled."""
    monkeypatch.setattr("stillroom.runtime.available_memory", lambda device: 2**40)
    arch = resolve("convnet1-w8")
    first = nets_for(arch, bench, RT)
    other = replace(RT, **change)
    assert other.session is RT.session
    second = nets_for(arch, bench, other)
    assert second is not first
    assert second.rt == other
    assert nets_for(arch, bench, replace(RT)) is first
