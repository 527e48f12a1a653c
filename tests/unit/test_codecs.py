"""Stored logits: what comes back, how far off, and how many bytes it takes."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from stillroom.artefacts.codecs import Byte, Half, TopK, find_codec
from stillroom.errors import StillroomError

ULP = 2.0**-11  # half a unit in the last place of float16


def logits(batch: int = 64, classes: int = 50, scale: float = 4.0) -> Tensor:
    gen = torch.Generator().manual_seed(classes)
    return torch.randn(batch, classes, generator=gen) * scale


def back(codec, x: Tensor) -> Tensor:
    y = codec.decode(codec.encode(x), x.shape[1])
    assert y.dtype == torch.float32
    assert y.shape == x.shape
    return y


@pytest.mark.parametrize("text", ["fp16", "int8", "topk:1", "topk:10", "topk:50"])
@pytest.mark.parametrize("classes", [50, 40_000])
def test_bytes_are_the_formula(text: str, classes: int) -> None:
    codec = find_codec(text)
    assert codec.text == text
    stored = codec.encode(logits(7, classes))
    assert sum(t.numel() * t.element_size() for t in stored.values()) == codec.batch_bytes(
        7, classes
    )
    layout = codec.layout(classes)
    assert {n: (str(t.dtype), t.shape[1]) for n, t in stored.items()} == {
        n: (f"torch.{dtype}", columns) for n, (dtype, columns) in layout.items()
    }
    index = 2 if classes < 2**15 else 4
    k = getattr(codec, "k", 0)
    each = {"fp16": 2 * classes, "int8": classes + 4}.get(text, k * (index + 2) + 2)
    assert codec.batch_bytes(7, classes) == 7 * each


@pytest.mark.parametrize("scale", [1e-6, 4.0, 3000.0])
def test_fp16_error(scale: float) -> None:
    x = logits(scale=scale)
    assert bool(((back(Half(), x) - x).abs() <= x.abs() * ULP + 2.0**-25).all())


@pytest.mark.parametrize("scale", [1e-6, 4.0, 3000.0])
@pytest.mark.parametrize("offset", [0.0, 40.0, -40.0])
def test_int8_error(scale: float, offset: float) -> None:
    """Half a step, and a step is at most the range, as rounded outwards, over 255."""
    x = logits(scale=scale) + offset
    stored = Byte().encode(x)
    zero, step = stored["affine"].double().unbind(1)
    low, high = x.double().aminmax(dim=1)
    assert bool((zero <= low).all())
    assert bool((zero + 255 * step >= high).all())
    slack = 2 * ULP * (low.abs() + (high - low) / 255) + 2.0**-24
    assert bool((step <= (high - low + slack) / 255 + slack).all())
    error = (back(Byte(), x).double() - x.double()).abs()
    assert bool((error <= step[:, None] / 2 + 1e-6 * x.abs()).all())


def test_int8_of_one_value() -> None:
    x = torch.full((3, 5), 1.5)
    assert torch.equal(back(Byte(), x), x)


@pytest.mark.parametrize("k", [1, 5, 49, 50])
@pytest.mark.parametrize("scale", [0.1, 4.0, 30.0])
def test_topk_distribution(k: int, scale: float) -> None:
    """Kept classes within the rounding of their logarithms, the others all the same, sum 1."""
    x = logits(scale=scale)
    p = x.double().softmax(1)
    y = back(TopK(k), x).double()
    q = y.softmax(1)
    largest, indices = p.sort(dim=1, descending=True, stable=True)
    kept = indices[:, :k]
    log_p, log_q = p.gather(1, kept).log(), y.gather(1, kept)
    assert bool(((log_q - log_p).abs() <= log_p.abs() * ULP + 2.0**-24).all())
    # mass that rounding moves: at most the entropy times 2^-11, whatever k
    moved = 2 * (-(largest * largest.log()).sum(1) * ULP + 50 * 2.0**-24)
    rest = 1 - largest[:, :k].sum(1)
    assert bool(((q.gather(1, kept).sum(1) - (1 - rest)).abs() <= moved).all())
    others = q.scatter(1, kept, -1.0)
    others = others[others >= 0].view(len(x), -1)
    assert others.shape[1] == 50 - k
    if k < 50:
        assert float((others.amax(1) - others.amin(1)).max()) <= 1e-9
        assert bool(((others.sum(1) - rest).abs() <= moved).all())


def test_topk_at_another_temperature() -> None:
    """What comes back are logits: with k = C the softened teacher is the teacher softened."""
    x = logits(16, 10)
    y = back(TopK(10), x)
    gap = ((y / 20).softmax(1) - (x / 20).softmax(1)).abs().max()
    largest = float(x.log_softmax(1).abs().max())
    assert float(gap) <= 2 * largest * ULP / 20


def test_topk_of_a_sure_teacher() -> None:
    x = torch.tensor([[200.0, 0, 0, 0], [0, 0, 0, 0]])
    y = back(TopK(1), x)
    q = y.softmax(1)
    assert float(q[0, 0]) == pytest.approx(1, abs=1e-6)
    assert q[1].tolist() == pytest.approx([0.25] * 4, rel=2e-3)
    assert bool(y.isfinite().all())
    assert TopK(2).encode(torch.zeros(1, 4))["indices"].tolist() == [[0, 1]]  # of equal: the first


def test_topk_of_a_very_unlikely_class() -> None:
    x = torch.tensor([[60_000.0, -60_000.0]])
    assert back(TopK(2), x).softmax(1).tolist() == [[1, 0]]


@pytest.mark.parametrize("text", ["fp16", "int8", "topk:2"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, 7e4])
def test_what_cannot_be_stored(text: str, bad: float) -> None:
    x = torch.zeros(3, 4)
    x[1, 2] = bad
    with pytest.raises(StillroomError, match="NaN or beyond 65504"):
        find_codec(text).encode(x)


def test_int8_whose_range_float16_cannot_hold() -> None:
    x = torch.tensor([[-65504.0, 65504.0]])
    assert float((back(Byte(), x) - x).abs().max()) <= 131008 / 255
    with pytest.raises(StillroomError, match="NaN or beyond"):
        Byte().encode(x * 1.001)


@pytest.mark.parametrize(
    ("text", "stored", "words"),
    [
        ("fp16", {"logits": torch.full((1, 3), math.inf).half()}, "NaN or infinite"),
        (
            "int8",
            {
                "codes": torch.ones(1, 3, dtype=torch.uint8),
                "affine": torch.tensor([[0, math.nan]]).half(),
            },
            "NaN or infinite",
        ),
        ("topk:1", {"indices": [[3]], "log_probs": [[-1.0, -1]]}, r"not in 0\.\.2"),
        ("topk:1", {"indices": [[-1]], "log_probs": [[-1.0, -1]]}, r"not in 0\.\.2"),
        ("topk:1", {"indices": [[0]], "log_probs": [[0.5, -1]]}, "above 0"),
        ("topk:1", {"indices": [[0]], "log_probs": [[-1, 0.5]]}, "above 0"),
        ("topk:1", {"indices": [[0]], "log_probs": [[math.nan, -1]]}, "above 0"),
        ("topk:1", {"indices": [[0]], "log_probs": [[-math.inf, -1]]}, "NaN or infinite"),
        ("topk:1", {"indices": [[0]], "log_probs": [[-1, -math.inf]]}, "NaN or infinite"),
    ],
)
def test_foreign_tensors(text: str, stored: dict, words: str) -> None:
    dtypes = {"indices": torch.int16, "log_probs": torch.float16}
    tensors = {
        n: t if isinstance(t, Tensor) else torch.tensor(t).to(dtypes[n]) for n, t in stored.items()
    }
    with pytest.raises(StillroomError, match=words):
        find_codec(text).decode(tensors, 3)


@pytest.mark.parametrize(
    "text", ["fp32", "topk", "topk:", "topk:0", "topk:-1", "topk:1e3", "", "x"]
)
def test_unknown_names(text: str) -> None:
    with pytest.raises(StillroomError, match=r"is unknown; known: fp16, int8, topk:K"):
        find_codec(text)


def test_more_than_all_classes() -> None:
    with pytest.raises(StillroomError, match=r"topk:5.* of 4 classes"):
        TopK(5).encode(torch.zeros(1, 4))


def test_recipes_can_name_codecs_and_policies_without_torch() -> None:
    """Validation and --help load neither torch nor what needs it."""
    code = (
        "import sys, stillroom.data.policy as p, stillroom.data.curriculum;"
        "from stillroom.artefacts.codecs import find_codec;"
        "assert find_codec('topk:3').batch_bytes(2, 9) == 28 and p.Policy(size=8).beta == 1;"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


# -- what losses make of what comes back -----------------------------------------------------------
@pytest.mark.parametrize("classes", [2, 10, 1000])
@pytest.mark.parametrize("offset", [0.0, 10.0])
def test_int8_costs_a_squared_distance_next_to_nothing(classes: int, offset: float) -> None:
    """At worst two logits make the range and all others lie in the middle: C / 390,150."""
    worst = torch.zeros(64, classes)
    worst[:, 0], worst[:, 1] = -8.0, 8.0
    worst[:, 2:] = torch.rand(64, max(0, classes - 2), generator=torch.Generator().manual_seed(0))
    for x in (worst + offset, logits(64, classes) + offset):
        error = (back(Byte(), x) - x).square().mean()
        assert float(error / x.var(1, correction=0).mean()) < 1.2 * classes / 390_150
    assert Byte().keeps_logits
    assert Half().keeps_logits


def test_topk_gives_no_logits_back() -> None:
    """Logits less a number a row, and in the place of the others one number; so it says so."""
    x, codec = logits(64, 50) + 7.0, TopK(10)
    y = back(codec, x)
    assert not codec.keeps_logits
    kept = x.topk(10, dim=1).indices
    lost = (x - y).gather(1, kept)
    assert float((lost - x.logsumexp(1, keepdim=True)).abs().max()) < 0.01
    rest = torch.ones_like(x, dtype=torch.bool).scatter_(1, kept, False)
    assert float(y.masked_fill(~rest, torch.nan).nan_to_num(-1e9).amax(1).sub(
        y.masked_fill(~rest, 1e9).amin(1)).abs().max()) == 0  # fmt: skip
    shift = (x - y).mean(1, keepdim=True)  # the best that a student could be forgiven
    assert float((x - y - shift).square().mean()) > 0.1 * float(x.var(1).mean())


def test_topk_gives_the_rest_its_mass_at_temperature_one_and_too_much_above() -> None:
    """By Jensen: the mean of p^(1/T) is at most the mean of p to the 1/T; equal where all are."""
    x, k = logits(64, 50), 10
    y = back(TopK(k), x)
    rest = torch.ones_like(x, dtype=torch.bool).scatter_(1, x.topk(k, dim=1).indices, False)

    def mass(of: Tensor, temperature: float) -> Tensor:
        tempered = (of.log_softmax(1) / temperature).exp()
        return (tempered * rest).sum(1) / tempered.sum(1)

    assert float((mass(y, 1.0) - mass(x, 1.0)).abs().max()) < 0.01
    assert bool((mass(y, 4.0) > mass(x, 4.0)).all())
    even = torch.cat([x[:, :k], torch.full((64, 40), -20.0)], 1)
    same = back(TopK(k), even)
    assert torch.allclose(mass(same, 4.0), mass(even, 4.0), atol=5e-3)
