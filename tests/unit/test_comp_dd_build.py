"""Easy and hard subsets: chosen on one half, told on the other; tables and files that are none."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import re
from pathlib import Path

import pytest
import torch
from scipy.stats import spearmanr

from stillroom.artefacts.executor import Serial
from stillroom.artefacts.originals import Original
from stillroom.artefacts.schooling import Schooling
from stillroom.artefacts.store import Store, obtain
from stillroom.cli import run
from stillroom.comp_dd.build import build, first_half, gap, read_built
from stillroom.comp_dd.categories import PACKAGED, Categories, read_categories
from stillroom.comp_dd.complexity import complexity, mean_of_classes
from stillroom.comp_dd.measure import Complexities
from stillroom.comp_dd.stats import of_built, read_complexity
from stillroom.data.benchmarks import Benchmark, DataSpec, load_benchmark
from stillroom.distilled import load
from stillroom.errors import StillroomError
from stillroom.evaluation.statistics import rank_correlation
from stillroom.nets.maps import Cam
from stillroom.nets.zoo import resolve
from stillroom.runtime import Runtime
from toy import class_pictures

CLASSES = ("a", "b", "c", "d", "e")


def looked_at(each: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Complexity of images: that of class c is 0.1 c and a bit more on every second image."""
    labels = torch.arange(5).repeat_interleave(each)
    second = (torch.arange(5 * each) % each) % 2
    return 0.1 * labels.double() + 0.02 * second.double() * labels, labels


def test_halves_alternate_within_a_class() -> None:
    labels = torch.tensor([1, 0, 0, 1, 0, 1, 1])
    assert first_half(labels).tolist() == [True, True, False, False, True, True, False]


def test_either_end_of_a_category() -> None:
    """Chosen by the first half; told of the second; ends in order; small categories left out."""
    values, labels = looked_at()
    categories = {"x": [3, 0, 4, 1], "y": [2]}
    easy, hard = build(values, labels, CLASSES, [7] * 5, categories, 2)
    assert (easy.name, hard.name) == ("x-easy", "x-hard")
    assert easy.classes == ("a", "b")
    assert hard.classes == ("e", "d")
    assert (easy.images, hard.images) == (14, 14)
    assert easy.chosen_on == pytest.approx((0.0 + 0.1) / 2)
    assert easy.held_out == pytest.approx((0.0 + 0.12) / 2)
    assert hard.chosen_on == pytest.approx((0.4 + 0.3) / 2)
    assert hard.held_out == pytest.approx((0.48 + 0.36) / 2)
    assert gap(easy, hard)[0] == pytest.approx(0.36)


def test_luck_of_the_choice_is_not_told() -> None:
    """Of pure noise the half that chose shows a difference, and the other one none."""
    gen = torch.Generator().manual_seed(0)
    classes = tuple(str(c) for c in range(40))
    labels = torch.arange(40).repeat_interleave(20)
    values = torch.rand(800, generator=gen, dtype=torch.float64)
    easy, hard = build(values, labels, classes, [20] * 40, {"x": range(40)}, 10)
    apart, half = gap(easy, hard)
    assert hard.chosen_on - easy.chosen_on > 2 * half
    assert abs(apart) < half


def test_the_interval_is_that_of_other_images() -> None:
    """Against drawing the images anew many times: its half is 1.96 standard deviations."""
    gen = torch.Generator().manual_seed(1)
    spread = torch.tensor([0.05, 0.2, 0.1])
    counts = (10, 30, 15)
    labels = torch.cat([torch.full((n,), c) for c, n in enumerate(counts)])

    def once() -> torch.Tensor:
        noise = torch.randn(len(labels), generator=gen, dtype=torch.float64)
        return 0.5 + noise * spread[labels]

    told = [mean_of_classes(once(), labels, [0, 2]) for _ in range(4000)]
    exact = math.sqrt(0.05**2 / 10 + 0.1**2 / 15) / 2
    assert torch.tensor([mean for mean, _ in told]).std().item() == pytest.approx(exact, rel=0.05)
    assert 0.94 < covered(told, 0.5) < 0.96


