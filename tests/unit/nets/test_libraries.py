"""Networks of torchvision and timm by name, with modules in their place that look like them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stillroom.artefacts import opened
from stillroom.data.benchmarks import Benchmark
from stillroom.errors import StillroomError
from stillroom.nets.zoo import canonical, feature_function, resolve
from stillroom.runtime import Runtime


class Net(nn.Module):
    """`features` is a map and `classifier` the head, as in torchvision's MobileNet."""

    def __init__(self, classes: int, channels: int = 3) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(channels, 4, 3), nn.ReLU())
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(4, classes))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.classifier(self.features(x).mean((2, 3)))
        return out


def net_of(library: str) -> type[Net]:
    """The same, defined in that library as far as anyone can see."""
    return type("Net", (Net,), {"__module__": f"{library}.models.net"})


Asked = list[dict[str, Any]]


@pytest.fixture
def vision(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """A torchvision of four classifiers; what its builders are asked for."""
    asked: Asked = []
    library, models = ModuleType("torchvision"), ModuleType("torchvision.models")

    def list_models(module: ModuleType | None = None) -> list[str]:
        classifiers = ["googlenet", "maxvit_t", "mobilenet_v2", "vit_b_16"]
        return classifiers if module is models else [*classifiers, "fcn_resnet50"]

    def get_model(name: str, **config: Any) -> nn.Module:
        asked.append({"name": name, **config})
        return net_of("torchvision")(config["num_classes"])

    vars(models).update(list_models=list_models, get_model=get_model)
    vars(library).update(models=models)
    monkeypatch.setitem(sys.modules, "torchvision", library)
    return asked


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """A timm of two networks, one of which is made for a size, and of one that breaks."""
    asked: Asked = []
    library = ModuleType("timm")
    sized = {"convnext_tiny": False, "vit_tiny_patch16_224": True, "broken": False}

    def create_model(name: str, **config: Any) -> nn.Module:
        if name == "broken":
            raise TypeError("unexpected\nkeyword")
        asked.append({"name": name, **config})
        return net_of("timm")(config["num_classes"], config["in_chans"])

    vars(library).update(
        create_model=create_model,
        is_model=lambda name: name in sized,
        list_models=lambda: list(sized),
        get_pretrained_cfg=lambda name: SimpleNamespace(fixed_input_size=sized[name]),
    )
    monkeypatch.setitem(sys.modules, "timm", library)
    return asked


def test_torchvision_by_name(vision: Asked) -> None:
    arch = resolve("Torchvision/MobileNet_V2")
    assert (arch.name, arch.factory) == ("torchvision/mobilenet_v2", None)
    net = arch.build(7, 3, 32)
    assert vision == [{"name": "mobilenet_v2", "weights": None, "num_classes": 7}]
    assert net.training
    assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


def test_timm_by_name(timm: Asked) -> None:
    net = resolve("timm/convnext_tiny").build(7, 1, 32)
    assert timm == [{"name": "convnext_tiny", "pretrained": False, "num_classes": 7, "in_chans": 1}]
    assert net(torch.zeros(2, 1, 32, 32)).shape == (2, 7)


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_features_are_what_the_head_sees(library: str) -> None:
    """And not the map that these libraries call features; a user's own may mean a map."""
    net, x = net_of(library)(7).eval(), torch.randn(2, 3, 6, 6)
    features = feature_function(net)(x)
    assert features.shape == (2, 4)
    assert torch.equal(net.classifier(features), net(x))
    assert feature_function(Net(7))(x).shape == (2, 64)


def test_features_of_a_library_without_a_linear_layer() -> None:
    net = net_of("torchvision")(7)
    net.classifier = nn.Sequential()  # SqueezeNet ends in a convolution
    assert feature_function(net)(torch.randn(2, 3, 6, 6)).shape == (2, 64)


def test_size_is_passed_to_those_that_are_made_for_one(vision: Asked, timm: Asked) -> None:
    for name in ("torchvision/vit_b_16", "torchvision/maxvit_t", "timm/vit_tiny_patch16_224"):
        resolve(name).build(7, 3, 48)
    assert [vision[0]["image_size"], vision[1]["input_size"]] == [48, (48, 48)]
    assert timm[0]["img_size"] == 48


def test_one_output_in_train_mode_too(vision: Asked) -> None:
    resolve("torchvision/googlenet").build(7, 3, 32)
    assert vision[0]["aux_logits"] is False


@pytest.mark.parametrize(
    ("name", "channels", "words"),
    [
        ("torchvision/mobilenet_v3", 3, "no classifier 'mobilenet_v3'; did .* 'mobilenet_v2'"),
        ("torchvision/fcn_resnet50", 3, "no classifier 'fcn_resnet50'"),
        ("torchvision/mobilenet_v2", 1, "takes images of 3 channels and these have 1; name one of"),
        ("timm/convnext_tinny", 3, "no classifier 'convnext_tinny'; did you mean 'convnext_tiny'"),
        ("timm/broken", 3, "timm/broken failed when called with .*TypeError: unexpected keyword"),
        ("timm/convnext_tiny", 3, "fails on two images 3x2x2"),
    ],
)  # fmt: skip
def test_refusals(name: str, channels: int, words: str, vision: Asked, timm: Asked) -> None:
    with pytest.raises(StillroomError, match=words) as caught:
        resolve(name).build(7, channels, 2 if "3x2x2" in words else 32)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fault", ["ImportError('a')", "RuntimeError('b')", "OSError('c')"])
@pytest.mark.parametrize(("library", "extra"), [("torchvision", "vision"), ("timm", "timm")])
def test_not_installed_or_broken(
    library: str, extra: str, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"{library}.py").write_text(f"raise {fault}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, library, raising=False)
    arch = resolve(f"{library}/resnet50")  # a name is a name, whether or not it can be built here
    words = rf"^arch='{library}/resnet50' needs the package '{library}', .*'stillroom\[{extra}\]'$"
    with pytest.raises(StillroomError, match=words):
        arch.build(7, 3, 32)


def test_names_need_neither_library_nor_torch() -> None:
    code = (
        "import sys, stillroom.nets.zoo.names as n; n.canonical('timm/x'), n.canonical('WRN_16_2');"
        "sys.exit(bool({'torch', 'timm', 'torchvision'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# -- memory that they would need -----------------------------------------------------------------
def test_too_large_ones_are_refused_unbuilt(
    bench: Benchmark, timm: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stillroom.runtime.available_memory", lambda device: 64)
    with pytest.raises(StillroomError, match=r"^arch=timm/convnext_tiny needs at least"):
        opened.nets_for(resolve("timm/convnext_tiny"), bench, Runtime(device=torch.device("cpu")))


def test_one_that_needs_values_is_not_sized(
    bench: Benchmark, timm: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    def needs_values(name: str, **config: Any) -> nn.Module:
        float(torch.linspace(0, 1, 3)[1])  # timm's rates of stochastic depth are taken out so
        return net_of("timm")(config["num_classes"], config["in_chans"])

    monkeypatch.setattr(sys.modules["timm"], "create_model", needs_values)
    rt = Runtime(device=torch.device("cpu"))
    nets = opened.nets_for(resolve("timm/convnext_tiny"), bench, rt)
    assert nets.make(1, 0, "net").logits(torch.zeros(2, 3, 8, 8)).shape == (1, 2, 2)
    with pytest.raises(StillroomError, match="too small for imagenet/alexnet"):
        opened.nets_for(resolve("imagenet/alexnet"), bench, rt)


def test_every_library_name_is_its_own() -> None:
    names = ["imagenet/resnet18", "torchvision/resnet18", "timm/resnet18", "resnet18"]
    assert [canonical(name) for name in names] == names
