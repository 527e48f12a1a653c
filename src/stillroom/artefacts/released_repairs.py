"""Repairs of released statistics, by name; see `artefacts/released.py` for what each is.

What must hold: means and variances of all data come from the same pass as those of the classes, so
the means of all data are the mean of those of the classes, or twice that; variances are not
negative; and what a norm is given has the mean that its weights keep.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stillroom.artefacts.released_names import Repair
from stillroom.errors import StillroomError
from stillroom.nets.hooks import SMALL, Kind, Stats

ONCE, TWICE = (0.75, 1.4), (1.6, 2.5)  # means of all data over those of classes
FAR = 0.3  # of the norm of a vector: no longer the same statistic
TINY = 1e-3  # of a deviation: means that the normalisation has made zero
ALIKE = 0.5  # correlation of means with those that norms keep; of other weights it is about 0


@dataclass(frozen=True)
class Raw:
    """What a tree holds of a layer: of all data [C] and [P], of every class [K,C] and [K,P]."""

    layer: str
    kind: Kind
    whole: Stats | None
    each: Stats | None


@dataclass(frozen=True)
class Repaired:
    """Statistics of every layer under our names, and what was mended, in words."""

    stats: list[Stats]
    repairs: tuple[str, ...]


def repaired(
    raw: Sequence[Raw],
    running: Sequence[Stats],
    asked: Sequence[Repair],
    others: int,
    size: int,
    where: str,
) -> Repaired:
    """Check and mend the statistics of all layers of a network.

    running: "mean" and "var" that every norm keeps, {} for convolutions. others: layers of other
    networks under the same name. size: side of the images. where: what errors begin with.
    Raises: StillroomError if they do not fit each other or the weights, or cannot be told.
    """
    if "none" in asked:
        if len(asked) > 1:
            raise StillroomError(f"{where}: repair none takes everything as it is; name it alone")
        return Repaired([_named(one, kept) for one, kept in zip(raw, running, strict=True)], ())
    told: list[str] = []

    def tell(name: Repair, layers: int, of: str = "layers") -> None:
        how = "asked for" if name in asked else "detected"
        told.append(f"{name} ({how}, {layers} {of})")

    convs = [one for one in raw if one.kind == "conv" and one.each is not None]
    if "swapped-patch" in asked or (convs and _swapped(convs, where)):
        raw = [_unswapped(one) for one in raw]
        tell("swapped-patch", len(convs))
    doubled = [one.layer for one in raw if _doubled(one, "doubled" in asked, where)]
    if doubled:
        raw = [_halved(one) if one.layer in doubled else one for one in raw]
        tell("doubled", len(doubled))
    _refuse_other_weights(raw, running, where)
    if others:
        if not convs and "colliding" not in asked:
            raise StillroomError(
                f"{where} holds {others} layers of another network under the same name, and "
                "nothing shows which of them the others are of; take them with --repair colliding"
            )
        tell("colliding", others, "layers left out")
    elif "colliding" in asked:
        raise StillroomError(f"{where}: nothing collides; leave --repair colliding out")
    _refuse_negative(raw, where)
    stats = [_named(one, kept) for one, kept in zip(raw, running, strict=True)]
    if "variance" in asked:
        if any(one.each is None for one in raw):
            raise StillroomError(f"{where}: --repair variance needs statistics of classes")
        stats = [_estimated(some, size) for some in stats]
        tell("variance", len(stats))
    return Repaired(stats, tuple(told))


def _named(one: Raw, running: Stats) -> Stats:
    """The statistics under the names of what they are (see `nets/hooks.py`)."""
    found: Stats = {f"running.{name}": value for name, value in running.items()}
    for name, value in (one.whole or {}).items():
        found[name if name.endswith("mean") else f"batch_{name}"] = value
    for name, value in (one.each or {}).items():
        within = name.replace("var", "within")
        found[f"class.{name if name.endswith('mean') else within}"] = value
    return found


def _swapped(convs: Sequence[Raw], where: str) -> bool:
    """Whether means of patches stand under the name of variances: those can be negative.

    Where no mean is, those of all data tell which are means: no class statistic of theirs is
    swapped.
    """
    negative = [
        any(bool((one.each[name] < 0).any()) for one in convs if one.each is not None)
        for name in ("patch_mean", "patch_var")
    ]
    if all(negative):
        raise StillroomError(
            f"{where}: both means and variances of patches are negative in places; get it again"
        )
    if any(negative):
        return negative[1]
    gaps = [
        sum(_gap(one, name) for one in convs) / len(convs) for name in ("patch_mean", "patch_var")
    ]
    if min(gaps) > FAR:
        raise StillroomError(
            f"{where}: nothing shows whether means and variances of patches are swapped; say "
            "--repair swapped-patch, or --repair none"
        )
    return gaps[1] < gaps[0]


def _gap(one: Raw, name: str) -> float:
    """How far the mean over classes of a statistic is from once or twice the mean of all data."""
    if one.whole is None or one.each is None:
        return 1.0
    mine, theirs = one.whole["patch_mean"], one.each[name].mean(0)
    scale = float(mine.norm().clamp_min(1e-12))
    return min(float((mine - k * theirs).norm()) / scale for k in (1, 2))


def _unswapped(one: Raw) -> Raw:
    if one.kind != "conv" or one.each is None:
        return one
    swapped = {"patch_mean": one.each["patch_var"], "patch_var": one.each["patch_mean"]}
    return Raw(one.layer, one.kind, one.whole, {**one.each, **swapped})


def _doubled(one: Raw, asked: bool, where: str) -> bool:
    """Whether the statistics of all data are twice what they should be."""
    if one.whole is None:
        return False
    if one.each is None:  # nothing shows it
        return asked
    mine = torch.cat([one.whole["mean"], one.whole["patch_mean"]])
    theirs = torch.cat([one.each["mean"].mean(0), one.each["patch_mean"].mean(0)])
    if float(theirs.abs().max()) < TINY * float(one.each["var"].mean().sqrt()):
        return asked  # of zero and twice zero nothing is seen
    ratio = float(mine @ theirs / (theirs @ theirs).clamp_min(1e-12))
    if TWICE[0] <= ratio <= TWICE[1]:
        return True
    if ONCE[0] <= ratio <= ONCE[1]:
        return False
    raise StillroomError(
        f"{where}: means of all data are {ratio:.2g} times those of the classes at {one.layer}, "
        "which is neither once nor doubled; the files are of several passes or networks, or "
        "altered (--repair none takes them as they are)"
    )


def _halved(one: Raw) -> Raw:
    assert one.whole is not None
    return Raw(one.layer, one.kind, {n: v / 2 for n, v in one.whole.items()}, one.each)


def _refuse_other_weights(raw: Sequence[Raw], running: Sequence[Stats], where: str) -> None:
    """What norms are given should have the means that they keep."""
    pairs = [
        (one.each["mean"].mean(0) / kept["var"].sqrt(), kept["mean"] / kept["var"].sqrt())
        for one, kept in zip(raw, running, strict=True)
        if kept and one.each is not None
    ]
    if not pairs:
        return
    mine, theirs = (torch.cat(parts).double() for parts in zip(*pairs, strict=True))
    if not float(theirs.std()) or not bool(mine.isfinite().all()):  # untrained: it keeps nothing
        return
    both = torch.corrcoef(torch.stack([mine, theirs]))
    if not float(both[0, 1]) >= ALIKE:
        raise StillroomError(
            f"{where}: what its norms are given does not go with the means that these weights keep "
            f"(correlation {float(both[0, 1]):.2f}); it is of other weights, or of another network "
            "of that name"
        )


def _refuse_negative(raw: Sequence[Raw], where: str) -> None:
    for one in raw:
        for some in (one.whole, one.each):
            for name, value in (some or {}).items():
                if name.endswith("var") and bool((value < 0).any()):
                    raise StillroomError(
                        f"{where}: a variance of {one.layer} is negative ({name}) after these "
                        "repairs; leave out those that do not belong (--repair), or get it again"
                    )


def _estimated(stats: Stats, size: int) -> Stats:
    """With estimates of what the tree does not hold: total variances.

    Of all data: in a batch of B images the variance of their means counts 1 - 1/B of itself, so it
    is known from the variances of batches and of images. Of a class: that of its own images' means
    is not known, so every class gets the mean over classes of it.
    """
    batch = 64 if size <= SMALL else 256
    found = dict(stats)
    for prefix in ("", "patch_"):
        if f"class.{prefix}mean" not in stats:
            continue
        within, means = stats[f"class.{prefix}within"], stats[f"class.{prefix}mean"]
        inside = within.mean(0)
        if f"batch_{prefix}var" in stats:
            spread = (stats[f"batch_{prefix}var"] - inside) * (batch / (batch - 1))
            found[f"{prefix}var"] = inside + spread.clamp_min(0)
        else:
            spread = stats["running.var"] - inside
        own: Tensor = (spread - means.var(0, correction=0)).clamp_min(0)
        found[f"class.{prefix}var"] = within + own
    return found
