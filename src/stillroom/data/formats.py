"""Readers of the forms in which the classic benchmarks were released, and of the digits.

Each reader takes a folder and returns None if its files are not there, so that a search can try
one after another; files that are there but damaged are an error.
"""

from __future__ import annotations

import codecs
import gzip
import io
import math
import pickle
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from stillroom.data.decode import Pixels
from stillroom.data.raw import Labels, RawSplit, RawSplits, array_split, stamp
from stillroom.errors import StillroomError

CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag",
    "Ankle boot",
)  # fmt: skip
DIGITS = tuple("0123456789")
MAX_FILE_BYTES = 4 * 2**30
_CIFAR_PIXELS = 3 * 32 * 32
Arrays = tuple[Pixels, Labels]


def cifar10_python(root: Path) -> RawSplits | None:
    """CIFAR-10's pickled batches, `data_batch_1..5` and `test_batch`; classes in release order."""
    train = [root / f"data_batch_{i}" for i in range(1, 6)]
    if not train[0].is_file():
        return None
    read = [_cifar_pickle(path, b"labels") for path in train]
    joined = (np.concatenate([a for a, _ in read]), np.concatenate([b for _, b in read]))
    test = root / "test_batch"
    return _raw(root, CIFAR10_CLASSES, joined, _cifar_pickle(test, b"labels"), [*train, test])


def cifar100_python(root: Path) -> RawSplits | None:
    """CIFAR-100's pickled `train`, `test` and `meta`, with the fine labels."""
    train, test, meta = root / "train", root / "test", root / "meta"
    if not train.is_file():
        return None
    names = _unpickled(meta).get(b"fine_label_names")
    if not isinstance(names, list) or len(names) != 100:
        raise StillroomError(f"{meta}: has no list of 100 fine_label_names; extract it again")
    classes = tuple(n.decode() if isinstance(n, bytes) else str(n) for n in names)
    label = b"fine_labels"
    return _raw(
        root, classes, _cifar_pickle(train, label), _cifar_pickle(test, label), [train, test, meta]
    )


def cifar10_binary(root: Path) -> RawSplits | None:
    """CIFAR-10's binary batches, `data_batch_1..5.bin` and `test_batch.bin`."""
    train = [root / f"data_batch_{i}.bin" for i in range(1, 6)]
    if not train[0].is_file():
        return None
    read = [_cifar_records(path, 1) for path in train]
    joined = (np.concatenate([a for a, _ in read]), np.concatenate([b for _, b in read]))
    test = root / "test_batch.bin"
    return _raw(root, CIFAR10_CLASSES, joined, _cifar_records(test, 1), [*train, test])


def cifar100_binary(root: Path) -> RawSplits | None:
    """CIFAR-100's `train.bin`, `test.bin` and `fine_label_names.txt`."""
    train, test, names = root / "train.bin", root / "test.bin", root / "fine_label_names.txt"
    if not train.is_file():
        return None
    lines = _bytes(names).decode("utf-8", "replace").split("\n")
    classes = tuple(line.strip() for line in lines if line.strip())
    return _raw(
        root, classes, _cifar_records(train, 2), _cifar_records(test, 2), [train, test, names]
    )


def mnist(root: Path) -> RawSplits | None:
    """MNIST's idx files, gzipped or not."""
    return _idx_folder(root, DIGITS)


def fashion_mnist(root: Path) -> RawSplits | None:
    """FashionMNIST's idx files, gzipped or not."""
    return _idx_folder(root, FASHION_CLASSES)


def svhn(root: Path) -> RawSplits | None:
    """SVHN's cropped digits, `train_32x32.mat` and `test_32x32.mat`; its label 10 is digit 0."""
    train, test = root / "train_32x32.mat", root / "test_32x32.mat"
    if not train.is_file():
        return None
    return _raw(root, DIGITS, _svhn_mat(train), _svhn_mat(test), [train, test])


def digits() -> RawSplits:
    """scikit-learn's 1797 handwritten digits, 8x8 grey, 0..16 scaled to 0..255; no test split."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images = np.rint(found.images * 255 / 16).astype(np.uint8)
    train = array_split(images, found.target.astype(np.int64), "digits")
    return RawSplits(DIGITS, {"train": train}, ["digits", images.shape[0]])


def _raw(
    root: Path, classes: tuple[str, ...], train: Arrays, test: Arrays, files: list[Path]
) -> RawSplits:
    splits: dict[str, RawSplit] = {
        "train": array_split(train[0], train[1], "train"),
        "test": array_split(test[0], test[1], "test"),
    }
    return RawSplits(classes, splits, ["release", *stamp(root, files)])


def _reconstruct() -> Callable[..., Any]:
    # numpy 2 moved it; the pickles of 2009 name the old place.
    return cast("Callable[..., Any]", np.ndarray([0]).__reduce__()[0])


class _ArraysOnly(pickle.Unpickler):
    """An unpickler that can build numpy arrays and plain containers, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if name == "_reconstruct" and module in (
            "numpy.core.multiarray",
            "numpy._core.multiarray",
        ):
            return _reconstruct()
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        if (module, name) == ("_codecs", "encode"):
            return codecs.encode
        raise StillroomError(f"refers to {module[:60]}.{name[:60]}, which is not data")


