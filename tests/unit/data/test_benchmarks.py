"""`Benchmark`: loading, digests, splits, and reopening from the store alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stillroom.config import DSA_UNMIRRORED
from stillroom.data.arrays import raw_arrays
from stillroom.data.benchmarks import (
    Benchmark,
    DataSpec,
    from_arrays,
    load_benchmark,
    reopen,
)
from stillroom.data.chosen import only
from stillroom.data.named import Found
from stillroom.errors import StillroomError
from stillroom.recipe import from_preset
from stillroom.run.machine import choose_arch
from toy import toy_images

Make = Callable[..., Path]


@pytest.fixture
def pets(tmp_path: Path, tree: Make) -> Path:
    return tree(tmp_path / "pets", {"cat": 10, "dog": 5, "eel": 5})


def same(a: Benchmark, b: Benchmark) -> bool:
    parts = [(a.train, b.train), (a.test, b.test)]
    if a.val is not None and b.val is not None:
        parts.append((a.val, b.val))
    return (a.val is None) == (b.val is None) and all(
        torch.equal(x.images, y.images) and torch.equal(x.labels, y.labels) for x, y in parts
    )


def test_folder_without_a_test_split(pets: Path, tmp_path: Path) -> None:
    bench = load_benchmark(DataSpec(str(pets)), tmp_path / "store")
    assert (bench.name, bench.size, bench.channels) == ("pets", 8, 3)
    assert bench.classes == ("cat", "dog", "eel")
    assert bench.split == "keyed stratified 80/20"
    assert torch.bincount(bench.test.labels).tolist() == [2, 1, 1]
    assert torch.bincount(bench.train.labels).tolist() == [8, 4, 4]
    assert bench.val is None
    assert bench.preprocess.name == "fitted"
    assert bench.notes == ("the data have no test split: it was drawn (keyed stratified 80/20)",)
    normal = bench.preprocess.apply(bench.train.images).transpose(0, 1).flatten(1)
    assert normal.mean(1).abs().max() < 1e-5


def test_given_test_split_and_duplicates(tmp_path: Path, tree: Make) -> None:
    root = tmp_path / "d"
    tree(root / "train", {"a": 3, "b": 2})
    tree(root / "test", {"a": 1, "b": 1}, first=70)
    shutil.copy(root / "train" / "b" / "001.png", root / "test" / "a" / "copy.png")
    bench = load_benchmark(DataSpec(str(root)), tmp_path / "store")
    assert bench.split == "given"
    assert (len(bench.train), len(bench.test), bench.duplicates) == (5, 3, 1)
    assert bench.notes == ("1 test images are byte-identical to a training image",)
    assert bench.describe()["duplicates"] == 1
    carved = load_benchmark(DataSpec(str(root), val=0.4), tmp_path / "store")
    assert carved.duplicates == 1


def test_notes_on_resizing_and_skipping(pets: Path, tmp_path: Path) -> None:
    (pets / "cat" / "000.png").write_bytes(b"")
    spec = DataSpec(str(pets), size=4, skip_bad=True)
    bench = load_benchmark(spec, tmp_path / "store")
    assert bench.size == 4
    assert bench.notes[1:] == (
        "19 images of another shape were resized to 4x4",
        "1 unreadable images were left out: cat/000.png",
    )
    with pytest.raises(StillroomError, match=r"cat/000\.png: not a readable image"):
        load_benchmark(replace(spec, skip_bad=False), tmp_path / "store")
    with pytest.raises(StillroomError, match="size=0 must be between 1 and 2048"):
        load_benchmark(replace(spec, size=0), tmp_path / "store")


def test_digest_follows_what_it_should(pets: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    base = DataSpec(str(pets))
    first = load_benchmark(base, store)
    assert load_benchmark(base, tmp_path / "another store").digest == first.digest
    changed = [
        replace(base, size=4),
        replace(base, val=0.2),
        replace(base, split_seed=1),
        replace(base, normalise="half"),
        replace(base, normalise="none"),
        replace(base, zca=True),
        replace(base, val=0.2, split_seed=1),
    ]
    digests = {load_benchmark(spec, store).digest for spec in changed} | {first.digest}
    assert len(digests) == len(changed) + 1
    moved = pets.rename(tmp_path / "renamed")
    assert load_benchmark(replace(base, data=str(moved)), store).digest == first.digest
    (moved / "cat").rename(moved / "kitten")
    assert load_benchmark(replace(base, data=str(moved)), store).digest != first.digest


def test_split_seed_is_idle_where_nothing_is_drawn(tmp_path: Path, tree: Make) -> None:
    tree(tmp_path / "d" / "train", {"a": 3})
    tree(tmp_path / "d" / "test", {"a": 1}, first=9)
    spec, store = DataSpec(str(tmp_path / "d")), tmp_path / "store"
    seven = replace(spec, split_seed=7)
    assert load_benchmark(spec, store).digest == load_benchmark(seven, store).digest


@pytest.mark.parametrize(
    "choice",
    [
        {},
        {"val": 0.25, "split_seed": 3},
        {"zca": True},
        {"normalise": "half"},
        {"size": 5},
    ],
)
def test_reopen_from_the_store_alone(pets: Path, tmp_path: Path, choice: dict[str, Any]) -> None:
    store = tmp_path / "store"
    bench = load_benchmark(DataSpec(str(pets), **choice), store)
    described = bench.describe()
    text = json.dumps(described)
    assert str(tmp_path) not in text
    shutil.rmtree(pets)
    again = reopen(json.loads(text), store)
    assert again.digest == bench.digest
    assert again.describe() == described
    assert same(again, bench)
    assert again.preprocess.describe() == bench.preprocess.describe()


def test_named_benchmark_reopens_with_its_constants(tmp_path: Path, parquet: Make) -> None:
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "t"]
    parquet(tmp_path / "cifar10" / "train.parquet", [*range(10), *range(10)], names)
    bench = load_benchmark(DataSpec("cifar10", tmp_path), tmp_path / "store")
    assert (bench.size, bench.preprocess.name) == (32, "cifar10")
    again = reopen(bench.describe(), tmp_path / "store")
    assert again.preprocess == bench.preprocess
    assert again.digest == bench.digest


def test_reopen_refuses_what_it_cannot_trust(pets: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    described = load_benchmark(DataSpec(str(pets)), store).describe()
    with pytest.raises(StillroomError, match=r"no decoded copy .* pass --data"):
        reopen(described, tmp_path / "empty")
    with pytest.raises(StillroomError, match="in the store have digest"):
        reopen(described | {"split_seed": 5}, store)
    for field, value in {
        "content": "../../etc",
        "name": 3,
        "val": "0",
        "zca": "yes",
        "split_seed": None,
        "normalise": "evil",
    }.items():
        with pytest.raises(StillroomError):
            reopen(described | {field: value}, store)
    with pytest.raises(StillroomError, match="exceeds 300 letters"):
        reopen(described | {"name": "n" * 301}, store)
    del described["digest"]
    with pytest.raises(StillroomError, match="lacks a sound field 'digest'"):
        reopen(described, store)


def test_zca_excludes_other_normalisation(pets: Path, tmp_path: Path) -> None:
    with pytest.raises(StillroomError, match="excludes normalise='half'"):
        load_benchmark(DataSpec(str(pets), zca=True, normalise="half"), tmp_path / "store")


def test_zca_is_fitted_on_train_only(pets: Path, tmp_path: Path) -> None:
    bench = load_benchmark(DataSpec(str(pets), zca=True, val=0.2), tmp_path / "store")
    assert bench.preprocess.zca is not None
    mean = bench.train.images.flatten(1).double().mean(0) / 255
    assert (bench.preprocess.zca.mean - mean).abs().max() < 1e-6


def test_digits_work_everywhere(tmp_path: Path) -> None:
    bench = load_benchmark(DataSpec("digits"), tmp_path)
    assert bench.train.shape == (1, 8, 8)
    assert len(bench.train) + len(bench.test) == 1797
    assert bench.preprocess.name == "fitted"
    assert same(bench, reopen(bench.describe(), tmp_path))


def test_arrays_kept_in_a_store_reopen(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (10, 4, 4), dtype=np.uint8)
    labels = [0] * 5 + [1] * 5
    kept = from_arrays(images, labels, store=tmp_path, val=0.25)
    free = from_arrays(images, labels, val=0.25)
    assert kept.digest == free.digest
    assert same(kept, free)
    assert same(reopen(kept.describe(), tmp_path), kept)


def test_class_of_one_image(tmp_path: Path, tree: Make) -> None:
    tree(tmp_path / "d", {"a": 3, "lonely": 1})
    with pytest.raises(StillroomError, match="class 'lonely' has 1 image"):
        load_benchmark(DataSpec(str(tmp_path / "d")), tmp_path / "store")


@pytest.mark.slow
def test_real_cifar10(shared: Path, tmp_path: Path) -> None:
    bench = load_benchmark(DataSpec("cifar10", shared / "data"), tmp_path)
    assert bench.train.shape == (3, 32, 32)
    assert (len(bench.train), len(bench.test)) == (50000, 10000)
    assert bench.classes[:3] == ("airplane", "automobile", "bird")
    assert torch.bincount(bench.train.labels).tolist() == [5000] * 10
    assert (bench.split, bench.preprocess.name) == ("given", "cifar10")
    normal = bench.preprocess.apply(bench.train.images[::50])
    assert normal.std((0, 2, 3)) == pytest.approx([1.21, 1.22, 1.30], abs=0.02)
    assert reopen(bench.describe(), tmp_path).digest == bench.digest


@pytest.mark.parametrize(
    ("name", "classes", "shape", "constants"),
    [
        ("cifar10", 10, (32, 32, 3), "cifar10"),
        ("cifar10", 9, (32, 32, 3), None),
        ("cifar10", 10, (16, 16, 3), None),
        ("cifar10", 10, (32, 32), None),
        ("mnist", 10, (28, 28), "mnist"),
        ("holiday", 10, (32, 32, 3), None),
    ],
)
def test_what_is_published_applies_where_name_classes_and_shape_agree(
    name: str, classes: int, shape: tuple[int, ...], constants: str | None
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4 * classes, *shape), dtype=np.uint8)
    labels = np.arange(4 * classes) % classes
    bench = from_arrays(pixels, labels, pixels[:classes], labels[:classes], name=name)
    assert bench.known == (name if constants else None)
    assert bench.preprocess.name == (constants or "fitted")


def test_some_classes_in_an_order_of_ones_own(pets: Path, tmp_path: Path) -> None:
    """As if the folder held those alone; labels follow the file, as do the pixels."""
    listed = tmp_path / "two.txt"
    listed.write_text("eel\n\n cat \n", encoding="utf-8")
    spec = DataSpec(str(pets), classes=listed)
    bench = load_benchmark(spec, tmp_path / "store")
    whole = load_benchmark(replace(spec, classes=None), tmp_path / "store")
    assert (bench.name, bench.classes) == ("pets/two", ("eel", "cat"))
    assert torch.bincount(bench.train.labels).tolist() == [4, 8]
    assert torch.bincount(bench.test.labels).tolist() == [1, 2]
    assert bench.content != whole.content

    def images(of: Benchmark, c: int) -> set[bytes]:
        parts = [(s.images, s.labels) for s in (of.train, of.test)]
        return {x.numpy().tobytes() for xs, ys in parts for x in xs[ys == c]}

    for c, same_class in ((0, 2), (1, 0)):
        assert images(bench, c) == images(whole, same_class)
    assert same(reopen(bench.describe(), tmp_path / "store"), bench)


def test_names_of_classes_are_taken_as_they_are(tmp_path: Path) -> None:
    """Spaces at their ends, and signs that other programs take for the end of a line."""
    images, labels = toy_images(classes=3)
    names = ("tw\u2028o", " one", "s\x0bv")
    raw = raw_arrays((images, labels), None, names, "odd")
    listed = tmp_path / "list.txt"
    listed.write_bytes(b"s\x0bv\r\n one\n")
    found = only(Found(raw, "odd", None, None), listed)
    assert found.raw.classes == ("s\x0bv", " one")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("\n".join(map(str, range(150_000))).encode(), "has no class '0'"),
        (b"cat\neal\n", "pets has no class 'eal'; did you mean 'eel'"),
        (b"cat\ndog\ncat\n", "names 'cat' twice"),
        (b"cat\n", "names 1 classes"),
        (b"\xff\xfe\x00", "no text in UTF-8"),
        (b"", "names 0 classes"),
        (None, "classes"),
    ],
)
def test_lists_of_classes_that_are_none(
    pets: Path, tmp_path: Path, text: bytes | None, told: str
) -> None:
    listed = tmp_path / "list.txt"
    if text is not None:
        listed.write_bytes(text)
    with pytest.raises(StillroomError, match=told):
        load_benchmark(DataSpec(str(pets), classes=listed), tmp_path / "store")


def test_some_classes_keep_what_suits_the_others(tmp_path: Path) -> None:
    """Digits are not mirrored, whichever of them there are; nothing published is of some."""
    listed = tmp_path / "three.txt"
    listed.write_text("3\n1\n7\n", encoding="utf-8")
    some = load_benchmark(DataSpec("digits", classes=listed), tmp_path / "store")
    assert (some.known, some.like) == (None, "digits")
    assert choose_arch("auto", some).name == "convnet2"
    made, row = from_preset("dsa", some.name, 1, {}, some.known)
    assert (made.method.augment, row) == (DSA_UNMIRRORED, None)
    large = load_benchmark(DataSpec("digits", size=32, classes=listed), tmp_path / "store")
    assert choose_arch("auto", large).name == "convnet3"
    followed, _ = from_preset("mtt", some.name, 1, {}, some.known)
    assert followed.method.schooling.augment == DSA_UNMIRRORED
