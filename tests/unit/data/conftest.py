"""Small images, class folders and parquet files made on the spot."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Tree = Callable[..., Path]


def pixels(seed: int, height: int = 8, width: int = 8, channels: int = 3) -> np.ndarray:
    """Random uint8 [H,W,3], or [H,W] for one channel."""
    shape = (height, width, 3) if channels == 3 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(array: np.ndarray, form: str = "PNG") -> bytes:
    """An array as the bytes of an image file."""
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, form)
    return stream.getvalue()


@pytest.fixture
def picture() -> Callable[..., np.ndarray]:
    """`pixels`, as a fixture."""
    return pixels


@pytest.fixture
def encode() -> Callable[..., bytes]:
    """`encoded`, as a fixture."""
    return encoded


@pytest.fixture
def tree() -> Tree:
    """Write `{class: images}` PNGs of `channels` and `size` below a folder; seeds from `first`."""

    def make(
        root: Path, counts: Mapping[str, int], first: int = 0, size: int = 8, channels: int = 3
    ) -> Path:
        seed = first
        for name, count in counts.items():
            (root / name).mkdir(parents=True)
            for i in range(count):
                array = pixels(seed, size, size, channels)
                (root / name / f"{i:03d}.png").write_bytes(encoded(array))
                seed += 1
        return root

    return make


@pytest.fixture
def parquet() -> Callable[..., Path]:
    """Write a parquet file of PNGs, with class names in Hugging Face metadata if given."""

    def make(
        path: Path,
        labels: Sequence[int],
        names: Sequence[str] | None = None,
        columns: tuple[str, str] = ("image", "label"),
        first: int = 0,
        images: Sequence[bytes | None] | None = None,
    ) -> Path:
        import pyarrow as pa
        import pyarrow.parquet as pq

        blobs = images or [encoded(pixels(first + i)) for i in range(len(labels))]
        struct = [{"bytes": blob, "path": f"{i}.png"} for i, blob in enumerate(blobs)]
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        table = pa.table({columns[0]: pa.array(struct, kind), columns[1]: pa.array(labels)})
        if names is not None:
            features = {
                columns[0]: {"_type": "Image"},
                columns[1]: {"names": list(names), "_type": "ClassLabel"},
            }
            described = json.dumps({"info": {"features": features}})
            table = table.replace_schema_metadata({"huggingface": described})
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path)
        return path

    return make


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of data and golden values beside the repository."""
    folder = Path(__file__).resolve().parents[3].parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent: real data and golden values are not part of the project")
    return folder
