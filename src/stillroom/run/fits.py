"""What may be judged on what: the checks before any student is trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stillroom.artefacts.store import Store
from stillroom.config import DSA
from stillroom.data.benchmarks import GIVEN, Benchmark, reopen
from stillroom.data.named import NAMED
from stillroom.distilled import Distilled, load
from stillroom.errors import StillroomError
from stillroom.evaluation.protocol import Protocol
from stillroom.evaluation.published import PROTOCOLS
from stillroom.evaluation.score import FULL
from stillroom.nets.ensemble import Nets
from stillroom.nets.zoo import canonical as canonical_name
from stillroom.run.machine import benchmark
from stillroom.run.options import DataOptions
from stillroom.run.rows import Row, rows_of_set
from stillroom.run.teachers import NO_FULL


def student_of(data: Distilled) -> str:
    """The zoo network that a set was made with, else "auto".

    A user's own code cannot be found again by the name that metadata hold, and is never imported.
    """
    try:
        return canonical_name(data.arch)
    except StillroomError:
        return "auto"


def full_row(bench: Benchmark) -> Row:
    """All training images, for students with the augmentation of a known benchmark.

    So that they stand beside sets of it: digits are not mirrored.
    """
    return Row(FULL, augment=NAMED[bench.like].augment if bench.like else DSA)


def check_row(row: Row, bench: Benchmark, protocol: Protocol, taught: bool = False) -> None:
    """Refuse a row that cannot be judged, before any student is trained.

    `taught`: students get labels of trained networks, whatever the set's own are.
    Raises: StillroomError with the reason.
    """
    if row.folder is not None:
        data = load(row.folder)
        check_fits(data, bench, row.name)
        check_read_alike(data, bench, row.name)
        if not taught:
            check_labels(data, protocol, row.name)
    elif taught:
        raise StillroomError(NO_FULL.format(protocol.id))


def check_rivals(
    folder: Path,
    steps: str,
    rivals: Sequence[Path],
    protocol: Protocol,
    bench: Benchmark,
    taught: bool = False,
) -> None:
    """Refuse sets that cannot be compared student by student, before any student is trained.

    The last of `steps` of a set is compared with the last step of its rivals. `taught`: see
    `check_row`.
    Raises: StillroomError naming the set and the difference.
    """
    for path in rivals:
        own = rows_of_set(folder, steps)[-1]
        (other,) = rows_of_set(path, "last")
        check_row(other, bench, protocol, taught)
        if own.ipc != other.ipc:
            raise StillroomError(
                f"{path} holds {other.ipc} images a class and {folder} {own.ipc}; a comparison "
                "student by student is of sets of one size; evaluate them one after the other"
            )
        if protocol.augment == "set" and own.augment != other.augment:
            raise StillroomError(
                f"{path} wants students trained with {other.augment} and {folder} with "
                f"{own.augment}; under {protocol.id} the two are not judged alike; make one with "
                "--augment of the other, or name a protocol with an augmentation of its own, such "
                "as --protocol vico@1"
            )


def check_fits(data: Distilled, bench: Benchmark, name: str) -> None:
    """Refuse to judge a set on data that it was not made for.

    Raises: StillroomError naming the first difference.
    """
    if data.classes != bench.classes:
        pairs = zip(data.classes, bench.classes, strict=False)
        first = next((f"{a!r} against {b!r}" for a, b in pairs if a != b), None)
        counts = f"{len(data.classes)} against {len(bench.classes)} classes"
        some = {*data.classes} < {*bench.classes}
        remedy = "name them with --classes FILE, as the set was made" if some else ""
        raise StillroomError(
            f"{name}: its classes are not those of {bench.name} ({first or counts}); "
            f"{remedy or 'the order counts too'}"
        )
    want = (bench.channels, bench.size, bench.size)
    if data.tiles > 1:
        raise StillroomError(
            f"{name}: its images are canvases of {data.tiles} x {data.tiles} images (tiles), which "
            "no protocol here takes apart yet; store the images one by one"
        )
    if tuple(data.images.shape[1:]) != want:
        raise StillroomError(
            f"{name}: its images are {list(data.images.shape[1:])}, the data {list(want)}; "
            f"read the data with --size {data.images.shape[-1]}"
        )


def check_labels(data: Distilled, protocol: Protocol, name: str) -> None:
    """Refuse labels that a protocol does not take: a number of it would be of another thing.

    Raises: StillroomError naming both and the protocols that take them.
    """
    if protocol.labels == "hard" and data.label_kind != "hard":
        takes = ", ".join(p.id for p in PROTOCOLS.values() if p.labels == "any")
        raise StillroomError(
            f"{name}: {protocol.id} trains on hard labels and the set has {data.label_kind}; "
            f"judge it under one of {takes}"
        )
    if protocol.labels == "logits" and data.label_kind != "logits":
        raise StillroomError(
            f"{name}: {protocol.id} compares students with logits of teachers and the set has "
            f"{data.label_kind} labels; judge it under another protocol, such as quick@1"
        )


def bench_of_set(data: Distilled, folder: Path, store: Store) -> Benchmark:
    """Reopen the data that a set was made from, out of the store's decoded images.

    Raises: StillroomError if they are not there (pass --data).
    """
    if not data.data.get("content"):
        raise StillroomError(f"{folder}: the set does not say what data it is of; pass --data")
    return reopen({**data.data, "classes": list(data.classes)}, store.root)


def bench_of(folder: Path, data: str | None, options: DataOptions, store: Store) -> Benchmark:
    """The data that are named, else those that a set was made from.

    Raises: StillroomError as `bench_of_set`.
    """
    if data is not None:
        return benchmark(data, options, store)
    return bench_of_set(load(folder), folder, store)


def check_read_alike(data: Distilled, bench: Benchmark, name: str) -> None:
    """Refuse the set's own data under other splits or normalisation than it was made from.

    Another split would test students on images that the set was made of; other constants would
    give the baselines another network space. Other data of the same classes are welcome if they
    bring test images of their own: those drawn here may be images that the set was made of, if the
    data are a folder that grew.
    Raises: StillroomError naming the first difference.
    """
    own, other = data.data, bench.describe()
    if own.get("digest") == other["digest"]:
        return
    if own.get("content") != other["content"]:
        if own.get("content") is not None and other["split"] != GIVEN:
            raise StillroomError(
                f"{name}: {bench.name} holds other images than the set was made from, and its test "
                "images were drawn here, so some of them may have made the set; give it folders "
                "train/ and test/"
            )
        return
    options = ("split", "val", "split_seed", "normalise", "zca")
    differ = [
        f"{option} {str(own.get(option))[:40]} against {other[option]}"
        for option in options
        if own.get(option) != other[option]
    ]
    raise StillroomError(
        f"{name}: it was made of the same images read otherwise ({', '.join(differ[:3])}); "
        "leave --data out, or give the options that it was made with"
    )


def check_pieces(protocol: Protocol, nets: Sequence[Nets]) -> None:
    """Refuse to split the batches of networks with BatchNorm, before the first one trains.

    Raises: StillroomError as the trainer does.
    """
    for one in nets if protocol.pieces > 1 else ():
        if one.has_batchnorm():
            raise StillroomError(
                f"{protocol.id}: {one.arch.name} has BatchNorm, whose statistics are those of a "
                "whole batch; leave +pieces out"
            )


def check_protocol(protocol: Protocol, bench: Benchmark) -> None:
    """Refuse a protocol that needs validation images where there are none.

    Raises: StillroomError with the remedy.
    """
    if bench.val is None and (protocol.select == "val" or protocol.lr == "search"):
        raise StillroomError(
            f"{protocol.id} selects on validation images, and {bench.name} has none; carve them "
            "off before distilling, with --val 0.1"
        )
