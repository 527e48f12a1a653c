"""Published weights: checkpoints of other programs, read without running what they hold.

A checkpoint is a foreign file. It is read whole or not at all, only if it is no larger than the
network could need, and as tensors alone; nothing is copied into the network before all of it fits.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import Request, urlopen

import safetensors.torch
import torch
from torch import Tensor, nn

from stillroom.data.hub import reachable
from stillroom.errors import StillroomError, suggest
from stillroom.files import fresh_file, read_limited, sha256_file, user_path
from stillroom.nets.zoo.factories import one_line
from stillroom.nets.zoo.names import canonical
from stillroom.nets.zoo.pickles import ZIP, refuse_hungry

COPIES = 4  # of the weights that a checkpoint may hold: an optimiser keeps up to two beside them
SPARE = 2**20  # bytes for names and all that is not a number
MAX_DOWNLOAD = 2**30
TIMEOUT = 20.0  # seconds that a server may be silent
PIECE = 2**20
COUNTER = "num_batches_tracked"  # of BatchNorm; files from before PyTorch 0.4.1 have none
_HEX = re.compile(r"[0-9a-f]{8,64}")
_FILE = re.compile(r"\w[\w.-]{0,199}")

_HOST = "https://download.pytorch.org/models/"
# Name -> (file, SHA-256), all of them IMAGENET1K_V1. torchvision checks the digits in the file's
# name and knows no more of them; the whole digest stands here where it is known.
PUBLISHED = {
    "imagenet/resnet18": (
        "resnet18-f37072fd.pth",
        "f37072fd47e89c5e827621c5baffa7500819f7896bbacec160b1a16c560e07ec",
    ),
    "imagenet/mobilenet_v2": ("mobilenet_v2-b0353104.pth", "b0353104"),
    "imagenet/efficientnet_b0": (
        "efficientnet_b0_rwightman-7f5810bc.pth",
        "7f5810bc96def8f7552d5b7e68d53c4786f81167d28291b21c0d90e1fca14934",
    ),
    "imagenet/shufflenet_v2_x0_5": ("shufflenetv2_x0.5-f707e7126e.pth", "f707e7126e"),
    "imagenet/alexnet": (
        "alexnet-owt-7be5be79.pth",
        "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
    ),
}


def load_weights(net: nn.Module, path: str | Path) -> None:
    """Copy a checkpoint into the parameters and buffers of `net`, all of them or none.

    `.safetensors`, or else what `torch.save` wrote, read with `weights_only`: a state dict, or one
    under the key `state_dict` or `model`. A prefix `module.` of all keys is left out. Values take
    the network's dtype and device; BatchNorm's counters may be absent and are then 0.

    Raises: StillroomError naming the file, and the first key that is missing, unexpected, of
    another shape or kind, or not finite; or if the file is absent, larger than such a network needs
    (it is then not read), damaged, or holds more than tensors.
    """
    path = user_path(path, "weights")
    targets = net.state_dict()
    held = sum(t.numel() * t.element_size() for t in targets.values())
    limit = COPIES * held + SPARE
    data = read_limited(
        path, limit, f"which is more than a {type(net).__name__} of this shape could need; not read"
    )
    state = _fitting(path, targets, _state_dict(path, read_checkpoint(path, data, limit)))
    with torch.no_grad():
        for key, target in targets.items():  # these share their memory with the network
            target.copy_(state[key]) if key in state else target.zero_()


def published(name: str, folder: Path) -> Path:
    """Return the file of the published ImageNet weights of a network, downloaded once.

    >>> load_weights(net, published("imagenet/resnet18", Path("weights")))  # doctest: +SKIP

    Raises: StillroomError if there are none, and as `fetch`.
    """
    text = canonical(name)
    if text not in PUBLISHED:
        raise StillroomError(
            f"arch={text!r} has no published weights here{suggest(text, PUBLISHED)}; there are "
            f"some of {', '.join(PUBLISHED)}"
        )
    file, digest = PUBLISHED[text]
    return fetch(_HOST + file, digest, folder)


def fetch(url: str, sha256: str, folder: Path, limit: int = MAX_DOWNLOAD) -> Path:
    """Return the file at `url` from `folder`, where it is put if it is not there already.

    sha256: hex digits of its SHA-256, all 64 or the first 8 or more. What is there is checked too,
    and fetched again if it is another. Schemes: https, http, file.

    Raises: StillroomError if the address is none, nothing can be had, it has more than `limit`
    bytes, or another SHA-256; the folder then holds what it held.
    """
    name = unquote(urlsplit(url).path).rpartition("/")[2]
    if urlsplit(url).scheme not in ("https", "http", "file") or not _FILE.fullmatch(name):
        raise StillroomError(f"url={url[:200]!r} is not the https address of a file")
    if not _HEX.fullmatch(sha256):
        raise StillroomError(
            f"sha256={sha256[:80]!r} of {name}: give 8 to 64 hex digits in lower case"
        )
    kept = user_path(folder, "folder") / name
    if kept.is_file() and sha256_file(kept).startswith(sha256):
        return kept
    if not url.startswith("file:") and not reachable(url):  # a name may take minutes to be unknown
        raise _unavailable(url, "no connection")
    digest = hashlib.sha256()
    with fresh_file(kept) as stream:
        for piece in _pieces(url, limit):
            digest.update(piece)
            stream.write(piece)
        if not digest.hexdigest().startswith(sha256):
            raise StillroomError(
                f"{url}: its SHA-256 is {digest.hexdigest()} and should begin with {sha256}; not "
                "kept"
            )
    return kept


def _pieces(url: str, limit: int) -> Iterator[bytes]:
    """The content at an address, piece by piece; at most one piece more than `limit` is read."""
    request = Request(url, headers={"User-Agent": "stillroom"})
    size = 0
    try:
        with urlopen(request, timeout=TIMEOUT) as answer:
            size = int(answer.headers.get("Content-Length") or 0)
            received = 0
            while size <= limit and (piece := answer.read(PIECE)):
                received += len(piece)
                size = max(size, received)
                yield piece
    except (OSError, HTTPException, ValueError) as error:
        raise _unavailable(url, one_line(error)) from error
    if size > limit:
        raise StillroomError(f"{url}: larger than {limit // 2**20} MiB; not kept")


def _unavailable(url: str, why: str) -> StillroomError:
    return StillroomError(
        f"{url} could not be downloaded ({why}); check the network, or put the file there yourself"
    )


def read_checkpoint(path: Path, data: bytes, limit: int) -> Any:
    """What a foreign file holds: tensors in whatever containers, nothing that runs.

    data: its bytes; `limit`, how many they may inflate to.
    Raises: StillroomError if it is damaged or holds more than that.
    """
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load(data)
        refuse_hungry(path, data)
        if data.startswith(ZIP) and zipfile.is_zipfile(io.BytesIO(data)):
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                inflated = sum(member.file_size for member in archive.infolist())
            if inflated > limit:  # torch writes no compressed member, but reads them
                raise StillroomError(f"{path}: inflates to {inflated / 2**20:.0f} MiB; not read")
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # of odd pickles, which are refused or read all the same
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except StillroomError:
        raise
    except pickle.UnpicklingError as error:  # torch's own text advises to run the code
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        if named and named[1].startswith("numpy"):
            raise StillroomError(
                f"{path}: holds an array of numpy; save torch.from_numpy(images)"
            ) from None
        raise StillroomError(
            f"{path}: holds more than tensors{f' ({named[1]})' if named else ''} or is damaged; to "
            "read it could run its code; save tensors alone, bare or in a dict"
        ) from None
    except MemoryError:
        raise
    except Exception as error:  # each reader has exceptions of its own for damage
        raise StillroomError(
            f"{path}: not a whole checkpoint ({one_line(error)}); copy it again"
        ) from None


def plain(found: Tensor) -> bool:
    """Whether a tensor holds as many numbers as it says, here and one after another."""
    usual = found.layout == torch.strided and found.device.type == "cpu" and not found.is_nested
    if not usual or found.is_quantized:
        return False
    return found.untyped_storage().nbytes() >= found.numel() * found.element_size()


def _state_dict(path: Path, found: Any) -> dict[str, Tensor]:
    """The tensors of a checkpoint by key, out of what was put around them."""
    for key in ("state_dict", "model"):
        inner = found.get(key) if isinstance(found, Mapping) else None
        if isinstance(inner, Mapping):
            found = inner
            break
    if not isinstance(found, Mapping) or not found:
        raise StillroomError(
            f"{path}: holds a {type(found).__name__} and no state dict; save net.state_dict()"
        )
    for key, value in found.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise StillroomError(
                f"{path}: {str(key)[:80]!r} is a {type(value).__name__} and no tensor; save "
                "net.state_dict(), bare or under 'state_dict'"
            )
    if all(key.startswith("module.") for key in found):  # written through DataParallel
        return {key.removeprefix("module."): value for key, value in found.items()}
    return dict(found)


def _of_classes(key: str, value: Tensor, targets: Mapping[str, Tensor]) -> str:
    """What a head of another height says, which is the usual misfit."""
    head = list(targets)[-1].rpartition(".")[0]
    target = targets[key]
    if key.rpartition(".")[0] != head or value.shape[1:] != target.shape[1:]:
        return ""
    return (
        f"it tells {value.shape[0]} classes apart and the data have {target.shape[0]}: name "
        "weights of these data, or "
    )


def _fitting(
    path: Path, targets: Mapping[str, Tensor], state: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The tensors in the network's dtypes, if they are exactly those that it has."""
    for key in targets:
        if key not in state and not key.endswith(COUNTER):
            raise StillroomError(f"{path}: has no {key!r}{suggest(key, state)}")
    for key in state:
        if key not in targets:
            raise StillroomError(f"{path}: has {key[:80]!r}, which the network has not")
    for key, value in state.items():
        target = targets[key]
        if value.shape != target.shape:
            raise StillroomError(
                f"{path}: {key!r} is {list(value.shape)} and in the network {list(target.shape)}; "
                f"{_of_classes(key, value, targets)}build it for the classes and channels of the "
                "file"
            )
        odd = value.layout != torch.strided or value.is_quantized or value.is_complex()
        if odd or value.is_floating_point() != target.is_floating_point():
            raise StillroomError(
                f"{path}: {key!r} is of {value.dtype} and in the network of {target.dtype}"
            )
    fitting = {key: value.to(targets[key].dtype) for key, value in state.items()}
    for key, value in fitting.items():
        if not bool(value.isfinite().all()):
            raise StillroomError(f"{path}: {key!r} holds NaN or infinite values")
    return fitting
