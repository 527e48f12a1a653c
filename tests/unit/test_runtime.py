"""What a run takes of the machine."""

from __future__ import annotations

import os

import pytest

from stillroom.runtime import default_threads


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight of them."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


@pytest.mark.usefixtures("cores")
@pytest.mark.parametrize(("workers", "threads"), [(1, 8), (3, 2), (8, 1), (9, 1)])
def test_workers_share_the_cores(workers: int, threads: int) -> None:
    assert default_threads(workers) == threads


@pytest.mark.usefixtures("cores")
@pytest.mark.parametrize(
    ("told", "threads"),
    [("1", 1), ("3", 3), ("99", 4), ("0", 4), ("", 4), ("4,2", 4), ("3,2", 3), ("-1", 4)],
)
def test_no_more_than_openmp_is_told(
    told: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", told)
    assert default_threads(2) == threads
