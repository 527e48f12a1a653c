"""Labels of teachers: what is stored is what they say of the views that are drawn again."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from stillroom.artefacts.executor import Serial
from stillroom.artefacts.originals import Original, opened
from stillroom.artefacts.relabels import Relabel, Relabelled, RelabelSpec
from stillroom.artefacts.schooling import Schooling
from stillroom.artefacts.store import Store, obtain
from stillroom.data.augment import parse
from stillroom.data.benchmarks import Benchmark
from stillroom.data.policy import Policy
from stillroom.data.views import apply
from stillroom.distilled import load, set_digest
from stillroom.errors import StillroomError
from stillroom.nets.ensemble import Nets
from stillroom.nets.losses import Objective
from stillroom.nets.train import Training, train
from stillroom.nets.zoo import resolve
from stillroom.recipe import from_preset
from stillroom.run.distil import distil, plan
from stillroom.run.options import Machine
from stillroom.runtime import Runtime
from stillroom.session import Interrupted, Session
from toy import StopAfter

POLICY = Policy(size=8, scale=(0.5, 1.0), mix="cutmix")


def runtime(**more) -> Runtime:
    return Runtime(device=torch.device("cpu"), threads=1, **more)


def teachers(bench: Benchmark, store: Path) -> tuple[Original, ...]:
    """One on images in network space, one on pixels, one with norms."""
    asked = (("convnet1-w4", False), ("mlp", True), ("convnet1-w4-bn", False))
    return tuple(
        Original(
            Schooling(epochs=2, batch=8, raw_pixels=raw), bench.describe(), resolve(arch), 0,
            store,
        )
        for arch, raw in asked
    )  # fmt: skip


def a_set(bench: Benchmark, store: Path, folder: Path) -> Path:
    recipe, _ = from_preset("random", "toy", 5, {})
    machine = Machine(threads=1)
    distil(plan(recipe, bench, machine, Session(), store=Store(store), out=folder), machine)
    return folder


def stage(bench: Benchmark, store: Path, folder: Path, **spec) -> Relabel:
    usual = {"epochs": 6, "batch": 4, "policy": POLICY}
    return Relabel(
        spec=RelabelSpec(**{**usual, **spec}),
        teachers=teachers(bench, store),
        bench=bench.describe(),
        set_digest=set_digest(folder),
        images=10,
        numerics="float32",
        set_folder=folder,
        store=store,
    )


@pytest.mark.parametrize("ops", [0, 2])
@pytest.mark.parametrize("mix", ["none", "cutmix", "mixup"])
def test_a_stored_batch_run_through_the_teachers_gives_the_stored_logits(
    bench: Benchmark, store: Path, tmp_path: Path, mix: str, ops: int
) -> None:
    """RandAugment, crop, flip, mix, order, resolution and space: an error in any shows here."""
    folder = a_set(bench, store, tmp_path / "set")
    policy = Policy(size=8, scale=(0.3, 1.0), mix=mix, shuffle=2, ops=ops)
    one = stage(bench, store, folder, policy=policy)
    found = obtain(Store(store), one, Serial(), runtime())
    made = load(folder)
    models = [t.load(Store(store).folder(t.key())) for t in one.teachers]
    nets = [opened(m, bench, runtime()) for m in models]
    assert found.header.steps == 3
    rows_seen = []
    for epoch in range(6):
        for rows, drawn, logits in found.epoch(epoch):
            views = apply(made.images[rows], drawn, made.preprocess)
            pixels = made.preprocess.invert(views)
            said = [
                net.logits(m.space(bench).apply(pixels))[0]
                for m, net in zip(models, nets, strict=True)
            ]
            theirs = torch.stack(said).mean(0)
            assert torch.allclose(logits, theirs, rtol=2e-3, atol=2e-3)
            rows_seen += rows.tolist()
    assert sorted(rows_seen) == sorted(list(range(10)) * 6)
    stored = torch.cat([logits for _, _, logits in found.epoch(0)])
    again = torch.cat([logits for _, _, logits in found.epoch(1)])
    assert not torch.allclose(stored, again, atol=1e-2), "every epoch has views of its own"


def test_stopped_labelling_goes_on_to_the_same_bytes(
    bench: Benchmark, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stillroom.artefacts.relabels.SHARD_BYTES", 100)  # two epochs a shard
    folder = a_set(bench, store, tmp_path / "set")
    one = stage(bench, store, folder)
    assert one.shards() == 3
    straight, broken = Store(store), Store(tmp_path / "broken")
    obtain(straight, one, Serial(), runtime())
    for teacher in one.teachers:
        obtain(broken, teacher, Serial(), runtime())
    with pytest.raises(Interrupted):
        obtain(broken, one, Serial(), runtime(session=StopAfter(4)))
    obtain(broken, one, Serial(), runtime())

    def digests(where: Store) -> dict[str, str]:
        files = sorted(where.folder(one.key()).glob("*"))
        return {
            f.name: hashlib.sha256(f.read_bytes()).hexdigest()
            for f in files
            if f.is_file() and f.name != "stage.json"
        }

    assert digests(broken) == digests(straight)
    assert len([n for n in digests(straight) if n.startswith("labels-")]) == 3


def test_fewer_epochs_are_used_again(bench: Benchmark, store: Path, tmp_path: Path) -> None:
    folder = a_set(bench, store, tmp_path / "set")
    one = stage(bench, store, folder, keep=3, epochs=50)
    header = one.header()
    assert (header.kept, header.epochs) == (3, 50)
    found = obtain(Store(store), one, Serial(), runtime())
    for a, b in zip(found.epoch(0), found.epoch(header.kept), strict=True):
        assert torch.equal(a[2], b[2])


def test_a_set_that_changed_is_refused(bench: Benchmark, store: Path, tmp_path: Path) -> None:
    folder = a_set(bench, store, tmp_path / "set")
    one = stage(bench, store, folder)
    recipe, _ = from_preset("random", "toy", 5, {"seed": 1})
    machine = Machine(threads=1)
    other = tmp_path / "other"
    distil(plan(recipe, bench, machine, Session(), store=Store(store), out=other), machine)
    (folder / "data.safetensors").write_bytes((other / "data.safetensors").read_bytes())
    (folder / "meta.json").write_bytes((other / "meta.json").read_bytes())
    with pytest.raises(StillroomError, match="the set changed while it was labelled"):
        obtain(Store(store), one, Serial(), runtime())


def test_keys_hold_what_decides_the_labels(bench: Benchmark, store: Path, tmp_path: Path) -> None:
    folder = a_set(bench, store, tmp_path / "set")
    changes = [
        {}, {"epochs": 7}, {"batch": 5}, {"codec": "int8"}, {"seed": 1}, {"keep": 3},
        {"policy": Policy(size=8, scale=(0.6, 1.0))},
    ]  # fmt: skip
    keys = {stage(bench, store, folder, **change).key() for change in changes}
    assert len(keys) == len(changes)


def test_students_learn_from_them(bench: Benchmark, store: Path, tmp_path: Path) -> None:
    """Through the one trainer: the distance to the teachers' logits falls."""
    folder = a_set(bench, store, tmp_path / "set")
    found = obtain(Store(store), stage(bench, store, folder, epochs=40), Serial(), runtime())
    made = load(folder)
    data = Relabelled(made.images, made.preprocess, made.of_class, found)
    assert len(data) == 10
    training = Training(
        epochs=40, batch=4, lr=1e-2, momentum=0.9, weight_decay=0.0, schedule="constant",
        augment=parse("none"), objective=Objective("mse_gt", ce_weight=0.1), optimiser="adamw",
    )  # fmt: skip
    nets = Nets(resolve("convnet1-w8"), 2, 3, 8, runtime()).make(2, 0, "student")
    losses: list[float] = []
    train(nets, data, training, [0, 1], lambda done, loss: losses.append(loss))
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    seen = [[b.images for b in data.batches(training, seed, 3)] for seed in (0, 1)]
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))
    for wrong in ({"batch": 5}, {"augment": parse("flip")}):
        other = Training(**{**vars(training), **wrong})
        with pytest.raises(StillroomError, match="labels are for batches of 4"):
            next(data.batches(other, 0, 0))
