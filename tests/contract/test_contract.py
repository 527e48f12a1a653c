"""Every method, one contract: moves pixels, resumes to the same bytes, splits over ranks."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch

from contract.toys import Chunked, Unrolled
from stillroom.artefacts import snapshot
from stillroom.artefacts.executor import Job, Processes, Serial, run_job
from stillroom.artefacts.snapshot import SNAPSHOT, read_snapshot
from stillroom.artefacts.store import Store, obtain, obtain_all
from stillroom.config import DSA
from stillroom.distilled import load
from stillroom.errors import StillroomError
from stillroom.methods.base import Method, Optim, Outer
from stillroom.methods.context import RunContext
from stillroom.methods.distil import Distil
from stillroom.methods.distribution_matching import DistributionMatching
from stillroom.methods.gradient_matching import GradientMatching
from stillroom.methods.mosaics import Mosaics
from stillroom.methods.outer import outer_loop
from stillroom.methods.regularisers import Clom
from stillroom.methods.selection import Selection
from stillroom.methods.statistics_matching import StatisticsMatching
from stillroom.methods.trajectory_matching import TrajectoryMatching
from stillroom.nets import train as trainer
from stillroom.nets.ensemble import Nets
from stillroom.nets.zoo import resolve
from stillroom.recipe import method_class, validate
from stillroom.run.distil import distil, plan
from stillroom.run.options import Machine
from stillroom.runtime import Runtime
from stillroom.session import Interrupted, Session

ARCH = "convnet1-w8"
SEEN = {"observers": ("convnet1-w4-bn",), "schooling": {"epochs": 1, "batch": 8}}
FOLLOWED = {
    "experts": 2,
    "schooling": {"epochs": 3, "batch": 8, "lr": 0.05, "schedule": "constant", "rho": 0.01},
    "inner": 3,
    "batch": 3,
}
METHODS: list[Method] = [
    DistributionMatching(batch_real=8),
    DistributionMatching(batch_real=8, init="noise", augment="none", nets=2),
    GradientMatching(batch_real=8, matches=3, net_epochs=2),
    GradientMatching(batch_real=8, matches=2, net_epochs=2, augment=DSA, init="noise"),
    Chunked(),
    Unrolled(),
    StatisticsMatching(**SEEN, batch=2, flat={"weight": 0.25}, conv_drop=0.5),
    StatisticsMatching(**SEEN, layers="norms", targets="whole", order="cycled", init="noise"),
    StatisticsMatching(**SEEN, targets="each", priors={"spectrum": 1.0, "tv": 0.1, "l2": 0.1}),
    TrajectoryMatching(**FOLLOWED, window={"last": 2, "epochs": 1}),
    TrajectoryMatching(
        **FOLLOWED,
        window={"last": 2, "begin": 1, "grow": 3, "epochs": 1},
        labels="learned",
        init="known",
        parameters={"drop": "easy", "share": 0.25},
        areas={"beta": 1.0, "every": 2, "net": "convnet1-w8", "schooling": {"epochs": 1}},
        ema=0.9,
        gate=2.0,
        theta="recompute",
    ),
    TrajectoryMatching(
        **FOLLOWED, window={"last": 1, "epochs": 1}, labels="assigned", engine="tesla"
    ),
    Mosaics(**SEEN),
    Selection(rule="random"),
    Selection(rule="class-mean"),
    Selection(rule="herding"),
    Selection(rule="k-center", space="net"),
    Selection(rule="k-means"),
    Selection(rule="k-means", centroids=True),
]
ITERATIVE = [m for m in METHODS if not isinstance(m, (Mosaics, Selection))]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    named = [method_class(name)() for name in metafunc.config.getoption("--method")]
    for name, pool in (("method", METHODS), ("iterative", ITERATIVE)):
        if name in metafunc.fixturenames:
            methods = named or pool
            ids = [f"{i}-{m.kind}-{getattr(m, 'rule', '')}" for i, m in enumerate(methods)]
            metafunc.parametrize(name, methods, ids=ids)


class StopAt(Session):
    """Presses Ctrl-C when a step is reached."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.at = step

    def update(self, done: int, **metrics: float) -> None:
        if done >= self.at:
            self.stop.set()


