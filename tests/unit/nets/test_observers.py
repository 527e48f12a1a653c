"""The networks of EDC that the matching papers lack: sizes, features, draws, gradients.

Their numbers are held by tests/parity/test_edc_zoo.py.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from stillroom.errors import StillroomError
from stillroom.nets.ensemble import Nets
from stillroom.nets.zoo import build, feature_function, known_names, resolve
from stillroom.nets.zoo.efficient import StochasticDepth
from stillroom.rng import global_rng
from stillroom.runtime import Runtime

# name -> (features, smallest side, head)
SMALL = {
    "mobilenetv2-x0.5": (1280, 9, "classifier"),
    "shufflenetv2-x0.5": (1024, 5, "fc"),
    "wrn16-2": (128, 3, "fc"),
}
LARGE = {
    "imagenet/resnet18": (512, 17, "fc"),
    "imagenet/mobilenet_v2": (1280, 17, "classifier"),
    "imagenet/efficientnet_b0": (1280, 17, "classifier"),
    "imagenet/shufflenet_v2_x0_5": (1024, 17, "fc"),
    "imagenet/alexnet": (9216, 63, "classifier"),
}
ALL = {**SMALL, **LARGE}
QUICK = [name for name in ALL if name != "imagenet/alexnet"]  # 61 million weights


def made(name: str, size: int, *key: str | int, classes: int = 5, channels: int = 3) -> nn.Module:
    with global_rng(0, name, *key):
        return build(name, classes, channels, size)


def images(n: int, channels: int, size: int) -> Tensor:
    return torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(1))


def test_they_are_listed() -> None:
    assert set(ALL) <= set(known_names())


# -- sizes ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(("size", "channels"), [(None, 1), (97, 4), (224, 3)])
@pytest.mark.parametrize("name", ALL)
def test_shapes(name: str, size: int | None, channels: int) -> None:
    """On the meta device: any size from the smallest on, odd ones too, any channels and classes."""
    width, least, _ = ALL[name]
    side = size or least
    with torch.device("meta"):
        net = build(name, 7, channels, side)
    x = torch.empty(2, channels, side, side, device="meta")
    assert feature_function(net)(x).shape == (2, width)
    assert net(x).shape == (2, 7)


@pytest.mark.parametrize("name", ALL)
def test_too_small(name: str) -> None:
    for size in (1, ALL[name][1] - 1):
        with pytest.raises(StillroomError, match=f"size={size} is too small for {name}; use 'conv"):
            build(name, 10, 3, size)


@pytest.mark.parametrize("name", ALL)
def test_smallest_size_is_the_smallest_that_means_something(name: str) -> None:
    """No stride meets a map of one pixel; and where it could, the map would stay as it is."""
    with torch.device("meta"):
        net = build(name, 7, 3, ALL[name][1]).eval()
    sides: list[tuple[int, int]] = []

    def look(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        sides.append((inputs[0].shape[-1], output.shape[-1]))

    strided = [m for m in net.modules() if getattr(m, "stride", 1) in ((2, 2), (4, 4), 2)]
    for module in strided:
        module.register_forward_hook(look)
    net(torch.empty(2, 3, ALL[name][1], ALL[name][1], device="meta"))
    assert len(sides) >= 2
    assert all(before > after >= 1 for before, after in sides)


# -- features and heads --------------------------------------------------------------------------
@pytest.mark.parametrize("name", QUICK)
def test_forward_is_head_of_features(name: str) -> None:
    size = 33
    net, x = made(name, size).eval(), images(2, 3, size)
    with torch.no_grad():
        features = feature_function(net)(x)
        assert features.shape == (2, ALL[name][0])
        assert torch.equal(net.get_submodule(ALL[name][2])(features), net(x))
        gap = net(x) - net(x.to(memory_format=torch.channels_last))
        assert float(gap.abs().max()) <= 1e-4 * float(net(x).abs().max())


@pytest.mark.parametrize("name", QUICK)
def test_nothing_is_kept_outside_parameters_and_buffers(name: str) -> None:
    """One module called with another's tensors is that other, in value and in gradient."""
    one, two = made(name, 33, 1).eval(), made(name, 33, 2).eval()
    x = images(2, 3, 33)
    state = {**dict(two.named_parameters()), **dict(two.named_buffers())}
    called = functional_call(one, state, (x,))
    assert torch.equal(called, two(x))
    assert not torch.equal(called, one(x))
    first = dict(two.named_parameters())
    slopes = torch.autograd.grad(called.square().sum(), list(first.values()))
    again = torch.autograd.grad(two(x).square().sum(), list(first.values()))
    assert all(torch.equal(a, b) for a, b in zip(slopes, again, strict=True))


@pytest.mark.parametrize("name", QUICK)
def test_gradients_reach_every_parameter_and_the_image(name: str) -> None:
    net, x = made(name, 33).eval(), images(3, 3, 33).requires_grad_()
    net(x).square().sum().backward()
    assert x.grad is not None
    assert float(x.grad.abs().sum()) > 0
    dead = [
        key
        for key, p in net.named_parameters()
        if p.grad is None or not bool(p.grad.isfinite().all()) or float(p.grad.abs().sum()) == 0
    ]
    assert not dead


