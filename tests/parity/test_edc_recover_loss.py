"""The recover loss against EDC, G-VBSM and SRe2L (origin: shared/parity/README-edc-edf.md)."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

from golden import FOLDER, Golden, max_abs, max_rel
from golden import golden as load_golden
from stillroom.methods import statistics_distance as distances
from stillroom.nets.hooks import Stats, layers, of_batch
from stillroom.types import Preprocess

NAMES = {"mean": "dd_mean", "var": "dd_var", "patch_mean": "patch_mean", "patch_var": "patch_var"}
CIFAR = Preprocess("cifar100", (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))
IMAGENET = Preprocess("imagenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.fixture(scope="module")
def golden() -> Golden:
    return load_golden("edc_recover_loss")


class Net(nn.Module):
    """The network of the golden numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(6)
        self.fc = nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        return self.fc(F.relu(self.bn2(self.conv2(x))).mean((2, 3)))


def network(golden: Golden) -> Net:
    net = Net().eval()
    state = {k.removeprefix("net."): golden.take(k) for k in golden.keys("net.")}
    net.load_state_dict(state, strict=False)
    return net


def seen(net: Net, x: Tensor, patch: int) -> tuple[Tensor, dict[str, Stats]]:
    found: dict[str, Stats] = {}
    hooks = []
    for layer in layers(net):
        side = patch if layer.kind == "conv" else None

        def note(_, inputs, name=layer.name, side=side):
            found[name] = of_batch(inputs[0], side)

        hooks.append(net.get_submodule(layer.name).register_forward_pre_hook(note))
    logits = net(x)
    for hook in hooks:
        hook.remove()
    return logits, found


def given(golden: Golden, head: str, convolution: bool) -> Stats:
    names = NAMES if convolution else {k: v for k, v in NAMES.items() if "patch" not in k}
    return {mine: golden.take(f"{head}.{theirs}") for mine, theirs in names.items()}


def targets(golden: Golden, net: Net, mode: str) -> dict[str, list[tuple[float, Stats]]]:
    """Every layer's targets and their weights in a mode."""
    with safe_open(FOLDER / "edc_recover_loss.safetensors", "pt") as archive:
        told = archive.metadata()
    share = 0.5 if mode == "global" else json.loads(told["global_weight"])[mode]
    labels = golden.take("labels")
    found = {}
    for layer in layers(net):
        convolution = layer.kind == "conv"
        if convolution:
            whole = given(golden, f"{mode}.stat.global.{layer.name}", True)
        else:
            norm = net.get_submodule(layer.name)
            whole = {"mean": norm.running_mean, "var": norm.running_var}
        if mode == "global":
            every = given(golden, f"global.stat.class.{layer.name}", convolution)
            near = {name: value[labels].mean(0) for name, value in every.items()}
        else:
            near = given(golden, f"{mode}.target.{layer.name}", convolution)
        found[layer.name] = [(share, whole), (1 - share, near)]
    return found


@pytest.mark.parametrize(("mode", "patch"), [("global", 4), ("local", 4), ("local_1k", 16)])
def test_loss_gradient_and_averages(golden: Golden, mode: str, patch: int) -> None:
    """Five steps: averages that start at zero and are not corrected, as released."""
    net = network(golden)
    aims, memory = targets(golden, net, mode), {}
    rate, first = float(golden.take("alpha")), float(golden.take("first_multiplier"))
    labels = golden.take("labels")
    for t, images in enumerate(golden.take("x")):
        x = images.clone().requires_grad_()
        logits, stats = seen(net, x, patch)
        terms = []
        for name, mine in stats.items():
            shown = distances.smoothed(memory, name, mine, rate, corrected=False)
            for statistic in shown:
                theirs = golden.take(f"{mode}.ema.{name}.{NAMES[statistic]}")[t]
                assert max_rel(memory[f"{name}.{statistic}"], theirs) <= 1e-5
                assert max_rel(shown[statistic], theirs) <= 1e-5
            terms.append(
                distances.weighted([(w, distances.apart(shown, aim)) for w, aim in aims[name]])
            )
        assert max_rel(torch.stack(terms), golden.take(f"{mode}.r_feature")[t]) <= 1e-5
        total = first * terms[0] + sum(terms[1:])
        assert max_rel(total, golden.take(f"{mode}.weighted_sum")[t]) <= 1e-5
        ce = F.cross_entropy(logits, labels)
        assert max_rel(ce, golden.take(f"{mode}.ce")[t]) <= 1e-5
        loss = ce + golden.take("r_loss") * total
        assert max_rel(loss, golden.take(f"{mode}.loss")[t]) <= 1e-5
        loss.backward()
        assert max_rel(x.grad, golden.take(f"{mode}.grad_x")[t]) <= 1e-4


