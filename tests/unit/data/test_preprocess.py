"""Normalisation constants and ZCA whitening."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stillroom.data import whitening as module
from stillroom.data.preprocess import CONSTANTS, choose, fit, fit_zca, whitened
from stillroom.data.source import ImageSource
from stillroom.data.whitening import whitening
from stillroom.errors import StillroomError


def source(n: int = 40, channels: int = 3, side: int = 4, seed: int = 0) -> ImageSource:
    generator = torch.Generator().manual_seed(seed)
    shape = (n, channels, side, side)
    images = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    return ImageSource(images, torch.zeros(n, dtype=torch.int64))


def test_constants_under_their_names() -> None:
    found = choose("auto", source(), "cifar10")
    assert found.name == "cifar10"
    assert (found.mean[0], found.std[2]) == (0.4914, 0.2010)
    assert CONSTANTS["cifar100"] == ((0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762))
    assert CONSTANTS["svhn"][1] == (0.1980, 0.2010, 0.1970)
    assert choose("mnist", source(channels=1), "cifar10").mean == (0.1307,)
    assert choose("tiny-imagenet", source(), None).std == choose("imagenet", source(), None).std


@pytest.mark.parametrize("channels", [1, 3])
def test_plain_names_suit_any_channels(channels: int) -> None:
    white = torch.full((1, channels, 2, 2), 255, dtype=torch.uint8)
    half = choose("half", source(channels=channels), None)
    assert half.apply(white).unique().tolist() == [1.0]
    assert half.apply(white * 0).unique().tolist() == [-1.0]
    none = choose("none", source(channels=channels), None)
    assert none.apply(white).unique().tolist() == [1.0]


def test_wrong_channels_and_names() -> None:
    with pytest.raises(StillroomError, match=r"'cifar10' has 3 channel\(s\) but the images have 1"):
        choose("auto", source(channels=1), "cifar10")
    with pytest.raises(StillroomError, match=r"'cifar' is not one of .*did you mean 'cifar10'"):
        choose("cifar", source(), None)


def test_fitted_standardises_exactly() -> None:
    data = source(9000, 3, 4)
    found = choose("auto", data, None)
    assert found.name == "fitted"
    pixels = data.images.double().div(255).transpose(0, 1).flatten(1)
    assert torch.tensor(found.mean, dtype=torch.float64).sub(pixels.mean(1)).abs().max() < 1e-12
    spread = pixels.std(1, correction=0)
    assert torch.tensor(found.std, dtype=torch.float64).sub(spread).abs().max() < 1e-12


def test_fitted_constant_channel_has_a_floor() -> None:
    flat = ImageSource(torch.full((3, 1, 2, 2), 9, dtype=torch.uint8), torch.zeros(3).long())
    assert fit(flat).std == (1e-6,)
    assert fit(flat).mean == (9 / 255,)


def test_zca_train_covariance() -> None:
    data = source(300)
    zca = fit_zca(data.images)
    assert zca.mean.dtype == zca.transform.dtype == torch.float32
    assert torch.equal(zca.transform, zca.transform.T)
    x = data.images.flatten(1).double() / 255
    covariance = torch.cov(x.T)
    values, vectors = torch.linalg.eigh(covariance)
    out = whitened(data, zca).apply(data.images).flatten(1).double()
    inside = vectors.T @ torch.cov(out.T) @ vectors
    assert (inside - torch.diag(values / (values + 0.1))).abs().max() < 1e-5
    assert out.mean(0).abs().max() < 1e-5


def test_zca_inverse_of_forward() -> None:
    data, other = source(30), source(7, seed=1)
    pre = whitened(data, fit_zca(data.images))
    assert (pre.name, pre.mean, pre.std) == ("none", (0.0,) * 3, (1.0,) * 3)
    back = pre.invert(pre.apply(other.images))
    assert (back - other.images.float() / 255).abs().max() < 1e-4


def test_zca_refuses_what_it_cannot_fit() -> None:
    with pytest.raises(StillroomError, match="at least 2 training images, got 1"):
        fit_zca(source(1).images)
    with pytest.raises(StillroomError, match=r"49152 values an image needs a matrix of 18 GiB"):
        fit_zca(torch.zeros(2, 3, 128, 128, dtype=torch.uint8))


def test_zca_golden(shared: Path) -> None:
    path = shared / "parity" / "edf_zca.safetensors"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    golden = load_file(path)
    zca = fit_zca(golden["train_u8"], float(golden["eps"]))
    assert (zca.mean - golden["mean"].flatten()).abs().max() < 1e-6
    assert (zca.transform - golden["transform"]).abs().max() < 1e-5
    assert abs(float(zca.transform.double().trace() - golden["transform_trace64"])) < 1e-4
    train = ImageSource(golden["train_u8"], torch.zeros(64, dtype=torch.int64))
    pre = whitened(train, zca)
    for name in ("train", "test"):
        found = pre.apply(golden[f"{name}_u8"])
        assert (found - golden[f"{name}_out"]).abs().max() < 1e-4


def test_zca_is_fitted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, fits = source(20), []
    original = module.fit_zca

    def counting(images: torch.Tensor) -> object:
        fits.append(len(images))
        return original(images)

    monkeypatch.setattr(module, "fit_zca", counting)
    first = whitening(data, "one", tmp_path)
    again = whitening(data, "one", tmp_path)
    assert torch.equal(first.transform, again.transform)
    assert fits == [20]
    whitening(data, "two", tmp_path)
    whitening(data, "one", None)
    assert len(fits) == 3
    for damaged in tmp_path.glob("zca-*/zca.safetensors"):
        damaged.write_bytes(damaged.read_bytes()[:-5] + b"12345")
    assert torch.equal(whitening(data, "one", tmp_path).transform, first.transform)
    assert len(fits) == 4
