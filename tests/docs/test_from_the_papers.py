"""Every command that the pages "from the papers" map to runs, on the digits and small networks."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from stillroom.cli import run

PAGES = sorted((Path(__file__).resolve().parents[2] / "docs" / "from-the-papers").glob("*.md"))
SMALL = {
    "cifar10": "digits",
    "convnet3": "convnet1-w4",
    "alexnet": "mlp",
    "vgg11": "convnet1-w8",
    "resnet18": "convnet1-w2",
}
COMMANDS = [
    (page.stem, found)
    for page in PAGES
    for found in re.findall(r"`(stillroom [^`]+)`", page.read_text(encoding="utf-8"))
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for all, and a set for the commands that judge one."""
    folder = tmp_path_factory.mktemp("papers")
    line = ["distill", "dc", "--data", "digits", "--ipc", "1", "--steps", "1"]
    assert run([*line, "--arch", "convnet1-w4", "--out", f"{folder}/dc", *common(folder)]) == 0
    return folder


def common(root: Path) -> list[str]:
    return ["--store", f"{root}/store", "--threads", "1", "--quiet"]


def shortened(command: str, root: Path) -> list[str]:
    """The same command for small networks, one model of each, one step."""
    words = [SMALL.get(word, word) for word in shlex.split(command)[1:]]
    words = [word.replace("out/", f"{root}/") for word in words]
    for flag, value in (("--num", "1"), ("--model-num", "1"), ("--ipc", "1")):
        if flag in words:
            words[words.index(flag) + 1] = value
    if words[0] == "distill":
        words += ["--steps", "1", "--arch", "convnet1-w4"]
    if words[0] == "evaluate":
        at = words.index("--protocol") + 1
        words[at] += "+epochs=2"
    return [*words, *common(root)]


def test_there_are_some() -> None:
    assert len(COMMANDS) >= 8


@pytest.mark.parametrize(("page", "command"), COMMANDS, ids=str)
def test_command_runs(page: str, command: str, root: Path) -> None:
    assert run(shortened(command, root)) == 0
