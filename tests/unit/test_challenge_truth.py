"""On whose test images a score rests, whether it is official, and whose fault zero is."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from stillroom.artefacts.store import Store
from stillroom.challenge import score as scores
from stillroom.challenge.parts import PARTS
from stillroom.challenge.truth import preprocess, read_truth
from stillroom.cli import run
from stillroom.errors import DivergedError, StillroomError
from stillroom.rng import rng
from stillroom.run.options import Machine
from stillroom.session import Session

CIFAR, TINY = PARTS["cifar100"], PARTS["tinyimagenet"]
TESTS = 200


def saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def truth(count: int = TESTS, **more: object) -> dict[str, object]:
    """Grey images of the level of their class, under the constants of CIFAR-100."""
    y = torch.arange(count) % 100
    x = (y.view(-1, 1, 1, 1).expand(-1, 3, 32, 32) * 2).float() / 255
    return {"images_val": preprocess(CIFAR).apply(x), "labels_val": y, **more}


@pytest.fixture
def cwd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    return tmp_path / "cwd"


@pytest.fixture
def submission(tmp_path: Path) -> Path:
    """One part, in the layout of the platform, with test images of its own beside it."""
    folder = tmp_path / "s"
    for below in ("res", "ref"):
        (folder / below).mkdir(parents=True)
    x = torch.randn(CIFAR.shape, generator=rng(0, "submission"))
    (folder / "res/cifar100.pt").write_bytes(saved(x))
    (folder / "ref/cifar100_test.pt").write_bytes(saved(truth(100)))
    return folder


def plain(capsys: pytest.CaptureFixture[str]) -> str:
    """What was printed, without the lines of tables and of the page."""
    return " ".join(re.sub("[│\n]", " ", capsys.readouterr().out).split())


def command(submission: Path, store: Path, *more: str) -> list[str]:
    line = ["challenge", "evaluate", "--submit_dir", str(submission), "--epochs", "1"]
    if (submission / "ref").is_dir() and "--plan" not in more:
        line += ["--truth_dir", str(submission / "ref")]
    return [*line, "--runs", "1", "--quiet", "--threads", "1", "--store", str(store), *more]


def test_a_submission_does_not_choose_its_own_test_images(
    submission: Path, cwd: Path, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is named is taken, or what lies here; never what the submission brought."""
    line = command(submission, store, "--plan")
    assert run(line) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "no reference_data here; " in said
    assert "/s/ref came with the submission: name it if it is yours; name the test" in said
    assert run([*line, "--truth_dir", str(submission / "ref")]) == 0  # named by the organiser
    assert "100 of 10000 test images of cifar100" in plain(capsys)
    assert run([*line, "--truth_dir", "reference-data"]) == 2  # misspelt
    assert "reference-data" in capsys.readouterr().err
    (cwd / "reference_data").mkdir()
    (cwd / "reference_data/cifar100_test.pt").write_bytes(saved(truth()))
    assert run(line) == 0
    assert "200 of 10000 test images of cifar100" in plain(capsys)
    shutil.copy(submission / "res/cifar100.pt", cwd / "cifar100.pt")
    assert run(command(Path(), store, "--plan")) == 2  # the working folder is the submission
    assert "reference_data came with the submission" in " ".join(capsys.readouterr().err.split())


def test_ten_thousand_test_images_are_official(tmp_path: Path, store: Path) -> None:
    (tmp_path / "cifar100_test.pt").write_bytes(saved(truth(10_000)))
    bench, notes = read_truth(tmp_path, CIFAR, store)
    assert notes == []
    how = (None, 3, "fast", Machine(), Store(store), Session())
    asked = scores.Evaluation((), {"cifar100": bench}, *how)
    assert asked.unofficial == ""


TRUTHS = {
    "absent": ({"images": 1}, "must hold a dict of images_val and labels_val"),
    "texts": (truth(labels_val=["cat"] * TESTS), "labels_val must be 200 whole numbers"),
    "fractions": (truth(labels_val=torch.zeros(TESTS)), "labels_val must be 200 whole numbers"),
    "truths": (truth(labels_val=[True] * TESTS), "labels_val must be 200 whole numbers"),
    "too high": (truth(labels_val=torch.arange(TESTS)), "whole numbers from 0 to 99"),
    "negative": (truth(labels_val=torch.arange(TESTS) - 100), "whole numbers from 0 to 99"),
    "sparse": (
        truth(images_val=torch.zeros(TESTS, 3, 32, 32).to_sparse()),
        "images_val must be finite floats",
    ),
    "a class short": (truth(labels_val=torch.arange(TESTS) % 99), "no image of class 99 of 100"),
    "pixels": (
        truth(images_val=torch.rand(TESTS, 3, 32, 32, generator=rng(0, "p")) * 255),
        "grey levels away from images under the constants of cifar100; normalise them so",
    ),
    "other size": (truth(images_val=torch.zeros(TESTS, 3, 64, 64)), "not [N, 3, 32, 32]"),
}


