"""The lists of ImageNet subsets, checked against the official order of classes."""

from __future__ import annotations

from pathlib import Path

import pytest

from stillroom.data.imagenet import SUBSETS, WNIDS, cut, wnids
from stillroom.data.raw import RawSplits, array_split
from stillroom.data.readers import read_folder
from stillroom.errors import StillroomError


def raw(classes: list[str]) -> RawSplits:
    import numpy as np

    images = np.arange(len(classes) * 4, dtype=np.uint32).astype(np.uint8).reshape(-1, 2, 2)
    return RawSplits(tuple(classes), {"train": array_split(images, range(len(classes)), "t")}, [])


def test_lists_are_sound() -> None:
    assert len([name for name in SUBSETS if name.startswith("comp-dd/")]) == 16
    assert dict(sorted(WNIDS.items())) == WNIDS
    assert list(WNIDS.values()) == sorted(WNIDS.values())
    for name, indices in SUBSETS.items():
        assert len(set(indices)) == len(indices) == (9 if name == "comp-dd/music-hard" else 10)
    for category in ("bird", "car", "dog", "fish", "insect", "snake", "round", "music"):
        assert not set(SUBSETS[f"comp-dd/{category}-easy"]) & set(
            SUBSETS[f"comp-dd/{category}-hard"]
        )
    assert wnids("imagenette")[:2] == ("n01440764", "n02102040")
    assert wnids("imagenet-10")[0] == "n02869837"


def test_indices_match_the_official_order(shared: Path) -> None:
    lines = (shared / "data" / "imagenet-sample" / "classes.tsv").read_text().splitlines()
    official = {int(line.split("\t")[0]): line.split("\t")[1] for line in lines}
    assert {i: official[i] for i in WNIDS} == WNIDS


def test_cut_by_wnid_keeps_label_order() -> None:
    found = cut(raw(sorted([*wnids("imagewoof"), "n00000001", "n99999999"])), "imagewoof", "x")
    assert found.classes == wnids("imagewoof")
    kept = {str(found.classes[label]) for label in found.splits["train"].labels.tolist()}
    assert kept == set(wnids("imagewoof"))
    order = sorted([*wnids("imagewoof"), "n00000001", "n99999999"])
    for (name, _), label in zip(
        found.splits["train"].images(), found.splits["train"].labels.tolist(), strict=True
    ):
        assert order[int(name.split()[-1])] == found.classes[label]


def test_cut_by_index_of_a_thousand_named_otherwise() -> None:
    found = cut(raw([f"class {i}" for i in range(1000)]), "imagefruit", "x")
    assert found.classes == wnids("imagefruit")
    names = [name for name, _ in found.splits["train"].images()]
    assert sorted(int(name.split()[-1]) for name in names) == sorted(SUBSETS["imagefruit"])


def test_cut_refuses_what_is_not_there() -> None:
    with pytest.raises(StillroomError, match="imagenette needs class n01440764"):
        cut(raw([*wnids("imagenette")[1:], "n00000001"]), "imagenette", "x")
    with pytest.raises(StillroomError, match="3 classes that are not named by WordNet id"):
        cut(raw(["a", "b", "c"]), "imagenette", "x")
    assert cut(raw([f"own {i}" for i in range(10)]), "imagenette", "x").classes[0] == "own 0"


def test_cut_of_the_real_sample(shared: Path) -> None:
    found = cut(read_folder(shared / "data" / "imagenet-sample"), "comp-dd/bird-easy", "x")
    assert sorted(found.splits["train"].labels.tolist()) == list(range(10))
    assert found.classes[0] == "n02007558"
    rows = [int(name.split()[-1]) for name, _ in found.splits["train"].images()]
    labels = found.splits["train"].labels.tolist()
    assert [SUBSETS["comp-dd/bird-easy"][label] for label in labels] == rows
