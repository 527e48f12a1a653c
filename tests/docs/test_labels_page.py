"""The page about labels of teachers: its commands and its code run, and say what it says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch

from stillroom.artefacts.codecs import find_codec
from stillroom.cli import run
from stillroom.records import read_records

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "relabels.md").read_text(encoding="utf-8")
COMMANDS = [
    line
    for block in re.findall(r"```sh\n(.*?)```", PAGE, flags=re.S)
    for line in block.splitlines()
]


def shortened(command: str) -> list[str]:
    """The same for a small network, some epochs and one student."""
    words = [{"convnet2": "convnet1-w4"}.get(word, word) for word in shlex.split(command)[1:]]
    if words[0] == "evaluate":
        words[words.index("--protocol") + 1] += "+epochs=2"
        words += ["--seeds", "1", "--arch", "convnet1-w4"]
    if words[0] == "prepare":
        words += ["--epochs", "100" if "--budget" in words else "20"]
    if words[0] in ("distill", "prepare", "evaluate"):
        words += ["--threads", "1", "--quiet"]
    return words


def test_the_page_does_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    said: dict[str, str] = {}
    for command in COMMANDS:
        assert run(shortened(command)) == 0, command
        said[command] = capsys.readouterr().out
    assert len(COMMANDS) == 8
    assert sorted(p.name for p in (tmp_path / "out/digits/relabels").iterdir()) == [
        "labels-000000.safetensors", "relabels.json", "soft.safetensors",
    ]  # fmt: skip
    (inspected,) = (text for command, text in said.items() if "inspect" in command)
    for words in ("20 epochs in fp16, batches of 20, seed 42", "convnet1-w4 0, mlp 0",
                  "one soft label each: the mean of the teachers' logits"):  # fmt: skip
        assert words in inspected
    small = sum(p.stat().st_size for p in (tmp_path / "out/small/relabels").iterdir())
    assert 20_000 < small <= 30_000
    kinds = {
        r.labels.split(":")[0]: r.labels for r in read_records(Path("out/digits/records.jsonl"))
    }
    assert set(kinds) == {"relabels", "soft"}
    assert len({re.sub("^[a-z]+:", "", kind) for kind in kinds.values()}) == 1

    (code,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.S)
    names: dict[str, torch.Tensor] = {}
    exec(code, names)
    assert names["views"].shape == (20, 1, 8, 8)
    assert names["soft"].shape == names["logits"].shape == (20, 10)


def test_bytes_of_the_codecs_are_told() -> None:
    told = {"2C": "fp16", "C + 4": "int8", "4K + 2": "topk:7"}
    for text, codec in told.items():
        row = f"| `{codec.replace(':7', ':K')}` | {text} |"
        assert row in PAGE
        each = eval(text.replace("2C", "2 * C").replace("4K", "4 * K"), {"C": 100, "K": 7})
        assert find_codec(codec).batch_bytes(1, 100) == each
