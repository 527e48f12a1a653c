"""The zoo: names, sizes, features, and a user's own networks."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from stillroom.errors import StillroomError
from stillroom.nets.zoo import (
    build,
    canonical,
    default_arch,
    depth_for,
    feature_function,
    from_factory,
    known_names,
    resolve,
)
from stillroom.rng import global_rng

CONVNETS = ("convnet-w16", "convnet-w16-bn", "convnet-w16-ln", "convnet-w16-mp-aswish")
FAST = (*CONVNETS, "mlp", "lenet", "alexnet-bn")


# -- names ---------------------------------------------------------------------------------------
SPELLINGS = {
    "convnet": ("convnet", "convnet-in-ar-ap-w128"),
    "convnet3": ("ConvNet", "CONVNET", "convnet3", "convnet-3", "ConvNetAR"),
    "convnet4-w64-bn": ("convnet-d4-w64-bn", "convnet-bn-w64-d4"),
    "convnet-bn": ("convnet-bn",),
    "convnet4": ("ConvNetD4",),
    "convnet3-w64": ("ConvNetW64", "convnetw64"),
    "convnet3-bn": ("ConvNetBN", "ConvNet-3-BN"),
    "convnet3-bn-aswish": ("ConvNetASwishBN",),
    "convnet3-as": ("ConvNetAS",),
    "convnet3-nn": ("ConvNetNN",),
    "convnet3-np": ("ConvNetNP",),
    "mlp": ("MLP",),
    "lenet": ("LeNet",),
    "alexnet": ("AlexNet",),
    "alexnet-bn": ("AlexNetBN",),
    "vgg11": ("VGG11",),
    "vgg11-bn": ("vgg-11-bn", "VGG11BN"),
    "resnet18": ("ResNet18", "resnet18-in"),
    "resnet18-bn-ap": ("ResNet18BN_AP", " resnet18-ap-bn "),
    "resnet18-ap": ("ResNet18_AP",),
    "mobilenetv2-x0.5": ("MobileNetV2", "mobilenetv2-X0.5"),
    "shufflenetv2-x0.5": ("ShuffleNetV2_0_5",),
    "wrn16-2": ("WRN_16_2", "wrn-16-2", " wrn16_2"),
    "imagenet/resnet18": ("ImageNet/ResNet18",),
    "imagenet/mobilenet_v2": ("imagenet/mobilenet-v2",),
    "imagenet/shufflenet_v2_x0_5": ("imagenet/shufflenet_v2-x0_5",),
    "torchvision/resnet50": ("Torchvision/ResNet50",),
    "timm/vit_base_patch16_224": (" timm/vit_base_patch16_224 ",),
}


@pytest.mark.parametrize("expected", SPELLINGS)
def test_canonical(expected: str) -> None:
    assert {canonical(name) for name in (expected, *SPELLINGS[expected])} == {expected}


def test_known_names_are_canonical() -> None:
    assert [canonical(name) for name in known_names()] == list(known_names())


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("convnett", "did you mean 'convnet'"),
        ("convnet-zz", "not a known network"),
        ("resnet50", "not a known network"),
        ("mlp-bn", "not a known network"),
        ("resnet18-d4", "not a known network"),
        ("vgg11-ap", "not a known network"),
        ("convnet-bn-in", "norm twice"),
        ("convnet3-d4", "depth twice"),
        ("convnet0", "depth 0"),
        ("convnet-d99", "depth 99"),
        ("convnet-w0", "width 0"),
        ("", "not a known network"),
        ("mobilenetv2-x1.0", "did you mean 'mobilenetv2-x0.5'"),
        ("wrn16-2-bn", "not a known network"),
        ("imagenet/resnet50", "did you mean 'imagenet/resnet18'.*torchvision/NAME"),
        ("imagenet/", "known there are imagenet/resnet18, imagenet/mobilenet_v2"),
        ("timm/", "not a name that timm can have"),
        ("torchvision/a b", "not a name that torchvision can have"),
        ("timm/../x", "not a name that timm can have"),
        ("timm/resnet50.a1_in1k", "names published weights.*write 'timm/resnet50'"),
        ("timm/" + "x" * 200, "too long"),
    ],
)
def test_bad_names(name: str, words: str) -> None:
    with pytest.raises(StillroomError, match=words) as caught:
        canonical(name)
    assert "\n" not in str(caught.value)


def test_depth_follows_the_image_size() -> None:
    sizes = {1: 1, 8: 1, 16: 2, 28: 3, 32: 3, 64: 4, 128: 5, 224: 6}
    assert {size: depth_for(size) for size in sizes} == sizes
    assert default_arch(32) == "convnet3"
    with pytest.raises(StillroomError, match="size=0"):
        depth_for(0)


def test_names_need_no_torch() -> None:
    code = (
        "import sys, stillroom.nets.zoo.names as n; n.canonical('ConvNet');"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# -- sizes ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("size", [8, 28, 32, 64, 128])
@pytest.mark.parametrize(
    "name", [*FAST, "convnet-gn", "convnet3", "alexnet", "vgg11", "resnet18", "resnet18-bn-ap"]
)
def test_heads_follow_the_image_size(name: str, size: int) -> None:
    """On the meta device: shapes without numbers. Too small is an error, never a crash later."""
    if size == 8 and name in ("lenet", "vgg11", "resnet18"):
        with pytest.raises(StillroomError, match=r"too small.*convnet1"):
            build(name, 7, 1, size)
        return
    with torch.device("meta"):
        net = build(name, 7, 1, size)
    x = torch.empty(2, 1, size, size, device="meta")
    features = feature_function(net)(x)
    assert features.ndim == 2
    assert net(x).shape == (2, 7)


@pytest.mark.parametrize("name", ["convnet4", "vgg11-bn", "resnet18-ap"])
def test_too_small(name: str) -> None:
    with pytest.raises(StillroomError, match=r"too small.*convnet1"):
        build(name, 10, 1, 7)


@pytest.mark.parametrize("size", [16, 28, 64])
@pytest.mark.parametrize("name", FAST)
def test_forward_is_head_of_features(name: str, size: int) -> None:
    net = build(name, 5, 3, size).eval()
    x = torch.randn(2, 3, size, size)
    features = feature_function(net)(x)
    assert torch.equal(net.get_submodule("classifier")(features), net(x))


@pytest.mark.parametrize("name", [*FAST, "resnet18-ap", "vgg11"])
def test_channels_last(name: str) -> None:
    net = build(name, 5, 3, 32).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        gap = net(x) - net(x.to(memory_format=torch.channels_last))
    assert float(gap.abs().max()) < 1e-4


def test_padding_follows_size_and_not_channels() -> None:
    """28 px grow to 32 in colour too; grey 32 px images do not grow (spec 9.2, trap 5)."""
    colour, grey = build("convnet3", 10, 3, 28), build("convnet3", 10, 1, 32)
    assert colour.get_submodule("features.0").padding == (3, 3)
    assert grey.get_submodule("features.0").padding == (1, 1)


@pytest.mark.parametrize("name", ["convnet3", "convnet3-nn", "convnet3-np", "convnet3-nn-np"])
def test_keys_of_convnet(name: str) -> None:
    keys = {key.rpartition(".")[0] for key in build(name, 10, 3, 32).state_dict()}
    norms = set() if "-nn" in name else {"features.1", "features.5", "features.9"}
    assert keys == {"features.0", "features.4", "features.8", "classifier"} | norms


@pytest.mark.parametrize("name", ["resnet18", "resnet18-bn", "resnet18-bn-ap"])
def test_keys_of_resnet(name: str) -> None:
    with torch.device("meta"):
        keys = [key for key, _ in build(name, 10, 3, 32).named_parameters()]
    block = ["conv1.weight", "bn1.weight", "bn1.bias", "conv2.weight", "bn2.weight", "bn2.bias"]
    down = ["downsample.0.weight", "downsample.1.weight", "downsample.1.bias"]
    expected = block[:3]
    for layer in (1, 2, 3, 4):
        expected += [f"layer{layer}.0.{key}" for key in block + (down if layer > 1 else [])]
        expected += [f"layer{layer}.1.{key}" for key in block]
    assert keys == [*expected, "fc.weight", "fc.bias"]


def test_instance_norm_does_not_know_the_mode() -> None:
    net, x = build("convnet3-w16", 10, 3, 32), torch.randn(2, 3, 32, 32)
    assert torch.equal(net.train()(x), net.eval()(x))


def test_global_generator_keys_the_weights() -> None:
    def weights(seed: int) -> Tensor:
        with global_rng(seed, "net"):
            net = build("convnet3-w16", 10, 3, 32)
        return torch.cat([p.detach().flatten() for p in net.parameters()])

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


@pytest.mark.parametrize("wrong", [{"classes": 0}, {"channels": -1}, {"size": 0}])
def test_bad_numbers(wrong: dict[str, int]) -> None:
    with pytest.raises(StillroomError, match=f"{next(iter(wrong))}="):
        build("convnet", **{"classes": 10, "channels": 3, "size": 32, **wrong})


def test_group_norm_needs_a_multiple_of_four() -> None:
    with pytest.raises(StillroomError, match="width 6"):
        build("convnet3-w6-gn", 10, 3, 32)


# -- a user's own networks -------------------------------------------------------------------------
class Plain(nn.Module):
    """No features of its own; takes the other spellings; has dropout and batch norm."""

    def __init__(self, num_classes: int, in_channels: int = 3, image_size: int = 32) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(in_channels, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.AdaptiveAvgPool2d(2)
        )
        self.head = nn.Linear(16, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(x).flatten(1))
        return out


class Fixed(nn.Module):
    """A thousand classes, whatever the data; features that are a map."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, 1000)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.features(x).mean((2, 3)))
        return out


