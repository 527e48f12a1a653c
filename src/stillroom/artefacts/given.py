"""Weights that a user brings, `NETWORK=WEIGHTS`: read once, kept in the store by what they are.

A name that goes on holds their digest alone, so that no key and no set holds a path, and the
metadata of a foreign set can open no file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from stillroom.data.benchmarks import Benchmark
from stillroom.data.imagenet import indices
from stillroom.data.preprocess import CONSTANTS
from stillroom.errors import StillroomError
from stillroom.files import fresh_folder, read_json, sha256, sha256_file, user_path, write_atomic
from stillroom.nets.zoo import Arch, canonical, resolve, split_weights
from stillroom.nets.zoo.weights import fetch, load_weights, published
from stillroom.rng import global_rng

FILE = "weights.safetensors"
DIGEST = re.compile(r"[0-9a-f]{16}")
WORD = "published"
DOWNLOADS = "published"  # folder of the store; nothing that `gc` removes has such a name
CLASSES = 1000  # of what is published
MAJORITY = 0.5  # of a class's images, above which an output is taken for that of another class


def settled(name: str, bench: Benchmark, root: Path, auto: Arch | None = None) -> str:
    """The one spelling of a name, with the digest of its weights, in the store from now on.

    WEIGHTS: `published`, a file, an address with its SHA-256 (`https://host/net.pth#1a2b3c4d...`),
    or a digest that this gave before. `auto` is what the network "auto" stands for. An import path
    stays as it is.

    Raises: StillroomError if there are none, they are of another network or of other classes.
    """
    network, weights = split_weights(name)
    if network == "auto" and auto is not None and auto.factory is None:
        network = auto.name
    if network != "auto" and ":" not in network:
        network = canonical(network)
    if not weights:
        return network
    if DIGEST.fullmatch(weights):
        _folder(name, weights, root)
        return f"{network}={weights}"
    arch = auto if auto is not None and network == "auto" else resolve(network)
    path = _file(network, weights, bench, root)
    _refuse_other_classes(path, bench)
    return f"{network}={keep_weights(path, arch, bench, root)}"


def keep_weights(path: Path, arch: Arch, bench: Benchmark, root: Path) -> str:
    """Bring a checkpoint into the store; returns its digest, which says what it holds.

    Raises: StillroomError as `load_weights`.
    """
    net = _loaded(path, arch, bench)
    tensors = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    data = save({name: t.detach().contiguous() for name, t in tensors.items()})
    digest = sha256(data)[:16]
    folder = root / f"weights-{digest}"
    if weights_damage(folder):
        with fresh_folder(folder) as fresh:
            write_atomic(fresh / FILE, data)
    return digest


def _loaded(path: Path, arch: Arch, bench: Benchmark) -> nn.Module:
    """The network with the weights of a checkpoint.

    For some classes of ImageNet-1K one that knows all of them will do: it is left with theirs.
    """
    net, rows = _built(arch, bench, len(bench.classes)), indices(bench.classes)
    try:
        load_weights(net, path)
    except StillroomError as error:
        if rows is None or len(rows) == CLASSES:
            raise
        whole = _built(arch, bench, CLASSES)
        try:
            load_weights(whole, path)
        except StillroomError:
            raise error from None
        theirs = whole.state_dict()
        with torch.no_grad():
            for name, target in net.state_dict().items():
                same = theirs[name].shape == target.shape
                target.copy_(theirs[name] if same else theirs[name][list(rows)])
    return net


def _built(arch: Arch, bench: Benchmark, classes: int) -> nn.Module:
    with global_rng(0, "given"):
        return arch.build(classes, bench.channels, bench.size)


def given_weights(name: str, digest: str, like: dict[str, Tensor], root: Path) -> dict[str, Tensor]:
    """The weights of a digest, for a network whose tensors are as `like`.

    Raises: StillroomError if the store has none, or those of another network or other classes.
    """
    try:
        found = load((_folder(name, digest, root) / FILE).read_bytes())
    except (OSError, SafetensorError) as error:
        raise StillroomError(f"{name}: its weights cannot be read ({error})") from None
    shapes = {key: tuple(t.shape) for key, t in like.items()}
    if {key: tuple(t.shape) for key, t in found.items()} != shapes:
        raise StillroomError(
            f"{name}: its weights are of other classes, channels or another network than are asked "
            "for; name those of these data"
        )
    return found


def weights_damage(folder: Path) -> str:
    """What is wrong with `<store>/weights-<digest>/`, or an empty string."""
    path = folder / FILE
    if not path.is_file():
        return f"{FILE} is missing"
    whole = folder.name == f"weights-{sha256_file(path)[:16]}"
    return "" if whole else f"{FILE} was altered or damaged"


@dataclass(frozen=True)
class Moved:
    """A class of the data that a network knows by another number, and the share of its images."""

    own: int
    said: int
    share: float


def other_order(predicted: Tensor, labels: Tensor, classes: int) -> list[Moved]:
    """Classes that a network has in another order: int64 [N] predictions and labels.

    Outputs are given to classes so that most images are right; where that exchanges some among
    each other, and each of them has the majority of the images of its class, that is no error of a
    network but an order of its own. Source of the trap: RDED's issues 3 and 10.
    """
    from scipy.optimize import linear_sum_assignment

    confusion = torch.bincount(labels * classes + predicted, minlength=classes**2)
    confusion = confusion.view(classes, classes).double()
    said = torch.from_numpy(linear_sum_assignment(-confusion.numpy())[1])
    share = confusion.gather(1, said[:, None])[:, 0] / confusion.sum(1).clamp_min(1)
    found: list[Moved] = []
    for first in range(classes):
        cycle = [first]
        while (after := int(said[cycle[-1]])) != first:
            cycle.append(after)
        if len(cycle) > 1 and bool((share[cycle] > MAJORITY).all()):
            found.append(Moved(first, int(said[first]), float(share[first])))
    return found


def _folder(name: str, digest: str, root: Path) -> Path:
    folder = root / f"weights-{digest}"
    if problem := weights_damage(folder):
        raise StillroomError(
            f"{name}: the store has no such weights ({problem}); name them again, as "
            f"{split_weights(name)[0]}=FILE or ={WORD}"
        )
    return folder


def _file(network: str, weights: str, bench: Benchmark, root: Path) -> Path:
    """The checkpoint that is meant, downloaded if need be."""
    if weights == WORD:
        _refuse_unlike(network, bench)
        return published(network, root / DOWNLOADS)
    if "://" in weights:
        address, _, digest = weights.partition("#")
        if not digest:
            raise StillroomError(
                f"{network}={weights[:80]}: say what it should be, by the head of its SHA-256 "
                "behind a '#'"
            )
        return fetch(address, digest, root / DOWNLOADS)
    return user_path(weights, network)


def _refuse_unlike(network: str, bench: Benchmark) -> None:
    """Published weights tell the classes of ImageNet-1K apart, in its order and normalisation."""
    name = f"{network}={WORD}"
    if len(bench.classes) != CLASSES and indices(bench.classes) is None:
        raise StillroomError(
            f"{name} tells {CLASSES} classes apart and {bench.name} has {len(bench.classes)}; "
            f"leave '={WORD}' out to train it on these data, or name weights of them"
        )
    space = bench.preprocess
    if space.zca is not None or (space.mean, space.std) != CONSTANTS["imagenet"]:
        raise StillroomError(
            f"{name} takes images normalised as imagenet and these are as {space.name}; read them "
            "with --normalise imagenet"
        )


def _refuse_other_classes(path: Path, bench: Benchmark) -> None:
    """What stands beside weights that `evaluate --save-models` wrote is checked, if it is there."""
    beside = path.with_suffix(".json")
    if path.suffix != ".safetensors" or not beside.is_file():
        return
    told = read_json(beside)
    classes = told.get("classes") if isinstance(told, dict) else None
    if not isinstance(classes, list):
        return
    if classes != list(bench.classes):
        pairs = zip(classes, bench.classes, strict=False)
        first = next((f"{str(a)[:40]!r} against {b!r}" for a, b in pairs if a != b), None)
        counts = f"{len(classes)} against {len(bench.classes)}"
        raise StillroomError(
            f"{path}: its classes are not those of {bench.name} ({first or counts}); their order "
            "counts too"
        )
    space = told.get("preprocess")
    own = bench.preprocess.describe()
    same = isinstance(space, dict) and all(space.get(k) == own[k] for k in ("mean", "std", "zca"))
    if space is not None and not same:
        raise StillroomError(
            f"{path}: takes images normalised otherwise than those of {bench.name} "
            f"({own['name']}); read the data with the --normalise that it was trained on"
        )