def covered(told: list[tuple[float, float]], truth: float) -> float:
    """The share of intervals that hold the truth."""
    return sum(abs(mean - truth) <= half for mean, half in told) / len(told)


@pytest.mark.parametrize(("classes", "images"), [(5, 4), (10, 2), (2, 8)])
def test_intervals_of_few_images_cover_too(classes: int, images: int) -> None:
    gen = torch.Generator().manual_seed(2)
    labels = torch.arange(classes).repeat_interleave(images)
    told = [
        mean_of_classes(
            torch.randn(len(labels), generator=gen, dtype=torch.float64), labels, range(classes)
        )
        for _ in range(3000)
    ]
    assert 0.935 < covered(told, 0.0) < 0.98


def test_the_interval_of_ranks_covers() -> None:
    """Of normal pairs of known rho; nothing is said of few, or of ranks that agree in full."""
    gen, told, r = torch.Generator().manual_seed(3), [], 0.7
    truth = 6 / math.pi * math.asin(r / 2)
    for _ in range(2000):
        x, e = torch.randn(2, 12, generator=gen, dtype=torch.float64)
        _, low, high = rank_correlation(x.tolist(), (r * x + math.sqrt(1 - r * r) * e).tolist())
        told.append(low <= truth <= high)
    assert 0.92 < sum(told) / len(told) < 0.97
    assert rank_correlation([1, 2, 3, 4], [1, 2, 4, 3])[1:] == (-1.0, 1.0)
    assert rank_correlation([*range(20)], [*range(20)]) == (pytest.approx(1.0), -1.0, 1.0)