def outer(steps: int = 5, keep: tuple[int, ...] = ()) -> Outer:
    optim = Optim(lr=0.1, momentum=0.5)
    return Outer(steps=steps, images=optim, labels=optim, rate=Optim(lr=1e-3), keep=keep)


def context(bench, rt: Runtime, method: Method, store: Path) -> RunContext:
    """The context of a chunk, with what the method wants made first."""
    nets = Nets(resolve(ARCH), len(bench.classes), bench.channels, bench.size, rt)
    return RunContext(bench, 2, 0, rt, nets, artefacts=wanted(method, bench, store))


def wanted(method: Method, bench, store: Path) -> dict:
    """The artefacts that a method wants."""
    wants = method.stages(bench.describe(), resolve(ARCH), store)
    made = obtain_all(Store(store), list(wants.values()), Serial(), runtime()) if wants else []
    return dict(zip(wants, made, strict=True))


def runtime(**changes) -> Runtime:
    return Runtime(device=torch.device("cpu"), **changes)


def stage(method: Method, bench, store: Path, **changes) -> Distil:
    wanted(method, bench, store)
    fields = {
        "method": method,
        "outer": outer(),
        "bench": bench.describe(),
        "ipc": 2,
        "seed": 0,
        "arch": resolve(ARCH),
        "numerics": "float32",
        "storage": "float32",
        "store": store,
    }
    return Distil(**{**fields, **changes})


def digest(folder: Path) -> dict[str, str]:
    """Hashes of what must repeat: sets and curves."""
    names = ("data.safetensors", "meta.json", "metrics.jsonl")
    return {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.name in names
    }


def test_steps_move_pixels_and_nothing_else(iterative, bench, store, tmp_path):
    ctx = context(bench, runtime(), iterative, store)
    rows = torch.arange(4)
    before = iterative.start(ctx, rows)
    after = outer_loop(iterative, ctx, outer(2), rows, tmp_path).synth
    assert not torch.equal(before.images, after.images)
    assert torch.equal(before.of_class, after.of_class)
    assigned = getattr(iterative, "labels", "") == "assigned"
    if before.labels.dtype == torch.int64 and not assigned:
        assert torch.equal(before.labels, after.labels)
    else:
        assert not torch.equal(before.labels, after.labels)
        assert float(after.lr) != float(before.lr.detach())


def test_exactly_the_steps_asked_for(iterative, bench, store, tmp_path):
    seen: list[int] = []

    class Counting(type(iterative)):
        def loss(self, ctx, synth, it):
            seen.append(it)
            return super().loss(ctx, synth, it)

    counting = Counting(**iterative.model_dump())
    ctx = context(bench, runtime(), counting, store)
    outcome = outer_loop(counting, ctx, outer(3), torch.arange(4), tmp_path)
    assert seen == [0, 1, 2]
    assert [line["step"] for line in outcome.metrics] == [1, 2, 3]


@pytest.mark.parametrize("stop", [1, 3])
def test_resumed_run_gives_the_same_bytes(iterative, stop, bench, store, tmp_path):
    """Ctrl-C after step `stop`, started again, against a straight run."""
    settings = {"outer": outer(5, keep=(2,))}
    straight = Store(tmp_path / "straight")
    one = stage(iterative, bench, store, **settings)
    obtain(straight, one, Serial(), runtime())

    broken = Store(tmp_path / "broken")
    for shard in range(one.shards()):
        with pytest.raises(Interrupted):
            obtain(broken, one, Serial(), runtime(session=StopAt(stop)))
        assert (broken.part(one.key()) / f"{shard:04d}" / SNAPSHOT).is_file()
        if shard + 1 < one.shards():  # finish this shard, stop in the next
            out = broken.part(one.key()) / f"{shard:04d}"
            run_job(Job(one, shard, out), runtime())
    obtain(broken, one, Serial(), runtime())
    key = one.key()
    assert digest(broken.folder(key)) == digest(straight.folder(key))
    assert (straight.folder(key) / "steps" / "2" / "meta.json").is_file()


