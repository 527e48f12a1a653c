"""The commands about trained weights and released statistics run, on digits and small networks."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import released
from stillroom.cli import run
from stillroom.data.benchmarks import DataSpec, load_benchmark
from stillroom.files import read_json
from stillroom.nets.zoo import build
from stillroom.records import read_records

DOCS = Path(__file__).resolve().parents[2] / "docs"
SMALL = "convnet1-w4-bn"


def commands(page: str, word: str) -> list[str]:
    """The commands of a page that hold a word, with continued lines joined."""
    text = (DOCS / page).read_text(encoding="utf-8").replace("\\\n", " ")
    return [" ".join(x.split()) for x in re.findall(r"^stillroom .*$", text, re.M) if word in x]


ABOUT_WEIGHTS = commands("networks.md", " ")
ABOUT_STATISTICS = commands("methods/edc.md", "statistic_imagenet1k.zip")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a network that has learned the digits, its weights, and a tree of statistics."""
    folder = tmp_path_factory.mktemp("networks")
    store = ["--store", f"{folder}/store", "--threads", "1", "--quiet"]
    line = ["prepare", "teachers", "--data", "digits", "--arch", SMALL, "--epochs", "6"]
    assert run([*line, "--batch", "32", *store]) == 0
    (made,) = folder.glob("store/original-*/0000/weights.safetensors")
    shutil.copyfile(made, folder / "net.safetensors")
    weights = load_file(made)
    other = {n: t * 1.001 if t.is_floating_point() else t for n, t in weights.items()}
    save_file(other, folder / "other.safetensors")  # a second network, by its weights
    return folder


@pytest.fixture(scope="module")
def tree(root: Path) -> Path:
    bench = load_benchmark(DataSpec("digits"), root / "store")
    net = build(SMALL, len(bench.classes), bench.channels, bench.size).eval()
    net.load_state_dict(load_file(root / "net.safetensors"))
    arrays = released.released(released.collected(net, bench, 256))
    return released.zipped(released.written(arrays, root / "statistic_imagenet1k"))


def shortened(command: str, root: Path) -> list[str]:
    """The same command for the digits, the small network, one step."""
    words = shlex.split(command)[1:]
    mine = f"{SMALL}={root}/net.safetensors"
    there = {
        "imagenet-1k": "digits", "cifar10": "digits", "convnet3": SMALL, "edc": "edc",
        "imagenet/resnet18=published": mine,
        "imagenet/mobilenet_v2=published": f"{SMALL}={root}/other.safetensors",
        "convnet3=weights/convnet3.safetensors": mine, "edc@1": "edc@1+epochs=2",
        "statistic_imagenet1k.zip": f"{root}/statistic_imagenet1k.zip", "10": "1",
    }  # fmt: skip
    words = [there.get(word, word.replace("out/", f"{root}/out-")) for word in words]
    if "--recipe" in words:
        words[words.index("--recipe") + 1] = "edc+epochs=1"
    if words[0] == "distill":
        words += ["--steps", "1", "--arch", "convnet1-w4"]
    if words[0] == "evaluate":
        words += ["--seeds", "1"]
    return [*words, "--store", f"{root}/store", "--threads", "1"]


def test_there_are_some() -> None:
    assert [c.split()[1] for c in ABOUT_WEIGHTS] == [
        "prepare", "prepare", "distill", "evaluate", "distill",
    ]  # fmt: skip
    assert [c.split()[1] for c in ABOUT_STATISTICS] == ["prepare", "distill"]


def test_commands_about_weights(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In their order: the set that one makes is judged by the next."""
    told = []
    for command in ABOUT_WEIGHTS:
        assert run(shortened(command, root)) == 0, command
        told.append(capsys.readouterr())
    given = re.compile(rf"{SMALL}=[0-9a-f]{{16}}")
    assert all(given.search(t.out + t.err) for t in told[1:])
    assert all("right on" in t.err for t in told[1:])
    runs = [read_json(root / f"out-{name}" / "run.json") for name in ("edc-1k", "dm-clom")]
    assert all(given.fullmatch(name) for r in runs for name in r["given"])
    assert all(accuracy > 0.3 for r in runs for accuracy in r["given"].values())
    records = read_records(root / "out-edc-1k" / "records.jsonl")
    assert all(r.note.startswith("teachers on the test images: ") for r in records)
    for path in root.glob("out-*/*.json*"):
        assert str(root) not in path.read_text(), path


def test_commands_about_statistics(
    root: Path, tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare, distill = (shortened(command, root) for command in ABOUT_STATISTICS)
    assert run(prepare) == 0
    told = capsys.readouterr().out
    assert "1 convolutions, 1 norms, repairs: swapped-patch (detected, 1 layers)" in told
    assert run([*distill, "--force", "--targets", "classes"]) == 0
    meta = json.loads((root / "out-edc-1k" / "meta.json").read_text())
    recipe = meta["provenance"]["recipe"]
    assert re.fullmatch(r"[0-9a-f]{16}", recipe["method"]["statistics"])
    assert recipe["method"]["variance"] == "released"
    assert told.split()[-1] == recipe["wants"]["statistics/0"]
    assert run([*prepare, "--seen-batch", "32"]) == 2
    assert "--seen-batch is of a pass over the images" in capsys.readouterr().err
    assert run([*prepare[: prepare.index("--from")], "--repair", "doubled"]) == 2
    assert "--repair belongs to --from" in capsys.readouterr().err
