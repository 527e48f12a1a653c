"""Augmentation: the invariants of the specification, oracles by pixel loops, and the twins."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from stillroom.data import augment
from stillroom.data.augment import (
    Draw,
    Strategy,
    apply,
    apply_groups,
    draw,
    from_uniform,
    parse,
)
from stillroom.errors import StillroomError

DSA = "dsa:color_crop_cutout_flip_scale_rotate"
WORDS = ("color", "crop", "cutout", "flip", "scale", "rotate")
PARTS = ("brightness", "saturation", "contrast")
EXACT = ("crop", "cutout", "flip")
EVERY = (*WORDS, *PARTS)
Names = tuple[str, ...]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(n: int, channels: int = 3, height: int = 32, width: int = 32, seed: int = 1) -> Tensor:
    return torch.randn(n, channels, height, width, generator=generator(seed))


def one(op: str, n: int = 8, size: augment.Size = 32, siamese: bool = False) -> Draw:
    return draw(Strategy((op,)), n, size, generator(7), siamese)


# -- strategies ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "words", "mode"),
    [
        (DSA, WORDS, "S"),
        ("dsa:crop", ("crop",), "S"),
        ("dsa-m:color_rotate", ("color", "rotate"), "M"),
        ("flip", ("flip",), "M"),
        ("crop", ("crop",), "M"),
        ("crop_flip", ("crop", "flip"), "M"),
        *((text, (), "S") for text in ("none", "None", "")),
    ],
)
def test_parse(text: str, words: Names, mode: str) -> None:
    strategy = parse(text)
    assert (strategy.words, strategy.mode) == (words, mode)
    assert parse(strategy.text) == strategy


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("dsa:colour_crop", "unknown word 'colour'; did you mean 'color'"),
        ("dsa:", "unknown word ''"),
        ("dsa:crop_crop", "twice"),
        ("dsb:crop", "must start with dsa:"),
        ("flipp", "did you mean 'flip'"),
        ("color_crop", "dsa:color_crop"),
    ],
)
def test_bad_strategies(text: str, words: str) -> None:
    with pytest.raises(StillroomError, match=words) as caught:
        parse(text)
    assert "\n" not in str(caught.value)


# -- draws -----------------------------------------------------------------------------------------
def chi_square(counts: Counter[int], kinds: int) -> float:
    expected = counts.total() / kinds
    return sum((counts[kind] - expected) ** 2 / expected for kind in range(kinds))


def test_words_are_uniform() -> None:
    source = generator()
    drawn = Counter(WORDS.index(draw(parse(DSA), 1, 32, source).ops[0]) for _ in range(3000))
    assert chi_square(drawn, 6) < 20.5  # 0.1 % point at 5 degrees of freedom


@pytest.mark.parametrize(
    ("op", "names", "low", "kinds", "limit"),
    [
        ("crop", ("shift_h", "shift_w"), -4, 9, 26.1),  # limits: 0.1 % points
        ("cutout", ("center_h", "center_w"), 0, 33, 62.5),
        ("flip", ("flip",), 0, 2, 10.8),
    ],
)
def test_integers_are_uniform(op: str, names: Names, low: int, kinds: int, limit: float) -> None:
    for name in names:
        values = one(op, 9000).params[f"{op}.{name}"].long() - low
        assert (int(values.min()), int(values.max())) == (0, kinds - 1)
        assert chi_square(Counter(values.tolist()), kinds) < limit


@pytest.mark.parametrize(
    ("names", "low", "high"),
    [
        (("brightness.shift", "color.shift"), -0.5, 0.5),
        (("saturation.factor", "color.saturation"), 0, 2),
        (("contrast.factor", "color.contrast"), 0.5, 1.5),
        (("scale.sx", "scale.sy"), 1 / 1.2, 1.2),
        (("rotate.angle",), -math.radians(15), math.radians(15)),
    ],
)
def test_ranges(names: Names, low: float, high: float) -> None:
    slack, span = 1e-6, high - low
    for name in names:
        values = one(name.partition(".")[0], 4000).params[name]
        assert values.dtype == torch.float32
        assert low - slack <= float(values.min()) < low + 0.01 * span
        assert high - 0.01 * span < float(values.max()) <= high + slack
        # Kolmogorov-Smirnov against the uniform law, 0.1 % point 1.95 / sqrt(n)
        steps = torch.linspace(0, 1, len(values))
        assert float(((values.sort().values - low) / span - steps).abs().max()) < 1.95 / 4000**0.5


@pytest.mark.parametrize(
    ("size", "crop", "cutout"), [(6, 1, 5), (8, 1, 8), (28, 4, 28), (64, 8, 64)]
)
def test_integers_follow_the_size(size: int, crop: int, cutout: int) -> None:
    """At 6 px the hole is 3, odd, and has one place less."""
    shift = one("crop", 3000, size).params["crop.shift_h"]
    assert (int(shift.min()), int(shift.max())) == (-crop, crop)
    center = one("cutout", 3000, size).params["cutout.center_w"]
    assert (int(center.min()), int(center.max())) == (0, cutout)


def test_largest_uniform_number_stays_inside() -> None:
    top = torch.full((1, 2), 1 - 2**-24)
    assert from_uniform("crop", top, 32)["crop.shift_h"].tolist() == [4]
    assert from_uniform("cutout", top, 32)["cutout.center_w"].tolist() == [32]


@pytest.mark.parametrize("text", [DSA, "crop_flip", "dsa-m:color_scale_rotate_cutout"])
def test_siamese_draw_does_not_know_the_batch(text: str) -> None:
    draws = [draw(parse(text), n, 32, generator(5), siamese=True) for n in (1, 10, 256)]
    assert len({drawn.digest() for drawn in draws}) == 1
    assert all(len(value) == 1 for value in draws[0].params.values())


def test_modes() -> None:
    x = images(2)
    assert apply(x, draw(parse("none"), 2, 32, generator())) is x
    assert draw(parse("dsa-m:rotate_color"), 3, 32, generator()).ops == ("rotate", "color")
    assert len(draw(parse(DSA), 3, 32, generator()).ops) == 1


def test_global_generator_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    for word in EVERY:
        apply(images(4), one(word, 4))
    assert torch.equal(before, torch.random.get_rng_state())


def test_digest_tells_draws_apart() -> None:
    drawn = one("crop")
    assert drawn.digest() == one("crop").digest() == drawn.to("cpu").digest()
    params = drawn.params
    moved = {**params, "crop.shift_h": params["crop.shift_h"] + 1}
    other_type = Draw(("crop",), {name: value.int() for name, value in params.items()})
    others = [Draw(), Draw(("crop",), moved), other_type, Draw(("crop", "flip"), params)]
    assert len({d.digest() for d in [drawn, *others]}) == 5


# -- operations ------------------------------------------------------------------------------------
def pixel_loop(x: Tensor, place: Callable[[int, int], tuple[float, float]]) -> Tensor:
    """The oracle: bilinear sampling of one image [ch,H,W], pixel by pixel, zero outside."""
    _, height, width = x.shape
    out = torch.zeros_like(x)
    for r in range(height):
        for c in range(width):
            row, col = place(r, c)
            top, left = math.floor(row), math.floor(col)
            for i, wi in ((top, 1 - (row - top)), (top + 1, row - top)):
                for j, wj in ((left, 1 - (col - left)), (left + 1, col - left)):
                    if 0 <= i < height and 0 <= j < width:
                        out[:, r, c] += wi * wj * x[:, i, j]
    return out


def moved(
    op: str, values: list[float], height: int, width: int
) -> Callable[[int, int], tuple[float, float]]:
    mid_r, mid_c = (height - 1) / 2, (width - 1) / 2
    if op == "crop":
        return lambda r, c: (r + values[0], c + values[1])
    if op == "scale":
        return lambda r, c: (mid_r + values[1] * (r - mid_r), mid_c + values[0] * (c - mid_c))
    sin, cos = math.sin(values[0]), math.cos(values[0])
    return lambda r, c: (
        mid_r + sin * (c - mid_c) + cos * (r - mid_r),
        mid_c + cos * (c - mid_c) - sin * (r - mid_r),
    )


@pytest.mark.parametrize("shape", [(9, 9), (8, 13), (12, 2)])
@pytest.mark.parametrize("op", ["crop", "scale", "rotate"])
def test_geometry_against_a_pixel_loop(op: str, shape: tuple[int, int]) -> None:
    x = images(3, 2, *shape).double()
    drawn = one(op, 3, shape)
    ours = apply(x, drawn)
    for i in range(3):
        values = [float(value[i]) for value in drawn.params.values()]
        oracle = pixel_loop(x[i], moved(op, values, *shape))
        assert float((ours[i] - oracle).abs().max()) < 1e-12


@pytest.mark.parametrize("shape", [(32, 32), (8, 13)])
@pytest.mark.parametrize("op", ["scale", "rotate"])
def test_sampling_twin(op: str, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """The deterministic sampler gives the same values and gradients, siamese or not."""
    for siamese in (False, True):
        drawn = one(op, 4, shape, siamese)
        values, grads = list[Tensor](), list[Tensor]()
        for sampler in (augment._sample, augment._sample_by_gather):
            with monkeypatch.context() as patch:
                patch.setattr(augment, "_sample", sampler)
                x = images(4, 3, *shape).double().requires_grad_()
                values.append(apply(x, drawn))
                (grad,) = torch.autograd.grad((values[-1] * images(4, 3, *shape)).sum(), x)
                grads.append(grad)
        assert float((values[0] - values[1]).detach().abs().max()) < 1e-12
        assert float((grads[0] - grads[1]).abs().max()) < 1e-12


def test_crop_fills_with_zero() -> None:
    x = torch.ones(64, 1, 32, 32)
    drawn = one("crop", 64)
    zeros = (apply(x, drawn) == 0).sum((1, 2, 3))
    down, right = drawn.params["crop.shift_h"].abs(), drawn.params["crop.shift_w"].abs()
    assert torch.equal(zeros, 1024 - (32 - down) * (32 - right))
    assert int(torch.maximum(down, right).max()) <= 4


@pytest.mark.parametrize("side", [32, 28])
def test_cutout_counts_zeros(side: int) -> None:
    drawn = one("cutout", 2000, side)
    out = apply(torch.ones(2000, 1, side, side), drawn)
    zeros = (out == 0).sum((1, 2, 3))
    hole, half = side // 2, side // 4
    assert hole**2 // 4 <= int(zeros.min()) < int(zeros.max()) == hole**2
    if side == 32:
        assert abs(float(zeros.float().mean()) - 191) < 5
    h, w = (int(drawn.params[f"cutout.center_{axis}"][0]) for axis in "hw")
    expected = torch.ones(side, side)
    expected[max(0, h - half) : h + half, max(0, w - half) : w + half] = 0
    assert torch.equal(out[0, 0], expected)


def test_flip_twice_is_the_identity() -> None:
    x, drawn = images(8), one("flip")
    assert not torch.equal(apply(x, drawn), x)
    assert torch.equal(apply(apply(x, drawn), drawn), x)


def test_color_is_the_chain() -> None:
    """Each mean is taken on the intermediate image; greyscale has no saturation."""
    grey = images(8, channels=1)
    assert torch.equal(apply(grey, one("saturation")), grey)
    x, drawn = images(4), one("color", 4)
    column = {name: value.view(-1, 1, 1, 1) for name, value in drawn.params.items()}
    y = x + column["color.shift"]
    y = (y - y.mean(1, keepdim=True)) * column["color.saturation"] + y.mean(1, keepdim=True)
    mean = y.mean((1, 2, 3), keepdim=True)
    y = (y - mean) * column["color.contrast"] + mean
    assert float((apply(x, drawn) - y).abs().max()) < 2e-6


@pytest.mark.parametrize("op", EVERY)
def test_siamese_treats_copies_alike(op: str) -> None:
    x = images(1).expand(5, -1, -1, -1)
    out = apply(x, one(op, siamese=True))
    assert torch.equal(out, out[:1].expand(5, -1, -1, -1))
    independent = apply(images(1).expand(64, -1, -1, -1), one(op, 64))
    assert not torch.equal(independent, independent[:1].expand(64, -1, -1, -1))


@pytest.mark.parametrize("op", EVERY)
def test_one_row_equals_the_same_row_repeated(op: str) -> None:
    """The fast path of one row (padding, slicing) is the path of many rows."""
    x, drawn = images(6), one(op, siamese=True)
    many = Draw(drawn.ops, {name: value.expand(6) for name, value in drawn.params.items()})
    gap = float((apply(x, drawn) - apply(x, many)).abs().max())
    assert gap == 0 if op in EXACT else gap < 1e-6


@pytest.mark.parametrize("siamese", [False, True])
@pytest.mark.parametrize("op", EVERY)
def test_gradient_equals_finite_differences(op: str, siamese: bool) -> None:
    x = images(2, 3, 5, 6).double().requires_grad_()
    drawn = one(op, 2, (5, 6), siamese)
    assert torch.autograd.gradcheck(lambda x: apply(x, drawn), (x,), atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("op", EVERY)
def test_shape_and_dtype_stay(op: str, dtype: torch.dtype) -> None:
    x = images(4, 3, 16, 24).to(dtype)
    last = x.to(memory_format=torch.channels_last)
    before = x.clone()
    for siamese in (False, True):
        drawn = one(op, 4, (16, 24), siamese)
        out = apply(x, drawn)
        assert (out.shape, out.dtype) == (x.shape, dtype)
        assert torch.allclose(apply(last, drawn), out, rtol=1e-2, atol=1e-2)
    assert torch.equal(x, before), "apply is pure"


def test_bytes_move_but_do_not_compute() -> None:
    x = (images(4).abs() * 50).byte()
    for op in EXACT:
        assert torch.equal(apply(x, one(op, 4)).float(), apply(x.float(), one(op, 4)))
    with pytest.raises(StillroomError, match="convert them to float"):
        apply(x, one("color", 4))


def test_bad_draws_and_batches() -> None:
    with pytest.raises(StillroomError, match="n=0"):
        draw(parse(DSA), 0, 32, generator())
    with pytest.raises(StillroomError, match=r"needs \[n, 2\]"):
        from_uniform("crop", torch.zeros(3, 1), 32)
    with pytest.raises(StillroomError, match="a draw for 8 images meets a batch of 4"):
        apply(images(4), one("flip"))
    with pytest.raises(StillroomError, match="ch,H,W"):
        apply(images(4)[0], one("flip", siamese=True))


# -- groups ----------------------------------------------------------------------------------------
COUNTS = [3, 0, 1, 5, 2, 4, 3, 2, 6, 1, 2, 3]


def group_draws(text: str, siamese: bool = True) -> list[Draw]:
    return [
        draw(parse(text), max(1, count), 32, generator(100 + c), siamese or count == 0)
        for c, count in enumerate(COUNTS)
    ]


def grouped(x: Tensor, draws: list[Draw]) -> Tensor:
    parts = torch.split(x, COUNTS)
    return torch.cat([apply(part, drawn) for part, drawn in zip(parts, draws, strict=True)])


@pytest.mark.parametrize("text", [DSA, "dsa:rotate", "crop_flip", "none", "dsa:color_scale"])
@pytest.mark.parametrize("siamese", [True, False])
@pytest.mark.parametrize("by", ["groups", "operation"])
def test_groups_equal_the_loop(text: str, siamese: bool, by: str) -> None:
    x = images(sum(COUNTS)).requires_grad_()
    draws = group_draws(text, siamese)
    function = apply_groups if by == "groups" else augment._by_operation
    ours, loop = function(x, COUNTS, draws), grouped(x, draws)
    assert float((ours - loop).detach().abs().max()) < 1e-6
    weight = images(sum(COUNTS), seed=3)
    grads = [torch.autograd.grad((out * weight).sum(), x)[0] for out in (ours, loop)]
    assert float((grads[0] - grads[1]).abs().max()) < 1e-5


def test_groups_are_exact_where_pixels_only_move() -> None:
    x, draws = images(sum(COUNTS)), group_draws("dsa:crop_cutout_flip")
    assert len({drawn.ops for drawn in draws}) == 3
    assert torch.equal(augment._by_operation(x, COUNTS, draws), grouped(x, draws))


def test_by_operation_calls_once_an_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, ...]] = []

    def counted(x: Tensor, drawn: Draw) -> Tensor:
        calls.append(drawn.ops)
        return apply(x, drawn)

    monkeypatch.setattr(augment, "apply", counted)
    counts, source = [2] * 100, generator()
    draws = [draw(parse(DSA), 1, 32, source, siamese=True) for _ in counts]
    augment._by_operation(images(200), counts, draws)
    assert len(calls) == len(set(calls)) == 6


def test_bad_groups() -> None:
    x, drawn = images(6), one("flip", siamese=True)
    for counts, draws in (([3, 2], [drawn] * 2), ([3, 3], [drawn]), ([7, -1], [drawn] * 2)):
        with pytest.raises(StillroomError, match="one draw a group"):
            apply_groups(x, counts, draws)
    wrong = one("flip", 4)
    for function in (apply_groups, augment._by_operation):
        with pytest.raises(StillroomError, match="a draw for 4 images"):
            function(x, [3, 3], [drawn, wrong])
    assert apply_groups(x[:0], [], []).shape == (0, 3, 32, 32)
