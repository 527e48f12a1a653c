"""Numbers of the two diagrams, the class that a map explains, and files that are judged."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from stillroom.artefacts.executor import Serial
from stillroom.artefacts.originals import Original, opened
from stillroom.artefacts.schooling import Schooling
from stillroom.artefacts.store import Store, obtain
from stillroom.cli import run
from stillroom.comp_dd.measure import Complexities
from stillroom.comp_dd.stats import REPORTED, of_comp_dd, told
from stillroom.comp_dd.subsets import CATEGORIES, SIDES, subset_name
from stillroom.data.benchmarks import Benchmark
from stillroom.data.imagenet import SUBSETS as NUMBERS
from stillroom.data.imagenet import WNIDS, wnids
from stillroom.distilled import load
from stillroom.errors import StillroomError
from stillroom.nets.maps import activation_maps
from stillroom.nets.zoo import resolve
from stillroom.report.subsets import Pair
from stillroom.runtime import Runtime
from toy import class_pictures


def test_the_papers_numbers_are_those_of_the_specification(shared: Path) -> None:
    text = (shared / "spec/trajectory.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^Subset complexity, % easy/hard.*$", text, re.M)
    numbers = re.findall(r"(\w+) (\d+\.\d)/(\d+\.\d)", line)
    assert {name: (float(easy), float(hard)) for name, easy, hard in numbers} == REPORTED
    assert {*REPORTED} == {*CATEGORIES}


def test_numbers_of_the_diagrams(tmp_path: Path) -> None:
    """Images counted in the data; complexities of a table, the mean over a subset's classes."""
    few = {"bird": 3, "snake": 2}
    for category, count in few.items():
        names = [WNIDS[i] for s in SIDES for i in NUMBERS[subset_name(category, s)]]
        class_pictures(tmp_path / "in", names, {"train": count, "val": 1}, 8)
    found = of_comp_dd(tmp_path / "in", None)
    assert {p.category: p.images for p in found.pairs} == {"bird": (30, 30), "snake": (20, 20)}
    by_name = {p.category: p for p in found.pairs}
    assert by_name["bird"].complexity == pytest.approx((0.660, 0.745))
    assert all(p.reported for p in found.pairs)
    assert not any("nine classes" in note for note in found.notes)
    lines = ["class,complexity"]
    for category, base in (("bird", 0.1), ("snake", 0.5)):
        for offset, side in enumerate(SIDES):
            known = enumerate(wnids(subset_name(category, side)))
            lines += [f"{wnid},{base + 0.2 * offset + 0.01 * i:.3f}" for i, wnid in known]
    table = tmp_path / "classes.csv"
    table.write_text("\n".join(lines) + "\n", encoding="utf-8")
    measured = of_comp_dd(tmp_path / "in", table)
    assert not any(p.reported for p in measured.pairs)
    assert told(measured.pairs[0]) == ["14.5", "34.5", "+20.0"]
    own = {p.category: p.complexity for p in measured.pairs}
    assert own["bird"] == pytest.approx((0.145, 0.345))  # of 0.1, 0.11 to 0.19 and of 0.3 to 0.39
    assert own["snake"] == pytest.approx((0.545, 0.745))


def test_of_predicted_explains_what_the_network_says(bench: Benchmark, store: Path) -> None:
    """Where it is wrong, the map is another's than that of the label."""
    model = Original(
        Schooling(epochs=1, batch=8, lr=1e-6), bench.describe(), resolve("convnet1-w4"), 0, store
    )
    rt = Runtime(device=torch.device("cpu"), threads=1)
    stage = Complexities(model, layer="features.0", each=8)
    stages = [dataclasses.replace(stage, of=of) for of in ("label", "predicted")]
    (rows, label), (_, predicted) = (obtain(Store(store), s, Serial(), rt) for s in stages)
    nets = opened(model.load(Store(store).folder(model.key())), bench, rt)
    x = bench.preprocess.apply(bench.train.take(rows))
    with torch.no_grad():
        said = nets.logits(x)[0].argmax(1)
    wrong = said != bench.train.labels[rows]
    assert 0 < int(wrong.sum()) < len(wrong)
    maps = activation_maps(nets, "features.0", x, said)
    assert torch.equal(predicted, 1 - maps.ge(0.5).double().mean((1, 2)))
    assert torch.equal(predicted[~wrong], label[~wrong])
    assert not torch.equal(predicted[wrong], label[wrong])


