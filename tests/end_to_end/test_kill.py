"""Killed, interrupted and crowded runs: the same bytes as a run that nobody disturbed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

# Snapshots are due by time; every 0.1 s instead of every 30 s, so that a kill finds some.
QUICK = (
    "import sys, stillroom.methods.outer as outer; outer.SNAPSHOT_SECONDS = 0.1; "
    "from stillroom.cli import main; main(sys.argv[1:])"
)
STEPS = 150
NAMES = ("data.safetensors", "meta.json", "metrics.jsonl")


def start(argv: list[str], store: Path) -> subprocess.Popen[bytes]:
    env = {**os.environ, "STILLROOM_STORE": str(store)}
    return subprocess.Popen(
        [sys.executable, "-c", QUICK, *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=env,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[bytes], code: int = 0) -> str:
    out, err = process.communicate(timeout=120)
    assert process.returncode == code, (out + err).decode()
    return (out + err).decode()


def kill_when(process: subprocess.Popen[bytes], ready: Callable[[], bool], pause: float) -> bool:
    """SIGKILL the whole group a moment after `ready`; False if it had finished before."""
    until = time.monotonic() + 60
    while not ready() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(pause)
    alive = process.poll() is None
    if alive:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return alive


def distil(out: Path, *more: str, steps: int = STEPS) -> list[str]:
    line = ["distill", "dm", "--data", "digits", "--ipc", "2", "--steps", str(steps)]
    line += ["--keep", "every:50", "--arch", "convnet1-w8", "--batch-real", "64"]
    return [*line, "--threads", "1", "--out", str(out), *more]


def contents(folder: Path) -> dict[str, bytes]:
    """What must repeat byte for byte: sets, kept steps, the curve, the pictures."""
    parts = [p for p in sorted(folder.rglob("*")) if p.name in NAMES or p.suffix == ".png"]
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in parts}


def leftovers(root: Path) -> list[Path]:
    return [p for p in root.rglob("*") if p.name.endswith((".tmp", ".part"))]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set and its judgement that nobody disturbed, in a store of their own."""
    root = tmp_path_factory.mktemp("straight")
    finish(start(distil(root / "set"), root / "store"))
    finish(start(judge(root / "set"), root / "store"))
    assert set(contents(root / "set")) >= {"data.safetensors", "steps/50/meta.json"}
    return root


def judge(folder: Path, *more: str) -> list[str]:
    return ["evaluate", str(folder), "--seeds", "2", "--baselines", "--threads", "1", *more]


def records(folder: Path) -> list[dict[str, object]]:
    lines = (folder / "records.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(x).items() if k != "seconds"} for x in lines]


def killed_distillation(straight: Path, tmp_path: Path, key: int, kills: int) -> None:
    draw = random.Random(key)
    store, out = tmp_path / "store", tmp_path / "set"
    hits = 0
    for _ in range(kills):
        seen = {p: p.stat().st_mtime_ns for p in store.glob("distilled-*/0000/snap*")}

        def progressed(seen: dict[Path, int] = seen) -> bool:
            found = {p: p.stat().st_mtime_ns for p in store.glob("distilled-*/0000/snap*")}
            return bool(found) and found != seen

        process = start(distil(out), store)
        hits += kill_when(process, progressed, draw.uniform(0, 0.4))
        assert out.exists() or not list(tmp_path.glob("set/*"))
    finish(start(distil(out), store))
    assert hits > 0
    assert contents(out) == contents(straight / "set")
    assert leftovers(tmp_path) == []


def killed_evaluation(straight: Path, tmp_path: Path, key: int, kills: int) -> None:
    draw = random.Random(key)
    store, out = tmp_path / "store", tmp_path / "set"
    finish(start(distil(out), store))
    hits = 0
    for turn in range(kills):

        def progressed(turn: int = turn) -> bool:
            return len(list(store.glob("scores-*/*/done"))) > 2 * turn

        hits += kill_when(start(judge(out), store), progressed, draw.uniform(0, 0.6))
    finish(start(judge(out), store))
    assert hits > 0
    assert records(out) == records(straight / "set")
    assert leftovers(tmp_path) == []


def test_killed_distillation_gives_the_same_bytes(straight: Path, tmp_path: Path) -> None:
    killed_distillation(straight, tmp_path, key=1, kills=3)


def test_killed_evaluation_gives_the_same_records(straight: Path, tmp_path: Path) -> None:
    killed_evaluation(straight, tmp_path, key=1, kills=3)


@pytest.mark.slow
@pytest.mark.parametrize("key", range(2, 6))
def test_killed_again_and_again(key: int, straight: Path, tmp_path: Path) -> None:
    killed_distillation(straight, tmp_path / "distil", key, kills=6)
    killed_evaluation(straight, tmp_path / "judge", key, kills=6)


def test_interrupted_run_says_how_to_go_on(straight: Path, tmp_path: Path) -> None:
    store, out = tmp_path / "store", tmp_path / "set"
    process = start(distil(out), store)
    until = time.monotonic() + 60
    while not list(store.glob("distilled-*/0000/snap*")) and time.monotonic() < until:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    text = finish(process, code=130)
    assert f"go on with:\n  stillroom distill dm --data digits --ipc 2 --steps {STEPS}" in text
    assert not out.exists()
    assert len(list(store.glob("distilled-*.part/0000/snapshot.safetensors"))) == 1
    finish(start(distil(out), store))
    assert contents(out) == contents(straight / "set")


def test_two_processes_on_one_store(straight: Path, tmp_path: Path) -> None:
    """The same command twice, into one folder and into two, and another seed beside them."""
    store = tmp_path / "store"
    outs = [tmp_path / "one", tmp_path / "one", tmp_path / "two"]
    running = [start(distil(out), store) for out in outs]
    running.append(start(distil(tmp_path / "three", "--seed", "1"), store))
    for process in running:
        finish(process)
    expected = contents(straight / "set")
    assert contents(tmp_path / "one") == contents(tmp_path / "two") == expected
    other = contents(tmp_path / "three")
    assert other.keys() == expected.keys()
    assert other["data.safetensors"] != expected["data.safetensors"]
    assert leftovers(tmp_path) == []


def test_two_workers_judge_as_one(straight: Path, tmp_path: Path) -> None:
    finish(start(distil(tmp_path / "set"), tmp_path / "store"))
    argv = ["evaluate", str(tmp_path / "set"), "--seeds", "2", "--threads", "1", "--workers", "2"]
    finish(start(argv, tmp_path / "store"))
    assert records(tmp_path / "set") == records(straight / "set")[:2]


def test_interrupted_workers_stop(straight: Path, tmp_path: Path) -> None:
    """SIGINT to the parent alone, as `timeout -s INT` sends it: its workers stop as well."""
    finish(start(distil(tmp_path / "set"), tmp_path / "store"))
    argv = ["evaluate", str(tmp_path / "set"), "--seeds", "40", "--threads", "1", "--workers", "2"]
    process = start(argv, tmp_path / "store")
    until = time.monotonic() + 60
    while not list(tmp_path.glob("store/scores-*/*/done")) and time.monotonic() < until:
        time.sleep(0.01)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert "go on with" in finish(process, code=130)
    assert time.monotonic() - began < 10
