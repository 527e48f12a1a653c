"""The released forms of the classic benchmarks, generated small; and pickles that are not data."""

from __future__ import annotations

import gzip
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stillroom.data import formats
from stillroom.data.raw import RawSplit
from stillroom.errors import StillroomError


def arrays(split: RawSplit) -> np.ndarray:
    return np.stack([array for _, array in split.images()])  # type: ignore[arg-type]


def rows(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 3072), dtype=np.uint8)


def dump(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(value, protocol=2))


def cifar10(root: Path) -> list[np.ndarray]:
    made = [rows(2, seed) for seed in range(6)]
    for i, name in enumerate([*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]):
        dump(root / name, {b"data": made[i], b"labels": [2 * i % 10, (2 * i + 1) % 10]})
    return made


def test_cifar10_python(tmp_path: Path) -> None:
    made = cifar10(tmp_path)
    raw = formats.cifar10_python(tmp_path)
    assert raw is not None
    assert raw.classes[3] == "cat"
    assert raw.splits["train"].labels.tolist() == list(range(10))
    found = arrays(raw.splits["train"])
    assert found.shape == (10, 32, 32, 3)
    assert found[2, 5, 7, 1] == made[1][0, 1024 + 5 * 32 + 7]
    assert len(raw.splits["test"]) == 2


def test_cifar_pickles_of_2009_load(tmp_path: Path) -> None:
    """numpy's old module path, and text as Python 2 wrote it."""
    cifar10(tmp_path)
    path = tmp_path / "data_batch_1"
    blob = path.read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert b"numpy.core.multiarray" in blob
    path.write_bytes(blob)
    assert formats.cifar10_python(tmp_path) is not None


def test_cifar100_python(tmp_path: Path) -> None:
    for name in ("train", "test"):
        value = {b"data": rows(3, 1), b"fine_labels": [0, 50, 99], b"coarse_labels": [1, 1, 1]}
        dump(tmp_path / name, value)
    dump(tmp_path / "meta", {b"fine_label_names": [b"c%d" % i for i in range(100)]})
    raw = formats.cifar100_python(tmp_path)
    assert raw is not None
    assert raw.classes[99] == "c99"
    assert raw.splits["train"].labels.tolist() == [0, 50, 99]


class _Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch /tmp/stillroom-owned",)


class _Subtle:
    def __reduce__(self) -> tuple[Any, ...]:
        return np.load, ("x.npy",)


@pytest.mark.parametrize("bomb", [_Bomb(), _Subtle(), {b"data": eval}])
def test_pickles_that_run_code_are_refused(tmp_path: Path, bomb: object) -> None:
    marker = Path("/tmp/stillroom-owned")
    marker.unlink(missing_ok=True)
    cifar10(tmp_path)
    dump(tmp_path / "data_batch_2", bomb)
    with pytest.raises(StillroomError, match=r"data_batch_2: refers to .* which is not data"):
        formats.cifar10_python(tmp_path)
    assert not marker.exists()


def test_damaged_cifar_pickles(tmp_path: Path) -> None:
    cifar10(tmp_path)
    whole = (tmp_path / "test_batch").read_bytes()
    (tmp_path / "test_batch").write_bytes(whole[:100])
    with pytest.raises(StillroomError, match="test_batch: not a readable CIFAR file"):
        formats.cifar10_python(tmp_path)
    dump(tmp_path / "test_batch", {b"data": rows(2, 0), b"labels": [1]})
    with pytest.raises(StillroomError, match="not a CIFAR batch"):
        formats.cifar10_python(tmp_path)
    (tmp_path / "test_batch").unlink()
    with pytest.raises(StillroomError, match="test_batch: No such file"):
        formats.cifar10_python(tmp_path)


