"""The named benchmarks: what they are called, and where their images are looked for."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from stillroom.config import DSA, DSA_UNMIRRORED
from stillroom.data import formats, hub
from stillroom.data.imagenet import SIDES, SUBSETS, cut, wnids
from stillroom.data.raw import RawSplits, check
from stillroom.data.readers import read_folder
from stillroom.errors import StillroomError, suggest
from stillroom.files import user_path

Release = tuple[str, Callable[[Path], RawSplits | None]]
_IMAGENET = ("ILSVRC/imagenet-1k", None)


@dataclass(frozen=True)
class Named:
    """A benchmark's facts.

    `constants` names its normalisation (None: fitted); `hub` is its Hugging Face name and
    configuration; `releases` pairs the folder of an original release with its reader; `folders`
    are other names that a class or parquet folder of it may have below the data root. `augment`
    and `arch` are what methods and students use on it unless a recipe says otherwise ("auto": by
    image size).
    """

    display: str
    classes: int
    size: int
    constants: str | None
    hub: tuple[str, str | None] | None
    releases: tuple[Release, ...] = ()
    folders: tuple[str, ...] = ()
    augment: str = DSA
    arch: str = "auto"


@dataclass(frozen=True, eq=False)
class Found:
    """What DATA turned out to be: undecoded splits, a name without a path, and defaults."""

    raw: RawSplits
    name: str
    size: int | None
    constants: str | None


EMBEDDED = "digits"  # the data that come with the package: nothing is fetched
NAMED: dict[str, Named] = {
    EMBEDDED: Named(
        "Digits (scikit-learn)", 10, 8, None, None, augment=DSA_UNMIRRORED, arch="convnet2"
    ),
    "mnist": Named(
        "MNIST",
        10,
        28,
        "mnist",
        ("ylecun/mnist", None),
        (("MNIST", formats.mnist),),
        augment=DSA_UNMIRRORED,
    ),
    "fashion-mnist": Named(
        "FashionMNIST",
        10,
        28,
        "fashion-mnist",
        ("zalando-datasets/fashion_mnist", None),
        (("FashionMNIST", formats.fashion_mnist),),
    ),
    "svhn": Named(
        "SVHN",
        10,
        32,
        "svhn",
        ("ufldl-stanford/svhn", "cropped_digits"),
        (("SVHN", formats.svhn),),
        augment=DSA_UNMIRRORED,
    ),
    "cifar10": Named(
        "CIFAR-10",
        10,
        32,
        "cifar10",
        ("uoft-cs/cifar10", None),
        (
            ("cifar-10-batches-py", formats.cifar10_python),
            ("cifar-10-batches-bin", formats.cifar10_binary),
        ),
    ),
    "cifar100": Named(
        "CIFAR-100",
        100,
        32,
        "cifar100",
        ("uoft-cs/cifar100", None),
        (
            ("cifar-100-python", formats.cifar100_python),
            ("cifar-100-binary", formats.cifar100_binary),
        ),
    ),
    "tiny-imagenet": Named(
        "Tiny-ImageNet",
        200,
        64,
        "tiny-imagenet",
        ("zh-plus/tiny-imagenet", None),
        folders=("tiny-imagenet-200",),
    ),
    "imagenet-1k": Named(
        "ImageNet-1K", 1000, 224, "imagenet", _IMAGENET, folders=("imagenet", "ILSVRC2012")
    ),
    **{
        name: Named(name, len(indices), SIDES.get(name, 128), "imagenet", _IMAGENET)
        for name, indices in SUBSETS.items()
    },
}


def known(name: str, classes: int, channels: int, size: int) -> str | None:
    """The named benchmark that data of this name, number of classes and shape are taken to be.

    So a folder called `cifar10` of ten classes of 32x32 colour images gets what is published for
    CIFAR-10 (constants, recipe rows), and a folder of holiday pictures of that name does not.
    """
    named = NAMED.get(name)
    if named is None or (named.classes, named.size) != (classes, size):
        return None
    grey = name in (EMBEDDED, "mnist", "fashion-mnist")
    return name if channels == (1 if grey else 3) else None


def kin(name: str) -> str | None:
    """The named benchmark that data called `<benchmark>/<list of classes>` are some classes of."""
    base = name.partition("/")[0]
    return base if name not in NAMED and base in NAMED and base != name else None


def find_local(name: str, root: Path) -> RawSplits:
    """A named benchmark below a folder, which is all that is looked at.

    Raises: StillroomError if it is not there, damaged or inconsistent.
    """
    root = user_path(root, "data_root")
    if not root.is_dir():
        raise StillroomError(f"data_root={str(root)!r}: no such folder")
    looked: list[str] = []
    raw = _find_release(name, NAMED[name], root) or _find_folder(name, NAMED[name], root, looked)
    if raw is None:
        raise StillroomError(f"{name} is not under {root} (looked for {', '.join(looked)})")
    return check(raw, name)


def find(data: str, data_root: Path | None) -> Found:
    """Find DATA: a named benchmark, `hf:owner/name[:config]`, or a folder.

    Raises: StillroomError if it is none of them, cannot be found, or is inconsistent.
    """
    if (one := singular(data)) in NAMED:
        data = one
    if data in NAMED:
        named = NAMED[data]
        raw = check(_find_named(data, named, data_root), data)
        if len(raw.classes) != named.classes:
            raise StillroomError(
                f"{data} has {named.classes} classes, but what was found has {len(raw.classes)}; "
                "pass its folder as --data to use it as it is"
            )
        return Found(raw, data, named.size, named.constants)
    if data.startswith("hf:"):
        return Found(check(hub.read_hub(*hub.parse(data)), data), data, None, None)
    if not data.strip():
        raise StillroomError("data='' is empty; name a benchmark or a folder")
    path = user_path(data, "data")
    if path.is_dir():
        return Found(check(read_folder(path), data), path.resolve().name or "data", None, None)
    if path.exists():
        raise StillroomError(f"data={data!r} is a file; pass the folder that holds the images")
    if os.sep in data or data.startswith((".", "~")):
        raise StillroomError(f"data={data!r}: no such folder")
    raise StillroomError(
        f"data={data[:80]!r} is neither a folder, hf:owner/name, nor one of "
        f"{', '.join(NAMED)}{suggest(data, NAMED)}"
    )


def singular(data: str) -> str:
    """A subset of Comp-DD by the plural of its category, `comp-dd/birds-hard`, in the singular."""
    head, dash, side = data.rpartition("-")
    return f"{head.removesuffix('s')}{dash}{side}" if data.startswith("comp-dd/") else data


def _find_named(name: str, named: Named, root: Path | None) -> RawSplits:
    if named.hub is None:
        return formats.digits()
    looked: list[str] = []
    if root is not None:
        root = user_path(root, "data_root")
        if not root.is_dir():
            raise StillroomError(f"data_root={str(root)!r}: no such folder")
        raw = _find_release(name, named, root) or _find_folder(name, named, root, looked)
        if raw is not None:
            return raw
    repo, config = named.hub
    try:
        raw = hub.read_hub(repo, config)
    except StillroomError as error:
        here = f" (the folder here: ./{name})" if root is None and Path(name).is_dir() else ""
        where = f" (looked for {', '.join(looked)} and the released files)" if looked else ""
        raise StillroomError(
            f"{name} is not under --data-root{where}, and {error}"
            if root is not None
            else f"{name}: no --data-root was given, and {error}{here}"
        ) from error
    return cut(raw, name, f"hf:{repo}") if name in SUBSETS else raw


def _find_release(name: str, named: Named, root: Path) -> RawSplits | None:
    for folder, reader in named.releases:
        # The files may lie loose in <root>/<name>, but not in <root>: MNIST and FashionMNIST share
        # their file names, and the one must not be taken for the other.
        for place in (root / name / folder, root / folder, root / name):
            raw = reader(place) if place.is_dir() else None
            if raw is not None:
                return raw
    return None


def _find_folder(name: str, named: Named, root: Path, looked: list[str]) -> RawSplits | None:
    subset = name in SUBSETS
    only = wnids(name) if subset else None
    for place in _places(name, named, root):
        if place != root:
            looked.append(str(place))
        elif only and (root / "train").is_dir() and not _is_imagenet(root, name):
            looked.append(f"{root}, whose train lacks {only[0]}")
        if not place.is_dir() or (place == root and not _is_imagenet(root, name)):
            continue
        raw = read_folder(place, only if _by_wnid(place, only) else None)
        return cut(raw, name, str(place)) if subset else raw
    return None


def _places(name: str, named: Named, root: Path) -> Iterator[Path]:
    yield root / name
    if name in SUBSETS:
        yield root / "imagenet-1k"
        named = replace(named, folders=NAMED["imagenet-1k"].folders)
    yield from (root / folder for folder in named.folders)
    yield root


def _is_imagenet(root: Path, name: str) -> bool:
    """Whether `root` itself is an ImageNet with the first class that `name` needs."""
    if name == "imagenet-1k":
        return (root / "train" / "n01440764").is_dir()
    return name in SUBSETS and (root / "train" / wnids(name)[0]).is_dir()


def _by_wnid(place: Path, only: tuple[str, ...] | None) -> bool:
    return only is not None and any((place / part / only[0]).is_dir() for part in ("", "train"))
