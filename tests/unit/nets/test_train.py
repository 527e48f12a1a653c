"""The one trainer: optimisers, averages, pieces, sources, and going on where it stopped."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillroom.data.augment import parse
from stillroom.errors import StillroomError
from stillroom.nets.averaging import averaged
from stillroom.nets.ensemble import Ensemble, Nets
from stillroom.nets.losses import Objective
from stillroom.nets.optimisers import parameter_groups
from stillroom.nets.sources import Images
from stillroom.nets.train import Progress, Training, rate, together, train
from stillroom.nets.zoo import resolve
from stillroom.rng import rng
from stillroom.runtime import Runtime

PLAIN = Training(3, 5, 0.05, 0.9, 5e-4, "cosine", parse("crop_flip"))
ADAMW = replace(PLAIN, lr=0.01, weight_decay=0.1, optimiser="adamw", decay="matrices", ema=0.9)
IMAGES = 12


class Dropping(nn.Sequential):
    """A user's network with dropout and batch norm."""

    def __init__(self, classes: int) -> None:
        super().__init__(
            nn.Flatten(),
            nn.Linear(3 * 64, 16),
            nn.BatchNorm1d(16),
            nn.Dropout(0.5),
            nn.Linear(16, classes),
        )


def nets_of(arch="convnet1-w8", backend="loop", numerics="float64") -> Nets:
    rt = Runtime(device=torch.device("cpu"), numerics=numerics)
    return Nets(resolve(arch), 2, 3, 8, rt, backend)


