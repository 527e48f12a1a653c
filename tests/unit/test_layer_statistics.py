"""Statistics of layers: against a naive loop, in parts, and whatever the batch."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from stillroom.artefacts.executor import Serial
from stillroom.artefacts.originals import Original, OriginalModel
from stillroom.artefacts.schooling import Schooling
from stillroom.artefacts.statistics import FILE, SUMS, Observed, Statistics
from stillroom.artefacts.store import Store, obtain
from stillroom.data.benchmarks import Benchmark
from stillroom.errors import StillroomError
from stillroom.nets.ensemble import Nets
from stillroom.nets.hooks import Sums, layers, patch_side
from stillroom.nets.zoo import Arch, resolve
from stillroom.runtime import Runtime
from stillroom.session import Interrupted
from toy import StopAfter

ARCH = "convnet2-w4-bn"


def model(bench: Benchmark, store: Path, arch: str = ARCH, index: int = 0) -> Original:
    schooling = Schooling(epochs=1, batch=8)
    return Original(schooling, bench.describe(), resolve(arch), index, store)


def runtime(**more) -> Runtime:
    return Runtime(device=torch.device("cpu"), threads=1, **more)


def naive(bench: Benchmark, trained: OriginalModel) -> list[tuple[str, torch.Tensor]]:
    """(module, its input for all training images at once), in module order."""
    net = trained.arch.build(len(bench.classes), bench.channels, bench.size).eval()
    net.load_state_dict(trained.weights)
    seen: dict[str, torch.Tensor] = {}
    for name, module in net.named_modules():
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d)):
            module.register_forward_pre_hook(
                lambda _, inputs, name=name: seen.update({name: inputs[0]})
            )
    with torch.no_grad():
        net(bench.preprocess.apply(bench.train.take(torch.arange(len(bench.train)))))
    return list(seen.items())


def test_against_all_images_at_once(bench: Benchmark, store: Path) -> None:
    one = Statistics(model(bench, store), batch=5)
    found: Observed = obtain(Store(store), one, Serial(), runtime())
    trained = one.model.load(Store(store).folder(one.model.key()))
    theirs = naive(bench, trained)
    assert [layer.name for layer in found.layers] == [name for name, _ in theirs]
    assert [layer.kind for layer in found.layers] == ["conv", "norm"] * 2
    assert found.patch == patch_side(bench.size)
    labels = bench.train.labels
    for i, (name, x) in enumerate(theirs):
        mine = found.of(i)
        x = x.double()
        per_channel = x.transpose(0, 1).flatten(1)
        assert torch.allclose(mine["mean"].double(), per_channel.mean(1), atol=1e-6)
        assert torch.allclose(mine["var"].double(), per_channel.var(1, correction=0), rtol=1e-5)
        for c in range(len(bench.classes)):
            some = x[labels == c]
            pooled = some.transpose(0, 1).flatten(1).var(1, correction=0)
            inside = torch.stack([v.flatten(1).var(1, correction=0) for v in some]).mean(0)
            assert torch.allclose(mine["class.var"][c].double(), pooled, rtol=1e-4)
            assert torch.allclose(mine["class.within"][c].double(), inside, rtol=1e-4)
        if found.layers[i].kind == "norm":
            assert torch.equal(mine["running.mean"], trained.weights[f"{name}.running_mean"])
            assert "patch_mean" not in mine
        else:
            k, side = found.patch, x.shape[-1]
            for p in range((side // k) ** 2):
                u, v = divmod(p, side // k)
                cell = x[:, :, u * k : u * k + k, v * k : v * k + k]
                assert float(mine["patch_mean"][p]) == pytest.approx(float(cell.mean()), abs=1e-6)
                assert float(mine["patch_var"][p]) == pytest.approx(
                    float(cell.var(correction=0)), rel=1e-5
                )
        assert all(bool((v >= 0).all()) for n, v in mine.items() if n.endswith(("var", "within")))


def test_classes_and_whole_agree(bench: Benchmark, store: Path) -> None:
    """The law of total variance: sum of pi (v + mu^2) - (sum of pi mu)^2."""
    one = Statistics(model(bench, store))
    found: Observed = obtain(Store(store), one, Serial(), runtime())
    share = bench.train.labels.bincount().double() / len(bench.train)
    for i in range(len(found.layers)):
        mine = {k: v.double() for k, v in found.of(i).items()}
        second = share @ (mine["class.var"] + mine["class.mean"].square())
        assert torch.allclose(share @ mine["class.mean"], mine["mean"], atol=1e-6)
        assert torch.allclose(second - mine["mean"].square(), mine["var"], rtol=1e-4, atol=1e-7)


def test_only_one_number_depends_on_the_batch(bench: Benchmark, store: Path) -> None:
    found = {
        batch: obtain(Store(store), Statistics(model(bench, store), batch=batch), Serial(),
                      runtime())
        for batch in (3, 16)
    }  # fmt: skip
    differ = {
        name.partition(".")[2]
        for name, value in found[3].tensors.items()
        if not torch.allclose(value, found[16].tensors[name], rtol=1e-5, atol=1e-7)
    }
    assert differ == {"batch_var", "batch_patch_var"}


def test_a_stopped_pass_goes_on_to_the_same_bytes(
    bench: Benchmark, store: Path, tmp_path: Path
) -> None:
    one = Statistics(model(bench, store), batch=2)
    assert one.shards() == 8
    straight, broken = Store(store), Store(tmp_path)
    obtain(straight, one, Serial(), runtime())
    obtain(broken, one.model, Serial(), runtime())  # what it needs is taken from its own store
    with pytest.raises(Interrupted):
        obtain(broken, one, Serial(), runtime(session=StopAfter(4)))
    done = sorted(p.parent.name for p in broken.part(one.key()).rglob(SUMS))
    assert done
    assert len(done) < 8
    obtain(broken, one, Serial(), runtime())
    digests = {
        hashlib.sha256((where.folder(one.key()) / FILE).read_bytes()).hexdigest()
        for where in (straight, broken)
    }
    assert len(digests) == 1
    assert not list(broken.folder(one.key()).rglob(SUMS))


def test_keys_tell_networks_and_definitions_apart(bench: Benchmark, store: Path) -> None:
    stages = [
        Statistics(model(bench, store)),
        Statistics(model(bench, store, index=1)),
        Statistics(model(bench, store, "convnet2-w5-bn")),
        Statistics(model(bench, store), by_class=False),
        Statistics(model(bench, store), batch=32),
        Statistics(model(bench, store), augment="crop_flip"),
    ]
    assert len({stage.key() for stage in stages}) == len(stages)
    whole = obtain(Store(store), stages[3], Serial(), runtime())
    assert not [n for n in whole.tensors if "class" in n]


def test_augmented_images_have_other_statistics(bench: Benchmark, store: Path) -> None:
    plain, moved = (
        obtain(Store(store), Statistics(model(bench, store), augment=a), Serial(), runtime())
        for a in ("none", "crop")
    )
    assert not torch.allclose(plain.tensors["000.mean"], moved.tensors["000.mean"], rtol=1e-3)


def test_what_is_stored_is_what_is_named(bench: Benchmark, store: Path) -> None:
    one = Statistics(model(bench, store))
    obtain(Store(store), one, Serial(), runtime())
    tensors = load_file(Store(store).folder(one.key()) / FILE)
    names = {n.partition(".")[2] for n in tensors if n.startswith("000.")}
    heads = ("mean", "var", "class.mean", "class.var", "class.within", "batch_var")
    assert names == {*heads, *(n.replace("mean", "patch_mean").replace("var", "patch_var")
                     .replace("within", "patch_within") for n in heads)}  # fmt: skip
    assert all(t.dtype == torch.float32 for t in tensors.values())


def test_a_look_is_taken_before_the_input_changes() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 1)
            self.fc = nn.Linear(1, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x + 0
            y = self.conv(x)
            x.zero_()
            return self.fc((x + y).mean((2, 3)))

    nets = Nets(Arch("user", InPlace), 2, 1, 4, runtime())
    one = nets.make(1, 0, "n")
    x = torch.rand(3, 1, 4, 4)
    with torch.no_grad():
        logits, seen = one.observed(x, {"conv": lambda given: given.mean()})
    assert logits.shape == (3, 2)
    assert float(seen["conv"]) == pytest.approx(float(x.mean()))


def test_a_layer_that_is_never_called_is_named() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.spare = nn.Conv2d(1, 1, 1)
            self.fc = nn.Linear(1, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x.mean((2, 3)))

    one = Nets(Arch("idle", Idle), 2, 1, 4, runtime()).make(1, 0, "n")
    assert [layer.name for layer in layers(one.nets.skeleton)] == ["spare"]
    with pytest.raises(StillroomError, match="arch=idle never calls its layer spare"):
        one.observed(torch.rand(2, 1, 4, 4), {"spare": lambda given: given})


def test_sums_do_not_depend_on_order_or_parts() -> None:
    x = torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(12) % 3
    whole, parts = Sums(3), Sums(3)
    whole.add(x, labels, 4)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    for rows in order.split(5):
        part = Sums(3)
        part.add(x[rows], labels[rows], 4)
        parts.merge(part.tensors)
    a, b = whole.statistics(True), parts.statistics(True)
    for name in a:
        if not name.startswith("batch_"):
            assert torch.allclose(a[name], b[name], rtol=1e-12, atol=1e-12), name