@pytest.mark.parametrize("name", TRUTHS)
def test_test_images_that_are_none(name: str, tmp_path: Path, store: Path) -> None:
    found, told = TRUTHS[name]
    (tmp_path / "cifar100_test.pt").write_bytes(saved(found))
    with pytest.raises(StillroomError) as error:
        read_truth(tmp_path, CIFAR, store)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_labels_may_be_a_list_and_levels_a_little_off(tmp_path: Path, store: Path) -> None:
    made = truth(labels_val=[i % 100 for i in range(TESTS)])
    made["images_val"] = made["images_val"] + 0.5 / 255 / 0.27
    (tmp_path / "cifar100_test.pt").write_bytes(saved(made))
    bench, (note,) = read_truth(tmp_path, CIFAR, store)
    assert bench.test.labels.tolist() == made["labels_val"]
    assert "rounded by up to 0.4" in note or "rounded by up to 0.5" in note


def test_zero_is_the_fault_of_the_submission_alone(
    submission: Path, cwd: Path, tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A student that diverges scores zero; a full disk is no score, and leaves no file."""
    huge = torch.full(CIFAR.shape, 1e30)
    huge[::2] = -1e30
    (submission / "res/cifar100.pt").write_bytes(saved(huge))
    out = tmp_path / "out"
    line = command(submission, store, "--output_dir", str(out))
    assert run(line) == 0
    details = json.loads((out / "scores.json").read_text())
    assert details["correct"] == 0.0
    assert "diverged" in details["parts"]["cifar100"]["reason"]

    def full(*_: object) -> None:
        raise StillroomError("the disk is full; make room")

    monkeypatch.setattr(scores, "judge", full)
    assert run(line) == 2
    assert list(out.iterdir()) == []  # what an earlier evaluation left is gone
    assert issubclass(DivergedError, StillroomError)


def test_the_folder_of_scores(
    submission: Path, cwd: Path, tmp_path: Path, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody inherits another's score; what cannot be written is said before anything is read."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "scores.txt").write_text("correct: 0.9")
    (out / "notes.txt").write_text("mine")
    line = command(submission, store, "--output_dir", str(out))
    harmless = ([*line, "--plan"], [*line, "--epochs", "0"], [*line, "--submit_dir", "nowhere"])
    for asked, code in zip(harmless, (0, 2, 2), strict=True):
        assert run(asked) == code
        assert (out / "scores.txt").read_text() == "correct: 0.9"
    assert run(["nowhere" if w == str(submission / "ref") else w for w in line]) == 2
    assert [p.name for p in out.iterdir()] == ["notes.txt"]
    capsys.readouterr()
    with scores.output(out):
        assert run(line) == 2
    assert "another evaluation writes there" in capsys.readouterr().err
    (out / "scores.txt").mkdir()
    assert run(line) == 2
    assert "scores.txt" in capsys.readouterr().err
    (tmp_path / "file").write_text("x")
    assert run([*line[:-1], str(tmp_path / "file")]) == 2
    assert "file" in capsys.readouterr().err


def test_test_images_in_a_submission_are_noticed(
    submission: Path, cwd: Path, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x = torch.randn(CIFAR.shape, generator=rng(0, "submission"))
    x[:7] = truth(100)["images_val"][:7]
    (submission / "res/cifar100.pt").write_bytes(saved(x))
    asked = scores.prepared(submission, submission / "ref", Store(store), Machine(), Session())
    assert asked.parts[0].notes[-1] == "7 of 1000 images are test images"
    assert run(command(submission, store, "--plan", "--truth_dir", str(submission / "ref"))) == 0
    assert "7 of 1000 images are test images" in plain(capsys)


def test_faithful_never_takes_what_was_compiled(
    submission: Path, cwd: Path, tmp_path: Path, store: Path, monkeypatch, capsys
) -> None:
    """Both have one key in the store; the other way round, eager students are good for `fast`."""
    compiled: list[object] = []

    def compile(function, **_):
        compiled.append(function)
        return function

    monkeypatch.setattr(torch, "compile", compile)
    line = command(submission, store, "--output_dir", str(tmp_path / "out"), "--compile", "on")
    assert run(line) == 0
    assert compiled
    compiled.clear()
    assert run([*line, "--mode", "faithful", "--plan"]) == 0
    assert "1 student to train" in plain(capsys)
    assert run([*line, "--mode", "faithful"]) == 0
    assert not compiled
    assert json.loads((tmp_path / "out/scores.json").read_text())["mode"] == "faithful"
    for mode in ("faithful", "fast"):
        capsys.readouterr()
        assert run([*line, "--mode", mode, "--plan"]) == 0
        assert "0 students to train (1 more are in the store)" in plain(capsys)
