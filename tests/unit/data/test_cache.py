"""The decoded cache: sizes and channels, damage, crashes, concurrency, content."""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from stillroom.data import pixels, source
from stillroom.data.cache import Decoded, cached, find_by_content, in_memory
from stillroom.data.raw import RawSplits, array_split
from stillroom.data.readers import class_folder
from stillroom.errors import StillroomError

Make = Callable[..., Path]
FORK = multiprocessing.get_context("fork")  # a fresh interpreter would import torch for seconds


def load(root: Path, store: Path, size: int | None = None, skip_bad: bool = False) -> Decoded:
    return cached(class_folder(root), store, size, skip_bad)


def entry(store: Path) -> Path:
    (folder,) = store.glob("data-*")
    return folder


def test_pixels_labels_and_layout(tmp_path: Path, tree: Make, picture: Callable[..., Any]) -> None:
    found = load(tree(tmp_path / "d", {"a": 2, "b": 1}), tmp_path / "store")
    assert (found.size, found.channels, found.resized, found.skipped) == (8, 3, 0, ())
    assert found.train.labels.tolist() == [0, 0, 1]
    for seed in range(3):
        assert (found.train.images[seed].permute(1, 2, 0).numpy() == picture(seed)).all()
    assert found.test is None
    names = {path.name for path in entry(tmp_path / "store").iterdir()}
    assert names == {"train.images.u8", "train.labels.i64", "meta.json"}


def test_grey_stays_one_channel_until_any_colour(tmp_path: Path, tree: Make) -> None:
    tree(tmp_path / "d" / "train", {"a": 2}, channels=1)
    tree(tmp_path / "d" / "test", {"a": 1}, first=9, channels=1)
    grey = load(tmp_path / "d", tmp_path / "store")
    assert grey.channels == 1
    shutil.rmtree(tmp_path / "d" / "test")
    tree(tmp_path / "d" / "test", {"a": 1}, first=9)
    mixed = load(tmp_path / "d", tmp_path / "store")
    assert mixed.channels == 3
    for channel in range(3):
        assert torch.equal(mixed.train.images[:, channel], grey.train.images[:, 0])


@pytest.mark.parametrize(
    ("sizes", "size", "expected", "resized"),
    [
        ([(8, 8), (8, 8)], None, 8, 0),
        ([(8, 8), (9, 8)], None, 64, 2),
        ([(8, 9), (8, 9)], None, 64, 2),
        ([(257, 257), (257, 257)], None, 64, 2),
        ([(64, 64), (70, 90)], None, 64, 1),
        ([(8, 8), (9, 8)], 6, 6, 2),
    ],
)
def test_size_rule(
    sizes: list[tuple[int, int]], size: int | None, expected: int, resized: int
) -> None:
    images = [np.zeros((*shape, 3), dtype=np.uint8) for shape in sizes]
    found = in_memory(RawSplits(("a",), {"train": array_split(images, [0, 0], "t")}, []), size)
    assert (found.size, found.resized) == (expected, resized)
    assert found.train.images.shape == (2, 3, expected, expected)


def test_large_images_decode_on_threads_in_order(tmp_path: Path) -> None:
    (tmp_path / "d" / "a").mkdir(parents=True)
    for i in range(20):
        Image.new("RGB", (220, 210), (i, i, i)).save(tmp_path / "d" / "a" / f"{i:02d}.png")
    found = load(tmp_path / "d", tmp_path / "store", size=4)
    assert found.train.images[:, 0, 0, 0].tolist() == list(range(20))
    assert found.resized == 20


def test_bad_images_stop_or_are_listed(tmp_path: Path, tree: Make) -> None:
    root = tree(tmp_path / "d", {"a": 3, "b": 2})
    whole = (root / "a" / "001.png").read_bytes()
    (root / "a" / "001.png").write_bytes(whole[:60])
    (root / "b" / "000.png").write_bytes(b"")
    with pytest.raises(StillroomError, match=r"a/001\.png: not a readable image"):
        load(root, tmp_path / "store")
    assert not list((tmp_path / "store").glob("data-*"))
    found = load(root, tmp_path / "store", skip_bad=True)
    assert found.skipped == ("a/001.png", "b/000.png")
    assert found.train.labels.tolist() == [0, 0, 1]
    (root / "b" / "001.png").write_bytes(b"")
    with pytest.raises(StillroomError, match="no training image of class 'b' can be read"):
        load(root, tmp_path / "store", skip_bad=True)
    for path in root.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(StillroomError, match="none of the images can be read"):
        load(root, tmp_path / "store", skip_bad=True)


