"""Experts: what is kept is how training went, resumed to the same bytes, refused where it can't."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F

from stillroom.artefacts.executor import Serial
from stillroom.artefacts.experts import TRAJECTORY, Expert
from stillroom.artefacts.opened import nets_for, real_images
from stillroom.artefacts.schooling import Schooling
from stillroom.artefacts.snapshot import SNAPSHOT
from stillroom.artefacts.store import Store, obtain
from stillroom.data.augment import Strategy
from stillroom.data.benchmarks import Benchmark
from stillroom.errors import StillroomError
from stillroom.methods.trajectory_matching import TrajectoryMatching
from stillroom.nets.ensemble import Nets
from stillroom.nets.inner import flat, views
from stillroom.nets.sharpness import Uphill, direction, perturbation
from stillroom.nets.sources import Images
from stillroom.nets.train import Training, predict, train
from stillroom.nets.zoo import resolve
from stillroom.recipe import from_preset
from stillroom.rng import rng
from stillroom.run.distil import distil, plan
from stillroom.run.options import Machine
from stillroom.run.prepare import cost_of_experts
from stillroom.runtime import Runtime
from stillroom.session import Interrupted, Session
from toy import StopAt

ARCH = "convnet1-w4"


def stage(bench: Benchmark, store: Path, upto: int, whole: bool = False, **more) -> Expert:
    given = {"epochs": 4, "batch": 16, "lr": 0.05, "momentum": 0.0, "schedule": "constant"}
    schooling = Schooling(**{**given, "rho": 0.05, "alpha": 0.3, **more})
    return Expert(schooling, bench.describe(), resolve(ARCH), 1, upto, whole, store)


def runtime(**changes) -> Runtime:
    return Runtime(device=torch.device("cpu"), threads=1, **changes)


def test_a_row_an_epoch(bench: Benchmark, store: Path, tmp_path: Path) -> None:
    """Before the first and after each; the last ones have the accuracy that is told."""
    found = obtain(Store(tmp_path), stage(bench, store, 4), Serial(), runtime())
    nets = nets_for(found.arch, bench, runtime()).make(1, 1, "expert", ARCH)
    params = nets.member(0)[0]
    assert found.epochs == (0, 1, 2, 3, 4)
    assert torch.equal(found.after(0), flat(params))
    moved = [float((found.after(e + 1) - found.after(e)).norm()) for e in range(4)]
    assert min(moved) > 0
    for name, value in views(found.last(), params).items():
        params[name].copy_(value)
    tests = real_images(bench.test, bench.preprocess, bench.size, runtime())
    right = (predict(nets, tests)[0] == bench.test.labels).double().mean()
    assert found.accuracy == float(right)
    with pytest.raises(StillroomError, match="not kept at epoch 9"):
        found.after(9)


def test_a_part_is_the_same_way(bench: Benchmark, store: Path, tmp_path: Path) -> None:
    """Stopped at what is read, or kept only as far, rows are those of the whole."""
    held = Store(tmp_path)
    whole = obtain(held, stage(bench, store, 4), Serial(), runtime())
    short = obtain(held, stage(bench, store, 2), Serial(), runtime())
    both = obtain(held, stage(bench, store, 2, whole=True), Serial(), runtime())
    assert (short.epochs, both.epochs) == ((0, 1, 2), (0, 1, 2, 4))
    for some in (short, both):
        for epoch in some.epochs:
            assert torch.equal(some.after(epoch), whole.after(epoch))
    assert both.accuracy == whole.accuracy


def test_stopped_and_gone_on_with(bench: Benchmark, store: Path, tmp_path: Path) -> None:
    one = stage(bench, store, 2, whole=True)
    straight, broken = Store(tmp_path / "straight"), Store(tmp_path / "broken")
    obtain(straight, one, Serial(), runtime())
    for epoch in (1, 3):
        with pytest.raises(Interrupted):
            obtain(broken, one, Serial(), runtime(session=StopAt(epoch)))
        assert (broken.part(one.key()) / "0000" / SNAPSHOT).is_file()
    obtain(broken, one, Serial(), runtime())
    files = [s.folder(one.key()) / "0000" / TRAJECTORY for s in (straight, broken)]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert not list(broken.folder(one.key()).rglob(SNAPSHOT))


def test_other_arrays_are_refused(bench: Benchmark, store: Path, tmp_path: Path) -> None:
    held, one = Store(tmp_path), stage(bench, store, 1)
    obtain(held, one, Serial(), runtime())
    path = held.folder(one.key()) / "0000" / TRAJECTORY
    path.chmod(0o644)
    np.save(path, np.zeros((2, 3), np.float64))
    with pytest.raises(StillroomError, match=r"holds float64 \[2, 3\]"):
        one.load(held.folder(one.key()))
    np.save(path, np.array([{"code": "runs"}], dtype=object), allow_pickle=True)
    with pytest.raises(StillroomError, match="not readable"):
        one.load(held.folder(one.key()))


@pytest.mark.parametrize(
    ("upto", "more", "told"),
    [
        (9, {}, "up to epoch 9 and trained for 4"),
        (2, {"select": "best"}, "cannot select the best"),
        (2, {"raw_pixels": True}, "raw pixels"),
    ],
)
def test_refusals(bench: Benchmark, store: Path, upto: int, more: dict, told: str) -> None:
    with pytest.raises(StillroomError, match=told):
        stage(bench, store, upto, **more)


def batch() -> tuple[Tensor, Tensor]:
    draws = rng(0, "sharpness")
    images = torch.randn((24, 3, 8, 8), generator=draws, dtype=torch.float64)
    return images, torch.randint(3, (24,), generator=draws)


def trained(arch: str, backend: str, rule: Uphill | None, seeds: tuple[int, ...]):
    images, labels = batch()
    data = Images(lambda rows: images[rows], labels, 8)
    how = Training(2, 8, 0.1, 0.9, 5e-4, "constant", Strategy(), uphill=rule)
    nets = Nets(resolve(arch), 3, 3, 8, Runtime(torch.device("cpu"), "float64"), backend)
    made = nets.seeded(seeds, "net")
    train(made, data, how, seeds)
    return made


@pytest.mark.parametrize("arch", ["convnet1-w4", "convnet1-w4-bn"])
@pytest.mark.parametrize("adaptive", [True, False])
def test_networks_look_uphill_each_for_itself(arch: str, adaptive: bool) -> None:
    """Stacked as alone; and BatchNorm statistics move once a batch."""
    rule = Uphill(0.05, 0.3, adaptive)
    alone = trained(arch, "loop", rule, (0, 1))
    together = trained(arch, "vmap", rule, (0, 1))
    for i in range(2):
        for mine, theirs in zip(alone.member(i), together.member(i), strict=True):
            for name, value in mine.items():
                torch.testing.assert_close(value, theirs[name], rtol=1e-9, atol=1e-12)
    plain = trained(arch, "loop", None, (0, 1))
    tiny = trained(arch, "loop", Uphill(1e-12, 0.0, adaptive), (0, 1))
    for mine, theirs in zip(plain.member(0), tiny.member(0), strict=True):
        for name, value in mine.items():
            if not name.endswith("num_batches_tracked"):  # which counts both passes
                torch.testing.assert_close(
                    value.double(), theirs[name].double(), rtol=1e-6, atol=1e-9
                )


def test_a_step_by_hand() -> None:
    """Without momentum and decay, one batch: the step is along g' - alpha (g - proj of g on g')."""
    images, labels = batch()
    nets = Nets(resolve("convnet1-w4"), 3, 3, 8, Runtime(torch.device("cpu"), "float64"))
    made = nets.seeded((3,), "net")
    before = flat(made.member(0)[0]).clone()
    net = nets.build(3, "net")
    leaves = list(net.parameters())
    first = torch.autograd.grad(F.cross_entropy(net(images), labels), leaves)
    a, g = flat({str(i): p for i, p in enumerate(leaves)}), torch.cat([f.flatten() for f in first])
    ahead = a + 0.05 * a**2 * g / (a.abs() * g).norm()
    with torch.no_grad():
        for leaf, value in zip(leaves, ahead.split([p.numel() for p in leaves]), strict=True):
            leaf.copy_(value.view_as(leaf))
    second = torch.autograd.grad(F.cross_entropy(net(images), labels), leaves)
    h = torch.cat([s.flatten() for s in second])
    across = g - (g @ h) / (h @ h) * h
    assert float((across @ h).abs()) < 1e-12
    data = Images(lambda rows: images[rows], labels, 8)
    how = Training(1, 24, 0.1, 0.0, 0.0, "constant", Strategy(), uphill=Uphill(0.05, 0.3))
    train(made, data, how, [3])
    moved = flat(made.member(0)[0]) - before
    torch.testing.assert_close(moved, -0.1 * (h - 0.3 * across), rtol=1e-8, atol=1e-12)


def test_without_a_part_across_it_is_plain_sam() -> None:
    some = [torch.randn(4, generator=rng(0, k), dtype=torch.float64) for k in ("a", "b")]
    found = direction(some, some[::-1], 0.0)
    assert all(torch.equal(x, y) for x, y in zip(found, some[::-1], strict=True))
    (move,) = perturbation([some[0]], [some[1]], Uphill(0.0))
    assert not move.any()


@pytest.mark.parametrize(
    "given",
    [
        {"window": {"begin": 2, "last": 3}},
        {"parameters": {"share": 0.5}},
        {"areas": {"every": 7}},
        {"engine": "unrolled", "theta": "host"},
        {"window": {"first": 2, "last": 2}},
    ],
)
def test_what_nothing_would_read_is_refused(given: dict) -> None:
    with pytest.raises(ValidationError):
        TrajectoryMatching(**given)


def test_numerics_are_of_the_schooling(bench: Benchmark, store: Path, tmp_path: Path) -> None:
    """bf16 goes about the same way, under a key of its own; the run's own numerics play no part."""
    held = Store(tmp_path)
    plain, coarse = stage(bench, store, 2), stage(bench, store, 2, numerics="bf16")
    assert (plain.numerics, coarse.numerics) == ("float32", "bf16")
    assert plain.key() != coarse.key()
    assert "numerics" not in plain.schooling.model_dump()
    exact, found = (obtain(held, one, Serial(), runtime()) for one in (plain, coarse))
    again = obtain(Store(tmp_path / "b"), coarse, Serial(), runtime(numerics="float64"))
    assert np.array_equal(again.rows, found.rows)
    assert torch.equal(found.after(0), exact.after(0))
    moved, other = exact.last() - exact.after(0), found.last() - exact.after(0)
    assert 0 < float((moved - other).norm() / moved.norm()) < 0.2
    with pytest.raises(StillroomError, match="numerics=tf32 exists on CUDA only"):
        obtain(held, stage(bench, store, 2, numerics="tf32"), Serial(), runtime())


