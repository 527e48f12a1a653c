"""The error lines of docs/troubleshooting.md are those that the command prints."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

from stillroom.cli import run

PAGE = Path(__file__).resolve().parents[2] / "docs" / "troubleshooting.md"
DM = ["distill", "dm", "--data", "digits", "--ipc", "1"]
SHORT = ["--steps", "1", "--threads", "1"]


def shape(text: str) -> str:
    """A line without what differs from run to run: keys, numbers."""
    text = re.sub(r"(distilled-|content )[0-9a-f]{16}", r"\1<key>", text)
    return re.sub(r"\d+(\.\d+)?(e[+-]?\d+)?", "<n>", text)


@pytest.fixture(scope="module")
def documented() -> list[str]:
    text = PAGE.read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line.startswith("error: ")]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two photos a class, one class with a broken one, and a small set."""
    monkeypatch.chdir(tmp_path)
    for n, name in enumerate(("cat", "dog")):
        (tmp_path / "bad" / name).mkdir(parents=True)
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(15):
            Image.new("RGB", (8, 8), (40 * n, 9 * i, 90)).save(tmp_path / f"photos/{name}/{i}.png")
        Image.new("RGB", (8, 8), (40 * n, 0, 90)).save(tmp_path / f"bad/{name}/b.png")
    (tmp_path / "bad" / "cat" / "a.jpg").write_bytes(b"no image")
    return tmp_path


def check(arguments: list[str], documented: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == 2
    line = next(x for x in capsys.readouterr().err.splitlines() if x.startswith("error: "))
    shapes = [shape(x) for x in documented]
    if "one of digits, mnist" in line:
        line = re.sub(r"(one of digits, mnist, ).*(; did)", r"\1...\2", line)
    assert shape(line) in shapes, line


@pytest.mark.parametrize(
    "arguments",
    [
        ["distill", "dm", "--data", "cifar11", "--ipc", "1"],
        ["distill", "dm", "--data", "./nowhere", "--ipc", "1"],
        ["distill", "dm", "--data", "bad", "--ipc", "1"],
        ["distill", "dm", "--data", "photos", "--ipc", "20"],
        [*DM, "--normalise", "cifar10"],
        [*DM, "--zca", "--normalise", "fitted"],
        [*DM, "--numerics", "tf32", "--device", "cpu"],
        [*DM, "--arch", "convnet9"],
        [*DM, "--arch", "resnet19"],
        [*DM, "--batch-rael", "3"],
        [*DM, "--images.lr", "1e30", "--steps", "20", "--threads", "1"],
        ["distill", "dm/cifar10-ipc2"],
        ["evaluate", "nowhere"],
    ],
    ids=lambda a: " ".join(a)[:60],
)
def test_bad_input_is_documented(arguments, here, documented, capsys):
    check(arguments, documented, capsys)


def test_trouble_with_a_set_is_documented(here, documented, capsys):
    demo = ["--out", "out/demo"]
    assert run([*DM, "--steps", "20", "--threads", "1", *demo]) == 0
    capsys.readouterr()
    check([*DM, "--steps", "30", *demo], documented, capsys)
    check(["evaluate", "out/demo", "--protocol", "viko"], documented, capsys)
    check(["evaluate", "out/demo", "--steps", "10"], documented, capsys)
    photos = ["distill", "dm", "--data", "photos", "--ipc", "1", "--out", "out/photos"]
    assert run([*photos, *SHORT]) == 0
    capsys.readouterr()
    check(["evaluate", "out/photos", "--store", "empty"], documented, capsys)
    check(["evaluate", "out/demo", "--data", "digits", "--size", "16"], documented, capsys)
    check(["export", "out/demo", "--to", "folder", "--out", "out/demo"], documented, capsys)
    (here / "out" / "notes").mkdir()
    (here / "out" / "notes" / "todo.txt").write_text("mine", encoding="utf-8")
    check([*DM, *SHORT, "--out", "out/notes"], documented, capsys)
    bad = here / "out" / "bad"
    (here / "out" / "demo").rename(bad)
    blob = bytearray((bad / "data.safetensors").read_bytes())
    blob[int.from_bytes(blob[:8], "little") + 8] ^= 1  # the first byte of the first tensor
    (bad / "data.safetensors").write_bytes(blob)
    check(["evaluate", "out/bad"], documented, capsys)