@pytest.mark.parametrize(
    ("categories", "size", "each", "told"),
    [
        ({"x": [0, 1, 2], "y": [3, 4]}, 2, 8, "need 4 classes .* the largest, x, has 3"),
        ({"x": [0, 1, 2, 3]}, 2, 3, "class 'a' has fewer than four images"),
    ],
)
def test_what_cannot_be_built(categories, size, each, told) -> None:
    values, labels = looked_at(each)
    with pytest.raises(StillroomError, match=told):
        build(values, labels, CLASSES, [each] * 5, categories, size)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("name,kind\na,x\n", "its first line must be: class,category"),
        ("", "its first line must be"),
        ("class,category\na,x\na,y\n", "'a' is there twice"),
        ("class,category\na\n", "line 2 is not class,category"),
        ("class,category\na,../x\n", r"line 2: category '../x' becomes the name of a file"),
        ("class,category\na,.x\n", "becomes the name of a file"),
        ("class,category\na," + 99 * "x" + "\n", "becomes the name of a file"),
        ("class,category\n\n\na\n", "line 4 is not class,category"),
        ("class,category\na," + 200_000 * "x", "is no CSV"),
        ("class,category\na,x\nb,X\n", "differ by capital letters alone"),
        ("class,category,name\na,x\n", "line 2 is not class,category,name"),
        ("class,category,name\na,x,\x07\n", r"line 2: name '\\x07' is not 60 printable letters"),
        ("class,category\nz,x\n", "none of its classes is in the data"),
    ],
)
def test_tables_that_are_none(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "table.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(StillroomError, match=told):
        read_categories(str(path), CLASSES)


def test_a_table_of_more_classes_than_there_are(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text('class,category\nc,x\n"z, or y",y\na,x\n', encoding="utf-8")
    assert read_categories(str(path), CLASSES) == Categories({"x": [2, 0]}, {}, 1)
    path.write_text("class,category,name\nc,x,sea\nz,x,zoo\na,x,\n  \n,,\n", encoding="utf-8")
    assert read_categories(str(path), CLASSES) == Categories({"x": [2, 0]}, {"c": "sea"}, 1)


def test_the_packaged_table_is_of_real_classes(shared: Path, tmp_path: Path) -> None:
    """Every class is one of Tiny-ImageNet; every category has two subsets of five."""
    lines = (shared / "data/tiny-imagenet/classes.tsv").read_text(encoding="utf-8").splitlines()
    wnids = [line.split("\t")[1] for line in lines]
    read = read_categories("tiny-imagenet", wnids)
    found = read.classes
    assert list(PACKAGED) == ["tiny-imagenet"]
    assert read.others == 0
    called = dict(line.split("\t")[1:] for line in lines)
    for wnid, name in read.names.items():
        assert called[wnid].split(",")[0] == name
    assert len(read.names) == sum(map(len, found.values()))
    assert set(found) == {"insect", "mammal", "vehicle", "food", "clothing", "building"}
    assert min(map(len, found.values())) >= 10


def test_the_command_and_what_it_leaves(tmp_path: Path, capsys) -> None:
    """Lists that --classes takes, numbers that stats reads, a page; nothing half-written."""
    class_pictures(tmp_path / "data", list("abcdef"), {"train": 8, "test": 2}, 8)
    table = tmp_path / "table.csv"
    rows = [f"{c},x,{'' if c == 'a' else f'<{c}> & co'}\n" for c in "abcdef"]
    table.write_text("class,category,name\n" + "".join(rows), encoding="utf-8")
    out = tmp_path / "out"
    line = ["comp-dd", "build", "--data", str(tmp_path / "data"), "--categories", str(table)]
    line += ["--classes-each", "2", "--arch", "convnet1-w4", "--originals", "default+epochs=1"]
    line += ["--threads", "1", "--store", str(tmp_path / "store"), "--out", str(out)]
    assert run(line) == 0
    built = read_built(out)
    assert built.data == "data"
    assert [s.name for s in built.subsets] == ["x-easy", "x-hard"]
    (pair,) = of_built(out).pairs
    assert pair.images == (16, 16)
    assert pair.complexity == tuple(s.held_out for s in built.subsets)
    page = (out / "index.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 2
    assert page.count("data:image/png") == 8  # two images of each of four classes
    shown = dict.fromkeys(re.findall(r'class="label"><bdi>(.*?)</bdi>', page))
    chosen = [c for side in built.subsets for c in side.classes]
    assert [*shown] == [c if c == "a" else f"&lt;{c}&gt; &amp; co" for c in chosen]
    assert built.measured in page
    assert "of the label class in layer features." in built.measured  # not "auto"
    assert read_complexity(out / "complexity.csv") == pytest.approx(built.complexity, rel=1e-6)
    for side in built.subsets:
        listed = out / f"{side.name}.txt"
        spec = DataSpec(str(tmp_path / "data"), classes=listed)
        assert load_benchmark(spec, tmp_path / "store").classes == side.classes
    capsys.readouterr()
    assert run(["comp-dd", "stats", str(out)]) == 0
    assert "Subsets of data" in capsys.readouterr().out
    fresh = {"--out": str(tmp_path / "b")}
    for change, told in (
        ({}, "exists and is not empty"),
        ({**fresh, "--classes-each": "1"}, "two classes at least"),
        ({**fresh, "--classes-each": "4"}, "need 8 classes"),
        ({**fresh, "--categories": "nowhere.csv"}, "nowhere.csv"),
        ({**fresh, "--threshold": "0"}, "must lie above 0"),
        ({**fresh, "--each": "3"}, "--each must be at least 4"),
        ({**fresh, "--examples": "-1"}, "--examples at least 0"),
        ({"--out": str(table)}, "table.csv is a file; name another"),
        ({"--out": str(table / "x")}, "table.csv is no folder; name another"),
        ({**fresh, "--layer": "classifier"}, "is no map of convnet1-w4, whose maps are"),
    ):
        other = [*line]
        for flag, value in change.items():
            if flag not in other:
                other += [flag, ""]
            other[other.index(flag) + 1] = value
        assert run(other) == 2
        assert told in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


SIDE = {"classes": ["a", "b"], "images": 3, "chosen_on": 0.5, "held_out": 0.5, "half": 0.1}
EASY, HARD = ({"category": "x", "side": side, **SIDE} for side in ("easy", "hard"))


def told(*subsets: dict) -> str:
    """A file of subsets."""
    common = {"data": "d", "digest": "0", "network": "n", "measured": "m", "complexity": {}}
    return json.dumps({**common, "subsets": subsets})


@pytest.mark.parametrize(
    "harm",
    [
        *("{}", "[", '{"data": 1}', "absent"),
        *(told(), told(EASY), told(HARD, EASY), told(EASY, {**HARD, "category": "y"})),
        *(told(EASY, HARD, EASY, HARD), told(EASY, {**HARD, "images": 10**400})),
        *(
            told(EASY, {**HARD, "half": math.nan}),
            told(*({**s, "category": ".."} for s in (EASY, HARD))),
        ),
    ],
)
def test_a_damaged_build_is_named(tmp_path: Path, harm: str, capsys) -> None:
    if harm != "absent":
        (tmp_path / "subsets.json").write_text(harm, encoding="utf-8")
    assert run(["comp-dd", "stats", str(tmp_path), "--out", str(tmp_path / "p.html")]) == 2
    said = capsys.readouterr().err.strip()
    assert "subsets.json" in said or "category '..'" in said
    assert "\n" not in said
    assert not (tmp_path / "p.html").exists()


def test_empty_maps_are_told_wherever_a_build_is(tmp_path: Path) -> None:
    """Of a table and of a page; few of them are not worth a line."""
    for empty, said in ((0.29, True), (0.009, False)):
        whole = json.loads(told(EASY, HARD)) | {"empty": empty}
        (tmp_path / "subsets.json").write_text(json.dumps(whole), encoding="utf-8")
        found = of_built(tmp_path)
        line = "No pixel is active in 29% of the images"
        assert any(note.startswith(line) for note in found.notes) == said
        assert (line in found.page()) == said


def test_a_whole_build_is_read(tmp_path: Path) -> None:
    (tmp_path / "subsets.json").write_text(told(EASY, HARD), encoding="utf-8")
    assert [s.name for s in read_built(tmp_path).subsets] == ["x-easy", "x-hard"]


@pytest.mark.parametrize("text", ["", "class\na\n", "class,complexity\na,x\n", "a,b\n"])
def test_tables_of_complexity_that_are_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "c.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(StillroomError, match="is no table of classes"):
        read_complexity(path)
    path.write_text("class,complexity\na,1.5\n", encoding="utf-8")
    with pytest.raises(StillroomError, match="'a' is no share"):
        read_complexity(path)


def ranks_told(text: str) -> dict[tuple[str, str], float]:
    """The rho of every two orders of classes, as a table prints them."""
    found = re.findall(r"│ (\S.*?) +│ (\S.*?) +│ (-?\d\.\d\d) +│ -?\d\.\d\d to ", text)
    return {(first, second): float(rho) for first, second, rho in found}


def test_several_networks_are_compared(tmp_path: Path, capsys) -> None:
    """A column each, in the layer that is asked, their ranks; a line an image in the other file."""
    line = ["comp-dd", "complexity", "--data", "digits", "--arch", "convnet1-w4", "convnet1-w8"]
    line += ["--layer", "features.3", "features.0"]
    line += ["--originals", "default+epochs=1", "--each", "6", "--threads", "1"]
    images, classes = tmp_path / "images.csv", tmp_path / "classes.csv"
    line += ["--images", str(images), "--out", str(classes), "--store", str(tmp_path / "store")]
    assert run(line) == 0
    printed = capsys.readouterr()
    said = " ".join(printed.err.split())
    assert "convnet1-w4: grad-cam of the label class in layer features.3" in said
    assert "convnet1-w8: grad-cam of the label class in layer features.0" in said
    told_ranks = ranks_told(printed.out)
    head, *rows = (row.split(",") for row in images.read_text().splitlines())
    assert head == ["training image", "class", "by convnet1-w4", "by convnet1-w8"]
    assert len(rows) == 60
    told = {r[0]: r for r in (x.split(",") for x in classes.read_text().splitlines())}
    names = sorted(told.keys() - {"class"})

    def means(column: int, part: slice = slice(None)) -> list[float]:
        """Sums of a class, six images of which stand one after another."""
        return [sum(float(row[column]) for row in rows[part] if row[1] == c) for c in names]

    for i, wanted in ((2, 1), (3, 2)):  # a class's number is the mean of its images'
        assert means(i)[0] / 6 == pytest.approx(float(told["0"][wanted]), abs=1e-6)
        halves = [means(i, part) for part in (slice(0, None, 2), slice(1, None, 2))]
        rho = told_ranks.pop((head[i].removeprefix("by "), "the other half of the images"))
        assert rho == pytest.approx(float(spearmanr(*halves).statistic), abs=0.006)
    both = float(spearmanr(means(2), means(3)).statistic)
    assert told_ranks == {("convnet1-w4", "convnet1-w8"): pytest.approx(both, abs=0.006)}


def test_several_models_of_a_network_are_compared(tmp_path: Path, capsys) -> None:
    """`--num 2` trains it twice, of which the first is the one of `--num 1`."""
    line = ["comp-dd", "complexity", "--data", "digits", "--arch", "convnet1-w4", "--each", "6"]
    line += ["--originals", "default+epochs=1", "--threads", "1", "--quiet"]
    line += ["--store", str(tmp_path / "store")]
    columns = []
    for num, name in ((1, "one.csv"), (2, "two.csv")):
        assert run([*line, "--num", str(num), "--out", str(tmp_path / name)]) == 0
        with (tmp_path / name).open(newline="") as stream:
            columns.append(sorted(list(csv.reader(stream))[1:]))
    one, two = columns
    assert [row[:2] for row in one] == [row[:2] for row in two]
    assert [row[1] for row in two] != [row[2] for row in two]
    told = ranks_told(capsys.readouterr().out)
    rho = float(spearmanr(*([float(row[i]) for row in two] for i in (1, 2))).statistic)
    assert told["convnet1-w4 (1)", "convnet1-w4 (2)"] == pytest.approx(rho, abs=0.006)
    for more, said in (
        (["--num", "0"], "--num 0 must lie in 1..1000"),
        (["--layer", "features.0", "features.3"], "--layer names 2 layers of 1 networks"),
        (["--layer", "features.99"], "--layer 'features.99' is no map of convnet1-w4"),
    ):
        assert run([*line, *more]) == 2
        assert said in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("cam", ["grad-cam", "smooth-grad-cam++"])
def test_the_page_shows_what_was_measured(bench: Benchmark, store: Path, cam: Cam) -> None:
    """Maps of single images are, to a bit, those whose active share is their complexity."""
    model = Original(
        Schooling(epochs=2, batch=8), bench.describe(), resolve("convnet1-w4"), 0, store
    )
    stage = Complexities(model, cam=cam, threshold=0.3, each=12)
    rt = Runtime(device=torch.device("cpu"), threads=1)
    _, values = obtain(Store(store), stage, Serial(), rt)
    places = torch.tensor([20, 3, 11])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stillroom.comp_dd.measure.TOGETHER", 8)
        again = dataclasses.replace(stage, each=11)  # in batches of eight
        _, parted = obtain(Store(store), again, Serial(), rt)
        some = again.maps_of(bench, places, rt)
        assert torch.equal(complexity(some, 0.3), parted[places])
    assert torch.equal(complexity(stage.maps_of(bench, places, rt), 0.3), values[places])


def test_a_set_of_some_classes_finds_its_data(tmp_path: Path, capsys) -> None:
    """Without --data out of the store; with other classes it says which flag is missing."""
    listed = tmp_path / "some.txt"
    listed.write_text("7\n1\n", encoding="utf-8")
    store = ["--store", str(tmp_path / "store"), "--quiet"]
    line = ["distill", "random", "--data", "digits", "--classes", str(listed), "--ipc", "1"]
    out = str(tmp_path / "set")
    assert run([*line, "--out", out, *store]) == 0
    assert load(out).classes == ("7", "1")
    judge = ["evaluate", out, "--protocol", "quick@1", "--plan", *store]
    assert run(judge) == 0
    assert run([*judge, "--data", "digits", "--classes", str(listed)]) == 0
    capsys.readouterr()
    assert run([*judge, "--data", "digits"]) == 2
    assert "name them with --classes FILE" in capsys.readouterr().err
    assert run([*judge, "--classes", str(listed)]) == 2
    assert "name them: --data" in capsys.readouterr().err
