"""Original models: trained by the one trainer, kept by key, resumed to the same bytes."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import pytest
import torch

from stillroom.artefacts.executor import Serial
from stillroom.artefacts.opened import nets_for
from stillroom.artefacts.originals import WEIGHTS, Original
from stillroom.artefacts.schooling import SCHOOLINGS, Schooling, changed, find_schooling
from stillroom.artefacts.snapshot import SNAPSHOT
from stillroom.artefacts.store import Store, obtain
from stillroom.artefacts.training import Work
from stillroom.cli import run
from stillroom.data.augment import parse
from stillroom.data.benchmarks import Benchmark
from stillroom.errors import StillroomError
from stillroom.files import canonical, sha256
from stillroom.methods.regularisers import Clom
from stillroom.nets.train import Training, predict, rate
from stillroom.nets.zoo import resolve
from stillroom.records import NETWORK, NETWORK_ACCURACY, read_records
from stillroom.runtime import COMPILE_FLOPS, Runtime
from stillroom.session import Interrupted, Session
from stillroom.tables import percent
from toy import StopAt

QUICK = {"epochs": 6, "batch": 8, "lr": 0.05}


def stage(bench: Benchmark, store: Path, index: int = 0, arch: str = "convnet1-w4", **more):
    schooling = Schooling(**{**QUICK, **more})
    return Original(schooling, bench.describe(), resolve(arch), index, store)


def runtime(**changes) -> Runtime:
    return Runtime(device=torch.device("cpu"), threads=1, **changes)


class StopInside(Session):
    """Presses Ctrl-C before a step, whatever epoch that lies in."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.left = steps

    def check(self) -> None:
        if self.left == 0:
            self.stop.set()
        self.left -= 1
        super().check()


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "0000" / WEIGHTS).read_bytes()).hexdigest()


@pytest.mark.parametrize("select", ["last", "best"])
@pytest.mark.parametrize("arch", ["convnet1-w4", "convnet1-w4-bn"])
def test_a_stopped_training_goes_on_to_the_same_bytes(
    bench: Benchmark, store: Path, tmp_path: Path, arch: str, select: str
) -> None:
    how = {"schedule": "steps", "milestones": (2, 4), "warmup": 1, "stop": 6}
    one = stage(bench, store, arch=arch, select=select, **{**how, "epochs": 8})
    straight, broken = Store(tmp_path / "straight"), Store(tmp_path / "broken")
    whole = obtain(straight, one, Serial(), runtime())
    for epoch in (2, 5):
        with pytest.raises(Interrupted):
            obtain(broken, one, Serial(), runtime(session=StopAt(epoch)))
        assert (broken.part(one.key()) / "0000" / SNAPSHOT).is_file()
    again = obtain(broken, one, Serial(), runtime())
    assert digest(broken.folder(one.key())) == digest(straight.folder(one.key()))
    assert (again.accuracy, again.curve) == (whole.accuracy, whole.curve)
    assert not list(broken.folder(one.key()).rglob(SNAPSHOT))


