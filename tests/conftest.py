"""Shared fixtures: a tiny benchmark, a runtime, and where the shared real data lie."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("GOMP_SPINCOUNT", "3000")  # as the command does; before torch is loaded

SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--method",
        action="append",
        default=[],
        help="pkg.mod:Class of a method to run the contract tests on",
    )


@pytest.fixture(autouse=True)
def _own_store(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or fills the user's own store."""
    monkeypatch.setenv("STILLROOM_STORE", str(tmp_path_factory.mktemp("store")))


@pytest.fixture
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip(f"needs the real data in {SHARED}, which is absent")
    return SHARED


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "store"
    path.mkdir()
    return path


def toy_images(n: int = 24, classes: int = 2, size: int = 8, channels: int = 3, seed: int = 0):
    """Learnable images: every class has a bright corner of its own, plus noise."""
    import torch

    gen = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 120, (n, channels, size, size), generator=gen)
    labels = torch.arange(n) % classes
    for i, c in enumerate(labels.tolist()):
        row, column = divmod(c, 2)
        images[i, :, row * 4 : row * 4 + 4, column * 4 : column * 4 + 4] += 120
    return images.to(torch.uint8), labels


@pytest.fixture
def bench(store: Path):
    from stillroom.data.benchmarks import from_arrays

    return from_arrays(
        *toy_images(), *toy_images(seed=1), classes=("left", "right"), name="toy", store=store
    )
