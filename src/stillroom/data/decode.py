"""Encoded images to uint8 arrays: [H,W] for grey, [H,W,3] for colour; and the square crop.

Files come from strangers: every failure is one `StillroomError` that names the file, only common
raster formats are opened (never one that starts another program), and the size is judged from the
header, before memory is spent.
"""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from stillroom.errors import StillroomError

Pixels = NDArray[np.uint8]

MAX_PIXELS = 100_000_000
FORMATS = ("JPEG", "PNG", "BMP", "DIB", "GIF", "WEBP", "TIFF", "PPM")
_ORIENTATION = 0x0112
_MAX_ASPECT = 8
_EXIF_ERRORS = (SyntaxError, OSError, ValueError, LookupError, TypeError, EOFError, struct.error)


def is_grey(mode: str) -> bool:
    """Whether an image of this Pillow mode carries no colour: 1, L, LA and the integer modes."""
    return mode in ("1", "L", "LA", "La") or mode.startswith("I")


def probe(source: bytes | Path, name: str) -> tuple[int, int, bool]:
    """Return (height, width, grey) from the header alone, before any EXIF rotation.

    Raises: StillroomError naming the image if it is not an image or has over 100 megapixels.
    """
    try:
        with _opened(source) as image:
            _check_size(image, name)
            return image.height, image.width, is_grey(image.mode)
    except StillroomError:
        raise
    except Exception as error:
        raise _unreadable(name, error) from error


def decode(source: bytes | Path, name: str) -> Pixels:
    """Decode the first frame of an encoded image, upright and without transparency.

    source: the encoded bytes, or the file; name: what errors call it.
    Returns uint8 [H,W] for grey modes (16 bit scaled to 8), else uint8 [H,W,3] RGB; transparent
    parts are shown on white.
    Raises: StillroomError naming the image if it is corrupt, cut off, over 100 megapixels or of
    floating-point pixels.
    """
    try:
        with _opened(source) as image:
            _check_size(image, name)
            return from_pil(image, name)
    except StillroomError:
        raise
    except Exception as error:  # Pillow's plugins raise nearly anything on hostile bytes
        raise _unreadable(name, error) from error


def from_pil(image: Image.Image, name: str) -> Pixels:
    """Turn a Pillow image of any mode into uint8 [H,W] (grey) or [H,W,3] (RGB), as `decode` does.

    Raises: StillroomError naming the image for floating-point pixels, or integers beyond 65535.
    """
    if image.mode == "F":
        raise StillroomError(
            f"{name}: has floating-point pixels of unknown scale; store it as 8 or 16 bit"
        )
    upright = _upright(image)
    if upright.mode.startswith("I"):
        return _eight_bits(np.asarray(upright), name)
    grey = is_grey(upright.mode)
    if upright.has_transparency_data:
        white = Image.new("RGBA", upright.size, "white")
        upright = Image.alpha_composite(white, upright.convert("RGBA"))
    return np.array(upright.convert("L" if grey else "RGB"))


def to_square(array: Pixels, size: int) -> Pixels:
    """Resize the short side to `size` (bilinear, antialiased), then crop the centre.

    array uint8 [H,W] or [H,W,3]; returns uint8 [size,size] or [size,size,3], the same array if it
    already has that shape. Rounding follows the usual evaluation transform: the long side is cut
    down to a whole number of pixels, the crop is rounded half to even.
    """
    height, width = array.shape[:2]
    if height == width == size:
        return array
    short = min(height, width)
    if max(height, width) > _MAX_ASPECT * short:
        # Enlarging a thin strip whole could need gigabytes for pixels that the crop throws away.
        array = _centre(array, min(height, _MAX_ASPECT * short), min(width, _MAX_ASPECT * short))
        height, width = array.shape[:2]
    new = (max(size, size * width // short), max(size, size * height // short))
    resized = Image.fromarray(array).resize(new, Image.Resampling.BILINEAR)
    return np.ascontiguousarray(_centre(np.asarray(resized), size, size))


def _centre(array: Pixels, height: int, width: int) -> Pixels:
    top = round((array.shape[0] - height) / 2)
    left = round((array.shape[1] - width) / 2)
    return array[top : top + height, left : left + width]


def _opened(source: bytes | Path) -> Image.Image:
    stream = io.BytesIO(source) if isinstance(source, bytes) else source
    return Image.open(stream, formats=FORMATS)


def _check_size(image: Image.Image, name: str) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise _too_large(name)


def _too_large(name: str) -> StillroomError:
    return StillroomError(
        f"{name}: over 100 megapixels; scale it down or remove it, or pass --skip-bad"
    )


def _unreadable(name: str, error: Exception) -> StillroomError:
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return _too_large(name)
    if isinstance(error, UnidentifiedImageError):
        why = "unknown or damaged format"
    else:
        why = " ".join(f"{type(error).__name__}: {error}".split())[:120]
    return StillroomError(
        f"{name}: not a readable image ({why}); repair or remove it, or pass --skip-bad"
    )


def _upright(image: Image.Image) -> Image.Image:
    try:
        if image.getexif().get(_ORIENTATION, 1) == 1:
            return image
    except _EXIF_ERRORS:  # damaged EXIF beside sound pixels: shown as stored, as viewers do
        return image
    return ImageOps.exif_transpose(image)


def _eight_bits(values: NDArray[np.generic], name: str) -> Pixels:
    wide = values.astype(np.int64)
    if wide.min() < 0 or wide.max() > 65535:
        raise StillroomError(
            f"{name}: integer pixels reach {wide.max()}, over 16 bit; store it as 8 or 16 bit"
        )
    return ((wide * 255 + 32767) // 65535).astype(np.uint8)
