"""Draws that shipped files depend on: a version gives the same numbers on every machine, for ever.

Stored labels are of no use without the crops and mixes that they were made for, and those are not
stored but drawn again. torch's generators and NumPy's `Generator` may change from one release to
the next; the words of NumPy's `Philox` may not, by its policy (NEP 19), and Philox is published, so
that anybody can write it again. What is made of the words is made here, by integer operations and
by those of IEEE 754 that round correctly everywhere: + - * / and the square root. No `exp`, `log`
or `pow`, whose last digits differ between CPUs.
Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3" (Philox4x64-10).
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillroom.errors import StillroomError

FROZEN = 1
"""Raised when any function below gives other numbers: labels of another version are refused."""

BETA = (0.1, 4.0)  # below, numbers underflow; above, Johnk's method rejects nearly all of them
_BITS = 53  # of a float64
_TRIES = 64  # pairs that `beta` draws at first; no part of its definition

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Flags = NDArray[np.bool_]


def words(count: int, seed: int, *key: str | int) -> NDArray[np.uint64]:
    """The first `count` 64-bit words of (seed, *key): uint64 [count].

    Philox4x64-10 from counter 1 on, under the first 16 bytes (little-endian) of the SHA-256 of
    the JSON text `["stillroom",FROZEN,seed,*key]`, written without spaces. More words begin with
    the same ones.
    """
    text = json.dumps(["stillroom", FROZEN, seed, *key], separators=(",", ":"))
    philox = int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little")
    return np.asarray(np.random.Philox(key=philox).random_raw(count), dtype=np.uint64)


def uniform(shape: tuple[int, ...], seed: int, *key: str | int) -> Floats:
    """Uniform numbers in [0, 1), multiples of 2^-53: the upper 53 bits of a word each."""
    drawn = words(math.prod(shape), seed, *key) >> np.uint64(64 - _BITS)
    return (drawn.astype(np.float64) * 2.0**-_BITS).reshape(shape)


def coins(count: int, seed: int, *key: str | int) -> Flags:
    """True or false, each with probability 1/2: the highest bit of a word each."""
    return (words(count, seed, *key) >> np.uint64(63)).astype(np.bool_)


def permutations(count: int, n: int, seed: int, *key: str | int) -> Integers:
    """Uniform permutations of 0..n-1, int64 [count,n]: the stable order of n words each."""
    drawn = words(count * n, seed, *key).reshape(count, n)
    return np.argsort(drawn, axis=1, kind="stable").astype(np.int64)


def beta(a: float, seed: int, *key: str | int) -> float:
    """One number of Beta(a, a): uniform for a = 1, else by Johnk's method.

    Attempt t takes the words 2t and 2t+1 as U and V; the first one with 0 < X + Y <= 1 is taken,
    X = U^(1/a), Y = V^(1/a), and gives X / (X + Y).
    Raises: StillroomError unless 0.1 <= a <= 4.
    Source: Johnk 1964; Devroye 1986, "Non-uniform random variate generation", IX.3.
    """
    if not BETA[0] <= a <= BETA[1]:
        raise StillroomError(f"alpha={a:g} of Beta(alpha, alpha) must lie in {BETA[0]:g}..4")
    if a == 1:
        return float(uniform((1,), seed, *key)[0])
    tries = _TRIES
    while True:
        x, y = power(uniform((tries, 2), seed, *key), np.float64(1 / a)).T
        fits = (x + y > 0) & (x + y <= 1)
        if fits.any():
            t = int(fits.argmax())
            return float(x[t] / (x[t] + y[t]))
        tries *= 2


def power(base: Floats | np.float64, exponent: Floats | np.float64) -> Floats:
    """base ** exponent for base >= 0 and 0 <= exponent < 2^31, elementwise, correct to 1e-14.

    A product of repeated squares and repeated square roots, those that the binary digits of the
    exponent name, 53 of them behind the point. Each factor is rounded as IEEE 754 says, so that
    the product has the same bits on every machine, which no `pow` promises.
    """
    base, exponent = np.asarray(base, np.float64), np.asarray(exponent, np.float64)
    whole = np.floor(exponent)
    result: Any = np.ones(np.broadcast_shapes(base.shape, exponent.shape))
    square, digits = base, whole.astype(np.int64)
    while digits.any():
        result = result * np.where(digits & 1, square, 1.0)
        digits = digits >> 1
        square = square * square if digits.any() else square
    root, digits = base, ((exponent - whole) * 2.0**_BITS).astype(np.int64)
    for place in range(_BITS - 1, -1, -1):
        root = np.sqrt(root)
        result = result * np.where((digits >> place) & 1, root, 1.0)
    return np.asarray(result, np.float64)
