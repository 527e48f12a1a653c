"""Every command of the pages of Comp-DD runs, on stand-ins of its images."""

from __future__ import annotations

import csv
import json
import re
import shlex
from pathlib import Path

import pytest
import torch

from stillroom.cli import run
from stillroom.comp_dd import CATEGORIES, SIDES, load_comp_dd, subset_name
from stillroom.comp_dd.build import Built, gap
from stillroom.data.imagenet import SUBSETS, WNIDS
from stillroom.distilled import load
from stillroom.evaluation.statistics import rank_correlation
from stillroom.records import read_records
from toy import class_pictures

DOCS = Path(__file__).resolve().parents[2] / "docs"
TEXT = (DOCS / "from-the-papers" / "comp-dd.md").read_text(encoding="utf-8")
COMMANDS = [c for c in re.findall(r"`(stillroom [^`]+)`", TEXT) if c != "stillroom comp-dd list"]
SIDE = 16


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ImageNet of the sixteen subsets' classes, and three files to judge."""
    folder = tmp_path_factory.mktemp("comp-dd")
    names = [subset_name(c, s) for c in CATEGORIES for s in SIDES]
    wnids = sorted({WNIDS[i] for name in names for i in SUBSETS[name]})
    class_pictures(folder / "imagenet", wnids, {"train": 4, "val": 1}, SIDE)
    birds = [WNIDS[i] for s in SIDES for i in SUBSETS[f"comp-dd/bird-{s}"]]
    rows = [("class", "category"), *((wnid, "bird") for wnid in birds)]
    with (folder / "mine.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)
    gen = torch.Generator().manual_seed(0)
    tensors = {"images": torch.randn(10, 3, SIDE, SIDE, generator=gen)}
    tensors |= {"labels": 9 * torch.eye(10), "lr": torch.tensor(0.02)}
    for name, value in tensors.items():
        torch.save(value, folder / f"{name}.pt")
    return folder


def shortened(command: str, root: Path) -> list[str]:
    """The same on the stand-ins: small images, a small network, one student of one epoch."""
    words = shlex.split(command)[1:]
    paths = r"imagenet|subsets|\w+\.(pt|csv|html)"
    words = [str(root / w) if re.fullmatch(paths, w) else w for w in words]
    if "imagenet-1k" in words:  # here of the subsets' classes alone
        words[words.index("imagenet-1k")] = str(root / "imagenet")
        words[words.index("--data-root") : words.index("--data-root") + 2] = ["--size", str(SIDE)]
    if words[1] in ("complexity", "build"):
        words += ["--originals", "default+epochs=1", "--each", "4"]
    if "imagenet/resnet18=published" in words:  # nothing is fetched
        words[words.index("imagenet/resnet18=published")] = "convnet1-w4"
    if words[1] == "build":
        words += ["--arch", "convnet1-w4"]
    if "ConvNetD5" in words:
        words[words.index("ConvNetD5")] = "ConvNetD1"
    elif words[1] == "evaluate":
        words += ["--model", "ConvNetD1"]
    if words[1] == "evaluate":
        words += ["--epochs", "2", "--seeds", "1", "--res", str(SIDE), "--out", f"{root}/judged"]
    if words[1] == "stats":
        return words
    return [*words, "--threads", "1", "--quiet", "--store", str(root / "store")]


def test_the_page_as_it_stands(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    order = ("complexity", "build", "stats", "evaluate")
    assert {c.split()[2] for c in COMMANDS} == {*order}
    judged, rates = [], []
    for command in sorted(COMMANDS, key=lambda c: order.index(c.split()[2])):
        assert run(shortened(command, root)) == 0, command
        if command.split()[2] == "evaluate":
            (record,) = [
                r for r in read_records(root / "judged/records.jsonl") if r.metric == "accuracy"
            ]
            judged.append((record.protocol, record.arch))
            rates.append(load(root / "judged").lr)
            (root / "judged").rename(root / f"judged{len(judged)}")
    assert judged == [
        ("edf@1+epochs=2", "convnet1"),
        ("edf-plain@1+epochs=2", "convnet1"),
    ]
    assert rates == [0.01, None]  # asked for, before that of the file; and no file
    told = capsys.readouterr().out
    assert "bird" in told
    assert "the paper reports" in told
    page = (root / "stats.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 2
    easy, hard = ((root / f"subsets/bird-{side}.txt").read_text().split() for side in SIDES)
    assert len(easy) == len(hard) == 10
    assert not {*easy} & {*hard}


def test_the_seven_values_of_the_page(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code of the page, on smaller images."""
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / "comp-dd.md").read_text(), re.S)
    monkeypatch.chdir(root)
    found: dict[str, object] = {}
    exec(code.replace("(128, 128)", f"({SIDE}, {SIDE})"), found)
    assert found["load_comp_dd"] is load_comp_dd
    assert found["num_classes"] == 10
    assert found["image"].shape == (3, SIDE, SIDE)


def test_what_the_page_refuses(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, exit code 2."""
    (first,) = [c for c in COMMANDS if "--lr_net" in c]
    line = shortened(first, root)
    for change, told in (
        ({"bird": "brid"}, "did you mean 'bird'"),
        ({"easy": "medium"}, "subset='medium' is none of easy, hard"),
        ({"ConvNetD1": "ConvNetX"}, "ConvNetX"),
        ({"1e-2": "-1"}, "must lie above 0"),
        ({str(root / "imagenet"): str(root / "nowhere")}, "no such folder"),
    ):
        assert run([change.get(word, word) for word in line]) == 2
        said = capsys.readouterr().err.strip()
        assert told in said
        assert "\n" not in said
    assert run(["comp-dd", "stats", "--data-root", str(root / "subsets")]) == 2
    assert "no category of Comp-DD is there whole" in capsys.readouterr().err
    assert run(["comp-dd", "stats", str(root), "--complexity", "x.csv"]) == 2


HELD = DOCS.parent / "results" / "comp-dd"


FILES = {
    "two": "tiny-imagenet-classes.csv",
    "again": "tiny-imagenet-twice.csv",
    "short": "tiny-imagenet-32px.csv",
    "long": "tiny-imagenet-32px-long.csv",
}
NETWORKS = {
    "`imagenet/resnet18`": ("two", "imagenet/resnet18"),
    "itself, trained again": ("again", "imagenet/resnet18 (2)"),
    "`mobilenetv2-x0.5`": ("two", "mobilenetv2-x0.5"),
    "`wrn16-2`, 8 epochs": ("short", "wrn16-2"),
    "`shufflenetv2-x0.5`, 8 epochs": ("short", "shufflenetv2-x0.5"),
    "`wrn16-2`, 24 epochs": ("long", "wrn16-2"),
    "`shufflenetv2-x0.5`, 24 epochs": ("long", "shufflenetv2-x0.5"),
}


def complexities(file: str, network: str) -> dict[str, float]:
    """By class, out of a kept file that the command wrote."""
    with (HELD / FILES[file]).open(newline="") as stream:
        head, *rows = csv.reader(stream)
    at = head.index(f"complexity by {network}")
    return {row[0]: float(row[at]) for row in rows}


def test_how_alike_networks_rank_tiny_imagenet_is_in_the_results() -> None:
    """Every rho of two networks on the page is that of the kept files; so is its koala."""
    text = (DOCS / "comp-dd.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (.+) \| (.+) \| (-?[\d.]+ \(.+ to .+\)) \|$", text, re.M)
    told = {(first, second): rho for first, second, rho in rows if first in NETWORKS}
    assert len(told) == 12
    for (first, second), rho in told.items():
        other = second.replace("itself", first.partition(",")[0]) if "epochs" in second else second
        one, its = (complexities(*NETWORKS[name]) for name in (first, other))
        assert len(one) == 90
        pair = rank_correlation([*one.values()], [its[name] for name in one])
        assert rho == "{:.2f} ({:.2f} to {:.2f})".format(*pair), (first, second)
    koala = "n01882714"
    first, second = (complexities("two", n) for n in ("imagenet/resnet18", "mobilenetv2-x0.5"))
    assert max(first, key=lambda name: first[name]) == koala
    assert min(second, key=lambda name: second[name]) == koala
    page = " ".join(text.split())
    assert f"ResNet ({100 * first[koala]:.0f} %)" in page
    assert f"MobileNet ({100 * second[koala]:.0f} %)" in page


def test_how_right_those_networks_are_is_in_the_ledger() -> None:
    text = (DOCS / "comp-dd.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(.+)` \| (64|32), (8|24) \| ([\d.]+) \|", text, re.M)
    again = re.findall(r"^\| the same, trained again \| 64, 8 \| ([\d.]+) \|", text, re.M)
    held: dict[tuple[str, str], list[float]] = {}
    for r in read_records(DOCS.parent / "results" / "records.jsonl"):
        if r.benchmark == "tiny-imagenet/categories" and r.metric == "network-accuracy":
            epochs = "24" if "epochs=24" in r.protocol else "8"
            held.setdefault((r.arch, epochs), []).append(round(100 * r.value, 1))
    assert len(rows) == 6
    for arch, _, epochs, right in rows:
        assert float(right) in held[arch, epochs]
    assert float(again[0]) in held["imagenet/resnet18", "8"]
    assert sum(map(len, held.values())) == 7


def test_differences_on_the_other_half_are_those_of_the_kept_subsets() -> None:
    built = Built(**json.loads((HELD / "tiny-imagenet-subsets.json").read_text(encoding="utf-8")))
    text = (DOCS / "comp-dd.md").read_text(encoding="utf-8")
    told = re.findall(r"^\| (\w+) \| ([\d.]+) \| ([\d.]+) \| (\S+ ± [\d.]+) \|$", text, re.M)
    wanted = []
    for easy, hard in built.pairs():
        apart, half = gap(easy, hard)
        assert apart > half > 0
        both = (f"{100 * side.held_out:.1f}" for side in (easy, hard))
        wanted.append((easy.category, *both, f"{100 * apart:+.1f} ± {100 * half:.1f}"))
    assert told == wanted
    assert len(told) == 6
