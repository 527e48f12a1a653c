"""Data already in Python: arrays of every layout, and map-style datasets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, TensorDataset

from stillroom.data.benchmarks import from_arrays, from_dataset
from stillroom.errors import StillroomError

LABELS = [0, 0, 1, 1]
COLOUR = np.random.default_rng(0).integers(0, 256, (4, 6, 6, 3), dtype=np.uint8)


class Items(Dataset[Any]):
    def __init__(self, items: list[Any]) -> None:
        self.items = items
        self.classes = ["cat", "dog"]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


def forms() -> dict[str, list[Any]]:
    whole = torch.from_numpy(COLOUR).permute(0, 3, 1, 2)
    return {
        "pillow": [Image.fromarray(array) for array in COLOUR],
        "numpy": list(COLOUR),
        "uint8 tensor": list(whole),
        "float tensor": list(whole.float() / 255),
        "half tensor": list((whole.double() / 255).to(torch.float64)),
    }


@pytest.mark.parametrize("form", forms())
def test_every_form_of_item_gives_the_same_data(form: str) -> None:
    expected = from_arrays(COLOUR, LABELS, classes=["cat", "dog"])
    items = Items(list(zip(forms()[form], LABELS, strict=True)))
    found = from_dataset(items)
    assert found.classes == ("cat", "dog")
    assert found.content == expected.content
    assert found.name == "dataset"
    assert (found.size, found.channels) == (6, 3)


@pytest.mark.parametrize("label", [np.int32(1), torch.tensor(1), 1])
def test_kinds_of_label(label: Any) -> None:
    items = [(COLOUR[0], 0), (COLOUR[1], 0), (COLOUR[2], label), (COLOUR[3], label)]
    assert from_dataset(Items(items)).train.labels.tolist() == [0, 1]


def test_layouts_of_arrays_agree() -> None:
    chw = torch.from_numpy(COLOUR).permute(0, 3, 1, 2)
    assert from_arrays(chw, LABELS).content == from_arrays(COLOUR, LABELS).content
    grey = COLOUR[..., 0]
    contents = {
        from_arrays(images, torch.tensor(LABELS)).content
        for images in (grey, grey[..., None], grey[:, None], torch.from_numpy(grey.copy()))
    }
    assert len(contents) == 1
    assert from_arrays(grey, LABELS).channels == 1


def test_given_test_and_names() -> None:
    found = from_arrays(COLOUR, LABELS, COLOUR[:1], [1], classes=["x", "y"], name="mine")
    assert (found.name, found.split, found.classes) == ("mine", "given", ("x", "y"))
    assert len(found.test) == 1
    assert found.duplicates == 1
    drawn = from_arrays(COLOUR, LABELS)
    assert (drawn.split, drawn.classes) == ("keyed stratified 80/20", ("0", "1"))
    both = from_dataset(Items(list(zip(COLOUR, LABELS, strict=True))), Items([(COLOUR[0], 1)]))
    assert both.split == "given"


def test_own_size_and_resizing() -> None:
    items = Items([(COLOUR[i][: 6 - i % 2], LABELS[i]) for i in range(4)])
    assert from_dataset(items).size == 64
    found = from_dataset(items, size=5)
    assert found.train.shape == (3, 5, 5)
    tall = from_arrays(np.zeros((4, 6, 9), dtype=np.uint8), LABELS, size=3)
    assert tall.train.shape == (1, 3, 3)
    assert tall.notes[1] == "4 images of another shape were resized to 3x3"


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (COLOUR.astype(np.float32), LABELS, "images are float32, must be uint8"),
        (COLOUR[0], LABELS, "images have shape|6 images but 4 labels"),
        (COLOUR, [0, 1], "4 images but 2 labels"),
        (COLOUR, [0.0, 1, 1, 1], r"labels must be integers \[N\], got float64"),
        (COLOUR, [[0], [1], [1], [1]], "labels must be integers"),
        (COLOUR, [0, -1, 1, 1], r"train label -1 is outside"),
        (COLOUR, [0, 0, 2, 2], "class '1' has no training image"),
        (COLOUR[:0], [], "must be integers|has no images"),
        (np.zeros((4, 3, 6, 3), dtype=np.uint8), LABELS, "is ambiguous"),
        (np.zeros((4, 6, 6, 4), dtype=np.uint8), LABELS, "must be .N,H,W."),
    ],
)
def test_bad_arrays(images: Any, labels: Any, message: str) -> None:
    with pytest.raises(StillroomError, match=message):
        from_arrays(images, labels)


def test_test_images_need_labels() -> None:
    with pytest.raises(StillroomError, match="must be given together"):
        from_arrays(COLOUR, LABELS, COLOUR)


class Shifting(Items):
    def __getitem__(self, index: int) -> Any:
        self.items[0] = (self.items[0][0] + 1, 0)
        return self.items[index]


class Endless(Dataset[Any]):
    def __getitem__(self, index: int) -> Any:
        return COLOUR[0], 0


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (Items([(torch.full((3, 6, 6), 1.5), 0)]), "looks normalised; pass raw pixels"),
        (Items([(torch.full((3, 6, 6), -0.1), 0)]), "looks normalised; pass raw pixels"),
        (Items([(torch.full((3, 6, 6), float("nan")), 0)]), "looks normalised"),
        (Items([COLOUR[0]]), "train item 0: must be a pair"),
        (Items([{"image": COLOUR[0], "label": 0}]), "got dict"),
        (Items([(COLOUR[0], "cat")]), "label 'cat' must be one integer"),
        (Items([(COLOUR[0], [0, 1])]), "must be one integer"),
        (Items([("a.png", 0)]), "a str is not an image"),
        (Items([(COLOUR[0].astype(np.int64), 0)]), "int64 of shape"),
        (Items([(np.zeros((3, 6, 6), dtype=np.uint8), 0)]), r"uint8 of shape \[3, 6, 6\]"),
        (Items([]), "has no images"),
        (Shifting([(COLOUR[0], 0)]), "remove random transforms"),
        (Endless(), "has no length"),
    ],
)
def test_bad_datasets(dataset: Any, message: str) -> None:
    with pytest.raises(StillroomError, match=message):
        from_dataset(dataset)


def test_a_plain_tensor_dataset() -> None:
    images = torch.from_numpy(COLOUR).permute(0, 3, 1, 2)
    found = from_dataset(TensorDataset(images, torch.tensor(LABELS)), classes=["x", "y"])
    assert found.classes == ("x", "y")


def test_repeated_class_names() -> None:
    with pytest.raises(StillroomError, match="two classes are named 'x'"):
        from_arrays(COLOUR, LABELS, classes=["x", "x"])


def test_the_same_pixels_under_other_names_are_other_data(tmp_path: Path) -> None:
    """Also where the store has decoded them before."""
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    both = (images, np.array([0, 0, 1, 1]))
    first = from_arrays(*both, *both, classes=("cat", "dog"), store=tmp_path)
    other = from_arrays(*both, *both, classes=("left", "right"), store=tmp_path)
    assert (first.classes, other.classes) == (("cat", "dog"), ("left", "right"))
    assert first.digest != other.digest
    assert from_arrays(*both, *both, classes=("cat", "dog"), store=tmp_path).digest == first.digest