def test_a_table_of_some_categories(tmp_path: Path) -> None:
    """The others have no complexity, and it is said; of none at all it is refused."""
    names = [WNIDS[i] for c in ("bird", "snake") for s in SIDES for i in NUMBERS[subset_name(c, s)]]
    class_pictures(tmp_path / "in", names, {"train": 1, "val": 1}, 8)
    birds = [w for s in SIDES for w in wnids(subset_name("bird", s))]
    table = tmp_path / "classes.csv"
    table.write_text("class,complexity\n" + "".join(f"{w},0.5\n" for w in birds))
    found = of_comp_dd(tmp_path / "in", table)
    assert [p.category for p in found.pairs if p.complexity is None] == ["snake"]
    assert "the table lacks classes of snake" in found.notes
    assert told(found.pairs[-1]) == ["-", "-", "-"]
    table.write_text("class,complexity\nx,0.5\n")
    with pytest.raises(StillroomError, match="all classes of no category that is there"):
        of_comp_dd(tmp_path / "in", table)
    half = Pair("x", (1, 1), (0.5, 0.6), (0.03, 0.04))
    assert told(half)[2] == "+10.0 ± 5.0"


@pytest.fixture
def judged(tmp_path: Path) -> list[str]:
    """A command that judges one image a class on a small ImageNet of a subset."""
    names = [WNIDS[i] for i in NUMBERS["comp-dd/bird-easy"]]
    class_pictures(tmp_path / "in", names, {"train": 2, "val": 1}, 8)
    gen = torch.Generator().manual_seed(0)
    torch.save(torch.randn(10, 3, 8, 8, generator=gen), tmp_path / "x.pt")
    torch.save(9 * torch.eye(10), tmp_path / "y.pt")
    torch.save(torch.full((10, 10), 0.1), tmp_path / "shares.pt")
    line = ["comp-dd", "evaluate", "--data_path", str(tmp_path / "in"), "--res", "8"]
    line += ["--data_dir", str(tmp_path / "x.pt"), "--category", "bird", "--subset", "easy"]
    line += ["--model", "ConvNetD1", "--epochs", "1", "--seeds", "1", "--threads", "1", "--quiet"]
    return [*line, "--store", str(tmp_path / "store")]


def test_rows_that_sum_to_one_are_no_logits(judged: list[str], tmp_path: Path, capsys) -> None:
    assert run([*judged, "--label_dir", str(tmp_path / "shares.pt")]) == 2
    assert "these look like probabilities" in capsys.readouterr().err


def test_a_folder_of_somebody_elses_stays(judged: list[str], tmp_path: Path, capsys) -> None:
    """One that is not empty is refused; one that holds this very set is gone on with."""
    line = [*judged, "--label_dir", str(tmp_path / "y.pt")]
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("mine")
    assert run([*line, "--out", str(mine)]) == 2
    assert "holds something else" in capsys.readouterr().err
    assert [p.name for p in mine.iterdir()] == ["thesis.txt"]
    out = tmp_path / "out"
    line[line.index("easy")] = "Easy"
    assert run([*line, "--out", str(out), "--dsa", "false", "--lr_net", "0.02"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "comp-dd/bird-easy, edf-plain@1+epochs=1 (" in shown
    assert "rate 0.02, 8 px" in shown
    shutil.rmtree(out)
    assert run([*line, "--out", str(out)]) == 0
    before = load(out).images
    assert run([*line, "--out", str(out)]) == 0
    torch.save(torch.zeros(10, 3, 8, 8), tmp_path / "x.pt")
    assert run([*line, "--out", str(out)]) == 2
    assert "holds something else" in capsys.readouterr().err
    assert torch.equal(load(out).images, before)


def test_the_ten_labels_of_the_published_list(judged: list[str], tmp_path: Path, capsys) -> None:
    """Students have ten outputs; numbers 1 to 9 are the classes, and nothing has number 0."""
    names = [WNIDS[i] for i in NUMBERS["comp-dd/music-hard"]]
    class_pictures(tmp_path / "in", names, {"train": 2, "val": 1}, 8)
    gen = torch.Generator().manual_seed(0)
    torch.save(torch.randn(9, 3, 8, 8, generator=gen), tmp_path / "x.pt")
    torch.save(9 * torch.eye(10)[1:], tmp_path / "y.pt")
    line = [
        {"bird": "music", "easy": "hard"}.get(word, word) for word in judged if word != "--quiet"
    ]
    line += ["--label_dir", str(tmp_path / "y.pt")]
    assert run(line) == 2  # nine classes without the flag
    assert "9" in capsys.readouterr().err
    out = tmp_path / "out"
    assert run([*line, "--strict-reference", "--out", str(out)]) == 0
    told = capsys.readouterr()
    assert "its published list names banjo twice" in " ".join(told.err.split())
    made = load(out)
    assert len(made.classes) == 10
    assert made.of_class.tolist() == [*range(1, 10)]
    assert made.classes[1:3] == (WNIDS[594], WNIDS[420])
    (students,) = (out / "exhibits").glob("students-*.json")
    assert json.loads(students.read_text())
    bird = [*judged, "--label_dir", str(tmp_path / "b.pt"), "--strict-reference"]
    torch.save(torch.arange(10), tmp_path / "b.pt")
    torch.save(torch.randn(10, 3, 8, 8, generator=gen), tmp_path / "x.pt")
    assert run(bird) == 0  # of other subsets the flag changes nothing
