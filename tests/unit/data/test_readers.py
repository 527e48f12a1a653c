"""Class folders and parquet folders: what is found, and what is refused in one line."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from stillroom.data.raw import check
from stillroom.data.readers import class_folder, parquet_folder, read_folder
from stillroom.errors import StillroomError

Make = Callable[..., Path]


def names_of(split: object) -> list[str]:
    return [name for name, _ in split.images()]  # type: ignore[attr-defined]


def test_class_folder_without_splits(tmp_path: Path, tree: Make) -> None:
    odd = "<script>alert(1)<"
    tree(tmp_path, {"zebra": 1, "a cat": 2, "Ärger 猫": 1, odd: 1})
    (tmp_path / "a cat" / "deep" / "er").mkdir(parents=True)
    source = tmp_path / "a cat" / "000.png"
    (tmp_path / "a cat" / "deep" / "er" / "X.JPEG").write_bytes(source.read_bytes())
    (tmp_path / "a cat" / ".hidden.png").write_bytes(b"")
    (tmp_path / "a cat" / "notes.txt").write_text("no image")
    (tmp_path / ".git").mkdir()
    raw = check(class_folder(tmp_path), "x")
    assert raw.classes == (odd, "a cat", "zebra", "Ärger 猫")
    assert set(raw.splits) == {"train"}
    assert names_of(raw.splits["train"]) == [
        f"{odd}/000.png",
        "a cat/000.png",
        "a cat/001.png",
        "a cat/deep/er/X.JPEG",
        "zebra/000.png",
        "Ärger 猫/000.png",
    ]
    assert raw.splits["train"].labels.tolist() == [0, 1, 1, 1, 2, 3]


@pytest.mark.parametrize("test_name", ["test", "val", "valid", "validation"])
def test_class_folder_with_splits(tmp_path: Path, tree: Make, test_name: str) -> None:
    tree(tmp_path / "train", {"a": 2, "b": 1})
    tree(tmp_path / test_name, {"a": 1, "b": 1})
    raw = class_folder(tmp_path)
    assert raw.classes == ("a", "b")
    assert raw.splits["train"].labels.tolist() == [0, 0, 1]
    assert names_of(raw.splits["test"]) == [f"{test_name}/a/000.png", f"{test_name}/b/000.png"]


def test_unlabelled_test_folder_gives_way_to_val(tmp_path: Path, tree: Make) -> None:
    tree(tmp_path / "train", {"a": 1})
    tree(tmp_path, {"test": 3})
    tree(tmp_path / "val", {"a": 1})
    assert names_of(class_folder(tmp_path).splits["test"]) == ["val/a/000.png"]


def test_a_class_may_be_called_train(tmp_path: Path, tree: Make) -> None:
    tree(tmp_path, {"bus": 1, "train": 1})
    assert class_folder(tmp_path).classes == ("bus", "train")


def test_empty_class_is_named(tmp_path: Path, tree: Make) -> None:
    tree(tmp_path, {"full": 1, "hollow": 0})
    with pytest.raises(StillroomError, match="class 'hollow' has no images"):
        class_folder(tmp_path)


def test_no_images_at_all(tmp_path: Path, tree: Make) -> None:
    with pytest.raises(StillroomError, match="no class folders"):
        class_folder(tmp_path)
    tree(tmp_path, {"a": 0, "b": 0})
    with pytest.raises(StillroomError, match="no images in its 2 folders"):
        class_folder(tmp_path)


def test_train_and_test_classes_must_agree(tmp_path: Path, tree: Make) -> None:
    tree(tmp_path / "train", {"a": 1, "b": 1})
    tree(tmp_path / "test", {"a": 1, "c": 1})
    with pytest.raises(StillroomError, match="train and test differ in 'b', 'c'"):
        class_folder(tmp_path)


def test_missing_train_folder(tmp_path: Path, tree: Make) -> None:
    tree(tmp_path / "val", {"a": 1})
    with pytest.raises(StillroomError, match="has val/ with classes but no train/"):
        class_folder(tmp_path)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(StillroomError, match="no such folder"):
        read_folder(tmp_path / "nowhere")


def test_dangling_link_is_named(tmp_path: Path, tree: Make) -> None:
    tree(tmp_path, {"a": 1})
    (tmp_path / "a" / "z.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(StillroomError, match=r"a/z\.png: No such file"):
        read_folder(tmp_path)


def test_listing_follows_the_files(tmp_path: Path, tree: Make) -> None:
    tree(tmp_path, {"a": 2})
    before = class_folder(tmp_path).key
    assert class_folder(tmp_path).key == before
    os.utime(tmp_path / "a" / "000.png", ns=(1, 1))
    touched = class_folder(tmp_path).key
    (tmp_path / "a" / "001.png").rename(tmp_path / "a" / "002.png")
    assert len({before, touched, class_folder(tmp_path).key}) == 3


def test_names_that_are_not_text_are_refused(tmp_path: Path, tree: Make) -> None:
    tree(tmp_path, {"a": 1, "b": 1})
    os.rename(os.fsencode(tmp_path / "b"), os.fsencode(tmp_path) + b"/\xff")
    with pytest.raises(StillroomError, match="not valid text"):
        check(class_folder(tmp_path), "x")


def tiny(root: Path, tree: Make, rows: str) -> Path:
    tree(root / "train" / "n2", {"images": 2})
    tree(root / "train" / "n1", {"images": 1}, first=5)
    tree(root / "val", {"images": 2}, first=9)
    tree(root / "test", {"images": 1}, first=20)
    (root / "val" / "val_annotations.txt").write_text(rows)
    return root


def test_tiny_imagenet_as_released(tmp_path: Path, tree: Make) -> None:
    tiny(tmp_path, tree, "001.png\tn2\t0\t0\t9\t9\n000.png\tn1\t0\t0\t9\t9\n")
    raw = read_folder(tmp_path)
    assert raw.classes == ("n1", "n2")
    assert raw.splits["train"].labels.tolist() == [0, 1, 1]
    assert names_of(raw.splits["test"]) == ["val/images/001.png", "val/images/000.png"]
    assert raw.splits["test"].labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("000.png\tn9\n", "line 1 names class 'n9'"),
        ("../../x.png\tn1\n", "line 1 is not"),
        ("nothing\n", "line 1 is not"),
        ("7.png\tn1\n", "absent"),
    ],
)
def test_tiny_annotations_are_checked(tmp_path: Path, tree: Make, rows: str, message: str) -> None:
    with pytest.raises(StillroomError, match=message):
        read_folder(tiny(tmp_path, tree, rows))


def test_parquet_with_names(tmp_path: Path, parquet: Make) -> None:
    parquet(tmp_path / "train.parquet", [1, 0, 1], ["cat", "dog"])
    parquet(tmp_path / "valid.parquet", [0], ["cat", "dog"], first=7)
    (tmp_path / "classes.tsv").write_text("0\tn1\tpussy cat\n1\tn2\thound\n")
    raw = check(read_folder(tmp_path), "x")
    assert raw.classes == ("cat", "dog")
    assert raw.splits["train"].labels.tolist() == [1, 0, 1]
    assert names_of(raw.splits["train"])[2] == "train.parquet row 2"
    assert [len(list(split.images())) for split in raw.splits.values()] == [3, 1]


def test_parquet_shards_in_data(
    tmp_path: Path, parquet: Make, picture: Callable[..., object]
) -> None:
    from stillroom.data.decode import decode

    parquet(tmp_path / "data" / "train-00000-of-00002.parquet", [0, 1], columns=("img", "labels"))
    parquet(
        tmp_path / "data" / "train-00001-of-00002.parquet",
        [1, 2],
        columns=("img", "labels"),
        first=2,
    )
    raw = parquet_folder(tmp_path)
    assert raw.classes == ("0", "1", "2")
    assert set(raw.splits) == {"train"}
    assert raw.splits["train"].labels.tolist() == [0, 1, 1, 2]
    for seed, (name, blob) in enumerate(raw.splits["train"].images()):
        assert (decode(blob, name) == picture(seed)).all()  # type: ignore[arg-type]


def test_parquet_fine_label_and_unlabelled_test(tmp_path: Path, parquet: Make) -> None:
    parquet(tmp_path / "train.parquet", [0, 1], columns=("img", "fine_label"))
    parquet(tmp_path / "test.parquet", [-1, -1], columns=("img", "fine_label"))
    parquet(tmp_path / "validation.parquet", [1], columns=("img", "fine_label"))
    assert parquet_folder(tmp_path).splits["test"].labels.tolist() == [1]


def test_parquet_paths_without_bytes(tmp_path: Path, parquet: Make) -> None:
    parquet(tmp_path / "train.parquet", [0], images=[None])
    with pytest.raises(StillroomError, match=r"train\.parquet row 0: holds a path but no image"):
        names_of(parquet_folder(tmp_path).splits["train"])


def test_parquet_errors(tmp_path: Path, parquet: Make) -> None:
    parquet(tmp_path / "test.parquet", [0])
    with pytest.raises(StillroomError, match=r"no train\.parquet"):
        read_folder(tmp_path)
    parquet(tmp_path / "train.parquet", [0], columns=("photo", "label"))
    with pytest.raises(StillroomError, match="no image column; needs one of image, img, has photo"):
        read_folder(tmp_path)
    parquet(tmp_path / "train.parquet", [0], columns=("image", "kind"))
    with pytest.raises(StillroomError, match="no label column"):
        read_folder(tmp_path)
    parquet(tmp_path / "train.parquet", ["cat"])
    with pytest.raises(StillroomError, match="labels are of type string"):
        read_folder(tmp_path)
    parquet(tmp_path / "train.parquet", [0, None])
    with pytest.raises(StillroomError, match="1 rows have no label"):
        read_folder(tmp_path)
    (tmp_path / "train.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(StillroomError, match="not a readable parquet file"):
        read_folder(tmp_path)


def test_parquet_damaged_inside(tmp_path: Path, parquet: Make) -> None:
    path = parquet(tmp_path / "train.parquet", list(range(9)))
    blob = bytearray(path.read_bytes())
    blob[4:200] = np.random.default_rng(0).bytes(196)
    path.write_bytes(blob)
    with pytest.raises(StillroomError, match="not a readable parquet file"):
        names_of(parquet_folder(tmp_path).splits["train"])


def test_parquet_labels_and_names_are_checked(tmp_path: Path, parquet: Make) -> None:
    parquet(tmp_path / "train.parquet", [0, 2], ["a", "b"])
    with pytest.raises(StillroomError, match=r"train label 2 is outside 0\.\.1"):
        check(read_folder(tmp_path), "x")
    parquet(tmp_path / "train.parquet", [0, 1], ["a", "a"])
    with pytest.raises(StillroomError, match="two classes are named 'a'"):
        check(read_folder(tmp_path), "x")
    parquet(tmp_path / "train.parquet", [0, 0], ["a", "b"])
    with pytest.raises(StillroomError, match="class 'b' has no training image"):
        check(read_folder(tmp_path), "x")
    parquet(tmp_path / "train.parquet", [0, 1], ["a", "b"])
    parquet(tmp_path / "test.parquet", [0, 1], ["b", "a"])
    with pytest.raises(StillroomError, match="train and test are in another order"):
        read_folder(tmp_path)
