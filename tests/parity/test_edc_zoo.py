"""Every network of EDC, small and of ImageNet: outputs under two weight rules, keys, hooks, counts.

The numbers are those of the README's `edc_zoo`: reference models and torchvision 0.28.0.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from golden import FOLDER, golden, max_rel
from stillroom.artefacts.released_names import released_name
from stillroom.nets.zoo import build, canonical

DATA = golden("edc_zoo")
FACTS = json.loads((FOLDER / "edc_zoo.json").read_text(encoding="utf-8"))
SMALL = {
    "ResNet18": "resnet18-bn",  # theirs has BatchNorm; the same name in the matching papers has not
    "MobileNetV2": "mobilenetv2-x0.5",
    "ShuffleNetV2_0_5": "shufflenetv2-x0.5",
    "WRN_16_2": "wrn16-2",
    "ConvNetW128": "convnet3",
    "ConvNetD1": "convnet1",
    "ConvNetD2": "convnet2",
    "ConvNetW32": "convnet3-w32",
}
NETWORKS = sorted(FACTS["networks"])


def name_of(network: str) -> str:
    where, _, name = network.partition(".")
    return SMALL[name] if where == "cifar" else f"imagenet/{name}"


def is_large(network: str) -> bool:
    return network.startswith("torchvision.")


def on_meta(network: str) -> nn.Module:
    """The network without storage: counts, keys and shapes need no numbers."""
    classes = FACTS["num_classes"]["torchvision" if is_large(network) else "cifar"]
    with torch.device("meta"):
        net = build(name_of(network), classes, 3, 64 if is_large(network) else 32)
    return net.eval()


def made(network: str) -> nn.Module:
    """The network with its buffers at their defaults; a rule gives it weights."""
    net = on_meta(network).to_empty(device="cpu")
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
    return net


def images(network: str) -> Tensor:
    return DATA.take("input64" if is_large(network) else "input32")


def rule(net: nn.Module, which: str) -> None:
    """Fill the float32 weights by rule A or B of the parity README, rounded to float32."""
    first = 1
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            i = torch.arange(first, first + parameter.numel())  # the README's i + 1
            first += parameter.numel()
            fan = parameter[0].numel() if parameter.ndim > 1 else 1
            if which == "A":
                values = 0.1 * i.double().sin() / fan**0.5
            else:
                u = (i * i % 65537).double() / 65537 - 0.5
                flat = 1 + 0.2 * u if name.endswith("weight") else 0.2 * u
                values = u * (24 / fan) ** 0.5 if parameter.ndim > 1 else flat
            parameter.copy_(values.float().view_as(parameter))


@pytest.mark.filterwarnings("ignore:TF32 acceleration")  # of switching oneDNN
@pytest.mark.parametrize("network", NETWORKS)
def test_outputs(network: str) -> None:
    """Rule A says something of the last layers alone, B of all (README).

    float32 by PyTorch's own kernels, as in test_convnets: oneDNN's differ by kind of CPU.
    """
    net, x = made(network), images(network)
    for which in "AB":
        rule(net.float(), which)
        with torch.no_grad(), torch.backends.mkldnn.flags(enabled=False):
            single = net(x)
            double = net.double()(x.double())
        assert max_rel(single, DATA.take(f"{network}.out_{which}")) <= 1e-5
        assert max_rel(double, DATA.take(f"{network}.out64_{which}")) <= 1e-10


def test_images_are_told_apart_under_rule_b() -> None:
    """Else the outputs above would say nothing of what comes before the last bias."""
    for network in NETWORKS:
        one, two = DATA.take(f"{network}.out64_B")
        assert float((one - two).abs().max() / one.abs().max()) > 0.1


def test_inputs_are_the_images_that_they_are_said_to_be() -> None:
    mean, std = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
    small, large = DATA.take("input32"), DATA.take("input64")
    row = (3, 1, 1)
    ours = DATA.take("images_u8") / 255
    ours = (ours - torch.tensor(mean).view(row)) / torch.tensor(std).view(row)
    assert max_rel(ours, small) <= 1e-6
    assert torch.equal(large, small.repeat_interleave(2, 2).repeat_interleave(2, 3))


@pytest.mark.parametrize("network", NETWORKS)
def test_counts(network: str) -> None:
    net, facts = on_meta(network), FACTS["networks"][network]
    assert facts["parameters"] == sum(p.numel() for p in net.parameters())
    assert facts["buffers"] == sum(b.numel() for b in net.buffers())
    modules = list(net.modules())
    assert facts["conv"] == sum(isinstance(m, nn.Conv2d) for m in modules)
    assert facts["bn"] == sum(isinstance(m, nn.BatchNorm2d) for m in modules)
    # one-dimensional parameters and biases go without weight decay (spec/decoupled.md 11, 30)
    decayed = [p.ndim > 1 and not n.endswith(".bias") for n, p in net.named_parameters()]
    assert (facts["decay"], facts["no_decay"]) == (sum(decayed), len(decayed) - sum(decayed))


@pytest.mark.parametrize("network", NETWORKS)
def test_keys(network: str) -> None:
    """torchvision's to the letter; of the small ones the shapes in order, as rule B needs."""
    told = FACTS["networks"][network]["state_dict"]
    ours = [[key, list(value.shape)] for key, value in on_meta(network).state_dict().items()]
    if is_large(network):
        assert ours == told
    assert [shape for _, shape in ours] == [shape for _, shape in told]
    assert FACTS["networks"][network]["parameter_order"] == "state_dict order without the buffers"
    last = ("running_mean", "running_var", "num_batches_tracked")
    parameters = [shape for key, shape in told if not key.endswith(last)]
    assert [list(p.shape) for p in on_meta(network).parameters()] == parameters


@pytest.mark.parametrize("network", NETWORKS)
def test_hooks(network: str) -> None:
    """Conv2d and BatchNorm2d in module order, each with the input that it sees."""
    net, facts = on_meta(network), FACTS["networks"][network]
    assert facts["input"] == list(images(network).shape)
    kinds: dict[type[nn.Module], str] = {nn.Conv2d: "conv", nn.BatchNorm2d: "bn"}
    watched = [m for m in net.modules() if type(m) in kinds]
    seen: dict[nn.Module, list[int]] = {}

    def look(module: nn.Module, inputs: Any) -> None:
        seen[module] = list(inputs[0].shape[1:])

    hooks = [module.register_forward_pre_hook(look) for module in watched]
    net(torch.empty(facts["input"], device="meta"))
    for hook in hooks:
        hook.remove()
    ours = [[kinds[type(module)], seen[module]] for module in watched]
    assert ours == [[kind, shape] for _, kind, shape in facts["hooks"]]


@pytest.mark.parametrize("network", NETWORKS)
def test_names_of_layers_in_released_statistics(network: str) -> None:
    """The names of the reference's modules, which its files of statistics go by."""
    kinds = (nn.Conv2d, nn.BatchNorm2d)
    ours = [name for name, m in on_meta(network).named_modules() if isinstance(m, kinds)]
    theirs = [name for name, _, _ in FACTS["networks"][network]["hooks"]]
    assert [released_name(name_of(network), name) for name in ours] == theirs


def test_spellings_of_the_reference() -> None:
    """All but ResNet18, which the matching papers gave to instance norm before."""
    ours = {name: canonical(name) for name in SMALL}
    assert ours == {**SMALL, "ResNet18": "resnet18"}


def test_every_network_and_tensor_was_checked(request: pytest.FixtureRequest) -> None:
    assert {n.partition(".")[2] for n in NETWORKS if not is_large(n)} == set(SMALL)
    DATA.finish(request)
