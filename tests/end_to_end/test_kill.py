"""Killed, interrupted and crowded runs: the same bytes as a run that nobody disturbed."""

from __future__ import annotations

import glob
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors import safe_open

# Snapshots are due by time; far more often than every 30 s, so that a kill finds some.
QUICK = """
import sys, stillroom.artefacts.snapshot as snapshot
from stillroom.cli import main
if __name__ == "__main__":
    snapshot.SECONDS = 0.1
    main(sys.argv[1:])
"""
# Importing torch takes seconds: one process does it, and forks a process of its own for each run.
NURSERY = """
import json, os, sys
import sklearn.datasets, torch._dynamo, torch.utils.flop_counter, scipy.stats
import stillroom.api, stillroom.cli.distill, stillroom.cli.evaluate, stillroom.run.relabel
import stillroom.artefacts.relabels as relabels
import stillroom.artefacts.snapshot as snapshot
from stillroom.cli import main
snapshot.SECONDS = 0.03
relabels.SHARD_BYTES = 2**13  # twenty epochs of labels
for line in sys.stdin:
    order = json.loads(line)
    if "wait" in order:
        print(os.waitstatus_to_exitcode(os.waitpid(order["wait"], 0)[1]), flush=True)
        continue
    child = os.fork()
    if child:
        os.setpgid(child, child)
        print(child, flush=True)
        continue
    os.environ["STILLROOM_STORE"] = order["store"]
    log = os.open(order["log"], os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    main(order["argv"])
"""
STEPS = 150
NAMES = ("data.safetensors", "meta.json", "metrics.jsonl")


class Nursery:
    """Starts runs that take no time to start."""

    def __init__(self) -> None:
        line = [sys.executable, "-c", NURSERY]
        self.parent = subprocess.Popen(line, stdin=-1, stdout=-1, text=True)

    def ask(self, **order: object) -> int:
        assert self.parent.stdin is not None
        assert self.parent.stdout is not None
        print(json.dumps(order), file=self.parent.stdin, flush=True)
        return int(self.parent.stdout.readline())

    def start(self, argv: list[str], store: Path) -> Run:
        store.parent.mkdir(parents=True, exist_ok=True)
        log = store.parent / f"log-{time.monotonic_ns()}"
        return Run(self, self.ask(argv=argv, store=str(store), log=str(log)), log)

    def do(self, argv: list[str], store: Path) -> None:
        self.start(argv, store).finish()


@dataclass
class Run:
    """One command in a process of its own, the leader of its group."""

    nursery: Nursery
    pid: int
    log: Path

    def finish(self, code: int = 0) -> str:
        found = self.nursery.ask(wait=self.pid)
        text = self.log.read_text()
        assert found == code, text
        return text

    def alive(self) -> bool:
        return Path(f"/proc/{self.pid}/stat").read_text().split()[2] != "Z"

    def kill_when(self, ready: Callable[[], bool], pause: float) -> bool:
        """SIGKILL the group a moment after `ready`; False if it had finished before."""
        wait_until(lambda: ready() or not self.alive())
        time.sleep(pause)
        os.killpg(self.pid, signal.SIGKILL)  # there until it is waited for, even if it finished
        code = self.nursery.ask(wait=self.pid)
        assert code in (0, -signal.SIGKILL), self.log.read_text()
        return code != 0