def test_a_term_attaches_to_every_method(iterative, bench, store, tmp_path):
    """CLOM moves the pixels otherwise, resumes to the same bytes, and gives learned labels none."""
    term = Clom(weights=(50.0,), num=1, schooling={"epochs": 1, "batch": 8})
    plain, one = (stage(iterative, bench, store, regularisers=r) for r in ((), (term,)))
    obtain_all(Store(store), list(one.wants().values()), Serial(), runtime())
    straight, broken = Store(tmp_path / "straight"), Store(tmp_path / "broken")
    bare, made = (obtain(straight, s, Serial(), runtime()) for s in (plain, one))
    assert not torch.equal(made.images, bare.images)
    lines = (straight.folder(one.key()) / "metrics.jsonl").read_text().splitlines()
    assert all("clom" in json.loads(line) for line in lines)
    for _ in range(one.shards()):
        with pytest.raises(Interrupted):
            obtain(broken, one, Serial(), runtime(session=StopAt(2)))
        undone = next(p for p in sorted(broken.part(one.key()).glob("*/snapshot.*")))
        run_job(Job(one, int(undone.parent.name), undone.parent), runtime())
    obtain(broken, one, Serial(), runtime())
    assert digest(broken.folder(one.key())) == digest(straight.folder(one.key()))


def test_killed_inside_an_inner_loop_gives_the_same_bytes(bench, store, tmp_path, monkeypatch):
    """At a batch between two matches of one network; what was saved is the state before them."""
    monkeypatch.setattr(snapshot, "SECONDS", 0)
    one = stage(GradientMatching(batch_real=8, matches=4, net_epochs=5), bench, store)
    straight, broken = Store(tmp_path / "straight"), Store(tmp_path / "broken")
    obtain(straight, one, Serial(), runtime())
    whole, seen = trainer.together, []

    def killed(data, training, seeds, epoch):
        seen.append(epoch)
        if len(seen) == 13:  # the third epoch of the third training: step 4 of 5
            raise KeyboardInterrupt
        return whole(data, training, seeds, epoch)

    with monkeypatch.context() as patched:
        patched.setattr(trainer, "together", killed)
        with pytest.raises(KeyboardInterrupt):
            obtain(broken, one, Serial(), runtime())
    assert seen[-3:] == [0, 1, 2]
    header, tensors = read_snapshot(broken.part(one.key()) / "0000", runtime())
    assert header["step"] == 3
    assert any(name.startswith("memory.net.") for name in tensors)
    obtain(broken, one, Serial(), runtime())
    assert digest(broken.folder(one.key())) == digest(straight.folder(one.key()))


@pytest.mark.slow
def test_workers_give_the_same_bytes_as_one(bench, store, tmp_path):
    """Two local processes over the shards of a chunked method."""
    one = stage(Chunked(), bench, store)
    assert one.shards() == 2
    serial, parallel = Store(tmp_path / "serial"), Store(tmp_path / "parallel")
    obtain(serial, one, Serial(), runtime(threads=1))
    obtain(parallel, one, Processes(2), runtime(threads=1))
    assert digest(serial.folder(one.key())) == digest(parallel.folder(one.key()))


def test_two_ranks_sum_to_one(iterative, bench, store):
    """Terms shared over two ranks give the gradient of one rank: draws are keyed."""
    if isinstance(iterative, (Chunked, Unrolled)):
        pytest.skip("its terms are not split over classes")

    def gradient(ranks: list[tuple[int, int]]) -> torch.Tensor:
        total = None
        for rank, world in ranks:
            rt = runtime(numerics="float64", rank=rank, world=world)
            ctx = context(bench, rt, iterative, store)
            synth = iterative.start(ctx, torch.arange(4))
            for it in range(4):  # from the first: a method may carry something on
                for term in iterative.loss(ctx, synth, it):
                    term.backward()
            if synth.images.grad is not None:  # a method may leave it all to the first rank
                total = synth.images.grad if total is None else total + synth.images.grad
        return total

    one, two = gradient([(0, 1)]), gradient([(0, 2), (1, 2)])
    torch.testing.assert_close(two, one, rtol=1e-9, atol=1e-12)