def _unpickled(path: Path) -> dict[Any, Any]:
    blob = _bytes(path)
    try:
        value = _ArraysOnly(io.BytesIO(blob), encoding="bytes").load()
    except StillroomError as error:
        raise StillroomError(f"{path}: {error}; refused, download the file again") from None
    except Exception as error:  # a damaged pickle raises nearly anything
        raise StillroomError(
            f"{path}: not a readable CIFAR file ({type(error).__name__}); extract it again"
        ) from error
    if not isinstance(value, dict):
        raise StillroomError(f"{path}: not a CIFAR file (holds a {type(value).__name__})")
    return value


def _cifar_pickle(path: Path, label_key: bytes) -> Arrays:
    batch = _unpickled(path)
    data, labels = batch.get(b"data"), batch.get(label_key)
    if (
        not isinstance(data, np.ndarray)
        or data.dtype != np.uint8
        or data.ndim != 2
        or data.shape[1] != _CIFAR_PIXELS
        or not isinstance(labels, list)
        or len(labels) != len(data)
        or not all(isinstance(label, int) for label in labels)
    ):
        raise StillroomError(f"{path}: not a CIFAR batch of uint8 [N,3072]; extract it again")
    return _cifar_images(data), np.array(labels, dtype=np.int64)


def _cifar_records(path: Path, label_bytes: int) -> Arrays:
    blob = np.frombuffer(_bytes(path), dtype=np.uint8)
    record = label_bytes + _CIFAR_PIXELS
    if len(blob) == 0 or len(blob) % record:
        raise StillroomError(
            f"{path}: {len(blob)} bytes is not a multiple of {record}; extract it again"
        )
    rows = blob.reshape(-1, record)
    # CIFAR-100 stores the coarse label first; the fine one is always next to the pixels.
    return _cifar_images(rows[:, label_bytes:]), rows[:, label_bytes - 1].astype(np.int64)


def _cifar_images(rows: NDArray[np.uint8]) -> Pixels:
    return np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def _idx_folder(root: Path, classes: tuple[str, ...]) -> RawSplits | None:
    for folder in (root, root / "raw"):
        if _idx_file(folder, "train-images", 3) is None:
            continue
        files = [
            _idx_needed(folder, f"{split}-{what}", dims)
            for split in ("train", "t10k")
            for what, dims in (("images", 3), ("labels", 1))
        ]
        arrays = [_idx_array(path, dims) for path, dims in zip(files, (3, 1, 3, 1), strict=True)]
        for at in (0, 2):
            if len(arrays[at]) != len(arrays[at + 1]):
                raise StillroomError(
                    f"{files[at]}: {len(arrays[at])} images but {len(arrays[at + 1])} labels"
                )
        train = (arrays[0], arrays[1].astype(np.int64))
        test = (arrays[2], arrays[3].astype(np.int64))
        return _raw(folder, classes, train, test, files)
    return None


def _idx_file(folder: Path, stem: str, dims: int) -> Path | None:
    for joint in ("-", "."):
        for ending in ("", ".gz"):
            path = folder / f"{stem}{joint}idx{dims}-ubyte{ending}"
            if path.is_file():
                return path
    return None


def _idx_needed(folder: Path, stem: str, dims: int) -> Path:
    path = _idx_file(folder, stem, dims)
    if path is None:
        raise StillroomError(f"{folder}: {stem}-idx{dims}-ubyte is missing; download it as well")
    return path


def _idx_array(path: Path, dims: int) -> Pixels:
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as stream:
            return _idx_stream(cast("BinaryIO", stream), path, dims)
    except (OSError, EOFError, zlib.error) as error:
        raise StillroomError(
            f"{path}: not readable ({type(error).__name__}); download it again"
        ) from None


def _idx_stream(stream: BinaryIO, path: Path, dims: int) -> Pixels:
    head = stream.read(4 + 4 * dims)
    if len(head) < 4 + 4 * dims or head[:4] != bytes((0, 0, 8, dims)):
        raise StillroomError(f"{path}: not an idx file of {dims}-dimensional bytes")
    shape = tuple(int(n) for n in np.frombuffer(head[4:], dtype=">u4"))
    wanted = math.prod(shape)
    if not 0 < wanted <= MAX_FILE_BYTES:
        raise StillroomError(f"{path}: its header claims shape {list(shape)}; not read")
    body = stream.read(wanted)
    if len(body) != wanted:
        raise StillroomError(f"{path}: cut off after {len(body)} of {wanted} bytes; download again")
    return np.frombuffer(body, dtype=np.uint8).reshape(shape)


def _svhn_mat(path: Path) -> Arrays:
    from scipy.io import loadmat

    try:
        found = loadmat(io.BytesIO(_bytes(path)), variable_names=["X", "y"])
        images, labels = np.asarray(found["X"]), np.asarray(found["y"]).reshape(-1)
    except StillroomError:
        raise
    except Exception as error:  # a damaged .mat raises nearly anything
        raise StillroomError(
            f"{path}: not a readable SVHN file ({type(error).__name__}); download it again"
        ) from error
    if images.dtype != np.uint8 or images.shape != (32, 32, 3, len(labels)):
        raise StillroomError(f"{path}: X is {images.dtype} {list(images.shape)}, not [32,32,3,N]")
    return (
        np.ascontiguousarray(images.transpose(3, 0, 1, 2)),
        labels.astype(np.int64) % 10,
    )


def _bytes(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise StillroomError(f"{path}: larger than 4 GiB; not read")
        return path.read_bytes()
    except OSError as error:
        raise StillroomError(f"{path}: {error.strerror or error}; extract it again") from None
