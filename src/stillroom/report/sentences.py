"""What the numbers say in plain words, and what they do not say. Text only, no markup."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from stillroom.data.named import NAMED
from stillroom.evaluation.score import FULL
from stillroom.report.exhibits import NEAR, Exhibit, Maps, Neighbours
from stillroom.report.gather import Shown, unsized
from stillroom.tables import CORESETS, Line, duration, percent, plural, size, span

Fact = tuple[str, str, str]  # a reader's question, the answer, and why
GIVEN = "given"
NO_ARCH = "none"  # the network of a set that was made without one
REPORTED = (
    "These stand in a paper, under its own protocol and code. No mean on this page contains them."
)
FLATTERS = (
    "“Best” picks the best of every student's checks on the test images themselves, which flatters "
    "every row, random images too."
)


def signed(gap: float) -> str:
    """A difference of fractions in points, with a real minus sign."""
    return percent(gap, sign=True).replace("-", "−")


def counted(line: Line) -> str:
    """What n counts: "3 seeds", "5 draws"."""
    return plural(line.summary.n, line.counts.removesuffix("s"))


def headline(shown: Shown) -> tuple[str, list[Fact]]:
    """The result as a sentence and as answers, with no claim that the intervals do not allow."""
    line, random = shown.main, shown.random
    images = f"{plural(len(shown.data), 'image')} ({size(shown.bytes)})"
    if line is None:
        command = f"stillroom evaluate {shlex.quote(shown.name)} --baselines"
        lead = f"{images}, not judged yet: no network has been trained on them."
        return lead, [("How to judge them?", "Evaluate", f"{_RUN}: {command}"), _cost(shown)]
    these = "this image" if len(shown.data) == 1 else f"these {len(shown.data)} images"
    right = f"{percent(line.summary.mean)} % of the test images of {line.conditions.benchmark}"
    if shown.key not in line.set_keys:
        these = f"the set as it was at step {line.step} (not the images below)"
    whose = "with labels of trained networks" if line.conditions.taught else "alone"
    lead = f"Trained on {these} {whose}, a {line.arch} network gets {right} right"
    if random is None:
        question = "Better than random images?"
        facts = [(question, "Not measured", "There is no random baseline beside it.")]
        interval = "no interval" if line.summary.half is None else f"95 % interval {ends(line)} %"
        lead = f"{lead} ({counted(line)}, {interval})."
    else:
        drawn = shown.data.ipc * len(shown.data.classes)
        many = "as many" if drawn == len(shown.data) else f"{drawn}"  # classes of unequal size
        picked = f"{many} real ones picked at random"
        alike = " with labels of the same networks" if line.conditions.taught else ""
        lead += f"; trained on {picked}{alike}, {percent(random.summary.mean)} %."
        facts = [_fact("Better than random images?", line, random)]
    classes = len(shown.data.classes)
    lead += f" Guessing one of {plural(classes, 'class')} gets {percent(1 / classes)} %."
    for other in shown.beside(line):
        if other.row in CORESETS and not other.drawn:
            question, answer, why = _fact(_CORESETS[other.row], line, other)
            facts.append((question, answer, f"{why} {_MEANING[other.row]}"))
    return lead, [*facts, _whole(shown, line), *_jpegs(shown, line), _cost(shown)]


def _whole(shown: Shown, line: Line) -> Fact:
    """What training on all real images gives, which is what a set stands in for."""
    question, name = "How far from all the data?", shown.data.data.get("name")
    full = next(iter(shown.any_size(FULL)), None)
    if full is not None:
        gap = line.summary.mean - full.summary.mean
        why = f"{percent(full.summary.mean)} % ({counted(full)}) when trained on all of them."
        return question, f"{signed(gap)} points", why
    other = next((x for x in shown.lines if x.row == FULL and x.arch == line.arch), None)
    why = f"Here {percent(other.summary.mean)} % under {other.protocol}. " if other else ""
    paper = next((r for r in shown.reported if (r.row, r.arch) == (FULL, line.arch)), None)
    if paper is not None:
        why += f"A paper has {percent(paper.value)} % for all of them."
    if why:
        return question, "Not measured alike", why.strip()
    if line.conditions.taught:
        return question, "Not measured", "All the data are not judged with labels of teachers."
    data = name[:80] if isinstance(name, str) and name in NAMED else "DATA"
    ask = ["stillroom", "evaluate", f"full:{data}", "--protocol", line.protocol]
    ask += ["--records", f"{shown.name}/records.jsonl"]
    return question, "Not measured", f"{_RUN}: {shlex.join(ask)}"


def _jpegs(shown: Shown, line: Line) -> Iterator[Fact]:
    """How a set stands to real images in as many bytes, where those were judged."""
    question, some = "Better than real JPEGs?", shown.any_size("random-jpeg")
    if fitting := [x for x in some if x.shipped <= line.shipped]:
        largest = max(fitting, key=lambda x: x.shipped)
        _, answer, why = _fact(question, line, largest)
        yield question, answer, f"{why} They take {size(largest.shipped)}."
    elif some:
        least = size(min(x.shipped for x in some))
        why = f"Even the fewest that were judged are larger ({least}) than the set "
        yield question, "Not comparable", f"{why}({size(line.shipped)})."
    elif found := _jpegs_elsewhere(shown):
        mine, jpegs = found
        both = f"{percent(mine.summary.mean)} % against {percent(jpegs.summary.mean)} %"
        why = f"Under {mine.protocol}: {both} of real JPEGs in {size(jpegs.shipped)}."
        yield question, "Not measured alike", why


def _jpegs_elsewhere(shown: Shown) -> tuple[Line, Line] | None:
    """The set under other conditions than the headline's, and the JPEGs judged beside it there."""
    pairs = [
        (mine, other)
        for other in shown.lines
        for mine in shown.lines
        if other.row == "random-jpeg"
        and shown.own(mine)
        and shown.key in mine.set_keys
        and unsized(mine) == unsized(other)
        and other.shipped <= mine.shipped
    ]
    return max(pairs, key=lambda pair: pair[1].shipped, default=None)