def wait_until(ready: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not ready():
        assert time.monotonic() < until, "nothing happened for a minute"
        time.sleep(0.005)


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    made = Nursery()
    yield made
    assert made.parent.stdin is not None
    made.parent.stdin.close()
    made.parent.wait()


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
def straight(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set and its judgement that nobody disturbed, in a store of their own."""
    root = tmp_path_factory.mktemp("straight")
    nursery.do(distil(root / "set"), root / "store")
    nursery.do(judge(root / "set"), root / "store")
    assert set(contents(root / "set")) >= {"data.safetensors", "steps/50/meta.json"}
    return root


def judge(folder: Path, *more: str) -> list[str]:
    return ["evaluate", str(folder), "--seeds", "2", "--baselines", "--threads", "1", *more]


def records(folder: Path) -> list[dict[str, object]]:
    lines = (folder / "records.jsonl").read_text().splitlines()
    machine = ("seconds", "memory", "versions")  # of who trained the student
    return [{k: v for k, v in json.loads(x).items() if k not in machine} for x in lines]


def seen(store: Path, pattern: str) -> list[Path]:
    """What is there while others rename it; `Path.glob` stumbles over a folder that goes."""
    return [Path(p) for p in glob.glob(f"{glob.escape(str(store))}/{pattern}")]


def snapshots(store: Path) -> list[Path]:
    return seen(store, "distilled-*.part/0000/snapshot.*")


def saved_steps(store: Path) -> int:
    """The step from which a killed distillation would go on."""
    try:
        with safe_open(snapshots(store)[0], framework="numpy") as archive:
            return int(json.loads(archive.metadata()["stillroom"])["step"])
    except (IndexError, OSError):  # none yet, or published since it was listed
        return 0


def scored(store: Path) -> int:
    """How many students need not be trained again."""
    return len(seen(store, "scores-*/*/done"))


@dataclass(frozen=True)
class Work:
    """A command whose finished share is seen on disk; `unit` is about the seconds of one part."""

    argv: list[str]
    store: Path
    done: Callable[[Path], int]
    total: int
    unit: float

    def killed(self, nursery: Nursery, goal: int, pause: float) -> bool:
        """Kill it once it got further and has done `goal` parts; False if it had done all."""
        goal = max(goal, self.done(self.store) + 1)
        run = nursery.start(self.argv, self.store)
        hit = run.kill_when(lambda: self.done(self.store) >= goal, pause)
        return hit and goal <= self.done(self.store) < self.total

    def survived(self, nursery: Nursery, draw: random.Random, kills: int, share: float) -> bool:
        """Whether all kills hit: each at a random moment of its own stretch of the work."""
        for turn in range(kills):
            goal = share * self.total * (turn + draw.random()) / (kills + 1)
            if not self.killed(nursery, int(goal), draw.uniform(0, share * self.unit)):
                return False
        return True


def kill_all(
    nursery: Nursery, folder: Path, start: Callable[[Path], Work], key: int, kills: int
) -> None:
    """Kill `kills` times, unfinished every time, then let it finish in `folder`."""
    draw = random.Random(key)
    for attempt in range(6):
        work = start(folder)
        # A crowded machine may notice a moment too late: all anew, and sooner.
        if work.survived(nursery, draw, kills, share=0.6**attempt):
            nursery.do(work.argv, work.store)
            return
        shutil.rmtree(folder)
    raise AssertionError(f"a run of {work.total} parts was never killed {kills} times")


def killed_distillation(
    nursery: Nursery, straight: Path, folder: Path, key: int, kills: int
) -> None:
    def start(folder: Path) -> Work:
        return Work(distil(folder / "set"), folder / "store", saved_steps, STEPS, unit=0.05)

    kill_all(nursery, folder, start, key, kills)
    assert contents(folder / "set") == contents(straight / "set")
    assert leftovers(folder) == []


def killed_evaluation(nursery: Nursery, straight: Path, folder: Path, key: int, kills: int) -> None:
    def start(folder: Path) -> Work:
        nursery.do(distil(folder / "set"), folder / "store")
        students = scored(straight / "store")
        return Work(judge(folder / "set"), folder / "store", scored, students, unit=0.15)

    kill_all(nursery, folder, start, key, kills)
    assert records(folder / "set") == records(straight / "set")
    assert leftovers(folder) == []


def test_killed_distillation_gives_the_same_bytes(
    nursery: Nursery, straight: Path, tmp_path: Path
) -> None:
    killed_distillation(nursery, straight, tmp_path / "killed", key=1, kills=3)


@pytest.mark.slow
def test_killed_evaluation_gives_the_same_records(
    nursery: Nursery, straight: Path, tmp_path: Path
) -> None:
    killed_evaluation(nursery, straight, tmp_path / "killed", key=1, kills=3)


def matched(out: Path) -> list[str]:
    """Gradient matching with CLOM: a network advances between matches, originals come first."""
    line = ["distill", "dsa", "--data", "digits", "--ipc", "2", "--steps", "40", "--threads", "1"]
    line += ["--arch", "convnet1-w4", "--batch-real", "16", "--matches", "4", "--net-epochs", "30"]
    line += ["--alphas", "10", "--model-num", "2", "--originals", "default+epochs=60"]
    return [*line, "--out", str(out)]


@pytest.fixture(scope="module")
def matched_straight(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("matched")
    nursery.do(matched(root / "set"), root / "store")
    return root


def trained_epochs(store: Path, kind: str, result: str) -> int:
    """Epochs of networks of 60 that need not be trained again."""
    whole = 60 * len(seen(store, f"{kind}-*/0000/{result}"))
    for path in seen(store, f"{kind}-*.part/0000/snapshot.*"):
        try:
            with safe_open(path, framework="numpy") as archive:
                whole += int(json.loads(archive.metadata()["stillroom"])["epochs"])
        except OSError:  # published since it was listed
            return 0
    return whole


def original_epochs(store: Path) -> int:
    return trained_epochs(store, "original", "weights.safetensors")


def expert_epochs(store: Path) -> int:
    return trained_epochs(store, "expert", "trajectory.npy")


@pytest.mark.parametrize(
    ("done", "total", "unit"),
    [
        pytest.param(original_epochs, 120, 0.02, id="in the training of originals"),
        pytest.param(saved_steps, 40, 0.1, id="in the distillation", marks=pytest.mark.slow),
    ],
)
def test_killed_matching_gives_the_same_bytes(
    done: Callable[[Path], int],
    total: int,
    unit: float,
    nursery: Nursery,
    matched_straight: Path,
    tmp_path: Path,
) -> None:
    def start(folder: Path) -> Work:
        return Work(matched(folder / "set"), folder / "store", done, total, unit)

    kill_all(nursery, tmp_path / "killed", start, key=1, kills=3)
    same_as(matched_straight, tmp_path / "killed", "original-*/0000/weights.safetensors")


def same_as(straight: Path, killed: Path, networks: str) -> None:
    """The set and both trained networks, byte for byte; nothing is left over."""
    assert contents(killed / "set") == contents(straight / "set")
    made = sorted((straight / "store").glob(networks))
    assert len(made) == 2
    for path in made:
        assert (killed / path.relative_to(straight)).read_bytes() == path.read_bytes()
    assert leftovers(killed) == []


def followed(out: Path) -> list[str]:
    """EDF: flat experts of ordered data, learned labels, what fits left out, active pixels."""
    line = ["distill", "edf", "--data", "digits", "--ipc", "1", "--steps", "40", "--threads", "1"]
    line += ["--arch", "convnet1-w4", "--experts", "2", "--inner", "6", "--batch", "4"]
    line += ["--schooling.epochs", "60", "--schooling.lr", "0.05", "--window.last", "5"]
    line += ["--schooling.order.scores", "el2n", "--schooling.order.models", "1"]
    line += ["--schooling.order.epochs", "2", "--areas.schooling", "default+epochs=2"]
    line += ["--schooling.order.after", "30", "45"]
    return [*line, "--areas.every", "3", "--gate", "3", "--out", str(out)]


@pytest.fixture(scope="module")
def followed_straight(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("followed")
    nursery.do(followed(root / "set"), root / "store")
    return root


@pytest.mark.slow
@pytest.mark.parametrize(
    ("done", "total", "unit"),
    [
        pytest.param(expert_epochs, 120, 0.04, id="in the training of experts"),
        pytest.param(saved_steps, 40, 0.1, id="in the distillation"),
    ],
)
def test_killed_trajectory_matching_gives_the_same_bytes(
    done: Callable[[Path], int],
    total: int,
    unit: float,
    nursery: Nursery,
    followed_straight: Path,
    tmp_path: Path,
) -> None:
    def start(folder: Path) -> Work:
        return Work(followed(folder / "set"), folder / "store", done, total, unit)

    kill_all(nursery, tmp_path / "killed", start, key=1, kills=3)
    same_as(followed_straight, tmp_path / "killed", "expert-*/0000/trajectory.npy")


def labelled(store: Path) -> int:
    """How many shards of labels need not be made again."""
    return len(seen(store, "relabels-*/*/done"))


@pytest.mark.slow
def test_killed_relabelling_gives_the_same_bytes(nursery: Nursery, tmp_path: Path) -> None:
    """Shards that are whole stay; the set gets all labels at once or none."""

    def command(root: Path) -> list[str]:
        line = ["prepare", "relabels", str(root / "set"), "--teachers", "convnet1-w8"]
        line += ["--schooling", "default+epochs=1", "--epochs", "600", "--threads", "1"]
        return [*line, "--out", str(root / "labelled")]

    def start(root: Path) -> Work:
        made = ["distill", "random", "--data", "digits", "--ipc", "2", "--out", str(root / "set")]
        nursery.do([*made, "--threads", "1"], root / "store")
        return Work(command(root), root / "store", labelled, total, unit=0.05)

    total, straight, killed = 30, tmp_path / "straight", tmp_path / "killed"
    nursery.do(start(straight).argv, straight / "store")
    assert labelled(straight / "store") == total
    kill_all(nursery, killed, start, key=1, kills=3)

    def files(root: Path) -> dict[str, bytes]:
        found = (p for p in (root / "labelled").rglob("*") if p.is_file() and p.name != "run.json")
        return {p.relative_to(root).as_posix(): p.read_bytes() for p in found}

    assert len([name for name in files(killed) if "/relabels/labels-" in name]) == total
    assert files(killed) == files(straight)
    assert leftovers(killed) == []


@pytest.mark.slow
@pytest.mark.parametrize("key", range(2, 8))
def test_killed_again_and_again(key: int, nursery: Nursery, straight: Path, tmp_path: Path) -> None:
    killed_distillation(nursery, straight, tmp_path / "distil", key, kills=6)
    killed_evaluation(nursery, straight, tmp_path / "judge", key, kills=6)


@pytest.mark.slow
@pytest.mark.parametrize("key", range(12))
def test_killed_at_any_moment(key: int, nursery: Nursery, straight: Path, tmp_path: Path) -> None:
    """Not only while it works: while it reads data, publishes, or copies into --out."""
    store, out = tmp_path / "store", tmp_path / "set"
    pause = random.Random(key)
    for _ in range(8):
        nursery.start(distil(out), store).kill_when(lambda: True, pause.uniform(0, 3.0))
    nursery.do(distil(out), store)
    assert contents(out) == contents(straight / "set")
    assert leftovers(tmp_path) == []


def test_interrupted_run_says_how_to_go_on(
    nursery: Nursery, straight: Path, tmp_path: Path
) -> None:
    """The real program, as a shell starts it."""
    store, out = tmp_path / "store", tmp_path / "set"
    env = {**os.environ, "STILLROOM_STORE": str(store)}
    line = [sys.executable, "-c", QUICK, *distil(out)]
    process = subprocess.Popen(line, stdout=-1, stderr=-1, text=True, env=env)
    wait_until(lambda: bool(snapshots(store)))
    process.send_signal(signal.SIGINT)
    text = process.communicate(timeout=60)[1]
    assert process.returncode == 130, text
    assert f"go on with:\n  stillroom distill dm --data digits --ipc 2 --steps {STEPS}" in text
    assert not out.exists()
    assert len(snapshots(store)) == 1
    nursery.do(distil(out), store)
    assert contents(out) == contents(straight / "set")


@pytest.mark.slow
def test_processes_on_one_store(nursery: Nursery, straight: Path, tmp_path: Path) -> None:
    """The same command at once, into one folder and into another, and another seed beside it."""
    store = tmp_path / "store"
    outs = [tmp_path / "one", tmp_path / "one", tmp_path / "two"]
    running = [nursery.start(distil(out), store) for out in outs]
    running.append(nursery.start(distil(tmp_path / "three", "--seed", "1"), store))
    for run in running:
        run.finish()
    expected = contents(straight / "set")
    assert contents(tmp_path / "one") == contents(tmp_path / "two") == expected
    other = contents(tmp_path / "three")
    assert other.keys() == expected.keys()
    assert other["data.safetensors"] != expected["data.safetensors"]
    assert leftovers(tmp_path) == []


@pytest.mark.slow
def test_two_judges_of_one_set(nursery: Nursery, straight: Path, tmp_path: Path) -> None:
    """Both add to one ledger; neither loses what the other wrote."""
    store, out = tmp_path / "store", tmp_path / "set"
    nursery.do(distil(out), store)
    running = [nursery.start(judge(out), store)]
    running.append(nursery.start(judge(out, "--steps", "50", "--arch", "mlp"), store))
    for run in running:
        run.finish()
    found = records(out)
    assert [r for r in found if r["arch"] != "mlp"] == records(straight / "set")
    assert len(found) == 2 * len(records(straight / "set"))


@pytest.mark.slow
def test_two_workers_judge_as_one(nursery: Nursery, straight: Path, tmp_path: Path) -> None:
    nursery.do(distil(tmp_path / "set"), tmp_path / "store")
    line = ["evaluate", str(tmp_path / "set"), "--seeds", "2", "--threads", "1", "--workers", "2"]
    env = {**os.environ, "STILLROOM_STORE": str(tmp_path / "store")}
    done = subprocess.run([sys.executable, "-m", "stillroom", *line], env=env, check=False)
    assert done.returncode == 0
    assert records(tmp_path / "set") == records(straight / "set")[:2]


@pytest.mark.slow
def test_interrupted_workers_stop(tmp_path: Path) -> None:
    """SIGINT to the parent alone, as `timeout -s INT` sends it: its workers stop as well."""
    env = {**os.environ, "STILLROOM_STORE": str(tmp_path / "store")}
    line = ["evaluate", "full:digits", "--arch", "convnet2", "--seeds", "2", "--workers", "2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "stillroom", *line, "--threads", "1"],
        stdout=-1,
        stderr=-1,
        text=True,
        env=env,
    )
    wait_until(lambda: len(seen(tmp_path / "store", "scores-*.part/*.lock")) == 2)
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    text = process.communicate(timeout=60)[1]
    assert process.returncode == 130, text
    assert "go on with" in text
    assert "Traceback" not in text
    assert scored(tmp_path / "store") == 0
    assert time.monotonic() - began < 20
