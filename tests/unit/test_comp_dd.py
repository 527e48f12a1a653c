"""Comp-DD: sixteen subsets, and the seven values that its page documents."""

from __future__ import annotations

import dataclasses
import io
import itertools
import warnings
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from stillroom.artefacts.executor import Serial
from stillroom.artefacts.originals import Original, opened
from stillroom.artefacts.schooling import Schooling
from stillroom.artefacts.store import Store, obtain
from stillroom.cli import run
from stillroom.comp_dd import CATEGORIES, SIDES, load_comp_dd, subset_name
from stillroom.comp_dd.measure import Complexities
from stillroom.data.benchmarks import Benchmark
from stillroom.data.imagenet import SUBSETS, WNIDS
from stillroom.errors import StillroomError
from stillroom.nets.maps import activation_maps, deepest
from stillroom.nets.zoo import resolve
from stillroom.runtime import Runtime

ALL = [subset_name(c, s) for c, s in itertools.product(CATEGORIES, SIDES)]


def imagenet(root: Path, name: str, train: int = 2, val: int = 1) -> Path:
    """The part of an ImageNet that a subset needs: pictures of a colour a class."""
    for split, count in (("train", train), ("val", val)):
        for index in SUBSETS[name]:
            below = root / split / WNIDS[index]
            below.mkdir(parents=True, exist_ok=True)
            for i in range(count):
                Image.new("RGB", (20, 16), (index % 250, 40 * i, 90)).save(below / f"{i}.png")
    return root


def test_sixteen_subsets() -> None:
    assert len(ALL) == len(set(ALL)) == 16
    assert set(ALL) == {name for name in SUBSETS if name.startswith("comp-dd/")}
    for name in ALL:
        wanted = 9 if name == "comp-dd/music-hard" else 10
        assert len(set(SUBSETS[name])) == len(SUBSETS[name]) == wanted
    for category in CATEGORIES:
        easy, hard = (set(SUBSETS[subset_name(category, side)]) for side in SIDES)
        assert not easy & hard


def test_the_seven_values(tmp_path: Path) -> None:
    root = imagenet(tmp_path / "in", "comp-dd/bird-easy")
    found = load_comp_dd(root, "bird", "easy", (16, 16), 4, store=tmp_path / "store")
    channel, size, classes, train, test, class_map, back = found
    assert (channel, size, classes, len(train), len(test)) == (3, (16, 16), 10, 20, 10)
    assert class_map == {index: i for i, index in enumerate(SUBSETS["comp-dd/bird-easy"])}
    assert back == {i: index for index, i in class_map.items()}
    image, label = train[0]
    assert (image.shape, image.dtype, type(label)) == ((3, 16, 16), torch.float32, int)
    for i in range(len(train)):  # every label is that of the picture's colour
        image, label = train[i]
        red = float(image[0].mean()) * 0.229 + 0.485
        assert round(red * 255) == back[label] % 250
    assert sorted({train[i][1] for i in range(20)}) == list(range(10))
    batches = list(train.batches())
    assert [len(x) for x, _ in batches] == [4] * 5
    assert torch.equal(batches[0][0][1], train[1][0])
    assert torch.equal(train[-1][0], train[19][0])
    with pytest.raises(IndexError):
        train[20]
    assert len(list(iter(train))) == 20  # as any map-style data set


def test_names_of_both_kinds(tmp_path: Path) -> None:
    assert subset_name("birds", "hard") == subset_name("bird", "hard") == "comp-dd/bird-hard"
    for category, side, told in (
        ("brid", "easy", "did you mean 'bird'"),
        ("bird", "medium", "subset='medium' is none of easy, hard"),
    ):
        with pytest.raises(ValueError, match=told):
            load_comp_dd(tmp_path, category, side)
    for more, told in (((16, 8), "is no square"), ((16, 16), "no positive number")):
        with pytest.raises(ValueError, match=told):
            load_comp_dd(tmp_path, "bird", "easy", more, 0)
    with pytest.raises(StillroomError):
        load_comp_dd(tmp_path, "bird", "easy", (16, 16), store=tmp_path / "store")


def test_nine_classes_of_music(tmp_path: Path) -> None:
    root = imagenet(tmp_path / "in", "comp-dd/music-hard")
    store = tmp_path / "store"
    with pytest.warns(UserWarning, match="9 distinct classes"):
        *_, classes, train, _, class_map, _ = load_comp_dd(
            root, "music", "hard", (16, 16), store=store
        )
    assert (classes, class_map[420]) == (9, 0)
    with pytest.warns(UserWarning, match="9 distinct classes"):
        *_, classes, train, _, class_map, back = load_comp_dd(
            root, "music", "hard", (16, 16), store=store, strict_reference=True
        )
    assert (classes, class_map[420], back[0], back[2]) == (10, 2, 420, 420)
    assert sorted({label for _, label in train}) == [1, *range(2, 10)]