_RUN = "Run, in the folder that holds the set"
_CORESETS = {
    "class-mean": "Better than class means?",
    "k-means": "Better than k-means?",
}

_MEANING = {
    "class-mean": "A class mean is an average picture of a class.",
    "k-means": "k-means picks the real images that are most typical of their class.",
}


def legend(shown: Shown) -> str:
    """What a reader must know to read the answers; nothing where there are none."""
    if shown.main is None:
        return ""
    drawn = "; draws are other images picked at random, a network each" if shown.random else ""
    return (
        f"Seeds are networks that start from other weights{drawn}. A 95 % interval says how far a "
        "mean may be off by this chance."
    )


def made(shown: Shown) -> str:
    """What the images are, where they are no real ones."""
    step = shown.data.provenance.get("step")
    if not isinstance(step, int) or step < 1:
        return ""
    return "Made by optimisation, for networks to learn from; they need not look real."


def ends(line: Line) -> str:
    """The ends of the interval in percent."""
    return span(line.summary)


def _fact(question: str, line: Line, other: Line) -> Fact:
    """Whether a row is better than another: the answer with the gap in points, and why."""
    gap = line.summary.mean - other.summary.mean
    if line.summary.half is None or other.summary.half is None:
        few = line if line.summary.half is None else other
        answer, why = "Unclear", f"{_no_interval(few)}, so this may be chance"
    elif not line.summary.separate_from(other.summary):
        answer, why = "Unclear", "the 95 % intervals overlap"
        if line.summary.half >= other.summary.half:  # draws of random images are five
            why += "; more students (--seeds) may tell"
    else:
        answer, why = "Yes" if gap > 0 else "No, worse", "the 95 % intervals do not touch"
    mine, theirs = (f"{percent(x.summary.mean)} % ({counted(x)})" for x in (line, other))
    return question, f"{answer}: {signed(gap)} points", f"{mine} against {theirs}; {why}."


def _no_interval(line: Line) -> str:
    """Why a mean has no interval: one number has no spread, and equal ones show none."""
    if line.summary.n == 1:
        return f"{counted(line)} gives no interval"
    return f"{counted(line)} of equal accuracy give no interval"


