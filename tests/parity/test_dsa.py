"""Every recorded DSA call of the reference, replayed with the parameters that it drew."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from golden import Golden, golden, max_abs, normalise
from stillroom.data.augment import Draw, apply, from_uniform

FILES = {
    "dsa_pixel": ("brightness", "saturation", "contrast"),
    "dsa_place": ("crop", "cutout", "flip"),
    "dsa_affine": ("scale", "rotate"),
    "dsa_color": ("color",),
}
PARAMS = {
    "brightness": ("shift",),
    "saturation": ("factor",),
    "contrast": ("factor",),
    "crop": ("shift_h", "shift_w"),
    "cutout": ("center_h", "center_w"),
    "flip": ("flip",),
    "scale": ("sx", "sy"),
    "rotate": ("angle",),
    "color": ("shift", "saturation", "contrast"),
}
TOLERANCE = {
    **dict.fromkeys(("crop", "cutout", "flip"), 0.0),
    **dict.fromkeys(("brightness", "saturation", "contrast", "color"), 2e-6),
    **dict.fromkeys(("scale", "rotate"), 2e-5),
}
# (how the reference's integers are drawn, columns of its uniform numbers)
INTEGERS = {"crop": (-4, 5), "cutout": (0, 33)}
UNIFORM = {"scale": ("u_x", "u_y"), "color": (), "crop": (), "cutout": ()}

CASES = [
    pytest.param(file, op, mode, id=f"{op}-{mode}")
    for file, ops in FILES.items()
    for op in ops
    for mode in ("independent", "siamese")
]


def numbers(data: Golden, op: str, mode: str) -> list[Tensor]:
    return [data.take(f"{op}/{mode}/{name}") for name in PARAMS[op]]


def recorded(data: Golden, op: str, mode: str, rows: int = 8) -> Draw:
    values = [value[:rows] for value in numbers(data, op, mode)]
    return Draw((op,), {f"{op}.{n}": v for n, v in zip(PARAMS[op], values, strict=True)})


def images(data: Golden) -> Tensor:
    return normalise(data.take("input_u8"))


def check_sums(data: Golden, ours: Tensor, op: str, mode: str) -> None:
    flat = ours.double().flatten(1)
    # each of the 3072 elements may be off by the tolerance; 1e-9 is float64 summation order
    slack = TOLERANCE[op] * flat.shape[1] + 1e-9
    assert max_abs(flat.sum(1), data.take(f"{op}/{mode}/output_sum_f64")) <= slack
    slack = 2 * TOLERANCE[op] * float(flat.abs().sum(1).max()) + 1e-9
    assert max_abs(flat.square().sum(1), data.take(f"{op}/{mode}/output_sumsq_f64")) <= slack


@pytest.mark.parametrize(("file", "op", "mode"), CASES)
def test_output(file: str, op: str, mode: str) -> None:
    data = golden(file)
    ours = apply(images(data), recorded(data, op, mode))
    if mode == "independent":
        theirs, head = data.take(f"{op}/{mode}/output"), ours
    else:
        theirs, head = data.take(f"{op}/{mode}/output_first2"), ours[:2]
    assert ours.dtype == torch.float32
    assert max_abs(head, theirs) <= TOLERANCE[op]
    check_sums(data, ours, op, mode)


@pytest.mark.parametrize(("file", "op", "mode"), CASES)
def test_one_row_is_siamese(file: str, op: str, mode: str) -> None:
    """A draw of one row gives what the reference gives for its first row, repeated."""
    data = golden(file)
    x = images(data)
    ours = apply(x, recorded(data, op, mode, rows=1))
    if mode == "siamese":
        assert max_abs(ours[:2], data.take(f"{op}/{mode}/output_first2")) <= TOLERANCE[op]
        check_sums(data, ours, op, mode)
    else:
        assert max_abs(ours[:1], data.take(f"{op}/{mode}/output")[:1]) <= TOLERANCE[op]


@pytest.mark.parametrize(("file", "op", "mode"), CASES)
def test_parameters_from_uniform_numbers(file: str, op: str, mode: str) -> None:
    """Our map from U(0,1) to parameters is the reference's, on the numbers that it drew."""
    data = golden(file)
    columns = [data.take(f"{op}/{mode}/{name}") for name in UNIFORM.get(op, ("u",))]
    if op == "color":  # not recorded; they follow from the parameters
        shift, saturation, contrast = numbers(data, op, mode)
        columns = [shift + 0.5, saturation / 2, contrast - 0.5]
    if op in INTEGERS:  # nor here: the middle of the interval that gives each integer
        low, high = INTEGERS[op]
        columns = [(value - low + 0.5) / (high - low) for value in numbers(data, op, mode)]
    ours = from_uniform(op, torch.stack(columns, 1), 32)
    for name, theirs in zip(PARAMS[op], numbers(data, op, mode), strict=True):
        assert max_abs(ours[f"{op}.{name}"], theirs) <= (2e-7 if op not in INTEGERS else 0)


@pytest.mark.parametrize(("file", "op", "mode"), CASES)
def test_recorded_seed_gives_the_recorded_numbers(file: str, op: str, mode: str) -> None:
    """The reference's discipline: one stream, or (Siamese) seed + i for the i-th draw, sample 0.

    Ours differs on purpose (one keyed generator a draw); this checks the record, not our code.
    """
    data = golden(file)
    seed = int(data.take(f"{op}/{mode}/seed"))
    theirs = [data.take(f"{op}/{mode}/{name}") for name in UNIFORM.get(op, ("u",))]
    theirs = theirs or numbers(data, op, mode)
    stream = torch.Generator().manual_seed(seed)
    if op == "color":  # its record starts before the word is drawn
        torch.rand(1, generator=stream)
        theirs = [theirs[0] + 0.5, theirs[1] / 2, theirs[2] - 0.5]
    for i, values in enumerate(theirs):
        count = 8
        if mode == "siamese":
            count = 1
            stream = torch.Generator().manual_seed(seed + i + (op == "color"))
        if op in INTEGERS:
            drawn = torch.randint(*INTEGERS[op], (count,), generator=stream)
        else:
            drawn = torch.rand(count, generator=stream)
        assert max_abs(drawn.expand(8), values) <= (1e-7 if op == "color" else 0)


@pytest.mark.parametrize("mode", ["independent", "siamese"])
@pytest.mark.parametrize("op", FILES["dsa_affine"])
def test_theta(op: str, mode: str) -> None:
    """The recorded affine matrices describe the same map: sampled by torch, the same images."""
    data = golden("dsa_affine")
    theta = data.take(f"{op}/{mode}/theta")
    values = numbers(data, op, mode)
    expected = torch.zeros(8, 2, 3)
    if op == "scale":
        expected[:, 0, 0], expected[:, 1, 1] = values
    else:
        expected[:, 0, 0] = expected[:, 1, 1] = values[0].cos()
        expected[:, 1, 0] = values[0].sin()
        expected[:, 0, 1] = -values[0].sin()
    assert max_abs(theta, expected) <= 1e-6
    x = images(data)
    grid = F.affine_grid(theta, list(x.shape), align_corners=True)
    oracle = F.grid_sample(x, grid, align_corners=True)
    assert max_abs(apply(x, recorded(data, op, mode)), oracle) <= TOLERANCE[op]


def test_recorded_ranges() -> None:
    angle = golden("dsa_affine").take("rotate/independent/angle")
    assert float(angle.abs().max()) <= math.radians(15)


@pytest.mark.parametrize("file", FILES)
def test_every_tensor_was_checked(file: str, request: pytest.FixtureRequest) -> None:
    golden(file).finish(request)
