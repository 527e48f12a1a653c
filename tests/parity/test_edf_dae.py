"""Activation maps and the emphasis of gradients against recorded values.

Golden file and tolerances: ../shared/parity/README-edc-edf.md, "edf_dae".
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from golden import golden, max_abs
from stillroom.methods.areas import emphasis
from stillroom.nets.ensemble import Ensemble, Nets
from stillroom.nets.maps import _raw, activation_maps, normalised, resized
from stillroom.nets.zoo import resolve
from stillroom.runtime import Runtime

DATA = golden("edf_dae")
SETTINGS = ("b1_mean", "b2_mean", "b1_thr05", "b0_thr02")
LAYERS = {"first_relu": "features.2", "last_relu": "features.6", "last_pool": "features.7"}


@pytest.mark.parametrize("name", SETTINGS)
def test_emphasis(name: str) -> None:
    beta, threshold = (float(DATA.take(f"{name}.{k}")) for k in ("beta", "threshold"))
    mask = emphasis(DATA.take("maps"), beta, threshold if threshold > 0 else None)
    assert max_abs(mask, DATA.take(f"{name}.mask")) < 1e-6
    assert max_abs(DATA.take("grad") * mask, DATA.take(f"{name}.grad")) < 1e-6


@pytest.fixture(scope="module")
def nets() -> Ensemble:
    rt = Runtime(torch.device("cpu"), "float64")
    made = Nets(resolve("convnet2-w4"), 4, 3, 8, rt).make(1, 0, "parity")
    for name, value in made.member(0)[0].items():
        value.copy_(DATA.take(f"cam_net.{name}"))
    return made


def images() -> tuple[Tensor, Tensor]:
    return DATA.take("cam_images"), DATA.take("cam_class")


def test_logits(nets: Ensemble) -> None:
    assert max_abs(nets.logits(images()[0])[0], DATA.take("cam_logits")) < 1e-9


@pytest.mark.parametrize("name", LAYERS)
def test_grad_cam(nets: Ensemble, name: str) -> None:
    activation, weights, raw = _raw(nets, LAYERS[name], *images())
    stretched = normalised(raw)
    found = {
        "activation": activation,
        "weights": weights,
        "raw": raw,
        "normalised": stretched,
        "resized": resized(stretched, 8),
    }
    for key, value in found.items():
        assert max_abs(value, DATA.take(f"cam.{name}.{key}")) < 1e-9, key
    whole = activation_maps(nets, LAYERS[name], *images())
    assert torch.equal(whole, found["resized"])


def test_nothing_was_left_out(request: pytest.FixtureRequest) -> None:
    DATA.finish(request)
