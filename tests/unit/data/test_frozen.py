"""The frozen generator: golden values, Philox written out again, and what its numbers must be."""

from __future__ import annotations

import hashlib
import json
import math
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal, localcontext

import numpy as np
import pytest
import torch

from stillroom.data.frozen import FROZEN, beta, coins, permutations, power, uniform, words
from stillroom.errors import StillroomError

M0, M1 = 0xD2E7470EE14C6C93, 0xCA5A826395121157
W0, W1 = 0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B
MASK = 2**64 - 1


def philox(counter: int, key: int) -> list[int]:
    """Four words of Philox4x64-10, from the paper's definition."""
    c = [(counter >> 64 * i) & MASK for i in range(4)]
    k0, k1 = key & MASK, key >> 64
    for _ in range(10):
        p0, p1 = M0 * c[0], M1 * c[2]
        c = [(p1 >> 64) ^ c[1] ^ k0, p1 & MASK, (p0 >> 64) ^ c[3] ^ k1, p0 & MASK]
        k0, k1 = (k0 + W0) & MASK, (k1 + W1) & MASK
    return c


def test_philox_as_published() -> None:
    """The known answers of its authors' own test, for counter and key 0 and all ones."""
    assert [hex(w) for w in philox(0, 0)] == [
        "0x16554d9eca36314c",
        "0xdb20fe9d672d0fdc",
        "0xd7e772cee186176b",
        "0x7e68b68aec7ba23b",
    ]
    assert philox(2**256 - 1, 2**128 - 1)[0] == 0x87B092C3013FE90B


@pytest.mark.parametrize("key", [(0,), (3, "order", 7), (-1, "é", 2**70)])
def test_words_can_be_written_again(key: tuple) -> None:
    text = json.dumps(["stillroom", FROZEN, *key], separators=(",", ":"))
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little")
    again = [w for counter in range(1, 4) for w in philox(counter, number)]
    assert words(11, *key).tolist() == again[:11]


def test_golden_values() -> None:
    """Never to be changed under FROZEN = 1: labels of other people depend on them."""
    assert FROZEN == 1
    assert words(2, 0, "golden").tolist() == [0x1F6BA592CED21CFD, 0x71B57C9918581005]
    assert words(1, -7, "golden", 3).tolist() == [0xA01B9DD52D24780A]
    assert [u.hex() for u in uniform((2,), 0, "golden").tolist()] == [
        "0x1.f6ba592ced218p-4",
        "0x1.c6d5f26461604p-2",
    ]
    assert coins(8, 0, "golden").tolist() == [*[False] * 3, True, *[False] * 2, True, False]
    assert permutations(2, 6, 0, "golden").tolist() == [[0, 4, 2, 5, 1, 3], [3, 2, 1, 5, 4, 0]]
    assert {a: beta(a, 0, "golden").hex() for a in (0.1, 0.8, 1.0, 2.5, 4.0)} == {
        0.1: "0x1.5c54f42eaeb7ep-19",
        0.8: "0x1.55d1fe09baaaep-3",
        1.0: "0x1.f6ba592ced218p-4",
        2.5: "0x1.41907bf9cc282p-1",
        4.0: "0x1.5220b8cc525ebp-1",
    }
    assert float(power(np.float64(16 / 9), np.float64(0.3))).hex() == "0x1.303b16fc7d216p+0"


def test_a_key_is_its_parts() -> None:
    keys = [(0, "a", 1), (0, "a1"), (0, "a", "1"), (1, "a"), (0, "a"), (0, 1, "a"), (0,)]
    drawn = [tuple(words(2, *key).tolist()) for key in keys]
    assert len(set(drawn)) == len(keys)
    assert words(9, 0, "a")[:4].tolist() == words(4, 0, "a").tolist()  # more begin with the same


def test_nothing_else_decides() -> None:
    """Neither torch's nor NumPy's own generators, nor how many threads draw."""
    expected = (uniform((50,), 5, "x"), permutations(3, 20, 5, "x"), beta(0.8, 5, "x"))
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    with ThreadPoolExecutor(4) as pool:
        several = list(pool.map(lambda _: uniform((50,), 5, "x"), range(16)))
    assert all((one == expected[0]).all() for one in several)
    torch.manual_seed(1), np.random.seed(1)
    assert (permutations(3, 20, 5, "x") == expected[1]).all()
    assert beta(0.8, 5, "x") == expected[2]
    torch.set_rng_state(before[0])
    state = np.random.get_state()
    np.random.set_state((state[0], before[1], *state[2:]))