def test_second_open_decodes_nothing(
    tmp_path: Path, tree: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tree(tmp_path / "d", {"a": 2})
    first = load(root, tmp_path / "store")

    def fail(*_: object) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr("stillroom.data.pixels.decode", fail)
    monkeypatch.setattr("stillroom.data.pixels.probe", fail)
    again = load(root, tmp_path / "store")
    assert again.content == first.content
    assert torch.equal(again.train.images, first.train.images)


@pytest.mark.parametrize("name", ["train.images.u8", "train.labels.i64", "meta.json"])
@pytest.mark.parametrize("how", ["flip", "cut", "gone"])
def test_damage_is_seen_and_repaired(
    tmp_path: Path, tree: Make, name: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    root, store = tree(tmp_path / "d", {"a": 2, "b": 1}), tmp_path / "store"
    good = load(root, store)
    path = entry(store) / name
    blob = bytearray(path.read_bytes())
    if how == "flip":
        blob[len(blob) // 2] ^= 1
        path.write_bytes(blob)
    elif how == "cut":
        path.write_bytes(blob[:-2])
    else:
        path.unlink()
    if name != "meta.json":
        with pytest.raises(StillroomError, match="the store has no decoded copy"):
            find_by_content(store, good.content)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        again = load(root, store)
    assert name in caplog.text
    assert "decoding the source again" in caplog.text
    assert again.content == good.content
    assert torch.equal(again.train.images, good.train.images)


def test_altered_metadata_is_seen(tmp_path: Path, tree: Make) -> None:
    store = tmp_path / "store"
    good = load(tree(tmp_path / "d", {"a": 2, "b": 1}), store)
    meta = entry(store) / "meta.json"
    meta.write_text(meta.read_text().replace('"b"', '"c"'))
    with pytest.raises(StillroomError, match="the store has no decoded copy"):
        find_by_content(store, good.content)


def test_content_is_of_the_pixels_not_of_the_source(
    tmp_path: Path, tree: Make, parquet: Make, picture: Callable[..., Any]
) -> None:
    from stillroom.data.readers import parquet_folder

    names = ["a", "b"]
    folder = load(tree(tmp_path / "d", {"a": 2, "b": 1}), tmp_path / "store")
    parquet(tmp_path / "p" / "train.parquet", [0, 0, 1], names)
    table = cached(parquet_folder(tmp_path / "p"), tmp_path / "store", None, False)
    arrays = [picture(seed) for seed in range(3)]
    split = array_split(arrays, [0, 0, 1], "t")
    memory = in_memory(RawSplits(("a", "b"), {"train": split}, []), None)
    assert folder.content == table.content == memory.content
    others = [
        RawSplits(("a", "c"), {"train": split}, []),
        RawSplits(("a", "b"), {"train": array_split(arrays, [0, 1, 1], "t")}, []),
        RawSplits(("a", "b"), {"train": array_split(arrays[::-1], [0, 0, 1], "t")}, []),
        RawSplits(("a", "b"), {"train": split, "test": split}, []),
    ]
    contents = {in_memory(raw, None).content for raw in others} | {in_memory(others[0], 4).content}
    assert len(contents | {folder.content}) == 6


def test_find_by_content(tmp_path: Path, tree: Make) -> None:
    store = tmp_path / "store"
    first = load(tree(tmp_path / "d", {"a": 2}), store)
    second = load(tree(tmp_path / "e", {"a": 2}, first=50), store)
    assert torch.equal(find_by_content(store, second.content).train.images, second.train.images)
    assert torch.equal(find_by_content(store, first.content).train.images, first.train.images)
    with pytest.raises(StillroomError, match="pass --data"):
        find_by_content(store, "0" * 64)
    with pytest.raises(StillroomError, match="pass --data"):
        find_by_content(tmp_path / "no store", first.content)


def test_what_does_not_fit_is_mapped(
    tmp_path: Path, tree: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, store = tree(tmp_path / "d", {"a": 3, "b": 2}), tmp_path / "store"
    inside = load(root, store).train
    monkeypatch.setattr(source, "total_memory", lambda device: 4 * 3 * 3 * 64)
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mapped = load(root, store).train
    assert torch.equal(mapped.take(torch.tensor([4, 0])), inside.take(torch.tensor([4, 0])))
    assert mapped.on(torch.device("cpu")) is mapped
    large = mapped.subset(torch.tensor([4, 1, 3, 2]))
    assert large.index is not None
    assert large.stored is mapped.stored
    nested = large.subset(torch.tensor([3, 0, 1, 2]))
    small = large.subset(torch.tensor([1, 0]))
    assert small.index is None
    for found, rows in ((large, [4, 1, 3, 2]), (nested, [2, 4, 1, 3]), (small, [1, 4])):
        assert torch.equal(found.take(torch.arange(len(found))), inside.images[rows])
        assert torch.equal(found.images, inside.images[rows])
        assert torch.equal(found.labels, inside.labels[rows])


def decode_counting(root: Path, store: Path, kill_at: int, answers: Any) -> None:
    """Body of a process: decode, counting images, and die at the `kill_at`-th."""
    seen = 0
    decode = pixels.decode

    def counting(payload: Any, name: str) -> Any:
        nonlocal seen
        seen += 1
        if seen == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return decode(payload, name)

    pixels.decode = counting
    answers.put((load(root, store).content, seen))


def start(root: Path, store: Path, kill_at: int, answers: Any) -> Any:
    process = FORK.Process(target=decode_counting, args=(root, store, kill_at, answers))
    process.start()
    return process


def test_a_kill_leaves_nothing_half_made(tmp_path: Path, tree: Make) -> None:
    root, store = tree(tmp_path / "d", {"a": 300}), tmp_path / "store"
    process = start(root, store, 280, FORK.Queue())
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert not list(store.glob("data-*"))
    assert len(list(store.glob(".data-*"))) == 1
    found = load(root, store)
    assert len(found.train) == 300
    assert not list(store.glob(".data-*"))


def test_two_processes_decode_once(tmp_path: Path, tree: Make) -> None:
    root, store = tree(tmp_path / "d", {"a": 300}), tmp_path / "store"
    answers = FORK.Queue()
    both = [start(root, store, 0, answers) for _ in range(2)]
    said = [answers.get(timeout=60) for _ in both]
    for process in both:
        process.join(60)
    assert said[0][0] == said[1][0]
    assert sorted(count for _, count in said) == [0, 300]


def test_a_full_or_forbidden_store_is_one_line(tmp_path: Path, tree: Make) -> None:
    (tmp_path / "store").write_text("a file where the store should be")
    with pytest.raises(StillroomError, match="cannot be written"):
        load(tree(tmp_path / "d", {"a": 1}), tmp_path / "store")
