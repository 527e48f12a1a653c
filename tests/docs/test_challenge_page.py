"""Every command of the page "from the challenge" runs, on stand-ins of both data sets."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from stillroom.challenge.parts import PARTS
from stillroom.challenge.reader import checked
from stillroom.cli import run
from stillroom.rng import rng

PAGE = Path(__file__).resolve().parents[2] / "docs" / "from-the-papers" / "challenge.md"
COMMANDS = re.findall(r"`(stillroom [^`]+)`", PAGE.read_text(encoding="utf-8"))
FEW = {"train": 10, "test": 1}  # images a class


def folder_of(root: Path, name: str) -> Path:
    """Classes with a colour of their own, as PNGs in a folder each."""
    part = PARTS[name]
    gen = rng(0, "stand-in", name)
    for split, count in FEW.items():
        for c in range(part.classes):
            below = root / name / split / f"class{c:03d}"
            below.mkdir(parents=True)
            noise = torch.randint(0, 60, (count, part.size, part.size, 3), generator=gen)
            for i, x in enumerate((noise + c % 190).to(torch.uint8)):
                Image.fromarray(x.numpy()).save(below / f"{i}.png", compress_level=0)
    return root / name


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("challenge")
    made = folder_of(folder, "cifar100")
    folder_of(folder, "tinyimagenet")
    line = ["distill", "random", "--data", str(made), "--ipc", "10", "--quiet"]
    assert run([*line, "--out", str(folder / "out/cifar100"), *store(folder)]) == 0
    return folder


def store(root: Path) -> list[str]:
    return ["--store", str(root / "store"), "--threads", "1"]


def shortened(command: str, root: Path) -> list[str]:
    """The same on the stand-ins, with one student of one epoch."""
    words = shlex.split(command)[1:]
    data = {"cifar100": root / "cifar100", "tiny-imagenet": root / "tinyimagenet"}
    paths = ("mine", "out", "out/cifar100", "reference_data", "sample_submission", "submission")
    found = [str(data.get(w, root / w if w in paths else w)) for w in words]
    if words[1] == "evaluate":
        found += ["--epochs", "1", "--runs", "1", *store(root)]
    elif words[1] != "check":
        found += store(root)
    return found


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_page_as_it_stands(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    order = ("sample", "reference", "check", "evaluate", "pack")
    assert {c.split()[2] for c in COMMANDS} == {*order}
    for command in sorted(COMMANDS, key=lambda c: order.index(c.split()[2])):
        if command.split()[2] == "evaluate" and not (root / "mine").exists():
            shutil.copytree(root / "sample_submission", root / "mine")
        assert run(shortened(command, root)) == 0, command
    told = capsys.readouterr().out
    for part in PARTS.values():
        drawn = torch.load(root / "sample_submission" / part.file, weights_only=True)
        assert checked(drawn, part).shape == part.shape
        assert f"{part.file}: {list(part.shape)}, values from" in told
    details = json.loads((root / "out/scores.json").read_text())
    assert {*details["parts"]} == {*PARTS}
    assert all("reason" not in told for told in details["parts"].values())
    text = (root / "out/scores.txt").read_text().splitlines()
    assert text == [f"correct: {details['correct']}",
                    "not official: 1 of 1000 epochs, 1 of 3 runs"]  # fmt: skip
    packed = torch.load(root / "submission/cifar100.pt", weights_only=True)
    assert checked(packed, PARTS["cifar100"]).shape == (1000, 3, 32, 32)


@pytest.mark.parametrize("option", ["submit_dir", "truth_dir", "output_dir"])
def test_every_option_is_mapped(option: str) -> None:
    rows = [line.split("|") for line in PAGE.read_text("utf-8").splitlines() if line[:1] == "|"]
    assert any(f"`--{option}`" in row[1] and row[2].strip() for row in rows)
