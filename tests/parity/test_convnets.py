"""Every network of the reference: counts, feature lengths, and outputs under the weight rule."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from golden import golden, max_rel, normalise
from stillroom.nets.zoo import build, feature_function

DATA = golden("convnets")
SETS = {
    "cifar10": (10, 3, 32),
    "cifar100": (100, 3, 32),
    "mnist": (10, 1, 28),
    "tiny": (200, 3, 64),
}
VARIANTS = {
    **{f"convnet_d{depth}": f"convnet{depth}-w8" for depth in (1, 2, 3, 4)},
    "convnet_batchnorm": "convnet3-w8-bn",
    "convnet_layernorm": "convnet3-w8-ln",
    "convnet_groupnorm": "convnet3-w8-gn",
    "convnet_none": "convnet3-w8-nn",
    "convnet_pool_maxpooling": "convnet3-w8-mp",
    "convnet_pool_none": "convnet3-w8-np",
    "convnet_act_sigmoid": "convnet3-w8-as",
    "convnet_act_leakyrelu": "convnet3-w8-al",
    "convnet_act_swish": "convnet3-w8-aswish",
    "convnet_swish_batchnorm": "convnet3-w8-bn-aswish",
    "convnet_grey28": "convnet3-w8",
    "convnet_rgb64_d4": "convnet4-w8",
    "convnet_w4_100classes": "convnet3-w4",
}
NORMS = (nn.GroupNorm, nn.BatchNorm2d, nn.LayerNorm)


def cases(*kinds: str) -> list[str]:
    return sorted({key.partition("/")[2] for kind in kinds for key in DATA.keys(f"{kind}/")})


def variants() -> list[str]:
    return sorted({key.split("/")[1] for key in DATA.keys("out/")})


def on_meta(case: str) -> tuple[nn.Module, int, int]:
    """The network of `<set>/<name>` without storage: counting needs no numbers."""
    where, _, name = case.partition("/")
    classes, channels, size = SETS[where]
    with torch.device("meta"):
        return build(name, classes, channels, size), channels, size


def count(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


@pytest.mark.parametrize("case", [c for c in cases("count", "rows", "embed_dim") if "/" in c])
def test_sizes(case: str) -> None:
    net, channels, size = on_meta(case)
    assert count(net) == int(DATA.take(f"count/{case}"))
    if f"rows/{case}" in DATA.tensors:
        rows = sum(p.shape[0] for p in net.parameters() if p.ndim > 1)
        assert rows == int(DATA.take(f"rows/{case}"))
    if f"embed_dim/{case}" in DATA.tensors:
        x = torch.empty(2, channels, size, size, device="meta")
        features = feature_function(net)(x)
        assert features.shape == (2, int(DATA.take(f"embed_dim/{case}")))


@pytest.mark.parametrize(("where", "classes", "size"), [("cifar100", 100, 32), ("tiny", 200, 64)])
def test_challenge_network(where: str, classes: int, size: int) -> None:
    """The ECCV 2024 challenge uses depth 3 for both data sets."""
    with torch.device("meta"):
        net = build("convnet3", classes, 3, size)
    assert count(net) == int(DATA.take(f"count/challenge_{where}"))


def rule(net: nn.Module) -> None:
    """Fill the weights by the formula of the parity README, rounded to float32."""
    offset = int(DATA.take("rule_offset"))
    owners = {
        id(p): isinstance(m, NORMS) for m in net.modules() for p in m.parameters(recurse=False)
    }
    with torch.no_grad():
        for t, (name, parameter) in enumerate(net.named_parameters()):
            weight, norm, count = name.endswith("weight"), owners[id(parameter)], parameter.numel()
            n = torch.arange(1, min(count, 10007) + 1)  # n * n mod 10007 repeats after 10007
            wave = ((n * n + t + offset) % 10007).double().sin()
            scale = (count / parameter.shape[0]) ** -0.5 if weight and not norm else 0.1
            values = (wave * scale + (1.0 if weight and norm else 0.0)).float()
            parameter.copy_(values.repeat(-(-count // len(n)))[:count].view_as(parameter))


def network(variant: str) -> tuple[nn.Module, Tensor]:
    name = VARIANTS.get(variant, variant.removesuffix("_grey28"))
    classes = 100 if variant.endswith("100classes") else 10
    if variant.endswith("grey28"):
        x = DATA.take("input_grey28")
    else:
        x = normalise(DATA.take("input_u8"))
    if "rgb64" in variant:
        x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    with torch.device("meta"):  # no initialisation: the rule overwrites it
        net = build(name, classes, x.shape[1], x.shape[2])
    net.to_empty(device="cpu")
    rule(net)
    return reset(net), x


def reset(net: nn.Module) -> nn.Module:
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
    return net


def outputs(net: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and features of one forward (a second one would move running statistics)."""
    seen: list[Tensor] = []
    head = [module for module in net.modules() if isinstance(module, nn.Linear)][-1]

    def keep(_: nn.Module, inputs: Any) -> None:
        seen.append(inputs[0])

    hook = head.register_forward_pre_hook(keep)
    with torch.no_grad():
        logits = net(x)
    hook.remove()
    return logits, seen[0]


def check(variant: str, mode: str, logits: Tensor, features: Tensor, tolerance: float) -> None:
    assert max_rel(logits, DATA.take(f"out/{variant}/{mode}")) <= tolerance
    if f"embed_l2/{variant}/{mode}" not in DATA.tensors:
        assert variant.startswith(("MLP", "LeNet"))  # the reference has no embed there
        return
    l2 = features.double().norm(dim=1)
    assert max_rel(l2, DATA.take(f"embed_l2/{variant}/{mode}")) <= tolerance
    head = features[:, :16].double()
    assert max_rel(head, DATA.take(f"embed_first16/{variant}/{mode}")) <= tolerance


def check_statistics(variant: str, net: nn.Module, tolerance: float) -> None:
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    first = norms[0]
    last = norms[-1].running_var
    assert first.running_mean is not None
    assert first.running_var is not None
    assert last is not None
    mean = DATA.take(f"bn_first_running_mean/{variant}")
    assert max_rel(first.running_mean, mean) <= tolerance
    assert max_rel(first.running_var, DATA.take(f"bn_first_running_var/{variant}")) <= tolerance
    total = DATA.take(f"bn_last_running_var_sum/{variant}")
    assert max_rel(last.double().sum(), total) <= tolerance


@pytest.mark.filterwarnings("ignore:TF32 acceleration")  # of switching oneDNN
@pytest.mark.parametrize("variant", variants())
def test_outputs(variant: str) -> None:
    """In float32 (the weights are the rule's, rounded to it), then the same weights in float64.

    float32 by PyTorch's own kernels: those of oneDNN sum in another order on every kind of CPU, and
    on some lie 1.2e-5 off where 16 features of a deep network are small.
    """
    net, x = network(variant)
    if f"params/{variant}" in DATA.tensors:
        assert count(net) == int(DATA.take(f"params/{variant}"))
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-10)):
        net, x = reset(net).to(dtype), x.to(dtype)
        with torch.backends.mkldnn.flags(enabled=False):
            logits, features = outputs(net.eval(), x)
            check(variant, "eval", logits, features, tolerance)
            if dtype == torch.float32:
                assert torch.equal(feature_function(net)(x), features)
            if f"out/{variant}/train" in DATA.tensors:
                check(variant, "train", *outputs(net.train(), x), tolerance)
                check_statistics(variant, net, tolerance)


def test_every_tensor_was_checked(request: pytest.FixtureRequest) -> None:
    DATA.finish(request)
