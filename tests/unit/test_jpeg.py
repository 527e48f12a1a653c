"""JPEG storage: what comes back is what Pillow decodes, and hostile bytes are one line."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stillroom.distilled import Distilled, load, set_bytes
from stillroom.errors import StillroomError
from stillroom.jpeg import MAX_RATIO, decode, encode
from stillroom.types import Preprocess


def pictures(channels: int = 3, n: int = 5) -> torch.Tensor:
    """Smooth ramps, as photos are; noise would not compress."""
    ramp = torch.arange(32).view(1, 1, 32, 1) * 4 + torch.arange(32) * 3
    shift = torch.arange(n * channels).view(n, channels, 1, 1) * 7
    return ((ramp + shift) % 256).to(torch.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_what_comes_back_is_what_pillow_sees(channels: int) -> None:
    pixels = pictures(channels)
    tensors = encode(pixels)
    back = decode(tensors, "x")
    assert back.shape == pixels.shape
    begin, end = tensors["jpeg.ends"][1:3].tolist()
    file = tensors["jpeg"][begin:end].numpy().tobytes()
    third = np.asarray(Image.open(io.BytesIO(file))).reshape(32, 32, channels)
    assert torch.equal(back[2].permute(1, 2, 0), torch.from_numpy(third.copy()))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_set_on_disk_is_the_set_in_memory(channels: int, tmp_path: Path) -> None:
    pre = Preprocess("half", (0.5,) * channels, (0.5,) * channels)
    of_class = torch.tensor([0, 0, 1, 1, 1])
    data = Distilled(
        images=pre.apply(pictures(channels)),
        labels=of_class,
        label_kind="hard",
        of_class=of_class,
        classes=("a", "b"),
        preprocess=pre,
        storage="jpeg",
    )
    data.save(tmp_path)
    assert torch.equal(load(tmp_path).images, data.quantised().images)
    assert set_bytes(tmp_path) < 5 * 32 * 32 * channels + 4000


def change(name: str, value: torch.Tensor | None) -> dict[str, torch.Tensor]:
    tensors = encode(pictures())
    if value is None:
        del tensors[name]
    else:
        tensors[name] = value
    return tensors


@pytest.mark.parametrize(
    ("tensors", "problem"),
    [
        (lambda: change("jpeg.ends", None), "lacks the tensor 'jpeg.ends'"),
        (lambda: change("jpeg.shape", torch.tensor([5, 3, 32])), "four whole numbers"),
        (lambda: change("jpeg.shape", torch.tensor([5, 3, 2**20, 2**20])), "claims more than"),
        (lambda: change("jpeg.shape", torch.tensor([5, 2, 32, 32])), "claims 2 channels"),
        (
            lambda: change("jpeg.shape", torch.tensor([5, 3, 2048, 2048])),
            r"^set: jpeg.shape \[5, 3, 2048, 2048\] claims more than \d+ bytes of JPEG can hold; "
            "not read",
        ),
        (lambda: change("jpeg.shape", torch.tensor([4, 3, 32, 32])), "do not cut"),
        (lambda: change("jpeg.shape", torch.tensor([5, 3, 16, 32])), "not as jpeg.shape says"),
        (lambda: change("jpeg", torch.zeros(99, dtype=torch.uint8)), "do not cut"),
        (lambda: change("jpeg.ends", torch.tensor([9, 8, 7, 6, 5])), "do not cut"),
    ],
    ids=range(9),
)
def test_hostile_tensors_are_one_line(tensors, problem: str) -> None:
    with pytest.raises(StillroomError, match=problem) as caught:
        decode(tensors(), "set")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("channels", [1, 3])
def test_images_without_anything_in_them_come_back(channels: int) -> None:
    """What `encode` writes is never taken for a file that was made to grow."""
    pixels = torch.full((1, channels, 2048, 2048), 128, dtype=torch.uint8)
    tensors = encode(pixels)
    assert torch.equal(decode(tensors, "x"), pixels)
    assert pixels.numel() / tensors["jpeg"].numel() < MAX_RATIO


def test_a_file_made_to_grow_is_refused_before_it_is_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("stillroom.jpeg._image", None)
    buffer = io.BytesIO()
    Image.new("RGB", (2048, 2048)).save(buffer, format="JPEG", optimize=True, progressive=True)
    blob = torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)
    shape = torch.tensor([1, 3, 2048, 2048])
    hostile = {"jpeg": blob, "jpeg.ends": torch.tensor([len(blob)]), "jpeg.shape": shape}
    with pytest.raises(StillroomError, match="at most 200 values a byte and 2147483648 in all"):
        decode(hostile, "set")


def test_a_picture_of_another_format_is_refused() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32)).save(buffer, format="PNG")
    blob = torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)
    shape = torch.tensor([1, 3, 32, 32])
    hostile = {"jpeg": blob, "jpeg.ends": torch.tensor([len(blob)]), "jpeg.shape": shape}
    with pytest.raises(StillroomError, match="image 0 is no readable JPEG"):
        decode(hostile, "set")
