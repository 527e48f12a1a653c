"""Golden tensors of the reference implementations, and the account of which were looked at.

The files lie outside the repository's tree (`shared/parity` beside it); their README.md says what
each tensor means and where it comes from. Without them the parity tests skip.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

FOLDER = Path(__file__).resolve().parents[2].parent / "shared" / "parity"
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2023, 0.1994, 0.2010)


class Golden:
    """The tensors of one file; `take` counts what was used, `finish` fails if something was not."""

    def __init__(self, name: str) -> None:
        path = FOLDER / f"{name}.safetensors"
        if not path.is_file():
            pytest.skip(f"parity numbers are not here: {path}", allow_module_level=True)
        self.name = name
        self.tensors = load_file(path)
        self.taken: set[str] = set()

    def take(self, key: str) -> Tensor:
        """Return a tensor and count it as consumed."""
        self.taken.add(key)
        return self.tensors[key]

    def keys(self, prefix: str = "") -> list[str]:
        """Return the keys that start with `prefix`, sorted; counts nothing."""
        return sorted(key for key in self.tensors if key.startswith(prefix))

    def finish(self, request: pytest.FixtureRequest) -> None:
        """Fail if a tensor was not consumed by the tests of this file that ran before.

        Skips when only a selection of the tests ran, because then it cannot know.
        """
        config = request.config
        selected = any("::" in argument for argument in config.args)
        partial = ("keyword", "lf", "deselect")
        if selected or any(config.getoption(name, None) for name in partial):
            pytest.skip("only a selection of this file's tests ran")
        if "PYTEST_XDIST_WORKER" in os.environ:
            pytest.skip("the tests of this file ran in several processes")
        left = sorted(set(self.tensors) - self.taken)
        assert not left, f"{len(left)} tensors of {self.name} were never checked: {left[:5]}"


@functools.cache
def golden(name: str) -> Golden:
    """Return the one `Golden` of a file in this process."""
    return Golden(name)


def normalise(pixels: Tensor) -> Tensor:
    """uint8 [...,3,H,W] -> float32: /255, minus mean, over std, in this order, in float32."""
    row = (-1, 1, 1)
    return (pixels.float() / 255 - torch.tensor(MEAN).view(row)) / torch.tensor(STD).view(row)


def max_rel(ours: Tensor, theirs: Tensor) -> float:
    """Return max|a - b| / max|b|, in float64; 0 where both are all zero."""
    gap = max_abs(ours, theirs)
    return gap and gap / float(theirs.double().abs().max())


def max_abs(ours: Tensor, theirs: Tensor) -> float:
    """Return max|a - b|, in float64."""
    a, b = ours.detach().double(), theirs.double()
    assert a.shape == b.shape, (a.shape, b.shape)
    return float((a - b).abs().max())