def _cost(shown: Shown) -> Fact:
    """Images and bytes, in place of what, and the time that they took."""
    counts = shown.data.data.get("counts")
    train = counts.get("train") if isinstance(counts, dict) else None
    why = plural(len(shown.data), "image")
    if isinstance(train, int) and train > 0:
        whole = train * shown.data.images[0].numel()  # a byte a pixel and channel
        share = 100 * shown.bytes / whole
        part = f"{share:.1f}" if share >= 0.1 else f"{share:.1g}"
        why += f" in place of {train} training images, {part} % of the bytes of their pixels"
    if made := making_time(shown.run):
        why += f"; {made} to make"
    else:
        why += "; how long it took is not recorded"
    if shown.main:
        why += f"; {duration(shown.main.seconds)}"
        why += f" and {size(shown.main.memory)} of memory" if shown.main.memory else ""
        why += " to train a network on them and to test it"
    return "At what cost?", _bytes(shown), f"{why}."


def _bytes(shown: Shown) -> str:
    """Images, labels and teachers, told apart where students needed some."""
    line = shown.main
    more = [] if line is None else [(line.label_bytes, "labels"), (line.teacher_bytes, "teachers")]
    return " + ".join([size(shown.bytes), *(f"{size(n)} of {what}" for n, what in more if n)])


def making_time(run: dict[str, Any]) -> str:
    """How long the run took that made the set, if that is known."""
    seconds = run.get("seconds")
    if isinstance(seconds, (int, float)) and 0 <= seconds < 1e12:
        return duration(float(seconds))
    return ""


def method(line: Line) -> str:
    """The row's name without the step."""
    return line.row.split("@")[0]


def taken(shares: Sequence[Sequence[float]]) -> list[tuple[float, int, int]]:
    """The errors of a confusion: (share of a class, the class, what it was taken for)."""
    return [(v, a, b) for a, row in enumerate(shares) for b, v in enumerate(row) if v and a != b]


def of_classes(classes: Sequence[str], own: Exhibit, random: Exhibit | None) -> str:
    """The worst class, the best, and the commonest error."""
    right = own.per_class
    worst, best = (pick(range(len(right)), key=lambda c: right[c]) for pick in (min, max))
    beside = f" (random images: {percent(random.per_class[worst])} %)" if random else ""
    text = (
        f"Worst class: {classes[worst]}, {percent(right[worst])} % of its test images right"
        f"{beside}. Best: {classes[best]}, {percent(right[best])} %."
    )
    if errors := taken(own.shares()):
        share, a, b = max(errors)
        pair = f"{classes[a]} taken for {classes[b]}"
        text += f" Commonest error: {pair}, {percent(share)} % of its images."
    return text


def of_networks(shown: Shown) -> str:
    """How the set does on networks that it was not made with."""
    by = shown.networks()[shown.main.row] if shown.main else {}
    worst = min(by, key=lambda arch: by[arch].summary.mean)
    off = [line.summary.mean for arch, line in by.items() if arch != shown.data.arch]
    mean = f"{percent(sum(off) / len(off))} % on average" if off else "not measured"
    text = f"Worst network: {worst}, {percent(by[worst].summary.mean)} %."
    if shown.data.arch == NO_ARCH:
        return f"{text} The set was made without a network; on all of them: {mean}."
    return (
        f"{text} Off {shown.data.arch}, the network that the set was made with: {mean} "
        f"({plural(len(off), 'network')})."
    )


def of_neighbours(found: Neighbours, shown: bool) -> str:
    """How close the images are to real ones, and whether these are on the page."""
    near = f"{found.near} of {found.total}" if found.near else f"none of {found.total}"
    text = (
        f"Median distance to the nearest real training image: {found.median:.2g} (root mean square "
        f"of pixels from 0 to 1); {near} are near copies (distance below {NEAR:g})."
    )
    return text if shown else f"{text} The real images are left out of this page."


