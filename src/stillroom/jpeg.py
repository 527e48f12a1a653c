"""Images of a set as JPEG: what real images cost on disk, for comparisons at equal bytes."""

from __future__ import annotations

import io
import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from stillroom.errors import StillroomError

QUALITY = 90
MAX_VALUES = 2**31  # as float32 they take 8 GiB, which is also the largest set that is read
MAX_RATIO = 200
"""Values of images a byte. `encode` cannot reach it: of a flat image every block of 64 values takes
6 bits of brightness or 4 of colour, with colour at half the resolution; that is 192 values a byte,
before the headers. A file that was made to grow can hold 500 and more."""


def encode(pixels: Tensor) -> dict[str, Tensor]:
    """uint8 [N,ch,H,W], ch 1 or 3 -> tensors: jpeg uint8 [bytes], jpeg.ends int64 [N], jpeg.shape.

    Image i is `jpeg[ends[i - 1]:ends[i]]`, a file of its own.
    Raises: StillroomError for another number of channels.
    """
    if pixels.shape[1] not in (1, 3):
        raise StillroomError(
            f"storage=jpeg holds grey or colour images, these have {pixels.shape[1]} channels; "
            "use uint8"
        )
    files = []
    for image in pixels.permute(0, 2, 3, 1).cpu().numpy():
        buffer = io.BytesIO()
        Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image).save(
            buffer, format="JPEG", quality=QUALITY
        )
        files.append(buffer.getvalue())
    return {
        "jpeg": torch.frombuffer(bytearray(b"".join(files)), dtype=torch.uint8),
        "jpeg.ends": torch.tensor([len(f) for f in files]).cumsum(0),
        "jpeg.shape": torch.tensor(pixels.shape),
    }


def decode(tensors: dict[str, Tensor], where: str) -> Tensor:
    """The inverse of `encode`, on foreign bytes: uint8 [N,ch,H,W].

    Raises: StillroomError naming `where` and what is wrong; sizes are judged before memory is
    taken.
    """
    lacking = [n for n in ("jpeg", "jpeg.ends", "jpeg.shape") if n not in tensors]
    if lacking:
        raise StillroomError(f"{where}: a set stored as jpeg lacks the tensor {lacking[0]!r}")
    blob, ends, shape = (tensors[n] for n in ("jpeg", "jpeg.ends", "jpeg.shape"))
    if shape.dtype != torch.int64 or shape.shape != (4,) or bool((shape < 1).any()):
        raise StillroomError(f"{where}: jpeg.shape must be four whole numbers above 0")
    n, channels, height, width = shape.tolist()
    if channels not in (1, 3):
        raise StillroomError(
            f"{where}: jpeg.shape {shape.tolist()} claims {channels} channels; JPEG holds 1 or 3"
        )
    if math.prod(shape.tolist()) > min(MAX_VALUES, MAX_RATIO * blob.numel()):
        raise StillroomError(
            f"{where}: jpeg.shape {shape.tolist()} claims more than {blob.numel()} bytes of JPEG "
            f"can hold; not read (at most {MAX_RATIO} values a byte and {MAX_VALUES} in all)"
        )
    bounds = torch.cat([torch.zeros(1, dtype=torch.int64), ends.flatten().long()])
    falling = bool((bounds[1:] <= bounds[:-1]).any())
    if ends.shape != (n,) or blob.dtype != torch.uint8 or falling or bounds[-1] != blob.numel():
        raise StillroomError(f"{where}: jpeg.ends do not cut the bytes into {n} images")
    files, images = blob.numpy().tobytes(), np.empty((n, channels, height, width), np.uint8)
    for i, (a, b) in enumerate(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)):
        image = _image(files[a:b], (channels, height, width), f"{where}: image {i}")
        images[i] = image.transpose(2, 0, 1)
    return torch.from_numpy(images)


def _image(file: bytes, shape: tuple[int, int, int], where: str) -> np.ndarray:
    channels, height, width = shape
    try:
        with Image.open(io.BytesIO(file), formats=("JPEG",)) as image:
            if image.size != (width, height) or image.mode != ("L" if channels == 1 else "RGB"):
                raise StillroomError(
                    f"{where} is {image.mode} {image.size}, not as jpeg.shape says"
                )
            return np.asarray(image).reshape(height, width, channels)
    except StillroomError:
        raise
    except Exception as error:  # Pillow raises nearly anything on hostile bytes
        raise StillroomError(f"{where} is no readable JPEG ({type(error).__name__})") from None
