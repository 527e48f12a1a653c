"""Where DATA is looked for, and what is said when it is not there."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stillroom.data import hub
from stillroom.data.formats import CIFAR10_CLASSES
from stillroom.data.imagenet import wnids
from stillroom.data.named import NAMED, find
from stillroom.errors import StillroomError

Make = Callable[..., Path]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every download fails, and is noted."""
    asked: list[str] = []

    def fail(repo: str, config: str | None) -> Any:
        asked.append(repo if config is None else f"{repo}:{config}")
        raise ConnectionError("offline")

    monkeypatch.setattr(pytest.importorskip("datasets"), "load_dataset", fail)
    return asked


def cifar(folder: Path) -> None:
    folder.mkdir(parents=True)
    data = np.random.default_rng(0).integers(0, 256, (10, 3072), dtype=np.uint8)
    batch = pickle.dumps({b"data": data, b"labels": list(range(10))})
    for name in [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]:
        (folder / name).write_bytes(batch)


@pytest.mark.parametrize("where", ["cifar-10-batches-py", "cifar10/cifar-10-batches-py", "cifar10"])
def test_release_below_the_root(tmp_path: Path, where: str) -> None:
    cifar(tmp_path / where)
    found = find("cifar10", tmp_path)
    assert (found.name, found.size, found.constants) == ("cifar10", 32, "cifar10")
    assert found.raw.classes == CIFAR10_CLASSES
    assert len(found.raw.splits["train"]) == 50


def test_parquet_and_class_folders_named_after_the_benchmark(
    tmp_path: Path, parquet: Make, tree: Make
) -> None:
    parquet(tmp_path / "cifar10" / "train.parquet", list(range(10)), CIFAR10_CLASSES)
    assert find("cifar10", tmp_path).raw.classes[3] == "cat"
    tree(tmp_path / "mnist" / "train", dict.fromkeys("0123456789", 1), channels=1)
    assert find("mnist", tmp_path).raw.classes == tuple("0123456789")


def test_wrong_number_of_classes(tmp_path: Path, tree: Make) -> None:
    tree(tmp_path / "cifar10", {"a": 1, "b": 1})
    with pytest.raises(StillroomError, match="cifar10 has 10 classes, but what was found has 2"):
        find("cifar10", tmp_path)


def test_fashion_is_not_mistaken_for_mnist(tmp_path: Path, no_network: list[str]) -> None:
    (tmp_path / "train-images-idx3-ubyte").write_bytes(b"")
    with pytest.raises(StillroomError, match="mnist is not under --data-root"):
        find("mnist", tmp_path)


@pytest.mark.parametrize("where", ["imagenette", "imagenet-1k", "imagenet", "."])
def test_subset_out_of_an_imagenet(tmp_path: Path, tree: Make, where: str) -> None:
    wanted = wnids("imagenette")
    classes = dict.fromkeys([*wanted, "n00000001", "n99999999"], 1)
    tree(tmp_path / where / "train", classes)
    tree(tmp_path / where / "val", classes)
    (tmp_path / where / "train" / "n00000001" / "000.png").unlink()  # not among the ten: not read
    found = find("imagenette", tmp_path)
    assert (found.name, found.size, found.constants) == ("imagenette", 128, "imagenet")
    assert found.raw.classes == wanted
    names = [name for name, _ in found.raw.splits["test"].images()]
    labels = found.raw.splits["test"].labels.tolist()
    assert [f"{wanted[label]}/000.png" for label in labels] == [n.split("/", 1)[1] for n in names]


def test_own_order_of_a_subset(tmp_path: Path, tree: Make) -> None:
    tree(tmp_path / "imagenet" / "train", dict.fromkeys(wnids("imagenet-10"), 2))
    found = find("imagenet-10", tmp_path).raw
    assert found.classes[0] == "n02869837"
    name, _ = next(iter(found.splits["train"].images()))
    assert name.split("/")[1] == found.classes[int(found.splits["train"].labels[0])]


def test_tiny_imagenet_names(tmp_path: Path, tree: Make) -> None:
    counts = {f"n{i:03d}/images": 1 for i in range(200)}
    tree(tmp_path / "tiny-imagenet-200" / "train", counts)
    tree(tmp_path / "tiny-imagenet-200" / "val", {"images": 1})
    (tmp_path / "tiny-imagenet-200" / "val" / "val_annotations.txt").write_text("000.png\tn007\n")
    raw = find("tiny-imagenet", tmp_path).raw
    assert raw.splits["test"].labels.tolist() == [7]
    assert find(str(tmp_path / "tiny-imagenet-200"), None).raw.classes == raw.classes