def test_cifar_binary(tmp_path: Path) -> None:
    pixels = rows(2, 3)
    ten, hundred = tmp_path / "ten", tmp_path / "hundred"
    ten.mkdir()
    hundred.mkdir()
    for name in [*(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin"]:
        (ten / name).write_bytes(b"".join(bytes([7 + i]) + pixels[i].tobytes() for i in range(2)))
    raw = formats.cifar10_binary(ten)
    assert raw is not None
    assert raw.splits["test"].labels.tolist() == [7, 8]
    assert arrays(raw.splits["test"])[1, 1, 0, 2] == pixels[1, 2048 + 32]
    for name in ("train.bin", "test.bin"):
        (hundred / name).write_bytes(bytes([3, 77]) + pixels[0].tobytes())
    (hundred / "fine_label_names.txt").write_text("\n".join(f"c{i}" for i in range(100)) + "\n")
    raw = formats.cifar100_binary(hundred)
    assert raw is not None
    assert len(raw.classes) == 100
    assert raw.splits["train"].labels.tolist() == [77]
    assert (arrays(raw.splits["train"])[0, 0, 0] == pixels[0, [0, 1024, 2048]]).all()
    (hundred / "test.bin").write_bytes(b"x" * 100)
    with pytest.raises(StillroomError, match="100 bytes is not a multiple of 3074"):
        formats.cifar100_binary(hundred)


def idx(array: np.ndarray) -> bytes:
    head = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.tobytes()


def mnist(folder: Path, zipped: bool) -> np.ndarray:
    folder.mkdir(parents=True)
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28), dtype=np.uint8)
    for split in ("train", "t10k"):
        for what, array in (("images", images), ("labels", np.array([0, 9, 4], dtype=np.uint8))):
            blob = idx(array)
            path = folder / f"{split}-{what}-idx{array.ndim}-ubyte"
            if zipped:
                path.with_name(path.name + ".gz").write_bytes(gzip.compress(blob))
            else:
                path.write_bytes(blob)
    return images


@pytest.mark.parametrize("zipped", [True, False])
def test_mnist_idx(tmp_path: Path, zipped: bool) -> None:
    images = mnist(tmp_path / "MNIST" / "raw", zipped)
    raw = formats.mnist(tmp_path / "MNIST")
    assert raw is not None
    assert (arrays(raw.splits["train"]) == images).all()
    assert raw.splits["test"].labels.tolist() == [0, 9, 4]
    fashion = formats.fashion_mnist(tmp_path / "MNIST")
    assert fashion is not None
    assert fashion.classes[9] == "Ankle boot"


def test_damaged_idx(tmp_path: Path) -> None:
    mnist(tmp_path / "m", zipped=False)
    path = tmp_path / "m" / "t10k-images-idx3-ubyte"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(StillroomError, match="cut off after 2351 of 2352 bytes"):
        formats.mnist(tmp_path / "m")
    path.write_bytes(bytes((0, 0, 8, 3)) + struct.pack(">3I", 2**31, 2**31, 2**31))
    with pytest.raises(StillroomError, match="its header claims shape"):
        formats.mnist(tmp_path / "m")
    path.unlink()
    with pytest.raises(StillroomError, match="t10k-images-idx3-ubyte is missing"):
        formats.mnist(tmp_path / "m")
    path.with_name(path.name + ".gz").write_bytes(gzip.compress(whole)[:50])
    with pytest.raises(StillroomError, match="not readable"):
        formats.mnist(tmp_path / "m")


def test_svhn(tmp_path: Path) -> None:
    from scipy.io import savemat

    images = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 2), dtype=np.uint8)
    for split in ("train", "test"):
        savemat(tmp_path / f"{split}_32x32.mat", {"X": images, "y": np.array([[10], [3]])})
    raw = formats.svhn(tmp_path)
    assert raw is not None
    assert raw.splits["train"].labels.tolist() == [0, 3]
    assert (arrays(raw.splits["train"])[1] == images[..., 1]).all()
    (tmp_path / "test_32x32.mat").write_bytes(b"MATLAB 5.0 MAT-file, not")
    with pytest.raises(StillroomError, match="not a readable SVHN file"):
        formats.svhn(tmp_path)


@pytest.mark.parametrize(
    "reader",
    [
        formats.cifar10_python,
        formats.cifar100_python,
        formats.cifar10_binary,
        formats.cifar100_binary,
        formats.mnist,
        formats.svhn,
    ],
)
def test_absent_files_are_none(tmp_path: Path, reader: Any) -> None:
    assert reader(tmp_path) is None


def test_digits_span_all_levels() -> None:
    raw = formats.digits()
    images = arrays(raw.splits["train"])
    assert images.shape == (1797, 8, 8)
    assert set(np.unique(images)) == {round(v * 255 / 16) for v in range(17)}
    assert set(raw.splits) == {"train"}