class Trained(Session):
    """Counts the epochs that are trained."""

    def __init__(self) -> None:
        super().__init__()
        self.epochs = 0

    def update(self, done: int, **values: float) -> None:
        self.epochs += 1
        super().update(done, **values)


KIN = [  # (upto, whole) in the store; then asked for; epochs that are left to train, of four
    ((4, False), (2, False), 0),
    ((4, False), (2, True), 0),
    ((2, True), (2, False), 0),
    ((2, True), (1, True), 0),
    ((2, False), (4, False), 2),
    ((1, True), (3, False), 2),
    ((1, True), (3, True), 3),
    ((2, False), (1, True), 2),
]


@pytest.mark.parametrize(("there", "asked", "left"), KIN)
def test_what_another_expert_has_is_not_trained_again(
    bench: Benchmark, store: Path, tmp_path: Path,
    there: tuple[int, bool], asked: tuple[int, bool], left: int,
) -> None:  # fmt: skip
    """To the same bytes and the same accuracy as without it; and plans know."""
    alone, shared = Store(tmp_path / "alone"), Store(tmp_path / "shared")
    kept = dataclasses.replace(stage(bench, store, *there, rho=0.0, alpha=0.0), store=shared.root)
    wanted = dataclasses.replace(stage(bench, store, *asked, rho=0.0, alpha=0.0), store=shared.root)
    shutil.copytree(store, shared.root, dirs_exist_ok=True)  # the decoded data
    obtain(shared, kept, Serial(), runtime())
    plain = dataclasses.replace(wanted, store=store)
    straight = obtain(alone, plain, Serial(), runtime())
    session = Trained()
    assert wanted.there(runtime()) == wanted.trained.passes - left
    cost, _ = cost_of_experts([wanted], Machine(threads=1), Session(), shared)
    empty = Store(tmp_path / "empty")
    full, _ = cost_of_experts([plain], Machine(threads=1), Session(), empty)
    found = obtain(shared, wanted, Serial(), runtime(session=session))
    assert session.epochs == left
    assert np.array_equal(found.rows, straight.rows)
    assert (found.accuracy, found.epochs) == (straight.accuracy, straight.epochs)
    assert (cost.left, cost.disk > 0) == (int(left > 0), left > 0)
    assert cost.flops == pytest.approx(full.flops * left / wanted.trained.passes)