def data(dtype=torch.float64) -> Images:
    x = torch.randn(IMAGES, 3, 8, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    return Images(lambda rows: x[rows], torch.arange(IMAGES) % 2, 8)


def tensors(nets: Ensemble) -> list[Tensor]:
    return [value for i in range(nets.k) for part in nets.member(i) for value in part.values()]


def copies(nets: Ensemble) -> list[Tensor]:
    return [value.detach().clone() for value in tensors(nets)]


def same(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


# -- steps and optimisers ------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [5, 6, 100])
def test_as_many_steps_as_batches(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = []

    class Counted(torch.optim.SGD):
        def step(self, closure=None):
            rates.append(self.param_groups[0]["lr"])
            return super().step(closure)

    monkeypatch.setattr(torch.optim, "SGD", Counted)
    training = replace(PLAIN, batch=batch)
    train(nets_of().make(1, 0, "net"), data(), training, [0])
    steps = -(-IMAGES // batch)
    assert rates == [rate(training, epoch) for epoch in range(3) for _ in range(steps)]


@pytest.mark.parametrize("arch", ["convnet2-w8", "convnet2-w8-bn", Dropping])
@pytest.mark.parametrize("backend", ["loop", "vmap"])
def test_every_parameter_is_in_one_group(arch, backend: str) -> None:
    nets = nets_of(arch, backend).make(2, 0, "net")
    groups = parameter_groups(nets, 0.1, "matrices")
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(map(id, nets.leaves()))
    decaying = {id(p) for p in groups[0]["params"]}
    module = nets.nets.build(0, "any")
    shapes = dict(module.named_parameters())
    for member in nets.params:
        for name, p in member.items():
            wanted = name.endswith("weight") and shapes[name].ndim > 1
            assert (id(p) in decaying) == wanted, name
    (whole,) = parameter_groups(nets, 0.1, "all")
    assert list(map(id, whole["params"])) == list(map(id, nets.leaves()))


@pytest.mark.parametrize(("arch", "counts"), [("resnet18", [21, 41]), ("convnet3", [4, 10])])
def test_the_groups_have_the_sizes_of_the_reference(arch: str, counts: list[int]) -> None:
    """`decay` and `no_decay` of the same networks in the golden numbers of EDC's zoo."""
    made = Nets(resolve(arch), 10, 3, 32, Runtime(device=torch.device("cpu")))
    nets = made.make(1, 0, "net")
    assert [len(group["params"]) for group in parameter_groups(nets, 0.1, "matrices")] == counts


def test_adamw_equals_a_naive_loop() -> None:
    """Written out with a module and two groups; the average by its definition."""
    nets = nets_of("convnet1-w8-bn")
    ours = nets.seeded([4], "student")
    seen = []
    train(ours, data(), ADAMW, [4], keep=seen.append)
    net = nets.build(4, "student").train()
    named = dict(net.named_parameters())
    some = [p for p in named.values() if p.ndim > 1]
    others = [p for p in named.values() if p.ndim == 1]
    adamw = torch.optim.AdamW(
        [{"params": some, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}], lr=0.01
    )
    average = {name: p.detach().clone() for name, p in named.items()}
    for epoch in range(3):
        for group in adamw.param_groups:
            group["lr"] = rate(ADAMW, epoch)
        for batch in data().batches(ADAMW, 4, epoch):
            adamw.zero_grad()
            F.cross_entropy(net(batch.images), batch.target.labels).backward()
            adamw.step()
            for name, p in named.items():
                average[name] = 0.9 * average[name] + 0.1 * p.detach()
    for (name, p), mean in zip(ours.member(0)[0].items(), seen[-1].average, strict=True):
        torch.testing.assert_close(p, named[name].detach(), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(mean, average[name], rtol=1e-9, atol=1e-12)


def test_stopping_is_the_start_of_the_long_way() -> None:
    """The schedule refers to all epochs, also where only some are trained."""
    whole = nets_of().make(1, 0, "net")
    at: list[list[Tensor]] = []
    train(whole, data(), PLAIN, [0], lambda done, loss: at.append(copies(whole)))
    short = nets_of().make(1, 0, "net")
    train(short, data(), replace(PLAIN, stop=2), [0])
    assert same(tensors(short), at[1])
    assert not same(tensors(short), at[2])


# -- going on ------------------------------------------------------------------------------------


RESUMED = {"adamw": ADAMW, "averaged": replace(PLAIN, ema=0.5), "sgd": PLAIN}


@pytest.mark.parametrize("training", RESUMED.values(), ids=RESUMED)
@pytest.mark.parametrize("backend", ["loop", "vmap"])
@pytest.mark.parametrize("stop", [1, 2])
def test_a_resumed_training_equals_a_straight_one(training, backend: str, stop: int) -> None:
    """Through names and copies, as a snapshot keeps them: to the bit, average included."""
    seeds, made = [0, 1], nets_of(Dropping, backend, "float32")
    straight, ends = made.seeded(seeds, "student"), []
    train(straight, data(torch.float32), training, seeds, keep=ends.append)

    stopped, kept = made.seeded(seeds, "student"), {}

    def keep(progress: Progress) -> None:
        if progress.epochs == stop:
            kept.update({name: t.clone() for name, t in progress.tensors().items()})
            kept["weights"] = copies(stopped)

    train(stopped, data(torch.float32), training, seeds, keep=keep)

    resumed, again = made.seeded([7, 8], "other"), []
    for target, value in zip(tensors(resumed), kept.pop("weights"), strict=True):
        target.copy_(value)
    since = Progress.of(stop, kept, len(resumed.leaves()))
    for leaf in resumed.leaves():
        leaf.requires_grad_(False)
    train(resumed, data(torch.float32), training, seeds, since=since, keep=again.append)
    assert same(tensors(resumed), tensors(straight))
    ours, theirs = again[-1].tensors(), ends[-1].tensors()
    assert ours.keys() == theirs.keys()
    assert len(ours) > 0
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


# -- averages ------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["loop", "vmap"])
def test_an_average_without_memory_is_the_live_weights(backend: str) -> None:
    nets = nets_of("convnet1-w8-bn", backend).seeded([0, 1], "student")
    seen = []
    train(nets, data(), replace(PLAIN, ema=0.0), [0, 1], keep=seen.append)
    live = copies(nets)
    with averaged(nets, seen[-1].average, None):
        assert same(tensors(nets), live)


@pytest.mark.parametrize("backend", ["loop", "vmap"])
@pytest.mark.parametrize("anew", [False, True])
def test_the_weights_come_back_to_the_bit(backend: str, anew: bool) -> None:
    """Twice, and also where the block is left by an error."""
    nets = nets_of("convnet1-w8-bn", backend).seeded([0, 1], "student")
    seen = []
    train(nets, data(), ADAMW, [0, 1], keep=seen.append)
    live, average = copies(nets), seen[-1].average
    found = []
    for _ in range(2):
        batches = inputs(ADAMW, [0, 1]) if anew else None
        with contextlib.suppress(KeyError), averaged(nets, average, batches) as holding:
            found.append(copies(holding))
            raise KeyError
        assert same(tensors(nets), live)
    assert same(*found)
    assert not same(found[0], live)
    names = [name for i in range(2) for part in nets.member(i) for name in part]
    for name, tested, own in zip(names, found[0], live, strict=True):
        if "running" in name:
            assert torch.equal(tested, own) != anew, name


def inputs(training: Training, seeds: list[int]):
    for batches in together(data(), training, seeds, 3):
        yield torch.stack([batch.images for batch in batches])


@pytest.mark.parametrize("backend", ["loop", "vmap"])
def test_statistics_taken_anew_are_the_mean_over_batches(backend: str) -> None:
    """A naive loop on a module; no dropout is drawn, and no other weight moves."""
    nets = nets_of(Dropping, backend).seeded([0, 1], "student")
    train(nets, data(), PLAIN, [0, 1])
    before = [value.detach().clone() for i in range(2) for value in nets.member(i)[0].values()]
    state = torch.random.get_rng_state()
    nets.estimate_norms(inputs(PLAIN, [0, 1]))
    assert torch.equal(torch.random.get_rng_state(), state)
    for i in range(2):
        params, buffers = nets.member(i)
        linear = lambda x, p=params: F.linear(x.flatten(1), p["1.weight"], p["1.bias"])  # noqa: E731
        hidden = [linear(x[i]) for x in inputs(PLAIN, [0, 1])]
        means = torch.stack([h.mean(0) for h in hidden]).mean(0)
        variances = torch.stack([h.var(0) for h in hidden]).mean(0)
        torch.testing.assert_close(buffers["2.running_mean"], means)
        torch.testing.assert_close(buffers["2.running_var"], variances)
    assert same([value for i in range(2) for value in nets.member(i)[0].values()], before)


# -- pieces --------------------------------------------------------------------------------------


def gradient(training: Training, arch="convnet2-w8", numerics="float32") -> list[Tensor]:
    """The gradient of one step on all images."""
    nets = nets_of(arch, numerics=numerics).make(1, 0, "net")
    once = replace(training, stop=1, batch=IMAGES)
    train(nets, data(nets.nets.rt.dtype), once, [0])
    return [leaf.grad for member in nets.params for leaf in member.values()]


@pytest.mark.parametrize(
    ("pieces", "numerics", "tolerance"),
    [(2, "float32", 1e-6), (5, "float32", 1e-6), *((n, "float64", 1e-13) for n in (2, 5, 12, 40))],
)
def test_pieces_have_the_gradient_of_the_batch(pieces: int, numerics: str, tolerance) -> None:
    """Up to rounding, also where pieces are unequal, of one image, or fewer than asked for."""
    whole = gradient(PLAIN, numerics=numerics)
    split = gradient(replace(PLAIN, pieces=pieces), numerics=numerics)
    largest = max(float(slope.abs().max()) for slope in whole)
    for a, b in zip(split, whole, strict=True):
        assert float((a - b).abs().max()) <= tolerance * largest


def test_what_cannot_be_split_is_refused() -> None:
    for arch in ("convnet1-w8-bn", Dropping):
        with pytest.raises(StillroomError, match=r"^pieces=2: .* has BatchNorm, whose") as caught:
            gradient(replace(PLAIN, pieces=2), arch)
        assert "\n" not in str(caught.value)
    by_batch = replace(PLAIN, pieces=2, objective=Objective("dist"))
    with pytest.raises(StillroomError, match="pieces=2: loss dist compares the images"):
        gradient(by_batch)


class Noisy(nn.Sequential):
    """A user's network with dropout alone."""

    def __init__(self, classes: int) -> None:
        super().__init__(nn.Flatten(), nn.Dropout(0.5), nn.Linear(3 * 64, classes))


def test_every_piece_draws_its_own_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    masks = []
    monkeypatch.setattr(
        F, "dropout", lambda x, p, training, inplace: masks.append(torch.rand(4)) or x
    )
    gradient(replace(PLAIN, pieces=3), Noisy)
    drawn = [mask.tolist() for mask in masks[-3:]]
    assert len({tuple(mask) for mask in drawn}) == 3


# -- sources -------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["loop", "vmap"])
def test_norms_that_move_twice(backend: str) -> None:
    """Of one batch 0.81 of the old and 0.19 of its own statistics; the weights do not feel it."""
    one = replace(PLAIN, epochs=1, batch=IMAGES)
    made = {}
    for twice in (False, True):
        nets = nets_of("convnet1-w4-bn", backend).make(2, 0, "net")
        train(nets, data(), replace(one, norms_twice=twice), [1, 2])
        made[twice] = nets
    for i in range(2):
        (once, norms), (again, moved) = (made[t].member(i) for t in (False, True))
        assert all(torch.equal(once[name], again[name]) for name in once)
        means = [name for name in norms if name.endswith("running_mean")]
        assert means
        for name in means:
            assert torch.allclose(moved[name], 1.9 * norms[name], rtol=1e-12)
            spread = name.replace("mean", "var")
            assert torch.allclose(moved[spread], 0.81 + 1.9 * (norms[spread] - 0.9), rtol=1e-12)


def test_an_epoch_of_images_is_every_image_once_in_a_keyed_order() -> None:
    one = Images(lambda rows: rows.view(-1, 1, 1, 1).float(), torch.arange(IMAGES), 1)
    bare = replace(PLAIN, augment=parse("none"))
    for seed, epoch in ((0, 0), (0, 1), (1, 0)):
        batches = list(one.batches(bare, seed, epoch))
        seen = torch.cat([batch.images.flatten() for batch in batches]).long()
        assert torch.equal(seen, torch.randperm(IMAGES, generator=rng(seed, "shuffle", epoch)))
        assert [len(batch.images) for batch in batches] == [5, 5, 2]
        assert torch.equal(torch.cat([batch.target.labels for batch in batches]), seen)


def test_soft_labels_keep_the_class_that_an_image_was_made_for() -> None:
    soft = torch.randn(IMAGES, 2)
    given = replace(data(), labels=soft)
    known = replace(given, of_class=torch.arange(IMAGES) % 2)
    rows = torch.tensor([3, 1, 8])
    assert given.target(rows, "probs").of_class is None
    target = known.target(rows, "logits")
    assert torch.equal(target.labels, soft[rows])
    assert target.of_class.tolist() == [1, 1, 0]
    part = target.part(slice(1, 3))
    assert torch.equal(part.labels, soft[rows[1:]])
    assert part.of_class.tolist() == [1, 0]
    assert target.kind == part.kind == "logits"