# -- distributions; limits are 0.1 % points or five standard deviations ----------------------------
def test_uniform() -> None:
    u = uniform((60, 1000), 1, "many").ravel()
    assert u.min() >= 0
    assert u.max() < 1
    assert ((u * 2**53) % 1 == 0).all()
    counts = np.bincount((u * 20).astype(int), minlength=20)
    assert ((counts - 3000) ** 2 / 3000).sum() < 43.8  # 19 degrees of freedom
    assert abs(u.mean() - 0.5) < 5 / math.sqrt(12 * u.size)
    neighbours = np.corrcoef(u[:-1], u[1:])[0, 1]
    assert abs(neighbours) < 5 / math.sqrt(u.size)


def test_coins() -> None:
    assert abs(coins(40_000, 1, "many").mean() - 0.5) < 5 / (2 * math.sqrt(40_000))


def test_permutations_are_permutations_and_uniform() -> None:
    drawn = permutations(4800, 4, 1, "many")
    assert (np.sort(drawn, 1) == np.arange(4)).all()
    code = (drawn * [64, 16, 4, 1]).sum(1)
    _, counts = np.unique(code, return_counts=True)
    assert len(counts) == 24
    assert ((counts - 200) ** 2 / 200).sum() < 49.7  # 23 degrees of freedom
    assert permutations(1, 1, 0).tolist() == [[0]]


@pytest.mark.parametrize("a", [0.2, 0.8, 1.0, 2.0])
def test_beta_moments(a: float) -> None:
    drawn = np.array([beta(a, i, "many") for i in range(2000)])
    assert drawn.min() >= 0
    assert drawn.max() <= 1
    variance = 1 / (4 * (2 * a + 1))
    fourth = 3 * variance**2 * (2 * a + 1) / (2 * a + 3)  # central moment of Beta(a, a)
    assert abs(drawn.mean() - 0.5) < 5 * math.sqrt(variance / 2000)
    spread = ((drawn - 0.5) ** 2).mean()
    assert abs(spread - variance) < 5 * math.sqrt((fourth - variance**2) / 2000)


@pytest.mark.parametrize("a", [0.1, 0.8, 4.0])
def test_beta_is_johnks_first_accepted_pair(a: float) -> None:
    for seed in range(20):
        u = uniform((4000, 2), seed, "pairs")
        pairs = ((p ** (1 / a), q ** (1 / a)) for p, q in u.tolist())
        x, y = next((x, y) for x, y in pairs if 0 < x + y <= 1)
        assert beta(a, seed, "pairs") == pytest.approx(x / (x + y), rel=1e-13)


@pytest.mark.parametrize("a", [0.09, 4.1, float("nan")])
def test_beta_refuses(a: float) -> None:
    with pytest.raises(StillroomError, match=r"alpha=.* must lie in 0.1..4"):
        beta(a, 0)


def test_power_against_decimals() -> None:
    exponents = [0.0, 0.3, 0.5, 1.0, 1.25, 2.75, 7.0, 10.0]
    bases = [0.001, 0.3, 16 / 9, 12.0]
    ours = power(np.array(bases)[:, None], np.array(exponents))
    with localcontext() as context:
        context.prec = 40
        for i, base in enumerate(bases):
            for j, exponent in enumerate(exponents):
                exact = Decimal(base) ** Decimal(exponent)
                assert abs(Decimal(float(ours[i, j])) / exact - 1) < Decimal("1e-14")
    assert power(np.float64(0), np.array([0.0, 0.5])).tolist() == [1, 0]


def test_power_is_a_product_of_roots_in_plain_python() -> None:
    """To the bit: what the arrays compute is what single IEEE 754 operations do."""
    base, exponent = 16 / 9, 0.7310585786300049
    digits, root, result = int(exponent * 2**53), base, 1.0
    for place in range(52, -1, -1):
        root = math.sqrt(root)
        result *= root if digits >> place & 1 else 1.0
    assert float(power(np.float64(base), np.float64(exponent))) == result
