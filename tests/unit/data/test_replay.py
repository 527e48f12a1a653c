"""Draws of whole batches: golden ones, a naive loop over images, and what boxes must be."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

from stillroom.data.curriculum import smallest_scale
from stillroom.data.frozen import uniform
from stillroom.data.policy import Policy
from stillroom.data.replay import (
    MixDraw,
    cutmix_box,
    draw,
    epoch_draws,
    flips,
    fractions,
    jitter,
    padded_crops,
    pixels,
    resized_crops,
)
from stillroom.errors import StillroomError

USUAL = (3 / 4, 4 / 3)


# -- golden draws: never to be changed under FROZEN = 1 --------------------------------------------
def test_golden_boxes() -> None:
    assert resized_crops(4, (32, 32), (0.08, 1.0), USUAL, 0, "golden").tolist() == [
        [1, 2, 30, 29],
        [0, 5, 24, 27],
        [0, 1, 29, 28],
        [2, 0, 30, 32],
    ]
    wide = resized_crops(2, (24, 40), (0.5, 1.0), USUAL, 0, "golden")
    assert wide.tolist() == [[0, 6, 23, 26], [0, 7, 22, 27]]
    moved = padded_crops(3, (32, 32), 4, 0, "golden")
    assert moved.tolist() == [[3, -1, 32, 32], [-1, 1, 32, 32], [-2, 1, 32, 32]]
    assert flips(8, 0, "golden").int().tolist() == [1, 0, 1, 1, 1, 1, 1, 0]
    assert jitter(-4, 4, 0, "golden") == (-2, -1)


@pytest.mark.parametrize(
    ("mix", "digest"),
    [
        ("none", "d311542d4ca9f73d2b1a5fe623b479b2959b06c375658a41de4af97954c73b84"),
        ("cutmix", "888f8a91c24c471899d7583ba1e8d4438cc875d6e205d3d346d77082903568bc"),
        ("mixup", "7927da727242360cfd5610420f60d9e2db3b1b46d8af3ef1fb863d6f787d541b"),
    ],
)
def test_golden_draws(mix: str, digest: str) -> None:
    drawn = draw(Policy(size=16, mix=mix, shuffle=2), 5, (32, 32), 0, "golden")  # type: ignore[arg-type]
    assert drawn.digest() == digest


def test_golden_epoch() -> None:
    batches = list(epoch_draws(Policy(size=16), 7, 3, (32, 32), 3, 1))
    assert [rows.tolist() for rows, _ in batches] == [[2, 6, 3], [0, 5, 1], [4]]
    heads = [drawn.digest()[:16] for _, drawn in batches]
    assert heads == ["b0a1440a4791c1aa", "61afcda92ec8b770", "535186b0c2c58301"]


# -- boxes -----------------------------------------------------------------------------------------
def naive_box(u: list[list[float]], height: int, width: int, scale, ratio) -> list[int]:
    """RandomResizedCrop of one image as torchvision writes it down, on given uniform numbers."""
    for area_u, ratio_u, top_u, left_u in u:
        area = height * width * (scale[0] + (scale[1] - scale[0]) * area_u)
        low, high = math.log(ratio[0]), math.log(ratio[1])
        aspect = math.exp(low + (high - low) * ratio_u)
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return [int(top_u * (height - h + 1)), int(left_u * (width - w + 1)), h, w]
    w, h = width, height
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    return [(height - h) // 2, (width - w) // 2, h, w]


@pytest.mark.parametrize(
    ("size", "scale", "ratio"),
    [
        ((32, 32), (0.08, 1.0), USUAL),
        ((24, 40), (0.5, 1.0), USUAL),
        ((224, 224), (0.08, 1.0), (1.0, 1.0)),
        ((30, 64), (0.7, 1.0), USUAL),  # often no box fits
        ((64, 8), (1.0, 1.0), USUAL),  # never
    ],
)
def test_boxes_against_a_loop(size, scale, ratio) -> None:
    n = 300
    boxes = resized_crops(n, size, scale, ratio, 3, "loop")
    u = uniform((n, 10, 4), 3, "loop", "crop").tolist()
    assert boxes.tolist() == [naive_box(one, *size, scale, ratio) for one in u]
    assert boxes.dtype == torch.int64


def test_boxes_lie_inside_and_keep_area_and_ratio() -> None:
    boxes = resized_crops(4000, (96, 96), (0.25, 0.8), USUAL, 1, "range").double()
    top, left, height, width = boxes.unbind(1)
    assert bool((boxes >= 0).all())
    assert float((top + height).max()) <= 96
    assert float((left + width).max()) <= 96
    # A side is rounded by half a pixel at most.
    area = 96 * 96
    assert bool(((height + 0.5) * (width + 0.5) >= 0.25 * area).all())
    assert bool(((height - 0.5) * (width - 0.5) <= 0.8 * area).all())
    assert bool(((width + 0.5) / (height - 0.5) >= 3 / 4).all())
    assert bool(((width - 0.5) / (height + 0.5) <= 4 / 3).all())
    ratio = (width / height).log()  # symmetric in the logarithm
    assert abs(float(ratio.mean())) < 5 * math.log(4 / 3) / math.sqrt(3 * 4000)
    for start, length in ((top, height), (left, width)):  # uniform places
        free = 96 - length
        where = start[free > 0] / free[free > 0]
        assert abs(float(where.mean()) - 0.5) < 5 * 0.5 / math.sqrt(len(where))


def test_a_whole_image_is_expressible() -> None:
    assert resized_crops(3, (20, 20), (1, 1), (1, 1), 0).tolist() == [[0, 0, 20, 20]] * 3


def test_padded_crops_are_uniform() -> None:
    boxes = padded_crops(5000, (24, 32), 2, 1, "many")
    assert (boxes[:, 2] == 24).all()
    assert (boxes[:, 3] == 32).all()
    for axis in (0, 1):
        counts = Counter(boxes[:, axis].tolist())
        assert set(counts) == {-2, -1, 0, 1, 2}
        assert sum((n - 1000) ** 2 / 1000 for n in counts.values()) < 18.5  # 0.1 %, 4 degrees
    with pytest.raises(StillroomError, match="padding=-1"):
        padded_crops(1, (8, 8), -1, 0)


def test_a_policy_of_padded_crops() -> None:
    """Crops are those of `padded_crops`; without them a policy dumps as it always did."""
    drawn = draw(Policy(size=32, scale=(1.0, 1.0), padding=4), 9, (32, 32), 0, "some")
    assert torch.equal(drawn.crops, padded_crops(9, (32, 32), 4, 0, "some"))
    assert "padding" not in Policy(size=32).model_dump()
    with pytest.raises(ValidationError, match="padding=4 is a crop of another kind"):
        Policy(size=32, padding=4)


def test_jitter_reaches_both_ends() -> None:
    drawn = {jitter(0, 2, seed) for seed in range(200)}
    assert drawn == {(a, b) for a in range(3) for b in range(3)}
    with pytest.raises(StillroomError, match=r"3\.\.1"):
        jitter(3, 1, 0)


# -- mixes -----------------------------------------------------------------------------------------
def test_cutmix_box() -> None:
    for size in ((32, 32), (17, 40)):
        for centre in ((0, 0), (size[0] // 2, size[1] // 2), (size[0] - 1, size[1] - 1)):
            r1, c1, r2, c2 = cutmix_box(size, 1.0, centre)
            assert (r2 - r1) * (c2 - c1) == 0  # all of it is the image's own
            for share in (0.0, 0.2, 0.5, 0.9):
                r1, c1, r2, c2 = cutmix_box(size, share, centre)
                assert 0 <= r1 <= r2 <= size[0]
                assert 0 <= c1 <= c2 <= size[1]
                sides = [2 * (int(side * math.sqrt(1 - share)) // 2) for side in size]
                inside = [
                    c - s // 2 >= 0 and c + s // 2 <= side
                    for c, s, side in zip(centre, sides, size, strict=True)
                ]
                if all(inside):
                    assert [r2 - r1, c2 - c1] == sides
                    # sides are cut to even numbers: up to 2 pixels short of 1 - share of the area
                    exact = (1 - share) * size[0] * size[1]
                    assert exact - 2 * sum(size) <= (r2 - r1) * (c2 - c1) <= exact
                else:
                    assert r2 - r1 <= sides[0]
                    assert c2 - c1 <= sides[1]
    assert cutmix_box((32, 32), 0.5, (16, 16)) == (5, 5, 27, 27)  # 22 x 22 of 1024: 0.473


@pytest.mark.parametrize(("mix", "alpha"), [("cutmix", 1.0), ("mixup", 0.8)])
def test_one_mix_a_batch(mix: str, alpha: float) -> None:
    policy = Policy(size=12, mix=mix)  # type: ignore[arg-type]
    assert policy.beta == alpha
    drawn = draw(policy, 40, (16, 16), 2, "mix")
    assert sorted(drawn.partners.tolist()) == list(range(40))
    assert 0 <= drawn.share <= 1
    assert (drawn.box != (0, 0, 0, 0)) == (mix == "cutmix")
    assert drawn.digest() != draw(policy, 40, (16, 16), 2, "other").digest()
    told = Policy(size=12, mix=mix, alpha=2.0)  # type: ignore[arg-type]
    assert draw(told, 40, (16, 16), 2, "mix").share != drawn.share


def test_patches_are_shuffled() -> None:
    """In the released EDC code they are not, though it says so."""
    drawn = draw(Policy(size=12, shuffle=3, mix="none"), 60, (13, 15), 0, "patches")
    for perm in (drawn.cols, drawn.rows):
        assert perm.shape == (60, 3)
        assert bool((perm.sort(1).values == torch.arange(3)).all())
        assert len({tuple(p) for p in perm.tolist()}) == 6  # each of 3! occurs
    assert not torch.equal(drawn.cols, drawn.rows)
    assert int((drawn.crops[:, 0] + drawn.crops[:, 2]).max()) <= 12  # 13 rows, one dropped
    with pytest.raises(StillroomError, match="shuffle=9"):
        draw(Policy(size=12, shuffle=9), 2, (8, 16), 0)


def test_the_digest_is_of_everything() -> None:
    drawn = draw(Policy(size=8, shuffle=2), 4, (8, 8), 0, "digest")
    other = draw(Policy(size=8, shuffle=2), 4, (8, 8), 1, "digest")
    changes = [
        {"source": (8, 9)},
        {"size": (8, 9)},
        {"crops": drawn.crops.roll(1, 0)},
        {"flips": ~drawn.flips},
        {"cols": 1 - drawn.cols},
        {"rows": 1 - drawn.rows},
        {"mix": "mixup"},
        {"partners": drawn.partners.roll(1)},
        {"share": math.nextafter(drawn.share, 1)},
        {"box": (0, 0, 1, 1)},
    ]
    changed = [replace(drawn, **change) for change in changes]  # type: ignore[arg-type]
    digests = {one.digest() for one in (drawn, other, *changed)}
    assert len(digests) == len(changes) + 2
    assert replace(drawn).digest() == drawn.digest()


# -- epochs ----------------------------------------------------------------------------------------
def test_an_epoch_is_every_image_once() -> None:
    policy = Policy(size=8)
    orders = []
    for epoch in range(4):
        batches = list(epoch_draws(policy, 23, 5, (8, 8), 1, epoch))
        assert [len(rows) for rows, _ in batches] == [5, 5, 5, 5, 3]
        order = torch.cat([rows for rows, _ in batches])
        assert order.sort().values.tolist() == list(range(23))
        orders.append(tuple(order.tolist()))
        for rows, drawn in batches:
            assert len(drawn.crops) == len(drawn.flips) == len(drawn.partners) == len(rows)
        digests = {drawn.digest() for _, drawn in batches}
        assert len(digests) == 5
    assert len(set(orders)) == 4


def test_a_batch_depends_on_no_other() -> None:
    policy = Policy(size=8, mix="mixup")
    last = list(epoch_draws(policy, 23, 5, (8, 8), 1, 2))[3][1]
    assert draw(policy, 5, (8, 8), 1, "batch", 2, 3).digest() == last.digest()


# -- stored fractions ------------------------------------------------------------------------------
def test_fractions_come_back() -> None:
    boxes = resized_crops(500, (97, 224), (0.08, 1), USUAL, 0)
    assert torch.equal(pixels(fractions(boxes, (97, 224)), (97, 224)), boxes)
    assert pixels(torch.tensor([[0.5, 0.5, 0.5, 0.5]]), (5, 7)).tolist() == [[2, 4, 2, 4]]


# -- policies --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"size": 0}, "greater than or equal"),
        ({"size": 8, "scale": (0, 1)}, "0 < least"),
        ({"size": 8, "scale": (0.9, 0.8)}, "0 < least"),
        ({"size": 8, "ratio": (0.01, 1)}, "1/16..16"),
        ({"size": 8, "alpha": 5}, "less than or equal"),
        ({"size": 8, "mix": "none", "alpha": 1}, "drop it"),
        ({"size": 8, "mix": "cut"}, "'none', 'cutmix' or 'mixup'"),
        ({"size": 8, "shuffle": 65}, "less than or equal"),
    ],
)
def test_bad_policies(fields: dict, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Policy(**fields)


def test_without_flips() -> None:
    drawn = draw(Policy(size=8, flip=False, mix="none"), 50, (8, 8), 0)
    assert not bool(drawn.flips.any())
    assert isinstance(drawn, MixDraw)


# -- the curriculum of CDA -------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("step", [1, 1, 1, 0.08, 0.08]),
        ("linear", [1, 0.54, 0.08 + 0.92 / 50, 0.08, 0.08]),
        (
            "cosine",
            [1, 0.54, 0.08 + 0.92 * (1 + math.cos(math.pi * 49 / 50)) / 2, 0.08, 0.08],
        ),
    ],
)
def test_curriculum(kind, values) -> None:
    ours = [smallest_scale(kind, 0.5, i, 100) for i in (0, 25, 49, 50, 99)]
    assert ours == pytest.approx(values, abs=1e-15)
    assert smallest_scale(kind, 0, 0, 100) == 0.08  # no milestone, no curriculum
    assert smallest_scale(kind, 1, 0, 100, low=0.5) == 1


def test_curriculum_refuses() -> None:
    with pytest.raises(StillroomError, match="milestone=2"):
        smallest_scale("step", 2, 0, 10)
    with pytest.raises(StillroomError, match="smallest crop 0"):
        smallest_scale("step", 1, 0, 10, low=0)