@pytest.mark.parametrize(("mode", "patch"), [("local", 4), ("local_1k", 16)])
def test_local_targets(golden: Golden, mode: str, patch: int) -> None:
    net = network(golden)
    with torch.no_grad():
        _, stats = seen(net, golden.take("real_batch"), patch)
    for layer in layers(net):
        theirs = given(golden, f"{mode}.target.{layer.name}", layer.kind == "conv")
        for name, value in stats[layer.name].items():
            assert max_rel(value, theirs[name]) <= 2e-5, (layer.name, name)


def test_spectrum(golden: Golden) -> None:
    labels, tau = golden.take("nuclear_labels"), float(golden.take("nuclear_tau"))
    for dtype, suffix, tolerance in ((torch.float32, "", 2e-3), (torch.float64, "64", 1e-5)):
        x = golden.take("nuclear_x").to(dtype, copy=True).requires_grad_()
        term = distances.spectrum(x, labels, tau, scaled=False)
        term.backward()
        assert max_rel(term, golden.take(f"nuclear_loss{suffix}")) <= tolerance
        assert max_rel(x.grad, golden.take(f"nuclear_grad{suffix}")) <= tolerance


def test_priors(golden: Golden) -> None:
    x = golden.take("tv_x")
    assert max_rel(distances.total_variation(x), golden.take("tv_l2")) <= 1e-6
    means = sum(d.abs().mean() for d in distances.differences(x))
    assert max_rel(means, golden.take("tv_l1")) <= 1e-6
    assert max_rel(distances.image_norm(x), golden.take("l2_image")) <= 1e-6


def test_flatness(golden: Golden) -> None:
    theirs = golden.take("flat_logits_ema")
    for name, released in (("flat_released", True), ("flat_paper", False)):
        logits = golden.take("flat_logits").clone().requires_grad_()
        term = distances.flatness(logits, theirs, 4, released)
        term.backward()
        assert max_rel(term, golden.take(name)) <= 1e-5
        assert max_rel(logits.grad, golden.take(f"{name}_grad")) <= 1e-5


def test_averaged_images(golden: Golden) -> None:
    images, rate = golden.take("ema_images_in"), float(golden.take("ema_images_beta"))
    average = images[0]
    for x, theirs in zip(images[1:], golden.take("ema_images_out"), strict=True):
        average = torch.lerp(x, average, rate)
        assert max_rel(average, theirs) <= 1e-6


@pytest.mark.parametrize(("name", "space"), [("cifar", CIFAR), ("imagenet", IMAGENET)])
def test_limits_of_pixels(golden: Golden, name: str, space: Preprocess) -> None:
    x = golden.take("clip_x")
    assert max_abs(space.clamp(x), golden.take(f"clip_{name}")) <= 1e-6
    assert max_abs(space.invert(x).clamp(0, 1), golden.take(f"denormalize_{name}")) <= 1e-6


def test_slots_are_class_major(golden: Golden) -> None:
    ipc = int(golden.take("slot_ipc"))
    rows = torch.arange(10 * ipc)
    assert torch.equal(rows // ipc, golden.take("slot_class"))
    assert torch.equal(rows % ipc, golden.take("slot_id"))


def test_every_tensor_was_looked_at(golden: Golden, request: pytest.FixtureRequest) -> None:
    golden.finish(request)