def test_neither_on_disk_nor_on_the_hub(tmp_path: Path, no_network: list[str]) -> None:
    with pytest.raises(StillroomError) as caught:
        find("svhn", tmp_path)
    message = str(caught.value)
    assert message.startswith(f"svhn is not under --data-root (looked for {tmp_path}/svhn")
    assert "hf:ufldl-stanford/svhn could not be downloaded (ConnectionError: offline)" in message
    assert "\n" not in message
    with pytest.raises(StillroomError, match="cifar100: no --data-root was given, and hf:uoft-cs"):
        find("cifar100", None)
    with pytest.raises(StillroomError, match="no such folder"):
        find("cifar100", tmp_path / "gone")
    assert no_network == ["ufldl-stanford/svhn:cropped_digits", "uoft-cs/cifar100"]


def test_what_is_nearly_there_is_said(
    tmp_path: Path, no_network: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder of the benchmark's name where one stands; an ImageNet that lacks a class."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cifar100").mkdir()
    with pytest.raises(StillroomError, match=r"the folder here: \./cifar100"):
        find("cifar100", None)
    (tmp_path / "in/train/n01440764").mkdir(parents=True)
    for name in ("comp-dd/birds-hard", "comp-dd/bird-hard"):  # plural and singular
        with pytest.raises(StillroomError) as caught:
            find(name, tmp_path / "in")
        assert str(caught.value).startswith("comp-dd/bird-hard is not under --data-root")
        assert f"{tmp_path}/in, whose train lacks n01537544" in str(caught.value)
    with pytest.raises(StillroomError, match="'comp-dd/dogs-mine': no such folder"):
        find("comp-dd/dogs-mine", None)  # a path of one's own, as it stands


def test_named_by_way_of_the_hub(
    tmp_path: Path, parquet: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    path = parquet(tmp_path / "t.parquet", list(range(10)), CIFAR10_CLASSES, ("img", "label"))
    loaded = datasets.DatasetDict(train=datasets.Dataset.from_parquet(str(path)))
    monkeypatch.setattr(datasets, "load_dataset", lambda repo, config: loaded)
    found = find("cifar10", tmp_path)
    assert found.raw.classes == CIFAR10_CLASSES
    other = find("hf:me/pets:small", None)
    assert (other.name, other.size, other.constants) == ("hf:me/pets:small", None, None)
    wide = parquet(tmp_path / "w.parquet", list(range(1000)), [f"c{i}" for i in range(1000)])
    loaded = datasets.DatasetDict(train=datasets.Dataset.from_parquet(str(wide)))
    monkeypatch.setattr(datasets, "load_dataset", lambda repo, config: loaded)
    assert find("imagewoof", None).raw.classes == wnids("imagewoof")


def test_path_and_name(tmp_path: Path, tree: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path / "my pets", {"a": 1})
    found = find(f"{tmp_path}/my pets/", None)
    assert (found.name, found.size, found.constants) == ("my pets", None, None)
    monkeypatch.chdir(tmp_path / "my pets")
    assert find(".", None).name == "my pets"
    (tmp_path / "file.zip").write_bytes(b"")
    with pytest.raises(StillroomError, match=r"file\.zip' is a file; pass the folder"):
        find(str(tmp_path / "file.zip"), None)
    with pytest.raises(StillroomError, match="/gone': no such folder"):
        find(f"{tmp_path}{os.sep}gone", None)


def test_unknown_data_suggests() -> None:
    with pytest.raises(StillroomError) as caught:
        find("cifar-10", None)
    message = str(caught.value)
    assert "nor one of digits, mnist" in message
    assert message.endswith("; did you mean 'cifar10'?")


def test_table_is_complete() -> None:
    wanted = {"digits", "cifar10", "cifar100", "tiny-imagenet", "mnist", "fashion-mnist", "svhn"}
    wanted |= {"imagenet-1k", "imagenet-10", "imagenette", "imagewoof", "imagemeow"}
    wanted |= {"imagefruit", "imageyellow", "imagesquawk", "comp-dd/bird-easy"}
    assert wanted <= set(NAMED)
    assert NAMED["imagenet-1k"].size == 224
    for name, named in NAMED.items():
        assert named.hub is None or hub.parse(":".join(filter(None, ("hf", *named.hub)))), name
