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
from stillroom.challenge.truth import write_reference, write_sample
from stillroom.cli import run
from stillroom.data.benchmarks import DataSpec, load_benchmark
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
    few = [f"{p.classes * FEW['test']} of 10000 test images of {p.name}" for p in PARTS.values()]
    why = ", ".join(["1 of 1000 epochs", "1 of 3 runs", *few])
    assert text == [f"correct: {details['correct']}", f"not official: {why}"]
    packed = torch.load(root / "submission/cifar100.pt", weights_only=True)
    assert checked(packed, PARTS["cifar100"]).shape == (1000, 3, 32, 32)


@pytest.mark.parametrize("option", ["submit_dir", "truth_dir", "output_dir"])
def test_every_option_is_mapped(option: str) -> None:
    rows = [line.split("|") for line in PAGE.read_text("utf-8").splitlines() if line[:1] == "|"]
    assert any(f"`--{option}`" in row[1] and row[2].strip() for row in rows)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_real_images_go_through(shared: Path, tmp_path: Path, capsys) -> None:
    """Tiny-ImageNet itself, and half its classes at 32 pixels in place of CIFAR-100; one epoch."""
    root = str(shared / "data")
    bench = load_benchmark(DataSpec("tiny-imagenet", data_root=Path(root)), tmp_path / "store")
    classes = tmp_path / "half.txt"
    classes.write_text("\n".join(bench.classes[::2]) + "\n")
    for verb, out in (("sample", "s"), ("reference", "t")):
        common = ["--data-root", root, "--out", str(tmp_path / out), "--quiet"]
        line = ["challenge", verb, "--tinyimagenet", "tiny-imagenet", *common]
        assert run([*line, *store(tmp_path)]) == 0
    small = load_benchmark(
        DataSpec("tiny-imagenet", data_root=Path(root), size=32, classes=classes),
        tmp_path / "store",
    )
    write_sample(small, PARTS["cifar100"], tmp_path / "s", seed=0)
    write_reference(small, PARTS["cifar100"], tmp_path / "t")
    assert run(["challenge", "check", str(tmp_path / "s")]) == 0
    told = capsys.readouterr().out
    assert "tinyimagenet.pt: [2000, 3, 64, 64], values from -2." in told
    line = ["challenge", "evaluate", "--submit_dir", str(tmp_path / "s"), "--epochs", "1"]
    line += ["--truth_dir", str(tmp_path / "t"), "--output_dir", str(tmp_path / "o")]
    assert run([*line, "--runs", "1", "--quiet", *store(tmp_path)]) == 0
    why = "1 of 1000 epochs, 1 of 3 runs, 5000 of 10000 test images of cifar100"
    assert (tmp_path / "o/scores.txt").read_text().endswith(f"\nnot official: {why}")
    assert f"not official: {why}" in " ".join(capsys.readouterr().out.split())
    details = json.loads((tmp_path / "o/scores.json").read_text())
    assert not details["official"]
    assert details["parts"]["tinyimagenet"]["correct"] > 1.4 / 200  # of two hundred classes