def test_round_trip_and_shapes(method, bench, store, tmp_path):
    one = stage(method, bench, store)
    opened = Store(tmp_path / "s")
    data = obtain(opened, one, Serial(), runtime())
    assert data.images.shape == (4, 3, 8, 8)
    assert data.of_class.tolist() == [0, 0, 1, 1]
    assert data.provenance["key"] == one.key()
    data.save(tmp_path / "copy")
    again = load(tmp_path / "copy")
    assert torch.equal(again.images, data.images)
    assert torch.equal(again.labels, data.labels)
    learned = isinstance(method, Unrolled) or getattr(method, "labels", "hard") != "hard"
    assert again.label_kind == ("logits" if learned else "hard")


def test_another_seed_gives_another_set(iterative, bench, store, tmp_path):
    opened = Store(tmp_path / "s")
    sets = [
        obtain(opened, stage(iterative, bench, store, seed=s), Serial(), runtime()) for s in (0, 1)
    ]
    assert not torch.equal(sets[0].images, sets[1].images)


def test_snapshot_of_other_conditions_is_refused(bench, store, tmp_path):
    from stillroom.errors import StillroomError

    one = stage(DistributionMatching(batch_real=8), bench, store)
    opened = Store(tmp_path / "s")
    with pytest.raises(Interrupted):
        obtain(opened, one, Serial(), runtime(session=StopAt(2), threads=1))
    with pytest.raises(StillroomError, match=r"threads 1 -> 2.*--allow-drift"):
        obtain(opened, one, Serial(), runtime(threads=2))
    obtain(opened, one, Serial(), runtime(threads=2, allow_drift=True))
    final = (opened.folder(one.key()) / "final.json").read_text()
    assert "threads 1 -> 2" in final


def test_kept_steps_are_the_sets_of_shorter_runs(iterative, bench, store, tmp_path):
    opened = Store(tmp_path / "s")
    long = stage(iterative, bench, store, outer=outer(4, keep=(2,)))
    short = stage(iterative, bench, store, outer=outer(2))
    obtain(opened, long, Serial(), runtime())
    data = obtain(opened, short, Serial(), runtime())
    kept = load(opened.folder(long.key()) / "steps" / "2")
    assert torch.equal(kept.images, data.images)
    assert torch.equal(kept.labels, data.labels)
    assert kept.lr == data.lr
    assert kept.provenance["step"] == 2


class Forgetful(DistributionMatching):
    """What an author of a first method gets wrong."""

    slip: str = "return"

    def loss(self, ctx, synth, it):
        whole = synth.images.square().sum()
        if self.slip == "return":
            return whole
        made = {"shape": synth.images.sum(0), "graph": whole.detach(), "number": 1.0}
        return iter([made[self.slip]])


@pytest.mark.parametrize(
    ("slip", "told"),
    [
        ("return", "must yield its terms"),
        ("shape", r"one is of shape \[3, 8, 8\]"),
        ("graph", "does not depend on what is learned"),
        ("number", "one is of 1.0"),
    ],
)
def test_slips_of_an_author_are_one_line(slip, told, bench, store, tmp_path):
    made = Forgetful(slip=slip)
    ctx = context(bench, runtime(), made, store)
    with pytest.raises(StillroomError, match=told) as caught:
        outer_loop(made, ctx, outer(1), torch.arange(4), tmp_path)
    assert "\n" not in str(caught.value)


def test_a_stage_that_a_method_wants_is_made_first_and_is_in_its_key(bench, store, tmp_path):
    machine = Machine(threads=1)
    given = {"benchmark": "toy", "ipc": 2, "outer": {"steps": 2}, "arch": "convnet1-w4"}
    recipe = validate({**given, "method": {"kind": "contract.toys:Guided"}}, "here")
    planned = plan(recipe, bench, machine, Session(), store=Store(store), out=tmp_path / "out")
    distil(planned, machine)
    (made,) = store.glob("original-*")
    assert made.name in json.dumps(planned.stage.identity())
    assert load(tmp_path / "out").images.shape[0] == 4