def test_a_stop_does_not_wait_for_the_end_of_an_epoch(
    bench: Benchmark, store: Path, tmp_path: Path
) -> None:
    """What the last whole epoch left is kept, of this run or of the one before."""
    one = stage(bench, store, select="best")
    steps = -(-len(bench.train) // one.schooling.batch)
    assert steps > 2
    straight, broken = Store(tmp_path / "straight"), Store(tmp_path / "broken")
    obtain(straight, one, Serial(), runtime())
    kept = broken.part(one.key()) / "0000" / SNAPSHOT
    for before, there in ((1, False), (2 * steps + 1, True), (1, True), (steps + 2, True)):
        with pytest.raises(Interrupted):
            obtain(broken, one, Serial(), runtime(session=StopInside(before)))
        assert kept.is_file() == there
    obtain(broken, one, Serial(), runtime())
    assert digest(broken.folder(one.key())) == digest(straight.folder(one.key()))


def test_it_learns_and_says_how_well(bench: Benchmark, store: Path, tmp_path: Path) -> None:
    found = obtain(Store(tmp_path), stage(bench, store, epochs=20), Serial(), runtime())
    nets = nets_for(found.arch, bench, runtime()).make(1, 99, "other")
    found.put_into(nets)
    from stillroom.artefacts.opened import real_images

    tests = real_images(bench.test, bench.preprocess, bench.size, runtime())
    right = (predict(nets, tests)[0] == bench.test.labels).double().mean()
    assert found.accuracy == float(right) > 0.7
    assert found.curve == ((20, found.accuracy),)


def test_the_best_is_the_earliest_of_the_best(
    bench: Benchmark, store: Path, tmp_path: Path
) -> None:
    found = obtain(Store(tmp_path), stage(bench, store, select="best"), Serial(), runtime())
    values = [value for _, value in found.curve]
    assert len(values) == 6
    assert found.accuracy == max(values)
    flat = {"schedule": "constant"}
    whole = obtain(Store(tmp_path), stage(bench, store, select="best", **flat), Serial(), runtime())
    until = next(epoch for epoch, value in whole.curve if value == whole.accuracy)
    short = obtain(Store(tmp_path), stage(bench, store, epochs=until, **flat), Serial(), runtime())
    for name, value in short.weights.items():
        assert torch.equal(value, whole.weights[name])


def test_raw_pixels_are_what_the_released_recipe_trains_on(
    bench: Benchmark, store: Path, tmp_path: Path
) -> None:

    seen = []
    for raw in (False, True):
        work = Work(stage(bench, store, raw_pixels=raw), tmp_path, runtime())
        seen.append(work.data.take(torch.arange(len(bench.train))))
    pixels = bench.train.take(torch.arange(len(bench.train))).float() / 255
    torch.testing.assert_close(seen[0], bench.preprocess.apply(pixels))
    torch.testing.assert_close(seen[1], pixels)


def test_every_model_of_a_pool_is_its_own(bench: Benchmark, store: Path, tmp_path: Path) -> None:
    opened = Store(tmp_path)
    pool = [stage(bench, store, index=i) for i in range(3)]
    assert len({s.key() for s in pool}) == 3
    found = [obtain(opened, s, Serial(), runtime()) for s in pool]
    first = [m.weights["features.0.weight"] for m in found]
    assert not torch.equal(first[0], first[1])
    assert stage(bench, store, lr=0.1).key() != pool[0].key()


def test_the_released_schedule() -> None:
    """A tenth from epoch 50 on, a hundredth from epoch 100 on; weight decay 0.005."""
    s = SCHOOLINGS["clom"]
    training = Training(
        s.epochs, s.batch, s.lr, s.momentum, s.weight_decay, s.schedule, parse(s.augment),
        milestones=s.milestones,
    )  # fmt: skip
    rates = [rate(training, epoch) for epoch in range(s.epochs)]
    assert rates == pytest.approx([0.01] * 50 + [0.001] * 50 + [0.0001] * 50)
    assert (s.weight_decay, s.raw_pixels, s.select) == (0.005, True, "best")


BEFORE = {  # digests of what these dumped before warm-up and stop came
    "default": "09c33bdcb9a5",
    "clom": "f9a153989ab1",
}


@pytest.mark.parametrize("name", BEFORE)
def test_fields_that_came_later_change_no_key(name: str) -> None:
    """Nor where a schooling is part of something else that is dumped: a regulariser."""
    found = SCHOOLINGS[name].model_dump(mode="json")
    assert sha256(canonical(found))[:12] == BEFORE[name]
    term = Clom(weights=(1.0,), schooling=name)
    assert term.model_dump(mode="json")["schooling"] == found
    assert Schooling(**found) == SCHOOLINGS[name]
    longer = SCHOOLINGS[name].model_copy(update={"warmup": 2, "stop": 3})
    assert longer.model_dump(mode="json") == {**found, "warmup": 2, "stop": 3}


@pytest.mark.parametrize(
    ("name", "passes", "first", "last"),
    [
        ("edc", 10, 0.05, 0.05),
        ("edc-released", 1, 0.05, 0.05),
        ("edc-cifar100", 50, 0.05, 0.05),
        ("edc-cifar100-released", 41, 0.05, 0.05),
        ("edc-tiny", 50, 0.1, 0.05 * (1 + math.cos(math.pi * 49 / 50))),
        ("edc-tiny-released", 41, 0.1, 0.05 * (1 + math.cos(math.pi * 40 / 50))),
        ("sre2l-tiny", 50, 0.002, 0.1 * (1 + math.cos(math.pi * 44 / 45))),
        ("sre2l-cifar100", 200, 0.1, 0.05 * (1 + math.cos(math.pi * 199 / 200))),
    ],
)
def test_teachers_of_the_decoupled_methods(
    bench: Benchmark, store: Path, name: str, passes: int, first: float, last: float
) -> None:
    arch = resolve("convnet1-w4")
    one = Original(SCHOOLINGS[name], bench.describe(), arch, 0, store)
    training = Work(one, store, runtime()).training()
    assert training.passes == SCHOOLINGS[name].passes == passes
    assert rate(training, 0) == pytest.approx(first)
    assert rate(training, passes - 1) == pytest.approx(last)


def test_a_short_form_keeps_its_shares() -> None:
    short = find_schooling("edc-cifar100-released+epochs=10")
    assert (short.epochs, short.stop) == (10, 8)
    assert find_schooling("edc-released+epochs=2").stop == 1
    assert find_schooling("sre2l-tiny+epochs=100").warmup == 10
    assert find_schooling("sre2l-tiny+epochs=1").warmup == 0


def test_what_is_released_is_what_the_long_training_passed(
    bench: Benchmark, store: Path, tmp_path: Path
) -> None:
    """Stopped after 4 of 6 epochs: the first four of them, not four of another schedule."""
    opened = Store(tmp_path)
    stopped = obtain(opened, stage(bench, store, stop=4), Serial(), runtime())
    whole = obtain(opened, stage(bench, store, select="best"), Serial(), runtime())
    assert stopped.curve == whole.curve[3:4]
    other = obtain(opened, stage(bench, store, epochs=4), Serial(), runtime())
    first = next(iter(stopped.weights))
    assert not torch.equal(stopped.weights[first], other.weights[first])


def test_warm_up_and_stop_lie_within_the_epochs() -> None:
    with pytest.raises(ValueError, match="cannot be more than the 6 epochs"):
        Schooling(epochs=6, stop=7)
    with pytest.raises(ValueError, match="must be fewer than the 6 epochs"):
        Schooling(epochs=6, warmup=6)


def test_milestones_and_schedule_belong_together() -> None:
    for wrong in ({"milestones": (3,)}, {"schedule": "steps"}):
        with pytest.raises(ValueError, match="milestones belong to schedule steps"):
            Schooling(**wrong)


def test_whether_it_is_compiled_is_its_own_matter(bench: Benchmark, store: Path) -> None:
    """Not of how many others are left to train: a snapshot goes on under the same conditions."""
    short, long = stage(bench, store), stage(bench, store, epochs=10**5)
    by_size = runtime(by_size=True)
    images = 3 * 6 * len(bench.train) + len(bench.test)
    nets = nets_for(short.arch, bench, runtime())
    assert short.flops(runtime()) == images * nets.forward_flops()
    assert not by_size.sized(short.flops(by_size)).compile
    assert by_size.sized(COMPILE_FLOPS).compile
    assert long.flops(by_size) > 10**4 * short.flops(by_size)
    for told in (runtime(compile=True), runtime(compile=False)):
        assert told.sized(0.0) == told == told.sized(1e20)


def test_networks_of_one_number_begin_apart(bench: Benchmark, store: Path, tmp_path: Path) -> None:
    """Also where their first layers have one shape."""
    found = [
        obtain(
            Store(tmp_path), stage(bench, store, arch=a, lr=1e-12, epochs=1), Serial(), runtime()
        )
        for a in ("convnet1-w4", "convnet2-w4")
    ]
    first = [model.weights["features.0.weight"] for model in found]
    assert first[0].shape == first[1].shape
    assert not torch.allclose(first[0], first[1], atol=1e-2)


def test_schoolings_are_changed_field_by_field() -> None:
    made = find_schooling("default+lr=0.1+epochs=5+augment=crop_flip")
    assert (made.lr, made.epochs, made.augment) == (0.1, 5, "crop_flip")
    assert find_schooling("clom+epochs=30").milestones == (10, 20)
    assert find_schooling("clom+epochs=2").milestones == (1,)
    assert find_schooling("clom+epochs=1").milestones == (1,), "never met: the rate stays"
    assert find_schooling("clom+schedule=cosine").milestones == ()
    assert changed(SCHOOLINGS["clom"], {"milestones": (7,)}).milestones == (7,)
    for name, told in (
        ("clom+epoch=3", "'epoch=3' must be FIELD=VALUE.*did you mean 'epochs'"),
        ("default+augment=foo", "augment='foo' is not known"),
        ("default+lr=-1", r"lr: Input should be greater than 0 \(got '-1'\)"),
        ("default+schedule=steps", "milestones belong to schedule steps"),
        ("default+epochs=2.5", "epochs: Input should be a valid integer"),
    ):
        with pytest.raises(StillroomError, match=told):
            find_schooling(name)


def test_accuracies_go_into_a_ledger(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One record a network; asked again, the same records and nothing is trained."""
    ledger = tmp_path / "networks.jsonl"
    argv = ["prepare", "originals", "--data", "digits", "--arch", "mlp", "convnet1-w4"]
    argv += ["--num", "2", "--recipe", "default+epochs=1", "--quiet", "--records", str(ledger)]
    assert run(argv) == 0
    told = capsys.readouterr().out
    first = read_records(ledger)
    assert sorted((r.arch, r.seed) for r in first) == [
        (arch, i) for arch in ("convnet1-w4", "mlp") for i in (0, 1)
    ]
    for r in first:
        assert (r.row, r.metric, r.protocol) == (NETWORK, NETWORK_ACCURACY, "default+epochs=1")
        assert percent(r.value) in told
    assert run(argv) == 0
    assert read_records(ledger) == first