SAMPLE = Path(__file__).resolve().parents[3] / "shared/data/imagenet-sample"


def test_real_images_of_every_subset(tmp_path: Path) -> None:
    """A folder of one real image a class, made from the sample that lies beside the project."""
    files = sorted(SAMPLE.glob("*.parquet"))
    if not files:
        pytest.skip(f"the sample of ImageNet-1K is not here: {SAMPLE}")
    table = pq.read_table(files[0])
    pictures = dict(zip(table["label"].to_pylist(), table["image"].to_pylist(), strict=True))
    for name in ALL:
        for split, index in itertools.product(("train", "val"), SUBSETS[name]):
            below = tmp_path / "in" / split / WNIDS[index]
            below.mkdir(parents=True, exist_ok=True)
            (below / "0.jpg").write_bytes(pictures[index]["bytes"])
    for category, side in itertools.product(CATEGORIES, SIDES):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = load_comp_dd(tmp_path / "in", category, side, (32, 32), store=tmp_path / "s")
        channel, size, classes, train, test, class_map, back = found
        listed = SUBSETS[subset_name(category, side)]
        assert (channel, size, classes) == (3, (32, 32), len(listed))
        at = {label: i for i, (_, label) in enumerate(train)}
        assert sorted(at) == sorted(label for _, label in test) == [*range(classes)]
        assert [back[c] for c in range(classes)] == [*listed] == [*class_map]
        # The middle square of the very picture, at 32 pixels.
        picture = Image.open(io.BytesIO(pictures[listed[3]]["bytes"])).convert("RGB")
        mean = torch.tensor([0.485, 0.456, 0.406])
        std = torch.tensor([0.229, 0.224, 0.225])
        shown = (train[at[3]][0].mean((1, 2)) * std + mean) * 255
        side_ = min(picture.size)
        left, top = (picture.width - side_) // 2, (picture.height - side_) // 2
        middle = np.asarray(picture.crop((left, top, left + side_, top + side_)), dtype=np.float64)
        assert np.abs(middle.mean((0, 1)) - shown.double().numpy()).max() < 2.5


def test_complexity_of_classes(bench: Benchmark, store: Path) -> None:
    """Of every image by its map; rows drawn by key, each class's own; the network's own layer."""
    schooling = Schooling(epochs=5, batch=8)
    model = Original(schooling, bench.describe(), resolve("convnet1-w4"), 0, store)
    rt = Runtime(device=torch.device("cpu"), threads=1)
    stage = Complexities(model, each=5)
    rows, found = obtain(Store(store), stage, Serial(), rt)
    labels = bench.train.labels[rows]
    assert labels.tolist() == [0] * 5 + [1] * 5
    nets = opened(model.load(Store(store).folder(model.key())), bench, rt)
    for row, value in zip(rows.tolist(), found.tolist(), strict=True):
        x = bench.preprocess.apply(bench.train.take(torch.tensor([row])))
        own = activation_maps(nets, deepest(nets), x, bench.train.labels[[row]])[0]
        assert value == pytest.approx(1 - float((own >= 0.5).double().mean()), abs=0.02)
    others = [dataclasses.replace(stage, **more) for more in (
        {"of": "predicted"}, {"cam": "smooth-grad-cam++"}, {"threshold": 0.9}, {"each": 4},
        {"layer": "features.0"})]  # fmt: skip
    assert len({s.key() for s in (stage, *others)}) == 6
    loud = obtain(Store(store), others[2], Serial(), rt)[1]
    assert bool((loud >= found).all())


def test_the_command_ranks_the_digits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "digits.csv"
    line = ["comp-dd", "complexity", "--data", "digits", "--arch", "convnet1-w8", "--each", "20"]
    line += ["--originals", "default+epochs=2", "--threads", "1", "--quiet", "--out", str(out)]
    assert run([*line, "--store", str(tmp_path / "store")]) == 0
    assert "hard first" in capsys.readouterr().out
    head, *rows = (text.split(",") for text in out.read_text().splitlines())
    assert head == ["class", "complexity", "images"]
    values = [float(row[1]) for row in rows]
    assert sorted(row[0] for row in rows) == [str(d) for d in range(10)]
    assert values == sorted(values, reverse=True)
    assert all(0 < value < 1 for value in values)
    assert {row[2] for row in rows} == {"20"}
    assert run([*line, "--threshold", "0", "--store", str(tmp_path / "store")]) == 2
    assert run(["comp-dd", "list"]) == 0
    assert "comp-dd/music-hard" in capsys.readouterr().out