def test_nothing_is_taken_from_an_expert_that_went_another_way(
    bench: Benchmark, store: Path, tmp_path: Path
) -> None:
    """Of another schooling, number or code; or where steps remember, or norms keep."""
    held = Store(tmp_path / "held")
    shutil.copytree(store, held.root)
    one = dataclasses.replace(stage(bench, store, 2), store=held.root)
    obtain(held, one, Serial(), runtime())
    longer = dataclasses.replace(one, upto=4)
    assert longer.there(runtime()) == 2
    assert dataclasses.replace(longer, index=2).there(runtime()) == 0
    other = one.schooling.model_copy(update={"lr": 0.04})
    assert dataclasses.replace(longer, schooling=other).there(runtime()) == 0
    norms = dataclasses.replace(one, arch=resolve("convnet1-w4-bn"))
    kept = obtain(held, norms, Serial(), runtime())
    assert kept.rows.shape == (3, 250)  # parameters, no statistics of norms
    assert dataclasses.replace(norms, upto=1).there(runtime()) == 0
    array = held.folder(one.key()) / "0000" / TRAJECTORY
    whole = array.read_bytes()
    array.chmod(0o644)
    array.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert longer.there(runtime()) == 0  # one bit is another
    array.write_bytes(whole)
    manifest = held.folder(one.key()) / "stage.json"
    manifest.parent.rename(manifest.parent.with_name("expert-0123456789abcdef"))  # of other code
    assert longer.there(runtime()) == 0
    moving = dataclasses.replace(one, schooling=Schooling(
        epochs=4, batch=16, lr=0.05, momentum=0.5, schedule="constant", weight_decay=0.0
    ))  # fmt: skip
    obtain(held, moving, Serial(), runtime())
    assert dataclasses.replace(moving, upto=4).there(runtime()) == 0
    assert dataclasses.replace(moving, upto=1).there(runtime()) == 1  # no step is left