def of_maps(found: Maps) -> str:
    """Which network looked, and how much of an image it looks at."""
    whose = "with given weights" if "=" in found.arch else "trained on the real images"
    return (
        f"Where {found.arch}, {whose}, sees the class of an image (Grad-CAM, "
        f"layer {found.layer}): {100 * found.active:.0f} % of it on average, counted from half of "
        "the largest value on."
    )


def limits(shown: Shown) -> list[tuple[str, str]]:
    """What the result does not show: (topic, sentence) pairs."""
    if not shown.lines:
        return [("Nothing judged", "There are no records, so nothing here claims an accuracy.")]
    return [*_of_judging(shown), *_of_folder(shown)]


def _of_judging(shown: Shown) -> Iterator[tuple[str, str]]:
    table = shown.lines
    for name, digest in dict.fromkeys((x.protocol, x.conditions.protocol_hash) for x in table):
        text = f"Students were trained under {name} (hash {digest}). Numbers under another "
        yield "Protocol", text + "protocol or another hash are not comparable with these."
    for rule in dict.fromkeys(x.conditions.selection for x in table):
        yield "Selection", f"Rule “{rule}”: {_RULES.get(rule, 'as its protocol defines it.')}"
    for taught in dict.fromkeys(x.conditions.taught for x in table):
        told = _TAUGHT.get(taught.partition(":")[0], "Labels {0}.").format(taught)
        yield "Labels", told if taught else _LABELS[shown.data.label_kind]
    yield "Intervals", _variance(shown)
    for split in dict.fromkeys(line.conditions.split for line in table):
        yield "Test images", split_in_words(split)


def _of_folder(shown: Shown) -> Iterator[tuple[str, str]]:
    archs = {x.arch for x in shown.lines if shown.own(x)}
    if len(archs) == 1 and shown.data.arch in (NO_ARCH, *archs):
        made = ", the network that the set was made with" if shown.data.arch in archs else ""
        text = f"Students are {archs.pop()}{made}; how it trains other networks was not measured."
        yield "Transfer", text
    if len(shown.curve()) > 1:
        text = "The headline is the last step. Choosing another step by the curve above would "
        yield "Kept steps", text + "choose it on the test images."
    if shown.neighbours and not shown.neighbours.fits:
        yield "Left out", "Nearest real images of a set that this folder holds no more."
    if shown.stale:
        text = f"{plural(shown.stale, 'record')} of images that this folder holds no more."
        yield "Left out", text
    for note in dict.fromkeys(r.note for r in shown.records if r.note):
        yield "Note", note


_RULES = {
    "last": "the accuracy after the last epoch; no epoch was chosen by its accuracy.",
    "best": "the best of a student's checks on the test images, which flatters every row.",
    "val": "the check that is best on validation images, not on test images.",
}
_SOFT = (
    "SL-1, one stored soft label an image ({}), which holds knowledge beyond the pixels: part of "
    "the gap to baselines with hard labels may be due to the labels, not to the images."
)
_LABELS = {
    "hard": "HL, hard labels: each image counts for its own class only. Sets with soft labels "
    "hold more an image; compare with them only under the same label regime.",
    "probs": _SOFT.format("probabilities"),
    "logits": _SOFT.format("logits"),
}

_SAME = (
    " Rows under the same {} have labels of the same networks, kept alike, random images too: "
    "what is left of a difference is the images'."
)
_TAUGHT = {
    "relabels": "SL-k, stored labels of teachers for drawn views ({0}), which must be shipped too."
    + _SAME.format("{0}"),
    "teachers": "SL+KD, teachers that label every view as a student is trained ({0}), so that they "
    "must be shipped too." + _SAME.format("{0}"),
    "soft": "SL-1, one stored soft label an image by teachers ({0})." + _SAME.format("{0}"),
}


def _variance(shown: Shown) -> str:
    parts = []
    if shown.main:
        parts.append(
            f"The 95 % t-interval of the set is over student seeds (n = {shown.main.summary.n}) on "
            "one distillation. It does not cover distilling again with another seed."
        )
    if shown.random:
        parts.append(
            f"The interval of random is over draws (n = {shown.random.summary.n}), one student "
            "each: it covers the choice of images and the student's seed together."
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
