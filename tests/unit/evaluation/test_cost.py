"""What an evaluation costs is said before it starts, and a limit of time stops it cleanly."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest

from stillroom.artefacts.store import Store
from stillroom.cli import run
from stillroom.evaluation.published import find_protocol
from stillroom.records import read_records
from stillroom.run.judge import judge, prepared
from stillroom.run.judging import STEP, Asked, cost_of
from stillroom.run.options import Machine
from stillroom.session import Interrupted, Session

SET = ["distill", "class-mean", "--data", "digits", "--ipc", "1"]


@pytest.fixture
def world(tmp_path: Path) -> Path:
    assert run([*SET, "--out", f"{tmp_path}/set", *common(tmp_path)]) == 0
    return tmp_path


def common(root: Path) -> list[str]:
    return ["--store", f"{root}/store", "--threads", "1", "--quiet"]


def evaluate(root: Path, *more: str) -> list[str]:
    return [
        "evaluate",
        f"{root}/set",
        "--seeds",
        "2",
        "--arch",
        "convnet1-w4",
        *common(root),
        *more,
    ]


def test_plan_counts_students_and_trains_none(world: Path, capsys) -> None:
    def scores() -> list[Path]:
        return sorted((world / "store").glob("scores-*"))

    assert run(evaluate(world, "--plan")) == 0
    told = capsys.readouterr().out
    assert "2 students to train, about" in told
    assert "class-mean" in told
    assert not scores()
    assert run(evaluate(world)) == 0
    assert len(scores()) == 2
    assert run(evaluate(world, "--baselines", "--plan")) == 0
    told = " ".join(capsys.readouterr().out.split())
    # 5 random draws, 2 seeds of k-means; the set is its own class-mean, whose students are there.
    assert "7 students to train (4 more are in the store), about" in told
    assert len(scores()) == 2


def test_work_is_three_forwards_a_pass_and_one_a_test_image(bench, store, tmp_path) -> None:
    from test_judge import made

    made(bench, store, tmp_path / "out")
    protocol = find_protocol("vico@1+epochs=6")
    asked = Asked(protocol=protocol, archs=["convnet1-w4"], seeds=3)
    how, rows = prepared(
        tmp_path / "out", bench, asked, Store(store), Machine(threads=1), Session()
    )
    cost = cost_of(how, rows)
    forward = how.forward[how.archs[0].name]
    images = 2 * len(bench.classes)
    by_hand = 3 * forward * (3 * 7 * images + 5 * len(bench.test))  # E + 1 passes, 5 checks
    assert (cost.total, cost.left, cost.flops) == (3, 3, by_hand)
    # Of networks this small a step costs what is around them: 3 students, 7 passes of one batch.
    assert cost.seconds == pytest.approx(3 * 7 * STEP)
    judge(how, rows)
    after = cost_of(how, rows)
    assert (after.total, after.left, after.flops) == (3, 0, 0.0)
    searched = dataclasses.replace(how, protocol=find_protocol("search@1+epochs=6"))
    tests = 4 * (len(bench.test) + (len(bench.val) if bench.val else 0))
    assert cost_of(searched, rows).flops == 3 * 5 * forward * (3 * 6 * images + tests)


def test_the_time_limit_stops_like_ctrl_c(world: Path, capsys) -> None:
    """And the same command goes on to the same records as one without a limit."""
    slow = ["--protocol", "quick@1+epochs=2000"]
    line = evaluate(world, *slow, "--minutes", "0.005", "--records", f"{world}/a.jsonl")
    assert run(line) == 130
    told = capsys.readouterr().err
    assert "stopped; go on with:\n  stillroom evaluate" in told
    assert not (world / "a.jsonl").exists()
    short = ["--protocol", "quick@1+epochs=300"]
    assert run(evaluate(world, *short, "--minutes", "0.003")) == 130
    for name in "bc":
        assert run(evaluate(world, *short, "--records", f"{world}/{name}.jsonl")) == 0
        for path in (world / "store").glob("scores-*"):
            shutil.rmtree(path)
    stopped, straight = (
        [(r.seed, r.value) for r in read_records(world / f"{name}.jsonl")] for name in "bc"
    )
    assert stopped == straight


def test_a_limit_that_is_not_reached_changes_nothing() -> None:
    session = Session()
    with session.interruptible(minutes=10):
        session.check()
    assert not session.stop.is_set()


def test_the_limit_reaches_the_loop() -> None:
    session = Session()
    with session.interruptible(minutes=1e-4):
        assert session.stop.wait(10)
        with pytest.raises(Interrupted):
            session.check()


def test_a_ledger_in_a_folder_that_is_not_there_is_refused(world: Path, capsys) -> None:
    """It would be written where nobody looks for it: the page reads that of the set."""
    assert run(evaluate(world, "--records", str(world / "nowhere" / "records.jsonl"))) == 2
    assert "nowhere does not exist; make it" in " ".join(capsys.readouterr().err.split())
    assert not (world / "nowhere").exists()


def test_a_set_of_digits_needs_no_store_that_saw_them(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They come with the package; a set of digits of another size must still be given its data."""
    empty = ["--store", f"{tmp_path}/empty"]
    assert run(["evaluate", f"{world}/set", "--seeds", "2", "--plan", *empty]) == 0
    assert "2 students to train" in capsys.readouterr().out
    larger = [*SET, "--size", "16", "--out", f"{tmp_path}/larger", *common(tmp_path)]
    assert run(larger) == 0
    assert run(["evaluate", f"{tmp_path}/larger", *empty, "--plan"]) == 2
    assert "pass --data" in " ".join(capsys.readouterr().err.split())