@pytest.mark.parametrize("name", SMALL)
def test_second_order(name: str) -> None:
    """What gradient matching needs: the gradient of a distance of weight gradients."""
    net, x = made(name, 16).double().train(), images(4, 3, 16).double().requires_grad_()
    loss = nn.functional.cross_entropy(net(x), torch.tensor([0, 1, 2, 3]))
    slopes = torch.autograd.grad(loss, list(net.parameters()), create_graph=True)
    (slope,) = torch.autograd.grad(sum(s.square().sum() for s in slopes), x)
    assert bool(slope.isfinite().all())
    assert float(slope.abs().sum()) > 0


@pytest.mark.parametrize("name", SMALL)
def test_stacked_networks_are_the_networks(name: str) -> None:
    rt = Runtime(device=torch.device("cpu"), numerics="float64")
    x = images(4, 3, 16).double()
    found = []
    for backend in ("loop", "vmap"):
        nets = Nets(resolve(name), 5, 3, 16, rt, backend).make(2, 0, "net")  # type: ignore[arg-type]
        found.append((nets.logits(x, train=True), nets.features(x)))
    for in_turn, at_once in zip(*found, strict=True):
        assert torch.allclose(in_turn, at_once, rtol=1e-9, atol=1e-12)


# -- draws ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", [*SMALL, "imagenet/resnet18", "imagenet/shufflenet_v2_x0_5"])
def test_no_draws_in_a_forward(name: str) -> None:
    net, before = made(name, 33).train(), torch.get_rng_state()
    net(images(2, 3, 33))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", ["imagenet/mobilenet_v2", "imagenet/efficientnet_b0"])
def test_draws_are_those_of_the_global_generator(name: str) -> None:
    net, x = made(name, 33), images(4, 3, 33)

    def forward(key: int) -> Tensor:
        with global_rng(0, "forward", key), torch.no_grad():
            return net(x)

    assert torch.equal(net.train() and forward(0), forward(0))
    assert not torch.equal(forward(0), forward(1))
    assert torch.equal(net.eval() and forward(0), forward(1))


def test_rates_of_dropping() -> None:
    """torchvision's: 0.2 before the last layer, AlexNet 0.5 twice, blocks up to 0.2 * 15 / 16."""
    rates = {}
    for name in LARGE:
        with torch.device("meta"):
            net = build(name, 7, 3, 64)
        rates[name] = [m.p for m in net.modules() if isinstance(m, nn.Dropout)]
        if name == "imagenet/efficientnet_b0":
            deep = [m.rate for m in net.modules() if isinstance(m, StochasticDepth)]
            assert deep == pytest.approx([0.2 * i / 16 for i in range(16)])
    assert rates == {
        "imagenet/resnet18": [],
        "imagenet/mobilenet_v2": [0.2],
        "imagenet/efficientnet_b0": [0.2],
        "imagenet/shufflenet_v2_x0_5": [],
        "imagenet/alexnet": [0.5, 0.5],
    }


def test_stochastic_depth_drops_whole_images_and_keeps_the_mean() -> None:
    layer, x = StochasticDepth(0.25), images(4000, 2, 1)
    with global_rng(0, "depth"):
        ratio = (layer.train()(x) / x).flatten(1)
    assert torch.allclose(ratio[:, 0], ratio[:, 1])  # of one image both are dropped, or none
    kept = ratio[:, 0] > 0
    assert torch.allclose(ratio[kept], torch.tensor(4 / 3))
    assert float(ratio[~kept].abs().max()) == 0
    # 4000 draws of probability 3/4: four standard deviations are 0.027
    assert float(kept.float().mean()) == pytest.approx(0.75, abs=0.027)
    assert layer.eval()(x) is x


def test_stochastic_depth_draws_apart_under_vmap() -> None:
    layer = StochasticDepth(0.5).train()
    out = vmap(layer, randomness="different")(torch.ones(2, 64, 1, 1, 1))
    assert set(out.flatten().tolist()) == {0.0, 2.0}
    assert not torch.equal(out[0], out[1])


# -- initialisation ------------------------------------------------------------------------------
@pytest.mark.parametrize("name", [n for n in QUICK if "shuffle" not in n])  # PyTorch's default
def test_convolutions_start_as_published(name: str) -> None:
    """N(0, 2 / (output channels * kernel area)): He's rule by what goes out, groups or not."""
    net, checked = made(name, 64), 0
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and (n := module.weight.numel()) > 2000:
            area = math.prod(module.kernel_size)
            wanted = (2 / (module.out_channels * area)) ** 0.5
            slack = 5 / (2 * n) ** 0.5  # five times the error of a deviation of n normal draws
            assert float(module.weight.detach().std()) == pytest.approx(wanted, rel=slack)
            checked += 1
        elif isinstance(module, nn.BatchNorm2d):
            assert float((module.weight.detach() - 1).abs().max()) == 0
            assert float(module.bias.detach().abs().max()) == 0
    assert checked > 5


def test_heads_start_as_published() -> None:
    def last(name: str) -> nn.Linear:
        net = made(name, 64, classes=100)
        return [m for m in net.modules() if isinstance(m, nn.Linear)][-1]

    for name in ("mobilenetv2-x0.5", "imagenet/mobilenet_v2"):
        assert float(last(name).weight.detach().std()) == pytest.approx(0.01, rel=0.02)
    wide = last("imagenet/efficientnet_b0").weight.detach()
    assert 0.0999 < float(wide.abs().max()) <= 0.1  # uniform up to 1 / sqrt(100)
    biased = [n for n in QUICK if float(last(n).bias.detach().abs().max()) > 0]
    assert biased == ["shufflenetv2-x0.5", "imagenet/resnet18", "imagenet/shufflenet_v2_x0_5"]