class Headless(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


class Tuple(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.mean((2, 3)), x


def needs_depth(depth: int, classes: int) -> nn.Module:
    return Plain(classes)


def fails(classes: int) -> nn.Module:
    raise RuntimeError("no\nweights")


def grey_only(classes: int) -> nn.Module:
    return Plain(classes, 1)


def returns_text(classes: int) -> str:
    return "net"


def maker(width: int) -> Callable[[int], nn.Module]:
    def make(classes: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(3072, width), nn.Linear(width, classes))

    return make


def test_factory_gets_what_it_names() -> None:
    seen: dict[str, int] = {}

    def factory(classes: int, *, image_size: int = 1, width: int = 9, **rest: int) -> nn.Module:
        seen.update(rest, classes=classes, image_size=image_size, width=width)
        return Plain(classes, 1, image_size)

    from_factory(factory, 4, 1, 16)
    assert seen == {"classes": 4, "image_size": 16, "width": 9}


def test_check_leaves_no_trace() -> None:
    before = torch.random.get_rng_state()
    net = from_factory(functools.partial(Plain, image_size=8), 4, 3, 32)
    with torch.random.fork_rng(devices=[]):
        torch.random.set_rng_state(before)
        Plain(4)
        after = torch.random.get_rng_state()
    assert torch.equal(torch.random.get_rng_state(), after), "the check drew numbers"
    assert all(module.training for module in net.modules())
    assert float(net.get_buffer("body.1.running_mean").abs().max()) == 0
    assert int(net.get_buffer("body.1.num_batches_tracked")) == 0


def test_check_keeps_the_modes_of_frozen_parts() -> None:
    def frozen(classes: int) -> nn.Module:
        net = Plain(classes)
        net.body.eval()
        return net

    net = from_factory(frozen, 4, 3, 32)
    assert (net.training, net.get_submodule("body").training) == (True, False)


@pytest.mark.parametrize(
    ("factory", "words"),
    [
        (Fixed, r"\[2, 1000\].*not \[2, 10\]"),
        (Tuple, "returns a tuple"),
        (needs_depth, "needs an argument 'depth'"),
        (fails, "RuntimeError: no weights"),
        (returns_text, "returned a str"),
        (grey_only, "fails on two images 3x32x32"),
    ],
)
def test_bad_factories(factory: Callable[..., object], words: str) -> None:
    with pytest.raises(StillroomError, match=words) as caught:
        from_factory(factory, 10, 3, 32)
    assert "\n" not in str(caught.value)


def test_features_by_hook() -> None:
    net, x = Plain(4).eval(), torch.randn(3, 3, 32, 32)
    features = feature_function(net)(x)
    assert features.shape == (3, 16)
    assert torch.equal(net.head(features), net(x))
    assert not net.head._forward_pre_hooks, "the hook must go"
    assert features.requires_grad


def test_features_of_their_own() -> None:
    assert feature_function(Fixed())(torch.randn(3, 3, 6, 6)).shape == (3, 64)


def test_containers_are_not_features() -> None:
    net = Plain(4)
    net.features = nn.ModuleList([nn.Linear(1, 1)])
    net.late = net.head  # the head stays the last that runs
    with pytest.raises(StillroomError, match=r"features\(x\)"):
        feature_function(Headless())
    linear = [m for m in net.modules() if isinstance(m, nn.Linear)]
    assert linear[-1] is not net.head
    with pytest.raises(StillroomError, match=r"features\(x\)"):
        feature_function(net)(torch.randn(2, 3, 32, 32))  # that one never runs


# -- resolve ---------------------------------------------------------------------------------------
def test_resolve_names() -> None:
    arch = resolve("ConvNetW64")
    assert (arch.name, arch.factory) == ("convnet3-w64", None)
    assert arch.build(10, 3, 32)(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


def test_resolve_callables() -> None:
    arch = resolve(Plain)
    qualname, _, digest = arch.name.rpartition("-")
    assert (qualname, len(digest), int(digest, 16) >= 0) == ("user:Plain", 12, True)
    assert resolve(Plain).name == arch.name
    assert isinstance(arch.build(4, 3, 32), Plain)


def test_resolve_tells_factories_apart() -> None:
    """One source, other parameters: another network, so another key."""
    names = [
        resolve(factory).name
        for factory in (
            maker(8),
            maker(16),
            functools.partial(Plain, in_channels=3),
            functools.partial(Plain, in_channels=1),
            functools.partial(Plain, image_size=1),
            Plain,
        )
    ]
    assert len(set(names)) == len(names)
    assert resolve(maker(8)).name == names[0]
    assert resolve(functools.partial(Plain, in_channels=3)).name == names[2]


def test_resolve_without_source() -> None:
    """Typed at a prompt: no file says what it is, so its code must."""
    space: dict[str, Callable[[int], nn.Module]] = {}
    exec("from torch import nn\nf = lambda classes: nn.Linear(4, classes)", space)
    exec("from torch import nn\ng = lambda classes: nn.Linear(5, classes)", space)
    exec("from torch import nn\nh = lambda classes: nn.Linear(4, classes)", space)
    names = [resolve(space[name]).name for name in "fgh"]
    assert names[0] == names[2] != names[1]
    assert resolve(dict).name.startswith("user:dict-")


def test_resolve_tells_lambdas_on_one_line_apart() -> None:
    """They share their source, and inspect would give both the same."""
    one, two = [lambda classes: nn.Linear(1, classes), lambda classes: nn.Linear(2, classes)]
    assert resolve(one).name != resolve(two).name


def test_names_of_users_code_are_no_zoo_names_and_fit_a_record() -> None:
    class Net(Plain):
        pass

    Net.__qualname__ = "Net" * 200
    for factory in (Plain, Net, functools.partial(Plain), lambda classes: Plain(classes)):
        name = resolve(factory).name
        assert name.startswith("user:")
        assert len(name) <= 300
        with pytest.raises(StillroomError):
            canonical(name)


def test_resolve_follows_helpers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An edit of what a factory uses, in its own file or another, is another network."""
    files = {
        "zoo_own_net.py": (
            "from torch import nn\nfrom zoo_own_block import Block\n"
            "class Head(nn.Linear):\n    wide = 1\n"
            "class Net(nn.Module):\n"
            "    def __init__(self, classes):\n"
            "        super().__init__()\n        self.body, self.head = Block(), Head(9, classes)\n"
            "def unrelated():\n    return 0\n"
        ),
        "zoo_own_block.py": "class Block:\n    width = 8\n",
    }
    edits = [
        ("zoo_own_net.py", "", ""),
        ("zoo_own_net.py", "return 0", "return 1"),
        ("zoo_own_net.py", "wide = 1", "wide = 2"),
        ("zoo_own_block.py", "width = 8", "width = 9"),
    ]
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    names = []
    for file, old, new in edits:
        for name, text in files.items():
            (tmp_path / name).write_text(text.replace(old, new) if name == file else text)
            sys.modules.pop(name.removesuffix(".py"), None)
        names.append(resolve("zoo_own_net:Net").name)
    assert names[0] == names[1]
    assert len(set(names)) == 3


def test_names_are_the_same_in_every_process(tmp_path: Path) -> None:
    """A store outlives the process: no address and no order of a set may enter."""
    (tmp_path / "zoo_sets.py").write_text(
        "import torch\nimport torch.nn.functional as F\nfrom torch import nn, relu\n"
        "KINDS, SCALE = {'a', 'b', 'c', nn.ReLU, relu}, torch.arange(3.0)\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, classes):\n        super().__init__()\n"
        "    @torch.no_grad()\n"
        "    def forward(self, x, kind='b'):\n"
        "        if kind in KINDS or kind in {'u', 'v', 'w'}:\n"
        "            return F.max_pool2d(relu(x), 2) * SCALE\n"
    )
    code = "from stillroom.nets.zoo import resolve; print(resolve('zoo_sets:Net').name)"
    names = set()
    for seed in ("1", "2"):
        settings = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, "-c", code], env=settings, capture_output=True, text=True, check=True
        )
        names.add(done.stdout)
    assert len(names) == 1


def test_resolve_import_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "from torch import nn\nclass Net(nn.Linear):\n    pass\nvalue = 3\n"
    (tmp_path / "zoo_user_module.py").write_text(text)
    (tmp_path / "zoo_broken_module.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert resolve("zoo_user_module:Net").name.startswith("user:Net-")
    for path, words in {
        "zoo_user_module:Nets": "no 'Nets'; did you mean 'Net'",
        "zoo_user_module:value": "not callable",
        "zoo_no_such_module:Net": "ModuleNotFoundError",
        "zoo_broken_module:Net": "ZeroDivisionError",
        ":Net": "does not import",
        "zoo_user_module:": "no ''",
    }.items():
        with pytest.raises(StillroomError, match=words):
            resolve(path)


def test_resolve_refuses_objects() -> None:
    with pytest.raises(StillroomError, match="pass its class or a factory"):
        resolve(Plain(4))
    with pytest.raises(StillroomError, match="not callable"):
        resolve(3)  # type: ignore[arg-type]