def test_no_room_is_said_before_experts_train(
    bench: Benchmark, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = {"experts": 2, "schooling": {"epochs": 3, "batch": 16}, "window": {"last": 1}}
    given = {"arch": ARCH, "method": method, "outer": {"steps": 1}}
    recipe, _ = from_preset("mtt", "toy", 1, given)
    held = Store(store)
    planned = plan(recipe, bench, Machine(threads=1), Session(), store=held)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2000))
    with pytest.raises(StillroomError, match="are free there; name a larger one with --store"):
        distil(planned, Machine(threads=1))
    assert not list(store.glob("expert-*"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**9))
    assert len(distil(planned, Machine(threads=1))) == 2


def test_a_range_is_part_of_the_same_way(bench: Benchmark, store: Path, tmp_path: Path) -> None:
    """From an epoch on, alone or out of the store: rows of the whole; plans count them."""
    held = Store(tmp_path)
    whole = obtain(held, stage(bench, store, 4), Serial(), runtime())
    part = dataclasses.replace(stage(bench, store, 3), since=2)
    assert part.epochs == (2, 3)
    assert "epochs 2 to 3" in part.about()
    assert part.nbytes(runtime()) == 2 * 4 * whole.rows.shape[1]
    found = obtain(held, part, Serial(), runtime())
    assert found.rows.shape[0] == 2
    for epoch in (2, 3):
        assert torch.equal(found.after(epoch), whole.after(epoch))
    with pytest.raises(StillroomError, match="not kept at epoch 1"):
        found.after(1)
    ended = dataclasses.replace(stage(bench, store, 2, whole=True), since=2)
    assert ended.epochs == (2, 4)
    alone = obtain(Store(tmp_path / "b"), ended, Serial(), runtime())
    assert torch.equal(alone.last(), whole.last())
    with pytest.raises(StillroomError, match="lower --since"):
        dataclasses.replace(part, since=4)


