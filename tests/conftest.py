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


@pytest.fixture
def bench(store: Path):
    from stillroom.data.benchmarks import from_arrays
    from toy import toy_images

    return from_arrays(
        *toy_images(), *toy_images(seed=1), classes=("left", "right"), name="toy", store=store
    )
