"""Decoding: every mode of pixel, every way for a file to be broken, and the square crop."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stillroom.data import decode as module
from stillroom.data.decode import decode, probe, to_square
from stillroom.errors import StillroomError


def saved(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def test_grey_modes_stay_grey_and_exact() -> None:
    grey = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5
    assert (decode(saved(Image.fromarray(grey)), "x") == grey).all()
    bits = Image.fromarray((grey > 100).astype(np.uint8) * 255).convert("1")
    assert (decode(saved(bits), "x") == (grey > 100) * 255).all()
    opaque = Image.merge("LA", (Image.fromarray(grey), Image.new("L", (8, 6), 255)))
    assert (decode(saved(opaque), "x") == grey).all()


def test_sixteen_bit_is_scaled_to_eight() -> None:
    wide = np.array([[0, 128, 129, 257, 32768, 65535]], dtype=np.uint16)
    assert decode(saved(Image.fromarray(wide)), "x").tolist() == [[0, 0, 1, 1, 128, 255]]
    whole = Image.fromarray(wide.astype(np.int32))
    assert decode(saved(whole, "TIFF"), "x").tolist() == [[0, 0, 1, 1, 128, 255]]


def test_integers_beyond_sixteen_bit_and_floats_are_refused() -> None:
    large = Image.fromarray(np.array([[0, 70000]], dtype=np.int32))
    with pytest.raises(StillroomError, match=r"deep\.tif: integer pixels reach 70000"):
        decode(saved(large, "TIFF"), "deep.tif")
    floats = Image.fromarray(np.array([[0.5]], dtype=np.float32))
    with pytest.raises(StillroomError, match=r"f\.tif: has floating-point pixels"):
        decode(saved(floats, "TIFF"), "f.tif")


def test_transparency_is_shown_on_white() -> None:
    red = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    red.putpixel((1, 0), (255, 0, 0, 0))
    assert decode(saved(red), "x").tolist() == [[[255, 0, 0], [255, 255, 255]]]
    half = Image.new("LA", (1, 1), (0, 128))
    assert decode(saved(half), "x").tolist() == [[127]]
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putpixel((1, 0), 1)
    assert decode(saved(palette), "x").tolist() == [[[10, 20, 30], [200, 100, 50]]]
    assert decode(saved(palette, transparency=1), "x").tolist() == [[[10, 20, 30], [255] * 3]]


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr"])
def test_other_colour_spaces_become_rgb(mode: str) -> None:
    form = "TIFF" if mode == "CMYK" else "JPEG"
    image = Image.new("RGB", (8, 8), (250, 10, 10)).convert(mode)
    found = decode(saved(image, form), "x")
    assert found.shape == (8, 8, 3)
    assert np.abs(found.astype(int) - [250, 10, 10]).max() <= 4


def test_exif_orientation_is_applied() -> None:
    array = np.zeros((2, 4, 3), dtype=np.uint8)
    array[0, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise for viewing
    found = decode(saved(Image.fromarray(array), "PNG", exif=exif), "x")
    assert found.shape == (4, 2, 3)
    assert found[0, 1].tolist() == [255, 255, 255]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("exif", [b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0not a header"])
def test_damaged_exif_does_not_lose_the_image(exif: bytes) -> None:
    array = np.full((4, 4, 3), 7, dtype=np.uint8)
    blob = saved(Image.fromarray(array), "PNG", exif=exif)
    assert (decode(blob, "x") == 7).all()


def test_first_frame_of_many() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("black", "white")]
    blob = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (decode(blob, "x") == 0).all()


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM"])
def test_truncated_files_name_the_file(form: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    blob = saved(Image.fromarray(noise), form)
    assert decode(blob, "whole").shape == (32, 32, 3)
    with pytest.raises(StillroomError, match=r"cats/a b\.img: not a readable image"):
        decode(blob[: len(blob) // 2], "cats/a b.img")


@pytest.mark.parametrize("blob", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff" * 9])
def test_garbage_is_one_line(blob: bytes) -> None:
    for function in (decode, probe):
        with pytest.raises(StillroomError) as caught:
            function(blob, "junk.png")
        assert str(caught.value).startswith("junk.png: not a readable image")
        assert "\n" not in str(caught.value)


def test_unread_formats_are_refused() -> None:
    blob = saved(Image.new("RGB", (4, 4)), "EPS")  # Pillow would start Ghostscript
    with pytest.raises(StillroomError, match="unknown or damaged format"):
        decode(blob, "x.png")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_oversized_is_judged_from_the_header() -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        size, check = struct.pack(">I", len(body)), struct.pack(">I", zlib.crc32(kind + body))
        return size + kind + body + check

    for side in (10_001, 60_000):  # above our limit; above Pillow's own
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
        blob = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
        with pytest.raises(StillroomError, match=r"big\.png: over 100 megapixels"):
            decode(blob, "big.png")


def test_probe_reads_shape_and_colour(tmp_path: Path) -> None:
    Image.new("L", (5, 7)).save(tmp_path / "a.png")
    assert probe(tmp_path / "a.png", "a") == (7, 5, True)
    Image.new("P", (5, 7)).save(tmp_path / "b.png")
    assert probe(tmp_path / "b.png", "b") == (7, 5, False)


def test_missing_file_names_it(tmp_path: Path) -> None:
    with pytest.raises(StillroomError, match=r"gone\.png: not a readable image \(FileNotFound"):
        decode(tmp_path / "gone.png", "gone.png")


def test_square_is_left_alone() -> None:
    array = np.zeros((8, 8, 3), dtype=np.uint8)
    assert to_square(array, 8) is array


@pytest.mark.parametrize("shape", [(40, 30, 3), (30, 41), (9, 8), (8, 9, 3), (4, 5), (3, 500)])
def test_square_equals_resize_then_crop(shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    found = to_square(array, 8)
    assert found.shape == (8, 8, *shape[2:])
    height, width = shape[:2]
    short = min(height, width)
    if max(height, width) <= 8 * short:
        new = (8 * width // short, 8 * height // short)
        whole = np.asarray(Image.fromarray(array).resize(new, Image.Resampling.BILINEAR))
        top, left = round((new[1] - 8) / 2), round((new[0] - 8) / 2)
        assert (found == whole[top : top + 8, left : left + 8]).all()


def test_thin_strips_do_not_explode(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    original = Image.Image.resize

    def resize(self: Image.Image, size: tuple[int, int], *rest: object) -> Image.Image:
        asked.append(size)
        return original(self, size, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(module.Image.Image, "resize", resize)
    assert to_square(np.zeros((1, 100_000), dtype=np.uint8), 64).shape == (64, 64)
    assert max(asked[0]) <= 64 * 8