def test_a_range_serves_a_range(bench: Benchmark, store: Path, tmp_path: Path) -> None:
    """One that begins later is gone on from; one that lacks what is wanted is not."""
    held = Store(tmp_path / "held")
    shutil.copytree(store, held.root)
    base = dataclasses.replace(stage(bench, store, 2, rho=0.0, alpha=0.0), store=held.root)
    obtain(held, dataclasses.replace(base, since=1), Serial(), runtime())
    later = dataclasses.replace(base, since=1, upto=4)
    assert later.there(runtime()) == 2
    assert base.there(runtime()) == 0  # it wants epoch 0
    plain = dataclasses.replace(later, store=store)
    straight = obtain(Store(tmp_path / "alone"), plain, Serial(), runtime())
    assert np.array_equal(obtain(held, later, Serial(), runtime()).rows, straight.rows)


def test_differences_in_half_the_bytes(bench: Benchmark, store: Path, tmp_path: Path) -> None:
    """float16 of the way from the first epoch kept: that one exactly, the others to 2^-11 of it."""
    held = Store(tmp_path)
    exact = obtain(held, stage(bench, store, 4), Serial(), runtime())
    half = dataclasses.replace(stage(bench, store, 4), since=1, kept="float16")
    assert half.key() != dataclasses.replace(half, kept="float32").key()
    assert half.nbytes(runtime()) == (4 * 2 + 4) * exact.rows.shape[1]
    found = obtain(held, half, Serial(), runtime())
    assert found.rows.dtype == np.float16
    assert torch.equal(found.after(1), exact.after(1))
    for epoch in (2, 3, 4):
        moved = (exact.after(epoch) - exact.after(1)).abs()
        off = (found.after(epoch) - exact.after(epoch)).abs()
        assert float((off - moved * 2.0**-11).max()) < 1e-7
        assert found.after(epoch).dtype == torch.float32
    assert half.there(runtime()) == 0  # rounded parameters are no place to go on from
    assert found.accuracy == exact.accuracy


def test_a_killed_range_of_differences_goes_on(
    bench: Benchmark, store: Path, tmp_path: Path
) -> None:
    """Stopped after the first epoch that it keeps: the bytes of a run that nobody stopped."""
    half = dataclasses.replace(stage(bench, store, 4), since=1, kept="float16")
    straight = obtain(Store(tmp_path / "a"), half, Serial(), runtime())
    stopped = Store(tmp_path / "b")
    with pytest.raises(Interrupted):
        obtain(stopped, half, Serial(), runtime(session=StopAt(2)))
    found = obtain(stopped, half, Serial(), runtime())
    assert np.array_equal(found.rows, straight.rows)
    assert np.array_equal(found.first, straight.first)


def test_a_run_keeps_what_it_reads(bench: Benchmark, store: Path) -> None:
    """From the first epoch of its window, or the one whose opinion is asked."""
    schooling = {"epochs": 4, "batch": 16}
    window = {"first": 2, "last": 3, "epochs": 1, "begin": 1, "grow": 0}

    def kept(preset: str, **method: object) -> tuple[tuple[int, ...], str]:
        given = {"experts": 1, "schooling": schooling, "window": window, **method}
        recipe, _ = from_preset(preset, "toy", 1, {"arch": ARCH, "method": given})
        stages = recipe.method.stages(bench.describe(), resolve(ARCH), store)
        return stages["expert/0000"].epochs, stages["expert/0000"].kept

    assert kept("mtt") == ((2, 3), "float32")
    assert kept("mtt", kept="float16") == ((2, 3), "float16")
    assert kept("datm")[0] == (2, 3, 4)  # their ends say what is known
    assert kept("datm", labeller={"epoch": 1})[0] == (1, 2, 3)
