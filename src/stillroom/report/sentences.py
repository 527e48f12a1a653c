"""What the numbers say in plain words, and what they do not say. Text only, no markup."""

from __future__ import annotations

import shlex
from typing import Any

from stillroom.report.gather import Shown
from stillroom.tables import CORESETS, Line, percent, size

GIVEN = "given"


def signed(gap: float) -> str:
    """A difference of fractions in points, with a real minus sign."""
    return percent(gap, sign=True).replace("-", "−")


def plural(count: int, noun: str) -> str:
    """Count and noun: "1 seed", "3 seeds", "2 classes"."""
    if count == 1:
        return f"1 {noun}"
    return f"{count} {noun}es" if noun.endswith("s") else f"{count} {noun}s"


def counted(line: Line) -> str:
    """What n counts: "3 seeds", "5 draws"."""
    return plural(line.summary.n, line.counts.removesuffix("s"))


def headline(shown: Shown) -> list[str]:
    """The result in sentences, the main one first, with the claims that the intervals allow."""
    images = f"{plural(len(shown.data), 'image')} ({size(shown.bytes)})"
    line = shown.main
    if line is None:
        return [
            f"{images}, not judged yet: no student has been trained on them.",
            f"Run: stillroom evaluate {shlex.quote(shown.name)} --baselines",
        ]
    verb = "trains" if len(shown.data) == 1 else "train"
    mean, where = percent(line.summary.mean), line.conditions.benchmark
    first = f"{images} {verb} a {line.arch} to {mean} % on {where}"
    random = next((x for x in shown.beside(line) if x.drawn and x.row == "random"), None)
    if random is None:
        sentences = [
            f"{first} ({_interval(line)}).",
            "There is no random baseline beside it, so nothing here shows that the images are "
            "better than random ones.",
        ]
    else:
        sentences = [
            f"{first}; random images of the same number give {percent(random.summary.mean)} % "
            f"({counted(random)}): {_verdict(line, random, 'random images')}."
        ]
    return sentences + [_second(line, x) for x in shown.beside(line) if _coreset(x)]


def _coreset(line: Line) -> bool:
    return not line.drawn and not line.reported and line.row in CORESETS


def _second(line: Line, coreset: Line) -> str:
    name = {
        "class-mean": "The mean image of each class",
        "k-means": "The real images nearest to k-means centres",
    }[coreset.row]
    verb = "gives" if coreset.row == "class-mean" else "give"
    return (
        f"{name} {verb} {percent(coreset.summary.mean)} % ({counted(coreset)}): "
        f"{_verdict(line, coreset, 'that')}."
    )


def _interval(line: Line) -> str:
    s = line.summary
    if s.half is None:
        return f"{counted(line)}, no interval"
    return f"{counted(line)}, 95 % interval {percent(s.low)} to {percent(s.high)} %"


def _verdict(line: Line, other: Line, what: str) -> str:
    """The gap in points and whether it means anything."""
    gap = line.summary.mean - other.summary.mean
    points = f"{signed(gap)} points"
    if line.summary.half is None or other.summary.half is None:
        few = line if line.summary.half is None else other
        return f"{points}, but {counted(few)} gives no interval, so this may be chance"
    if not line.summary.separate_from(other.summary):
        return f"{points}, but the 95 % intervals overlap, so no difference is shown"
    if gap < 0:
        return f"{points}; the 95 % intervals do not touch, so this set is worse than {what}"
    return f"{points}; the 95 % intervals do not touch"


def limits(shown: Shown) -> list[tuple[str, str]]:
    """What the result does not show: (topic, sentence) pairs."""
    table = shown.lines
    if not table:
        return [("Nothing judged", "There are no records, so nothing here claims an accuracy.")]
    found = []
    for name, digest in dict.fromkeys((x.protocol, x.conditions.protocol_hash) for x in table):
        found.append(
            (
                "Protocol",
                f"Students were trained under {name} (hash {digest}). Numbers under another "
                "protocol or another hash are not comparable with these.",
            )
        )
    found += [_selection(rule) for rule in dict.fromkeys(x.conditions.selection for x in table)]
    found.append(("Labels", _labels(shown)))
    found.append(("Intervals", _variance(shown)))
    found += [
        ("Test images", split_in_words(x))
        for x in dict.fromkeys(line.conditions.split for line in table)
    ]
    archs = dict.fromkeys(x.arch for x in table if shown.own(x))
    if len(archs) == 1 and shown.data.arch in archs:
        found.append(
            (
                "Transfer",
                f"Students are {shown.data.arch}, the network that the set was made with; how it "
                "trains other networks was not measured.",
            )
        )
    if len(shown.curve()) > 1:
        found.append(
            (
                "Kept steps",
                "The headline is the last step. Choosing another step by the curve above would "
                "choose it on the test images.",
            )
        )
    if shown.stale:
        found.append(
            (
                "Left out",
                f"{plural(shown.stale, 'record')} of images that this folder holds no more.",
            )
        )
    found += [("Note", note) for note in dict.fromkeys(r.note for r in shown.records) if note]
    return found


def _selection(rule: str) -> tuple[str, str]:
    words = {
        "last": "the accuracy after the last epoch; no epoch was chosen by its accuracy.",
        "best": "the best accuracy of all epochs on the test images, which flatters every row.",
        "val": "the epoch that is best on validation images, not on test images.",
    }
    return "Selection", f"Rule “{rule}”: {words.get(rule, 'as its protocol defines it.')}"


def _labels(shown: Shown) -> str:
    if shown.data.label_kind == "hard":
        return (
            "Hard labels: each image counts for its own class only. Sets with soft labels carry "
            "more information per image; compare with them only under the same label regime."
        )
    kind = "probabilities" if shown.data.label_kind == "probs" else "logits"
    return (
        f"Soft labels ({kind}), which hold knowledge beyond the pixels: part of the gap to "
        "baselines with hard labels may be due to the labels, not to the images."
    )


def _variance(shown: Shown) -> str:
    own = [x for x in shown.lines if shown.own(x)]
    parts = []
    if own:
        most = max(own, key=lambda x: x.summary.n)
        parts.append(
            f"The 95 % t-interval of the set is over student seeds (n = {most.summary.n}) on one "
            "distillation. It does not cover distilling again with another seed."
        )
    drawn = [x for x in shown.lines if x.drawn]
    if drawn:
        parts.append(
            f"The interval of random is over draws (n = {drawn[0].summary.n}), one student each: "
            "it covers the choice of images and the student's seed together."
        )
    parts.append("No interval here covers the choice of test images.")
    return " ".join(parts)


def split_in_words(split: str) -> str:
    """Where the test images come from."""
    if split == GIVEN:
        return "The test split is the one given with the data."
    return (
        f"The data came without a test split: it was drawn here ({split}), so these numbers are "
        "not comparable with published ones."
    )


def real_data(data: dict[str, Any]) -> str:
    """Split of the real data in words, with the counts."""
    counts = data.get("counts")
    counts = counts if isinstance(counts, dict) else {}
    known = [(k, counts.get(k)) for k in ("train", "val", "test")]
    numbers = [f"{n} {k}" for k, n in known if isinstance(n, int) and n > 0]
    split = data.get("split")
    seed = data.get("split_seed")
    if not isinstance(split, str):
        return ", ".join(numbers) or "not recorded"
    words = "given" if split == GIVEN else f"drawn here: {split}, split seed {seed}"
    return f"{', '.join(numbers)}; test split {words}" if numbers else f"test split {words}"
