"""The page: its sentences, its escaping, its code, its bytes."""

from __future__ import annotations

import base64
import contextlib
import csv
import html
import io
import itertools
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save
from scipy import stats

import toy
from stillroom.cli import run
from stillroom.distilled import Distilled, load, set_digest
from stillroom.errors import StillroomError
from stillroom.files import canonical, write_atomic, write_json
from stillroom.recipe import from_preset
from stillroom.report import write_report
from stillroom.report.comparisons import comparison_grid, paired_grid
from stillroom.report.exhibits import _evenly
from stillroom.report.exports import export
from stillroom.report.figures import _apart, _binned, short
from stillroom.report.gather import gather
from stillroom.report.grids import Cell, Column, Grid, Row, accuracy_grid, reported_grid
from stillroom.report.loading import plain_code, training_code
from stillroom.report.pictures import _columns, gallery, seen
from stillroom.report.provenance import flat
from stillroom.report.sentences import headline, limits, of_networks
from stillroom.reported import reported
from stillroom.standing import departure
from stillroom.tables import about, duration, size
from stillroom.types import Preprocess, Record, Zca

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "日本語 Ünïcode مرحبا $x^2$",
    "n" * 300,
    "a\u202eb\x07c",
)


def make(
    folder: Path,
    classes: tuple[str, ...] = ("cat", "dog"),
    ipc: int = 1,
    side: int = 4,
    channels: int = 3,
    label_kind: str = "hard",
    zca: bool = False,
    **fields: Any,
) -> Path:
    """A set of noise on disk."""
    draw = torch.Generator().manual_seed(0)
    n, d = ipc * len(classes), channels * side * side
    of_class = torch.arange(len(classes)).repeat_interleave(ipc)
    logits = torch.randn(n, len(classes), generator=draw)
    labels = {"hard": of_class.clone(), "probs": logits.softmax(1), "logits": logits}[label_kind]
    whitening = None
    if zca:
        mixed = torch.randn(d, d, generator=draw) * 0.05
        whitening = Zca(torch.randn(d, generator=draw) * 0.1, torch.eye(d) + mixed + mixed.T)
    preprocess = Preprocess(
        "fitted", (0.4, 0.5, 0.6)[:channels], (0.2, 0.25, 0.3)[:channels], whitening
    )
    data = {
        "name": "pets",
        "digest": "d" * 64,
        "split": "given",
        "size": side,
        "channels": channels,
        "counts": {"train": 20, "val": 0, "test": 10},
        "duplicates": 0,
        "notes": [],
    }
    provenance = {
        "label": "dm",
        "key": "distilled-1",
        "step": 30,
        "papers": ["zhao2023dm"],
        "recipe": {"seed": 0, "method": {"kind": "distribution_matching"}},
    }
    images = preprocess.apply(torch.rand(n, channels, side, side, generator=draw))
    made = Distilled(
        images=images,
        labels=labels,
        label_kind=label_kind,
        of_class=of_class,
        classes=classes,
        preprocess=preprocess,
        **{"arch": "convnet1", "data": data, "provenance": provenance, **fields},
    )
    made.quantised().save(folder)
    return folder


def record(folder: Path, value: float, seed: int = 0, **fields: Any) -> Record:
    """One student of the set in `folder`."""
    usual = {"data_digest": "d" * 64, "set_key": set_digest(folder)}
    return toy.record(value, seed, **{**usual, **fields})


def judged(folder: Path, *groups: list[Record]) -> Path:
    """Write a ledger."""
    text = "".join(canonical(r.to_dict()) + "\n" for group in groups for r in group)
    write_atomic(folder / "records.jsonl", text)
    return folder


def own(folder: Path, *values: float, **fields: Any) -> list[Record]:
    return [record(folder, v, i, **fields) for i, v in enumerate(values)]


def drawn(folder: Path, *values: float, **fields: Any) -> list[Record]:
    return [
        record(folder, v, i, row="random", draw=i, step=None, set_key=f"r{i}", **fields)
        for i, v in enumerate(values)
    ]


def coreset(folder: Path, *values: float, row: str = "class-mean") -> list[Record]:
    return own(folder, *values, row=row, step=None, set_key="m")


def jpegs(folder: Path, ipc: int, size: int, *values: float) -> list[Record]:
    fields = {"row": "random-jpeg", "step": None, "ipc": ipc, "bytes": size}
    return [record(folder, v, i, draw=i, set_key=f"j{i}", **fields) for i, v in enumerate(values)]


def exhibit(folder: Path, **fields: Any) -> dict[str, Any]:
    """What `evaluate` writes of the students of the set in `folder`."""
    classes = list(load(folder).classes)
    usual = {
        "row": "dm@30",
        "step": 30,
        "set_key": set_digest(folder),
        "arch": "convnet1",
        "protocol_hash": "abc",
        "protocol": "quick@1",
        "numerics": "float32",
        "data_digest": "d" * 64,
        "ipc": 1,
        "classes": classes,
        "students": [{}, {}, {}],
        "per_class": [0.75] * len(classes),
    }
    told = {**usual, **fields}
    shares = [v if isinstance(v, float) and 0 <= v <= 1 else 0.0 for v in told["per_class"]]
    n = len(shares)  # of 100 test images of a class the others are taken for the next one
    square = [
        [round(100 * v) if a == b else round(100 - 100 * v) if b == (a + 1) % n else 0
         for b in range(n)]
        for a, v in enumerate(shares)
    ]  # fmt: skip
    return {"confusion": square, **told}


def exhibited(folder: Path, *contents: dict[str, Any]) -> Path:
    for i, content in enumerate(contents):
        write_json(folder / "exhibits" / f"students-{i}.json", content)
    return folder


def of_random(folder: Path, **fields: Any) -> dict[str, Any]:
    return exhibit(folder, row="random", step=None, set_key=None, **fields)


def neighbours(folder: Path, **changes: Any) -> Path:
    """The set's own images, a little darker, as its nearest real ones."""
    pixels = (load(folder).pixels() * 255).round()
    real = (pixels - 8).clamp(0, 255).to(torch.uint8)
    apart = (pixels / 255 - real / 255).square().mean((1, 2, 3)).sqrt()
    tensors = {"rows": torch.arange(len(real)), "images": real, "distance": apart, **changes}
    kept = {k: v.contiguous() for k, v in tensors.items() if v is not None}
    write_atomic(folder / "exhibits" / "neighbours.safetensors", save(kept))
    return folder


def full(tmp_path: Path, **fields: Any) -> Path:
    """A set with records of two steps, baselines, a loss curve and a machine."""
    folder = make(tmp_path / "dm", **fields)
    kept = make(folder / "steps" / "10", side=5)
    key = set_digest(kept)
    judged(
        folder,
        own(folder, 0.80, 0.82, 0.81),
        own(folder, 0.70, 0.74, 0.72, row="dm@10", step=10, set_key=key),
        drawn(folder, 0.5, 0.55, 0.52, 0.53, 0.51),
        coreset(folder, 0.6, 0.62, 0.61),
        own(folder, 0.3, 0.31, 0.29, arch="mlp"),
        own(folder, 0.83, 0.84, 0.82, metric="accuracy.best", selection="best"),
        jpegs(folder, 1, 700, 0.4, 0.45, 0.42),
        jpegs(folder, 3, 1900, 0.6, 0.65, 0.62),
        own(folder, 12.5, metric="fid", unit="points"),
    )
    exhibited(folder, exhibit(folder), of_random(folder, per_class=[0.5, 0.25]))
    neighbours(folder)
    lines_ = [canonical({"step": i, "loss": 1000.0 / i}) for i in range(1, 31)]
    write_atomic(folder / "metrics.jsonl", "\n".join(lines_) + "\n")
    write_json(folder / "run.json", {"seconds": 147.4, "device": "cpu", "torch": "2.13"})
    return folder


def page(*folders: Path, out: Path) -> str:
    return write_report(folders, out).read_text(encoding="utf-8")


def said(folder: Path) -> str:
    lead, facts = headline(gather([folder])[0])
    return " ".join([lead, *(text for fact in facts for text in fact)])


def test_headline_with_a_clear_gap(tmp_path: Path) -> None:
    folder = make(tmp_path / "dm")
    judged(folder, own(folder, 0.89, 0.90, 0.886), drawn(folder, 0.63, 0.64, 0.62, 0.635, 0.65))
    text = said(folder)
    assert text.startswith(
        "Trained on these 2 images alone, a convnet1 network gets 89.2 % of the test images of "
        "pets right; trained on as many real ones picked at random, 63.5 %. Guessing one of 2 "
        "classes gets "
        "50.0 %. Better than random images? Yes: "
        "+25.7 points 89.2 % (3 seeds) against 63.5 % (5 draws); the 95 % intervals do not touch."
    )
    assert "At what cost?" in text
    assert "2 images in place of 20 training images, 206.4 % of the bytes of their pixels; " in text
    assert "; 1.5 s to train a network on them and to test it." in text


def test_headline_with_touching_intervals_claims_nothing(tmp_path: Path) -> None:
    folder = make(tmp_path / "dm")
    judged(folder, own(folder, 0.6, 0.7, 0.8), drawn(folder, 0.63, 0.64, 0.7, 0.635, 0.65))
    assert "Unclear: +4.9 points" in said(folder)
    assert "the 95 % intervals overlap; more students (--seeds) may tell" in said(folder)
    assert "Yes" not in said(folder)


def test_headline_says_when_random_is_better(tmp_path: Path) -> None:
    folder = make(tmp_path / "dm")
    judged(folder, own(folder, 0.50, 0.51, 0.50), drawn(folder, 0.63, 0.64, 0.62, 0.635, 0.65))
    assert "No, worse: −13.2 points" in said(folder)


def test_headline_of_one_student_has_no_interval(tmp_path: Path) -> None:
    folder = make(tmp_path / "dm")
    judged(folder, own(folder, 0.9), drawn(folder, 0.63, 0.64))
    assert "Unclear: +26.5 points" in said(folder)
    assert "1 seed gives no interval, so this may be chance" in said(folder)


def test_headline_without_baselines_and_without_records(tmp_path: Path) -> None:
    folder = make(tmp_path / "my set")
    assert "not judged yet" in said(folder)
    assert "stillroom evaluate 'my set' --baselines" in said(folder)
    judged(folder, own(folder, 0.9, 0.92))
    assert "Not measured There is no random baseline beside it" in said(folder)
    assert "right (2 seeds, 95 % interval 78.3 to 100.0 %)." in said(folder)


def test_headline_names_the_coreset_and_the_jpegs_that_it_does_not_beat(tmp_path: Path) -> None:
    folder = make(tmp_path / "dm")
    judged(
        folder,
        own(folder, 0.89, 0.90, 0.886),
        drawn(folder, 0.5, 0.51),
        coreset(folder, 0.88, 0.91, 0.87),
        jpegs(folder, 1, 900, 0.5, 0.52),
        jpegs(folder, 4, 2000, 0.895, 0.91),
        jpegs(folder, 9, 9000, 0.99, 0.98),
    )
    assert "Better than class means? Unclear: +0.5 points 89.2 % (3 seeds) against" in said(folder)
    assert "Better than real JPEGs? Unclear: −1.1 points" in said(folder)
    assert "the 95 % intervals overlap. They take 2.0 kB." in said(folder)


def test_time_is_a_cost_where_it_is_known(tmp_path: Path) -> None:
    folder = full(tmp_path)
    assert "; 2 min 27 s to make; 1.5 s to train a network on them" in said(folder)
    write_json(folder / "run.json", {"seconds": "?"})
    assert "to make" not in said(folder)


def test_headline_quotes_the_last_step_and_measured_numbers_only(tmp_path: Path) -> None:
    folder = full(tmp_path)
    assert "81.0 %" in said(folder)
    judged(folder, own(folder, 0.99, source="reported"))
    assert "not judged yet" in said(folder)


def test_records_of_other_images_are_left_out_and_counted(tmp_path: Path) -> None:
    folder = make(tmp_path / "dm")
    judged(folder, own(folder, 0.9, 0.91), own(folder, 0.1, 0.2, set_key="old"))
    (shown,) = gather([folder])
    assert shown.stale == 2
    assert [line.summary.n for line in shown.lines] == [2]
    assert ("Left out", "2 records of images that this folder holds no more.") in limits(shown)


def test_limits_name_protocol_selection_labels_variance_and_split(tmp_path: Path) -> None:
    (shown,) = gather([full(tmp_path)])
    found = dict(limits(shown))
    assert "quick@1 (hash abc)" in found["Protocol"]
    assert "“last”" in found["Selection"]
    assert found["Labels"].startswith("HL, hard labels")
    assert "over student seeds (n = 3)" in found["Intervals"]
    assert "over draws (n = 5)" in found["Intervals"]
    assert "given with the data" in found["Test images"]
    soft = make(tmp_path / "soft", label_kind="probs")
    judged(soft, own(soft, 0.9, split="keyed stratified 80/20"))
    found = dict(limits(gather([soft])[0]))
    assert found["Labels"].startswith("SL-1, one stored soft label an image (probabilities)")
    assert "drawn here (keyed stratified 80/20)" in found["Test images"]


class Tags(HTMLParser):
    """Collects every tag with its attributes, and checks that tags close in order."""

    VOID = frozenset({"meta", "link", "img", "br", "hr", "input"})

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def tags_of(text: str) -> Tags:
    parser = Tags()
    parser.feed(text)
    assert parser.open == []
    return parser


def test_foreign_text_is_never_markup(tmp_path: Path) -> None:
    bad = HOSTILE[0] + HOSTILE[1]
    folder = make(
        tmp_path / "<b>set & co",
        classes=HOSTILE,
        arch=bad,
        augment=bad,
        data={"name": bad, "digest": bad, "split": bad, "notes": [bad, 3], "counts": bad},
        provenance={
            "label": bad,
            "key": bad,
            "step": bad,
            "papers": [bad, {}, 7],
            "recipe": {"method": {"kind": bad, bad: [bad]}, "outer": bad},
        },
    )
    judged(
        folder,
        own(
            folder,
            0.9,
            0.91,
            row=bad,
            arch=bad,
            protocol=bad,
            benchmark=bad,
            protocol_hash=bad,
            selection=bad,
            split=bad,
            note=bad,
        ),
        own(folder, 0.3, row="n" * 300, arch="$x_{$", benchmark=bad, set_key="other", step=None),
        own(folder, 7.5, metric=bad, unit=bad),
        own(folder, 0.3, row="\x00 日本", step=None, set_key="zero"),
    )
    write_json(folder / "run.json", {"device": bad, "torch": {"x": bad}, "drift": [bad]})
    exhibited(folder, exhibit(folder, row=bad, arch=bad, protocol_hash=bad))
    neighbours(folder)
    text = page(folder, out=tmp_path / "page.html")
    tags = tags_of(text).tags
    assert [name for name, _ in tags].count("script") == 1
    assert not [name for name, _ in tags if name in ("b", "iframe", "object", "embed", "base")]
    assert not [a for _, found in tags for a in found if a.startswith("on")]
    pictures = [found for name, found in tags if name == "img"]
    assert all((p["src"] or "").startswith("data:image/png;base64,") for p in pictures)
    assert f"1 image of class {HOSTILE[1]}" in [p["alt"] for p in pictures]
    assert html.escape(HOSTILE[0]) in text
    assert f"Worst class: {html.escape(HOSTILE[0])}, 75.0" in text
    assert f"An image of class {HOSTILE[1]}, and beneath" in " ".join(
        p["alt"] or "" for p in pictures
    )
    assert "\u202e" not in text
    assert "\x07" not in text
    assert "n" * 300 in text


def test_nothing_is_fetched(tmp_path: Path) -> None:
    text = page(full(tmp_path), out=tmp_path / "page.html")
    tags = tags_of(text).tags
    policy = next(f["content"] or "" for t, f in tags if "http-equiv" in f)
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert not re.search(r"url\((?!#)", text)
    for name, found in tags:
        for key in ("src", "href", "srcset", "poster", "action"):
            target = found.get(key) or "#"
            assert target.startswith(("#", "data:")), (name, key, target)


def test_same_input_same_bytes_and_no_path(tmp_path: Path) -> None:
    folder = full(tmp_path)
    first = page(folder, out=tmp_path / "a.html")
    torch.manual_seed(5)
    assert page(folder, out=tmp_path / "b" / "c.html") == first
    assert str(tmp_path) not in first
    assert tmp_path.name not in first
    assert not re.search(r"20[2-9]\d-\d\d-\d\d", first)


def test_ids_are_unique_and_references_resolve(tmp_path: Path) -> None:
    folder = full(tmp_path)
    text = page(folder, make(tmp_path / "other"), folder, out=tmp_path / "page.html")
    tags = tags_of(text).tags
    ids = [found["id"] for _, found in tags if "id" in found]
    assert len(ids) == len(set(ids))
    wanted = set(re.findall(r"url\(#([^)]+)\)", text))
    for _, found in tags:
        for key in ("aria-labelledby", "href", "xlink:href"):
            value = found.get(key) or ""
            if value.startswith("#") or key == "aria-labelledby":
                wanted |= set(value.removeprefix("#").split())
    assert wanted <= set(ids)


def test_tables_sort_and_read_well(tmp_path: Path) -> None:
    text = page(full(tmp_path), out=tmp_path / "page.html")
    tags = tags_of(text).tags
    heads = [f for t, f in tags if t == "th" and f.get("scope") == "col"]
    assert {f.get("data-sort") for f in heads} == {"text", "number"}
    assert [f["aria-sort"] for f in heads if "aria-sort" in f] == ["descending"]
    assert len(re.findall(r"<caption", text)) == len(re.findall(r"<table", text)) == 6
    values = [f["data-value"] for t, f in tags if "data-value" in f]
    assert "0.81" in values
    bodies = re.findall(r"<tbody>.*?</tbody>", text, flags=re.DOTALL)
    assert all(body.count('<th scope="row"') == body.count("<tr") for body in bodies)
    assert all(f.get("tabindex") == "0" for t, f in tags if f.get("class") == "scroll")
    assert ' lang="en"' in text
    for landmark in ("<header>", "<main ", "<nav ", "<footer>"):
        assert text.count(landmark) == 1
    levels = [int(n) for n in re.findall(r"<h([1-6])", text)]
    assert levels[0] == 1
    assert all(b <= a + 1 for a, b in itertools.pairwise(levels))
    assert text.count('class="chart"') == 4


def test_several_sets_side_by_side(tmp_path: Path) -> None:
    first, silent = full(tmp_path), make(tmp_path / "silent", ipc=3)
    again = tmp_path / "elsewhere" / "dm"
    make(again, label_kind="logits")
    judged(again, own(again, 0.9, 0.92, arch="resnet18"))
    text = page(first, silent, again, out=tmp_path / "page.html")
    assert "<bdi>dm (1)</bdi>" in text
    assert "<bdi>dm (2)</bdi>" in text
    assert "Side by side" in text
    assert "These sets were not judged alike: they differ in network." in text
    assert "1 of them has not been judged yet." in text
    levels = [int(n) for n in re.findall(r"<h([1-6])", text)]
    assert all(b <= a + 1 for a, b in itertools.pairwise(levels))


def test_no_records_no_curve_no_machine(tmp_path: Path) -> None:
    text = page(make(tmp_path / "bare", provenance={}, data={}), out=tmp_path / "page.html")
    assert "No network has been trained on it yet" in text
    assert "The folder has no run.json." in text
    assert "<table" not in text
    assert 'class="chart"' not in text


STORAGES = ("float32", "float16", "uint8", "jpeg")
LABELS = ("hard", "probs", "logits")


@pytest.mark.parametrize("zca", [False, True])
def test_the_code_on_the_page_loads_every_set_without_stillroom(tmp_path: Path, zca: bool) -> None:
    script = [
        "import sys",
        "sys.modules['stillroom'] = None",
        "import torch",
        "model = lambda x: x.flatten(1)[:, :2]",
    ]
    sets = {}
    for storage in STORAGES:
        for kind in LABELS:
            name = f"{storage}'{kind}"
            folder = make(tmp_path / name, label_kind=kind, storage=storage, zca=zca)
            sets[name] = data = load(folder)
            text = page(folder, out=tmp_path / "page.html")
            shown = re.sub(r"<[^>]+>", "", text.split("<code>")[1].split("</code>")[0])
            assert html.unescape(shown) + "\n" == plain_code(name, data)
            script += [
                plain_code(name, data),
                training_code(data),
                "assert loss.isfinite()",
                f"real = preprocess(torch.full((1, 3, 4, 4), 0.5))\n"
                f"torch.save((images, labels, classes, real), {name + '.pt'!r})",
            ]
    (tmp_path / "load.py").write_text("\n".join(script))
    done = subprocess.run(
        [sys.executable, "-I", "load.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    for name, data in sets.items():
        images, labels, classes, real = torch.load(tmp_path / f"{name}.pt")
        assert images.dtype == torch.float32
        assert torch.equal(images, data.images)
        assert torch.equal(labels, data.labels)
        assert tuple(classes) == data.classes
        assert torch.equal(real, data.preprocess.apply(torch.full((1, 3, 4, 4), 0.5)))


def test_a_folder_that_is_no_set_is_refused_and_nothing_written(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folders in ([tmp_path / "empty"], [tmp_path / "absent"], []):
        with pytest.raises(StillroomError):
            write_report(folders, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize(
    "line",
    ["{", "[]", "\xff", '{"metric": "accuracy"}', "1" * 5000, "[" * 100_000],
)
def test_a_damaged_ledger_is_named_with_its_line(tmp_path: Path, line: str) -> None:
    folder = make(tmp_path / "dm")
    judged(folder, own(folder, 0.9))
    with (folder / "records.jsonl").open("ab") as stream:
        stream.write(line.encode("latin-1") + b"\n")
    with pytest.raises(StillroomError, match=r"records\.jsonl:2: "):
        write_report([folder], tmp_path / "page.html")


def test_a_damaged_curve_is_named_with_its_line(tmp_path: Path) -> None:
    folder = make(tmp_path / "dm")
    for bad in ('{"step": 1}', '{"step": 1, "loss": NaN}', '{"step": 1, "loss"', '"\xff"'):
        (folder / "metrics.jsonl").write_bytes(b'{"step": 1, "loss": 2}\n' + bad.encode("latin-1"))
        with pytest.raises(StillroomError, match=r"metrics\.jsonl:2: "):
            write_report([folder], tmp_path / "page.html")


def test_gallery_shows_at_most_twenty_by_twenty(tmp_path: Path) -> None:
    many = tuple(f"c{i}" for i in range(23))
    data = load(make(tmp_path / "many", classes=many, ipc=22, side=4))
    shown = gallery(data)
    assert len(shown.sprites) == 20
    assert {s.shown for s in shown.sprites} == {20}
    assert shown.notes == ("106 of 506 images are left out, and with them 3 classes.",)
    for channels in (1, 2):
        grey = gallery(load(make(tmp_path / f"c{channels}", channels=channels)))
        assert len(grey.sprites) == 2
    assert grey.notes == ("Of 2 channels the first is shown.",)
    large = gallery(load(make(tmp_path / "large", side=160)))
    assert "Reduced from 160 to 128 pixels for this page." in large.notes
    alone = replace(data, classes=(*many, "empty"))
    assert "1 of 24 classes have no image." in gallery(alone).notes


def test_class_by_class_with_random_beside(tmp_path: Path) -> None:
    folder = full(tmp_path)
    old = exhibit(folder, set_key="gone", per_class=[0.0, 0.0])
    exhibited(folder, old, exhibit(folder, per_class=[0.75, 0.5]), of_random(folder))
    (shown,) = gather([folder])
    assert [e.set_key for e in shown.exhibits] == [set_digest(folder), None]
    text = page(folder, out=tmp_path / "page.html")
    assert "Worst class: dog, 50.0\xa0% of its test images right (random images: 75.0\xa0%)" in text
    assert "Commonest error: dog taken for cat, 50.0\xa0% of its images." in text
    assert 'style="left: 50.0%"' in text
    assert '<td class="number heat wrong" data-value="0.5" style="--heat: 100%">' in text


def test_exhibits_of_other_conditions_or_classes_are_not_shown(tmp_path: Path) -> None:
    folder = make(tmp_path / "dm")
    judged(folder, own(folder, 0.8, 0.82))
    exhibited(
        folder,
        *(
            exhibit(folder, **other)
            for other in ({"arch": "mlp"}, {"ipc": 2}, {"step": 10}, {"augment": "dsa:flip"})
        ),
        exhibit(folder, classes=["cat", "cow"]),
    )
    (shown,) = gather([folder])
    assert shown.exhibit(shown.main) is None
    assert "Class by class" not in page(folder, out=tmp_path / "page.html")


def test_many_classes_show_the_worst_and_the_commonest_errors(tmp_path: Path) -> None:
    many = tuple(f"c{i}" for i in range(60))
    folder = judged(make(tmp_path / "dm", classes=many), own(tmp_path / "dm", 0.8, 0.82))
    exhibited(folder, exhibit(folder, per_class=[i / 100 for i in range(60)]))
    text = page(folder, out=tmp_path / "page.html")
    assert "The 20 worst of 60 classes; students: 3 of dm@30" in text
    assert "The commonest errors" in text
    assert text.count("<tr") < 60
    exhibited(folder, exhibit(folder, confusion=None))
    assert "The commonest errors" not in page(folder, out=tmp_path / "page.html")


BAD_EXHIBITS: list[Any] = [
    [],
    {},
    {"per_class": [0.5]},
    {"per_class": [0.5, 1.5]},
    {"per_class": [0.5, True]},
    {"per_class": ["0.5", 0.5]},
    {"confusion": [[1, 2]]},
    {"confusion": [[1, 2], [3]]},
    {"confusion": [[1, 2], [3, -1]]},
    {"confusion": [[1, 2], [3, 2**60]]},
    {"confusion": [[1, 2], [3, 0.5]]},
    {"augment": 5},
    {"classes": "cat"},
    {"row": "n" * 301},
    {"row": ["dm@30"]},
    {"step": -1},
    {"students": None},
]


@pytest.mark.parametrize("change", BAD_EXHIBITS, ids=str)
def test_a_damaged_exhibit_is_one_line_that_names_it(tmp_path: Path, change: Any) -> None:
    folder = make(tmp_path / "dm")
    whole = isinstance(change, list) or not change
    write_json(
        folder / "exhibits" / "students-0.json", change if whole else exhibit(folder, **change)
    )
    with pytest.raises(StillroomError, match=r"students-0\.json: [^\n]*$") as caught:
        write_report([folder], tmp_path / "page.html")
    assert "\n" not in str(caught.value)


def test_an_exhibit_of_many_classes_has_no_confusion(tmp_path: Path) -> None:
    many = tuple(f"c{i}" for i in range(201))
    folder = make(tmp_path / "dm", classes=many)
    exhibited(folder, exhibit(folder, confusion=None))
    assert len(gather([folder])[0].exhibits) == 1
    exhibited(folder, exhibit(folder))
    with pytest.raises(StillroomError, match=r"students-0\.json: confusion.* at most 200 items"):
        gather([folder])


def test_exhibits_without_end_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stillroom.report.exhibits.MAX_EXHIBITS", 3)
    folder = make(tmp_path / "dm")
    exhibited(folder, *[exhibit(folder)] * 3)
    assert [e.students for e in gather([folder])[0].exhibits] == [[None] * 3] * 3
    exhibited(folder, *[exhibit(folder)] * 4)
    with pytest.raises(StillroomError, match=r"exhibits: holds more than 3 files [^\n]*again$"):
        gather([folder])
    with (folder / "exhibits" / "students-0.json").open("wb") as stream:
        stream.truncate(17 * 2**20)
    (folder / "exhibits" / "students-1.json").unlink()
    with pytest.raises(StillroomError, match=r"students-0\.json: larger than 16 MiB"):
        gather([folder])


@pytest.mark.parametrize("name", ["run.json", "metrics.jsonl", "exhibits/students-0.json"])
def test_a_pipe_in_place_of_a_file_is_one_line(tmp_path: Path, name: str) -> None:
    folder = make(tmp_path / "dm")
    (folder / "exhibits").mkdir()
    os.mkfifo(folder / name)
    with pytest.raises(StillroomError, match=f"{name}: not a regular file"), alarm(20):
        gather([folder])


@contextlib.contextmanager
def alarm(seconds: int) -> Iterator[None]:
    """What waits for ever ends with this process, after a while."""
    signal.alarm(seconds)
    yield
    signal.alarm(0)


def test_nearest_real_images_are_shown_or_left_out(tmp_path: Path) -> None:
    folder = neighbours(make(tmp_path / "dm", ipc=40, storage="uint8"))
    text = page(folder, out=tmp_path / "page.html")
    assert "none of 80 are near copies (distance below 0.02). 30 of 80 pairs" in text
    assert text.count("and beneath it the nearest real one") == 50
    without = write_report([folder], tmp_path / "page.html", real_images=False).read_text()
    assert "The real images are left out of this page." in without
    assert "beneath it" not in without
    assert without.count("<img") == text.count("<img") - 50
    neighbours(folder, images=(load(folder).pixels() * 255).round().to(torch.uint8))
    assert "nearest real" not in page(folder, out=tmp_path / "page.html")
    neighbours(
        folder, images=(load(folder).pixels() * 255).to(torch.uint8), distance=torch.zeros(80)
    )
    assert "80 of 80 are near copies" in page(folder, out=tmp_path / "page.html")


def test_pairs_are_even_over_classes_and_the_closest_first() -> None:
    assert _evenly([0, 0, 1], [0.3, 0.1, 0.2]) == [1, 0, 2]
    assert len(_evenly([c for c in range(20) for _ in range(9)], [0.5] * 180)) == 40
    assert len(_evenly(list(range(120)), [0.5] * 120)) == 40


BAD_NEIGHBOURS: list[dict[str, Any]] = [
    {"rows": None},
    {"rows": torch.tensor([0, 2])},
    {"rows": torch.tensor([0, -1])},
    {"rows": torch.tensor([0.0, 1.0])},
    {"rows": torch.tensor([0])},
    {"distance": torch.tensor([0.1, torch.nan])},
    {"distance": torch.tensor([0.1, 1.5])},
    {"distance": torch.tensor([[0.1, 0.2]])},
    {"images": torch.zeros(2, 3, 5, 4, dtype=torch.uint8)},
    {"images": torch.zeros(2, 3, 4, 4)},
    {n: torch.zeros(0, dtype=t) for n, t in (("rows", torch.int64), ("distance", torch.float32))},
]


@pytest.mark.parametrize("change", BAD_NEIGHBOURS, ids=lambda change: " ".join(change))
def test_damaged_neighbours_are_one_line(tmp_path: Path, change: dict[str, Any]) -> None:
    folder = neighbours(make(tmp_path / "dm"), **change)
    with pytest.raises(StillroomError, match=r"neighbours\.safetensors: "):
        gather([folder])


@pytest.mark.parametrize("blob", [b"", b"\x80\x04pickle", b"\xff" * 64])
def test_neighbours_that_are_no_safetensors_are_one_line(tmp_path: Path, blob: bytes) -> None:
    folder = make(tmp_path / "dm")
    write_atomic(folder / "exhibits" / "neighbours.safetensors", blob)
    with pytest.raises(StillroomError, match=r"neighbours\.safetensors: not a whole"):
        gather([folder])


def mapped(folder: Path, told: dict[str, Any] | None = None, **changes: Any) -> Path:
    """Maps that see the left half of every image."""
    count, _, height, width = load(folder).images.shape
    maps = torch.zeros(count, height, width, dtype=torch.uint8)
    maps[:, :, : width // 2] = 255
    kept = {"rows": torch.arange(count), "maps": maps, **changes}
    kept = {k: v.contiguous() for k, v in kept.items() if v is not None}
    of = {"arch": "convnet3", "layer": "features.2", "set": set_digest(folder), **(told or {})}
    write_atomic(
        folder / "exhibits" / "maps.safetensors", save(kept, metadata={"stillroom": canonical(of)})
    )
    return folder


def test_where_a_network_sees_the_class(tmp_path: Path) -> None:
    folder = mapped(make(tmp_path / "dm", ipc=40, storage="uint8"))
    text = page(folder, out=tmp_path / "page.html")
    assert "Where convnet3, trained on the real images, sees the class of an image" in text
    assert "50 % of it on average" in text.replace("\xa0", " ")
    assert "30 of 80 images are left out" in text
    assert text.count("dark where a network does not see the class") == 50
    mapped(folder, {"set": "of another"}, rows=torch.arange(500), maps=torch.zeros(500, 9, 9))
    assert "sees the class" not in page(folder, out=tmp_path / "page.html")


def test_what_is_not_seen_is_dark(tmp_path: Path) -> None:
    """The tile below, pixel by pixel: left as it is, right at 15 % of its light."""
    (shown,) = gather([mapped(make(tmp_path / "dm", storage="uint8"))])
    assert shown.maps is not None
    (sprite, share), *_ = seen(shown.data, shown.maps)
    sheet = Image.open(io.BytesIO(base64.b64decode(sprite.uri.partition(",")[2]))).convert("RGB")
    pixels = torch.from_numpy(np.array(sheet)).long()
    side = shown.data.images.shape[-1]
    above, below = pixels[:side], pixels[-side:]
    half = side // 2
    assert share == "50%"
    assert torch.equal(above[:, :half], below[:, :half])
    assert torch.equal((above[:, half:] * 0.15).round().long(), below[:, half:])
    assert int(above.max()) > 0


BAD_MAPS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {"rows": None}),
    ({}, {"rows": torch.tensor([0, 2])}),
    ({}, {"rows": torch.tensor([0])}),
    ({}, {"maps": torch.zeros(2, 4, 4)}),
    ({}, {"maps": torch.zeros(2, 9, 4, dtype=torch.uint8)}),
    ({}, {"more": torch.zeros(2)} | {"maps": None}),
    ({"layer": None}, {}),
    ({"arch": "x" * 301}, {}),
]


@pytest.mark.parametrize(("told", "change"), BAD_MAPS, ids=str)
def test_damaged_maps_are_one_line(
    tmp_path: Path, told: dict[str, Any], change: dict[str, Any]
) -> None:
    folder = mapped(make(tmp_path / "dm"), told, **change)
    with pytest.raises(StillroomError, match=r"maps\.safetensors: "):
        gather([folder])


def test_maps_without_a_word_about_them_are_one_line(tmp_path: Path) -> None:
    folder = make(tmp_path / "dm")
    write_atomic(folder / "exhibits" / "maps.safetensors", save({"rows": torch.arange(2)}))
    with pytest.raises(StillroomError, match="does not say which network and set it is of"):
        gather([folder])
    write_atomic(folder / "exhibits" / "maps.safetensors", b"\x80\x04pickle")
    with pytest.raises(StillroomError, match="not a whole safetensors file"):
        gather([folder])


def test_other_rules_networks_and_metrics_have_tables_of_their_own(tmp_path: Path) -> None:
    folder = full(tmp_path)
    text = page(folder, out=tmp_path / "page.html")
    assert "which flatters every row" in text
    assert "best on test images" in text
    assert "accuracy.best" not in text
    assert "12.5 points" in text.replace("\xa0", " ")
    (shown,) = gather([folder])
    assert of_networks(shown) == (
        "Worst network: mlp, 30.0 %. Off convnet1, the network that the set was made with: 30.0 % "
        "on average (1 network)."
    )
    assert list(shown.networks()) == ["dm@30", "class-mean", "random", "random-jpeg"]


def test_reported_numbers_stand_beside_and_in_no_mean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = full(tmp_path)
    before = gather([folder])[0]
    some = [
        record(folder, 0.5, row=row, source="reported", note=note, versions=versions)
        for row, note, versions in (
            ("dm", "A paper, Table 1", {"std": "0.006"}),
            ("mtt", HOSTILE[0], {}),
        )
    ]
    monkeypatch.setattr("stillroom.report.gather.known", lambda name, *shape: name)
    monkeypatch.setattr("stillroom.report.gather.find", lambda name, ipc: tuple(some))
    monkeypatch.setattr("stillroom.report.gather.departure", lambda *_: "")
    (shown,) = gather([folder])
    assert shown.lines == before.lines
    text = page(folder, out=tmp_path / "page.html")
    assert "A paper’s number, not measured here" in text
    assert "Hollow: a paper’s number" in text
    assert "mtt (paper)" in text
    assert "dm (paper)" not in text  # judged alike, so in the row of the set
    (row,) = [r for r in reported_grid(shown).rows if r.cells[0].text == "dm"]
    assert row.cells[3].text == "81.0"
    assert '<td class="number" data-value="0.006">0.6</td>' in re.sub(r">\n", ">", text)
    assert html.escape(HOSTILE[0]) in text


@pytest.mark.parametrize("other", [{"arch": "convnet3"}, {"protocol": "vico@1"}], ids=str)
def test_a_papers_number_of_another_network_or_protocol_shares_no_row(
    other: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = full(tmp_path)
    paper = record(folder, 0.5, row="dm", source="reported", note="A paper", **other)
    monkeypatch.setattr("stillroom.report.gather.known", lambda name, *shape: name)
    monkeypatch.setattr("stillroom.report.gather.find", lambda name, ipc: (paper,))
    (shown,) = gather([folder])
    (row,) = reported_grid(shown).rows
    told = [cell.text for cell in row.cells[3:5]]
    assert told == (["–", "–"] if "arch" in other else ["81.0", "dm@30: other protocol"])
    text = page(folder, out=tmp_path / "page.html")
    assert "dm (paper)" in text
    assert "Rows “(paper)” have nothing here" in text


@pytest.mark.parametrize(
    ("changes", "beside"),
    [
        ({}, True),
        ({"classes": ("cat", "dog")}, False),
        ({"side": 16}, False),
        ({"channels": 1}, False),
        ({"data": {"name": "holidays"}}, False),
        ({"data": {"name": ["cifar10"]}}, False),
        ({"data": {}}, False),
    ],
    ids=str,
)
def test_reported_numbers_are_of_a_benchmark_and_not_of_its_name(
    changes: dict[str, Any], beside: bool, tmp_path: Path
) -> None:
    cifar = {"classes": tuple(map(str, range(10))), "side": 32, "data": {"name": "cifar10"}}
    (shown,) = gather([make(tmp_path / "dm", **{**cifar, **changes})])
    assert {r.benchmark for r in shown.reported} == ({"cifar10"} if beside else set())


def test_of_a_set_whose_last_step_was_not_judged_the_page_says_so(tmp_path: Path) -> None:
    folder = make(tmp_path / "dm")
    kept = make(folder / "steps" / "10", side=5)
    judged(folder, own(folder, 0.7, 0.74, row="dm@10", step=10, set_key=set_digest(kept)))
    assert "Trained on the set as it was at step 10 (not the images below) alone" in said(folder)
    judged(
        folder,
        own(folder, 0.8, 0.81),
        own(folder, 0.9, 0.91, row="dm@10", step=40, set_key=set_digest(kept)),
    )
    assert "Trained on these 2 images alone, a convnet1 network gets 80.5 %" in said(folder)


def test_the_intervals_told_are_those_of_the_headline(tmp_path: Path) -> None:
    folder = make(tmp_path / "dm")
    judged(folder, own(folder, 0.8), own(folder, 0.7, 0.71, 0.72, arch="mlp"), drawn(folder, 0.5))
    (told,) = [text for topic, text in limits(gather([folder])[0]) if topic == "Intervals"]
    assert "over student seeds (n = 1)" in told
    assert "over draws (n = 1)" in told


def test_a_set_smaller_than_every_jpeg_says_that_none_fits(tmp_path: Path) -> None:
    folder = make(tmp_path / "dm")
    judged(folder, own(folder, 0.8, 0.81), jpegs(folder, 1, 9999, 0.4, 0.45))
    assert (
        "Not comparable Even the fewest that were judged are larger (10.0 kB) than the set "
        in said(folder)
    )


def test_a_ledger_of_too_many_rows_is_one_line(tmp_path: Path) -> None:
    folder = make(tmp_path / "dm")
    many = [record(folder, 0.5, row=f"r{i}", step=None) for i in range(1001)]
    judged(folder, many)
    with pytest.raises(StillroomError, match="holds 1001 rows; a page shows at most 1000"):
        gather([folder])


def test_deep_json_is_one_line(tmp_path: Path) -> None:
    folder = make(tmp_path / "dm")
    deep = "[" * 900 + "]" * 900
    for text in (f'{{"drift": {deep}}}', f'{{"drift": {"[" * 60 + "]" * 60}}}'):
        (folder / "run.json").write_text(text)
        with pytest.raises(StillroomError, match=r"run.json: not readable as JSON \(more than 50"):
            gather([folder])


def test_an_exhibit_that_contradicts_itself_is_one_line(tmp_path: Path) -> None:
    folder = judged(make(tmp_path / "dm"), own(tmp_path / "dm", 0.8, 0.82))
    exhibited(folder, exhibit(folder, confusion=[[30, 10], [10, 30]], per_class=[0.75, 0.99]))
    with pytest.raises(StillroomError, match="per_class 1 is not what confusion says"):
        gather([folder])


def test_distillations_of_one_name_have_a_row_of_their_own(tmp_path: Path) -> None:
    folders = []
    for i, values in enumerate(((0.8, 0.82), (0.7, 0.72))):
        folder = make(tmp_path / f"d{i}", lr=0.1 * (i + 1))
        mine = own(folder, *values, family="f")
        folders.append(judged(folder, mine, drawn(folder, 0.5, 0.55)))
    grid = comparison_grid(gather([*folders, folders[0]]))
    texts = [[cell.text for cell in row.cells] for row in grid.rows]
    assert [t[0] for t in texts] == ["d0 (1)", "d0 (2)", "dm@30, all distillations", "d1"]
    assert texts[2][2:6] == ["76.0", "12.5 to 100.0", "+23.5", "2 distillations"]


FOREIGN = '=1|2_%$#&{}~^\\<b>[x](y)*\n"é, z'
TABLE = Grid(
    "A_b",
    (Column("row", "text"), Column("vs random", "number"), Column("@of", "text")),
    (
        Row("own", (Cell(FOREIGN, FOREIGN), Cell("−1.5", "-0.015", apart=True), Cell("-x", "-x"))),
        Row("base", (Cell("plain", "plain"), Cell("–", ""), Cell("+y", "+y"))),
    ),
)


def test_the_table_in_markdown() -> None:
    assert export(TABLE, ".md") == (
        "A\\_b\n\n| row | vs random | \\@of |\n|:--|--:|:--|\n"
        '| =1\\|2\\_%\\$\\#\\&\\{\\}\\~^\\\\\\<b\\>\\[x\\](y)\\* "é, z | −1.5\\* | -x |\n'
        "| plain | – | +y |\n\n"
        "\\* The 95 % interval of the row and that of random do not touch.\n"
    )


def test_the_table_in_latex() -> None:
    assert export(TABLE, ".tex") == (
        "\\begin{table}  % needs \\usepackage{booktabs}\n"
        "  \\caption{A\\_b.}\n"
        "  \\begin{tabular}{lrl}\n"
        "    \\toprule\n"
        "    row & vs random & @of \\\\\n"
        "    \\midrule\n"
        "    =1|2\\_\\%\\$\\#\\&\\{\\}\\textasciitilde{}\\textasciicircum{}\\textbackslash{}"
        '\\textless{}b\\textgreater{}[x](y)* "é, z & $-$1.5* & -x \\\\\n'
        "    plain & -- & +y \\\\\n"
        "    \\bottomrule\n"
        "  \\end{tabular}\n"
        "  \\par {}* The 95 \\% interval of the row and that of random do not touch.\n"
        "\\end{table}\n"
    )


def test_the_table_in_csv_holds_no_formula() -> None:
    rows = list(csv.reader(io.StringIO(export(TABLE, ".csv"))))
    assert rows == [
        ["row", "vs random", "'@of"],
        ["'" + FOREIGN.replace("\n", " "), "-1.5", "'-x"],
        ["plain", "", "'+y"],
    ]


def test_every_field_of_the_csv_is_one_number_or_a_text(tmp_path: Path) -> None:
    """Of a table with every kind of column: intervals, counts and sizes are apart."""
    folder = full(tmp_path)
    head, *rows = csv.reader(io.StringIO(page(folder, out=tmp_path / "t.csv")))
    expected = "row,accuracy %,95 % low,95 % high,vs random,intervals apart,student,protocol,hash"
    assert head[:9] == expected.split(",")
    more = ["label bytes", "teacher bytes"]
    assert head[-7:] == ["n", "of", "std", "bytes", *more, "s / student"]
    (shown,) = gather([folder])
    assert len(rows) == len(shown.lines)
    for row in rows:
        found = dict(zip(head, row, strict=True))
        (line,) = [
            x
            for x in shown.lines
            if (x.row, x.arch, x.conditions.protocol_hash, x.numerics, str(x.conditions.ipc))
            == (*(found[n] for n in ("row", "student", "hash", "numerics", "images a class")),)
        ]
        assert float(found["accuracy %"]) == pytest.approx(100 * line.summary.mean, abs=0.051)
        if line.summary.half is not None:
            ends = float(found["95 % low"]), float(found["95 % high"])
            assert ends[0] <= 100 * line.summary.mean <= ends[1]
        assert (int(found["n"]), found["of"]) == (line.summary.n, line.counts)
        assert int(found["bytes"]) == line.bytes
        assert [int(found[name]) for name in more] == [line.label_bytes, line.teacher_bytes]
        apart = "" if line.gap is None else "yes" if line.separate else "no"
        assert found["intervals apart"] == apart
        told = (found["protocol"], found["hash"], found["data"], found["numerics"])
        of = line.conditions
        assert told == (of.protocol, of.protocol_hash, of.benchmark, of.numerics)


def test_every_table_of_the_page_has_a_file(tmp_path: Path) -> None:
    """All in Markdown and LaTeX, one by name in CSV; what is not there is named."""
    folder = full(tmp_path)
    exhibited(folder, exhibit(folder, per_class=[0.75, 0.5]), of_random(folder))
    whole = page(folder, out=tmp_path / "t.md")
    for text in ("Accuracy on test images", "Accuracy of each class", "Of the test images of"):
        assert whole.count(text) == 1
    assert "0 to 100 %" not in whole  # a column of drawings
    assert page(folder, out=tmp_path / "t.tex").count("\\begin{tabular}") == whole.count("\n|:--|")
    write_report([folder], tmp_path / "c.csv", table="confusion")
    head, *rows = csv.reader(io.StringIO((tmp_path / "c.csv").read_text("utf-8")))
    assert len(rows) == len(head) - 1  # a column of every class, also of one never taken
    with pytest.raises(StillroomError, match=r"^table='reported' is not on this page; it has acc"):
        write_report([folder], tmp_path / "n.csv", table="reported")
    with pytest.raises(StillroomError, match=r"^table='classes' is for .md, .tex, .csv"):
        write_report([folder], tmp_path / "n.html", table="classes")
    assert not (tmp_path / "n.csv").exists()


def test_foreign_text_is_no_argument_no_link_and_no_formula() -> None:
    some = ("[9cm]", "*", "＝1+1", "see http://x.org and www.x.org, @you, dm@300")
    grid = Grid("c", (Column("row", "text"),), tuple(Row("", (Cell(t, t),)) for t in some))
    tex = export(grid, ".tex").splitlines()
    assert tex[6:8] == ["    {}[9cm] \\\\", "    {}* \\\\"]
    assert export(grid, ".csv").splitlines()[3] == "'＝1+1"
    told = export(grid, ".md").splitlines()[-1]
    assert told == "| see http\\://x.org and www\\.x.org, \\@you, dm@300 |"


def test_the_suffix_decides_what_is_written(tmp_path: Path) -> None:
    folder = full(tmp_path)
    for suffix, start in ((".md", "Accuracy on test"), (".tex", "\\begin"), (".csv", "row,acc")):
        assert page(folder, out=tmp_path / f"t{suffix}").startswith(start)
        assert page(folder, folder, out=tmp_path / f"t{suffix}").count("dm (2)") >= 1
    assert page(folder, out=tmp_path / "t.HTML").startswith("<!DOCTYPE")
    with pytest.raises(StillroomError, match=r"^out='t.pdf' must end in .html, .md, .tex, .csv$"):
        write_report([folder], tmp_path / "t.pdf")


def test_small_helpers() -> None:
    assert [_columns(n) for n in (1, 2, 7, 10, 20)] == [1, 2, 4, 5, 5]
    assert short("a" * 40, 12) == "aaaaaaaa…aaa"
    assert short("a\x00b", 12) == "a\ufffdb"
    heights = _apart([(0.5, "a", ""), (0.501, "b", ""), (0.9, "c", "")], 0.05)
    assert all(b - a >= 0.05 - 1e-9 for a, b in itertools.pairwise(heights))
    steps, mean, low, high = _binned([(s, float(s % 2)) for s in range(10_000)])
    assert len(steps) <= 240
    assert (min(low), max(high)) == (0.0, 1.0)
    assert mean[5] == pytest.approx(0.5, abs=0.05)
    assert [duration(s) for s in (7.31, 147.4, 11_100)] == ["7.3 s", "2 min 27 s", "3 h 5 min"]
    assert flat({"a": [1, 2.5, None], "b": True}) == "a 1, 2.5, -, b yes"


def test_the_headline_is_never_chosen_by_its_accuracy(tmp_path: Path) -> None:
    """Of several rows of the set the one that its recipe names, then the one of more students."""
    folder = make(tmp_path / "set")
    usual = own(folder, 0.30, 0.32)
    for value in (0.1, 0.9):
        other = own(folder, value, numerics="bf16")
        (shown,) = gather([judged(folder, other, usual)])
        assert shown.main is not None
        assert (shown.main.numerics, shown.main.summary.n) == ("float32", 2)


def test_a_run_that_departs_from_the_published_one_is_no_test_of_it(tmp_path: Path) -> None:
    paper, herding = (
        next(r for r in reported() if (r.row, r.benchmark, r.ipc) == (row, "cifar10", 10))
        for row in ("dm", "herding")
    )
    recipe, data = published("dm", 10), {"normalise": "cifar10", "zca": False, "val": 0.0}
    assert departure(recipe, data, paper, 20000) == ""
    assert departure(recipe, data, paper, 300) == "fewer steps"
    slower = {**recipe, "outer": {**recipe["outer"], "images": {"kind": "sgd", "lr": 9}}}
    for changed in (slower, {**recipe, "regularisers": [1]}, {**recipe, "arch": "resnet18"}):
        assert departure(changed, data, paper, 20000) == "other settings"
    for changes in ({"zca": True}, {"val": 0.5}, {"normalise": "half"}):
        assert departure(recipe, {**data, **changes}, paper, 20000) == "other settings"
    for foreign in (None, [], {"outer": 3}, {"method": "dm"}):
        assert departure(foreign, data, paper, 20000) == "other settings"
    for row in ("nobody's", "dm"):  # no row is published of these
        other = replace(paper, row=row, ipc=100)
        assert departure(published("dm", 100), data, other, 300) == "other settings"
    assert departure(published("herding", 10), data, herding, 0) == ""
    assert departure(None, {}, herding, None) == "", "a baseline was chosen here"


def published(preset: str, ipc: int) -> dict[str, Any]:
    """What a set of a published row says of its recipe."""
    made, _ = from_preset(preset, "cifar10", ipc, {"arch": "convnet3"}, "cifar10")
    method, outer = made.method.model_dump(mode="json"), made.outer.model_dump(mode="json")
    return {"method": method, "outer": outer, "arch": "convnet3", "seed": 0}


def reported_of(tmp_path: Path, name: str, **changes: Any) -> str:
    """How a fabricated CIFAR-10 set, judged as the paper's, is said to stand to its number."""
    values = changes.pop("values", (0.489, 0.490, 0.488))
    data = {"name": "cifar10", "digest": "d" * 64, "split": "given", "normalise": "cifar10"}
    provenance = {"label": "dm", "step": 20000, "recipe": published("dm", 10)}
    folder = make(
        tmp_path / name,
        tuple(map(str, range(10))),
        ipc=10,
        side=32,
        arch="convnet3",
        data=data,
        provenance=provenance,
    )
    usual = {"row": "dm@20000", "step": 20000, "arch": "convnet3", "ipc": 10, "protocol": "vico@1"}
    judged(folder, own(folder, *values, **{**usual, "benchmark": "cifar10", **changes}))
    grid = reported_grid(gather([folder])[0])
    assert grid is not None
    return next(row.cells[4].text for row in grid.rows if row.cells[0].text == "dm")


def test_only_the_papers_own_data_and_several_students_test_its_number(tmp_path: Path) -> None:
    assert reported_of(tmp_path, "alike") == "dm@20000: reproduced"
    assert reported_of(tmp_path, "worse", values=(0.44, 0.45, 0.46)) == "dm@20000: not reproduced"
    assert reported_of(tmp_path, "one", values=(0.489,)) == "dm@20000: one student"
    assert reported_of(tmp_path, "other", benchmark="cifar10.1", data_digest="e" * 64) == "–"


def test_equal_accuracies_and_overlaps_are_no_certainty(tmp_path: Path) -> None:
    folder = make(tmp_path / "dm")
    judged(folder, own(folder, 0.625, 0.625, 0.625), drawn(folder, 0.5, 0.5, 0.5, 0.5, 0.5))
    assert "Unclear: +12.5 points" in said(folder)
    assert "3 seeds of equal accuracy give no interval, so this may be chance" in said(folder)
    judged(folder, own(folder, 0.3, 0.6, 0.9), drawn(folder, 0.3, 0.6, 0.9))
    assert "Unclear: +0.0 points" in said(folder)


def test_a_set_made_without_a_network_has_no_network_of_its_own(tmp_path: Path) -> None:
    folder = make(tmp_path / "random", arch="none")
    judged(folder, own(folder, 0.5, 0.6), own(folder, 0.7, 0.8, arch="mlp"))
    (shown,) = gather([folder])
    assert of_networks(shown) == (
        "Worst network: convnet1, 55.0 %. The set was made without a network; on all of them: 65.0 "
        "% on average."
    )
    judged(folder, own(folder, 0.5, 0.6))
    (transfer,) = [text for topic, text in limits(gather([folder])[0]) if topic == "Transfer"]
    assert transfer == "Students are convnet1; how it trains other networks was not measured."


def test_sets_of_other_augmentations_share_a_page_under_one_protocol(tmp_path: Path) -> None:
    """Each brings random draws of its own, which are one row under a protocol that augments."""
    sets = [make(tmp_path / name, augment=augment) for name, augment in (("a", "none"), ("b", "x"))]
    for folder, value in zip(sets, (0.6, 0.8), strict=True):
        random = drawn(folder, 0.5, 0.51)
        judged(folder, own(folder, value, value + 0.02), random)
    page = write_report(sets, tmp_path / "page.csv").read_text(encoding="utf-8")
    assert "+10.5" in page
    assert "+30.5" in page


def test_differences_keep_their_interval_as_csv(tmp_path: Path) -> None:
    sets = [make(tmp_path / "a"), make(tmp_path / "b")]
    judged(sets[0], own(sets[0], 0.5, 0.6, 0.7))
    judged(sets[1], own(sets[1], 0.52, 0.64, 0.71))
    out = write_report(sets, tmp_path / "page.csv", table="differences")
    (row,) = csv.DictReader(io.StringIO(out.read_text(encoding="utf-8")))
    low, high = stats.ttest_1samp([0.02, 0.04, 0.01], 0).confidence_interval()
    assert row["95 % low"] == f"{100 * low:+.1f}"
    assert row["95 % high"] == f"{100 * high:+.1f}"


def test_labels_of_two_kinds_are_said_beside_their_difference(tmp_path: Path) -> None:
    sets = [make(tmp_path / "a"), make(tmp_path / "b", label_kind="probs")]
    for folder in sets:
        judged(folder, own(folder, 0.5, 0.6, 0.72))
    told = "a has hard labels, b has probs labels: a part of the difference may be the labels'"
    shown = gather(sets)
    for grid in (comparison_grid(shown), paired_grid(shown)):
        assert grid is not None
        assert told in grid.caption
    assert [c.name for c in comparison_grid(shown).columns].count("labels") == 1
    assert "labels" not in [c.name for c in comparison_grid(shown[:1]).columns]


def test_sets_that_were_not_judged_alike_say_so_in_every_form(tmp_path: Path) -> None:
    sets = [make(tmp_path / "a"), make(tmp_path / "b")]
    judged(sets[0], own(sets[0], 0.5, 0.6))
    judged(sets[1], own(sets[1], 0.5, 0.6, numerics="bf16"))
    for suffix in (".md", ".tex", ".csv"):
        text = write_report(sets, tmp_path / f"page{suffix}").read_text(encoding="utf-8")
        assert "bf16" in text
        assert "float32" in text
        assert suffix == ".csv" or "not judged alike: they differ in numerics" in text
    head = (tmp_path / "page.csv").read_text(encoding="utf-8").splitlines()[0]
    for name in ("hash", "numerics", "data digest", "selection", "augmentation"):
        assert name in head


def test_random_images_are_counted_where_classes_are_of_unequal_size(tmp_path: Path) -> None:
    folder = make(tmp_path / "set", ipc=3)
    data = load(folder)
    few = torch.tensor([0, 1, 3])  # two of the first class, one of the second
    rows = {name: getattr(data, name)[few] for name in ("images", "labels", "of_class")}
    replace(data, **rows).save(folder)
    judged(folder, own(folder, 0.8, 0.81), drawn(folder, 0.3, 0.31))
    lead, _ = headline(gather([folder])[0])
    assert "Trained on these 3 images" in lead
    assert "trained on 4 real ones picked at random" in lead


def test_a_home_folder_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    judged(make(tmp_path / "set"), own(tmp_path / "set", 0.5))
    assert write_report(["~/set"], tmp_path / "page.html").is_file()
    assert set_digest(Path("~/set")) == set_digest(tmp_path / "set")
    for line in (["inspect", "~/set"], ["report", "~/set"],
                 ["export", "~/set", "--to", "folder", "--out", "~/out"]):  # fmt: skip
        assert run(line) == 0
    assert (tmp_path / "out" / "labels.csv").is_file()


def test_sets_are_compared_student_by_student(tmp_path: Path) -> None:
    sets = [make(tmp_path / name, side=side) for name, side in (("a", 4), ("b", 8), ("c", 4))]
    for folder, values in zip(sets, ((0.5, 0.52, 0.54), (0.6, 0.63, 0.65), (0.7,)), strict=True):
        judged(folder, own(folder, *values))
    grid = paired_grid(gather(sets))
    assert grid is not None
    told = [[cell.text for cell in row.cells] for row in grid.rows]
    gaps = torch.tensor([0.1, 0.11, 0.11], dtype=torch.float64)
    t = float(gaps.mean() / (gaps.std() / 3**0.5))
    p = 2 * float(stats.t.sf(t, 2))
    assert told[0][:2] == ["b", "+10.7"]
    assert told[0][3] == f"{p:.2g}"
    assert told[1] == ["c", "+20.0", "–", "–", "1"]
    judged(sets[1], own(sets[1], 0.6, 0.63, 0.65, numerics="bf16"))
    judged(sets[2])
    assert paired_grid(gather(sets)) is None


def test_the_page_says_how_far_all_the_data_are(tmp_path: Path) -> None:
    folder = make(tmp_path / "dm")
    judged(folder, own(folder, 0.8, 0.82))
    asked = "stillroom evaluate full:DATA --protocol quick@1 --records dm/records.jsonl"
    assert "How far from all the data? Not measured Run, in the folder that holds the set: " in (
        said(folder)
    )
    assert f"the set: {asked}" in said(folder)
    whole = own(folder, 0.9, row="full", set_key="full", step=None, ipc=0)
    judged(folder, own(folder, 0.8, 0.82), whole)
    assert "How far from all the data? −9.0 points 90.0 % (1 seed) when trained" in said(folder)
    text = page(folder, out=tmp_path / "page.html")
    assert re.search(r'data-value="all">\s*all<', text)


def test_a_random_set_is_told_from_random_draws(tmp_path: Path) -> None:
    folder = make(tmp_path / "set")
    judged(folder, own(folder, 0.6, 0.61, row="random", step=0), drawn(folder, 0.5, 0.51))
    text = page(folder, out=tmp_path / "page.html")
    assert "random (this set)" in text


def test_times_as_a_person_says_them() -> None:
    assert [about(s) for s in (0.2, 42, 200, 5000, 9000, 500_000)] == [
        "about 1 s", "about 42 s", "about 3 min", "about 83 min", "about 2 h", "about 6 days",
    ]  # fmt: skip


def test_full_data_judged_otherwise_are_said_to_be(tmp_path: Path) -> None:
    folder = make(tmp_path / "dm")
    other = {"protocol": "quick@1+epochs=5", "protocol_hash": "short"}
    judged(
        folder,
        own(folder, 0.9, row="full", set_key="full", step=None, ipc=0, **other),
        own(folder, 0.8, 0.82),
    )
    told = "How far from all the data? Not measured alike Here 90.0 % under quick@1+epochs=5."
    assert told in said(folder)
    head = page(folder, out=tmp_path / "page.html").partition("<thead>")[2].partition("</thead>")[0]
    assert "protocol" in head
    assert "hash" not in head  # the names differ already
    renamed = own(folder, 0.7, 0.72, protocol_hash="changed", row="k-means", step=None)
    judged(folder, renamed, own(folder, 0.8, 0.82))
    head = page(folder, out=tmp_path / "page.html").partition("<thead>")[2].partition("</thead>")[0]
    assert "hash" in head


def test_jpegs_judged_otherwise_than_the_headline_are_not_passed_over(tmp_path: Path) -> None:
    folder = make(tmp_path / "dm")
    other = {"protocol": "vico@1", "protocol_hash": "v"}
    judged(
        folder,
        own(folder, 0.48, 0.49, **other),
        drawn(folder, 0.3, 0.31, **other),
        own(folder, 0.43, 0.44, bytes=2000),
        jpegs(folder, 9, 1900, 0.55, 0.56),
    )
    assert (
        "Better than real JPEGs? Not measured alike Under quick@1: 43.5 % against 55.5 % of "
        in (said(folder))
    )


def test_rows_judged_as_the_headline_come_first_and_a_rule_parts_the_others(tmp_path: Path) -> None:
    folder = make(tmp_path / "dm")
    other = {"protocol": "a@1", "protocol_hash": "a"}
    judged(
        folder,
        own(folder, 0.6, 0.62),
        drawn(folder, 0.3, 0.31),
        own(folder, 0.9, **other),
        own(folder, 0.8, arch="mlp"),
    )
    grid = accuracy_grid(gather([folder])[0])
    assert [c.name for c in grid.columns][:6:5] == ["row", "protocol"]
    told = [tuple(row.cells[i].text for i in (0, 4, 5)) for row in grid.rows]
    assert told == [
        ("dm@30", "convnet1", "quick@1"),
        ("random", "convnet1", "quick@1"),
        ("dm@30", "mlp", "quick@1"),
        ("dm@30", "convnet1", "a@1"),
    ]
    assert [row.opens for row in grid.rows] == [False, False, False, True]
    assert [row.main for row in grid.rows] == [True, False, False, False]
    assert '<tr class="own opens">' in page(folder, out=tmp_path / "page.html")


def test_a_set_borrows_the_baselines_of_its_neighbour(tmp_path: Path) -> None:
    """Where all conditions are equal: then they are its own baselines."""
    sets = [make(tmp_path / "a"), make(tmp_path / "b", side=5)]
    judged(sets[0], own(sets[0], 0.6, 0.62), drawn(sets[0], 0.5, 0.51))
    judged(sets[1], own(sets[1], 0.7, 0.72))
    gaps = {row.cells[0].text: row.cells[4].text for row in comparison_grid(gather(sets)).rows}
    assert gaps == {"a": "+10.5", "b": "+20.5"}
    judged(sets[1], own(sets[1], 0.7, 0.72, numerics="bf16"))
    gaps = {row.cells[0].text: row.cells[4].text for row in comparison_grid(gather(sets)).rows}
    assert gaps == {"a": "+10.5", "b": "–"}


def test_sets_and_baselines_of_one_name_are_two_series(tmp_path: Path) -> None:
    """A random set beside random draws, and two sets with rows of one name."""
    sets = [make(tmp_path / name, ipc=k) for k, name in enumerate(("small", "large"), 1)]
    for k, folder in enumerate(sets, 1):
        rows = own(folder, 0.6, 0.62, row="random", bytes=1000 * k**2, ipc=k)
        judged(folder, rows, drawn(folder, 0.5, 0.51, bytes=900 * k, ipc=k))
    text = page(*sets, out=tmp_path / "page.html")
    chart = text[text.index("What the bytes buy") - 20_000 : text.index("What the bytes buy")]
    for name in ("small", "large", "random"):
        assert f">{name}</text>" in chart


def test_a_common_ledger_gives_a_set_its_own_rows_steps_and_baselines(tmp_path: Path) -> None:
    folder, other = make(tmp_path / "dm"), make(tmp_path / "other", side=5)
    mine = {"family": "f", "set_seed": 0}
    some = [
        own(folder, 0.6, 0.62, **mine),
        own(folder, 0.5, 0.52, row="dm@10", step=10, set_key="not in the folder", **mine),
        own(other, 0.9, 0.91, row="dm@40", step=40, family="g", set_seed=0),
        drawn(folder, 0.3, 0.31),
        drawn(folder, 0.7, 0.71, ipc=9),
        drawn(folder, 0.8, 0.81, data_digest="e" * 64),
        drawn(folder, 0.8, 0.81, numerics="bf16"),
        own(folder, 0.95, row="full", set_key="full", step=None, ipc=0, numerics="bf16"),
        jpegs(folder, 9, 1900, 0.4, 0.41),
    ]
    ledger = judged(tmp_path, *some) / "records.jsonl"
    (shown,) = gather([folder], ledger)
    assert {(x.row, x.conditions.ipc) for x in shown.lines} == {
        ("dm@30", 1),
        ("dm@10", 1),
        ("random", 1),
        ("random-jpeg", 9),
        ("full", 0),
    }
    assert {x.numerics for x in shown.lines if x.row == "random"} == {"float32"}
    assert shown.stale == 0
    assert [x.step for x in shown.curve()] == [10, 30]
    write_report([folder], tmp_path / "p.html", records=ledger)
    assert "61.0 %" in (tmp_path / "p.html").read_text(encoding="utf-8")
    with pytest.raises(StillroomError, match="there is no such file"):
        write_report([folder], tmp_path / "p.html", records=tmp_path / "none.jsonl")
    assert run(["report", str(folder), "--records", str(ledger), "--out", "/dev/null/x.html"]) == 2


def taught(folder: Path, regime: str, labels: int = 0, teachers: int = 0) -> list[list[Record]]:
    """Rows of a set and of random images with labels of teachers, of some bytes."""
    more = {"labels": regime, "label_bytes": labels, "teacher_bytes": teachers}
    more |= {"protocol": "edc@1", "protocol_hash": "e"}
    return [own(folder, 0.7, 0.72, 0.71, **more), drawn(folder, 0.6, 0.61, 0.62, **more)]


def test_images_labels_and_teachers_are_told_apart(tmp_path: Path) -> None:
    """In the headline, the tables, the chart and what the numbers do not show."""
    folder = make(tmp_path / "dm")
    judged(folder, *taught(folder, "relabels:1a2b3c4d,int8", 6_000_000))
    (shown,) = gather([folder])
    (line,) = [x for x in shown.lines if not x.drawn]
    assert (line.bytes, line.label_bytes, line.shipped) == (2048, 6_000_000, 6_002_048)
    assert headline(shown)[1][-1][:2] == (
        "At what cost?",
        f"{size(shown.bytes)} + 6.0 MB of labels",
    )
    assert "All the data are not judged with labels of teachers." in said(folder)
    told = dict(limits(shown))["Labels"]
    assert told.startswith(
        "SL-k, stored labels of teachers for drawn views (relabels:1a2b3c4d,int8)"
    )
    assert "Rows under the same relabels:1a2b3c4d,int8 have labels of the same networks" in told
    text = page(folder, out=tmp_path / "page.html")
    assert "quick@1" not in text
    assert "<span>+ labels</span>" in text
    assert "+ teachers" not in text
    assert "float32, relabels:1a2b3c4d,int8, student: convnet1" in text
    assert "the hollow mark left of it at the images alone, the thick line" in text
    head, *rows = csv.reader(io.StringIO(page(folder, out=tmp_path / "t.csv")))
    found = dict(zip(head, rows[0], strict=True))
    assert (found["bytes"], found["label bytes"], found["teacher bytes"]) == (
        "2048",
        "6000000",
        "0",
    )
    assert found["labels of teachers"] == "relabels:1a2b3c4d,int8"
    judged(folder, *taught(folder, "teachers:1a2b3c4d", teachers=300_000))
    (shown,) = gather([folder])
    assert headline(shown)[1][-1][1].endswith(" + 300.0 kB of teachers")
    assert dict(limits(shown))["Labels"].startswith("SL+KD, teachers that label every view")
    text = page(folder, out=tmp_path / "page.html")
    assert "<span>+ teachers</span>" in text
    assert "<span>+ labels</span>" not in text


def test_rows_of_other_teachers_are_a_group_of_their_own(tmp_path: Path) -> None:
    folder, kinds = make(tmp_path / "dm"), ("relabels:11111111", "relabels:22222222", "soft:<b>")
    judged(folder, *(rows for kind in kinds for rows in taught(folder, kind, 900)))
    (shown,) = gather([folder])
    grid = accuracy_grid(shown)
    column = [c.name for c in grid.columns].index("labels of teachers")
    seen = [(row.opens, row.cells[column].text) for row in grid.rows]
    order = (kinds[2], *kinds[:2])  # that of the headline, judged last, first
    assert [text for _, text in seen] == [kind for kind in order for _ in range(2)]
    assert [opens for opens, _ in seen] == [False, False, True, False, True, False]
    assert all(line.gap is not None for line in shown.lines if not line.drawn)
    assert len(shown.beside(shown.main)) == 1
    text = page(folder, out=tmp_path / "page.html")
    assert "soft:&lt;b&gt;" in text
    assert "<b>" not in text
    judged(folder, own(folder, 0.5, labels="of:nobody"))
    assert dict(limits(gather([folder])[0]))["Labels"] == "Labels of:nobody."


def test_students_of_other_teachers_have_exhibits_of_their_own(tmp_path: Path) -> None:
    folder = make(tmp_path / "dm")
    judged(folder, own(folder, 0.7, 0.72, labels="relabels:11111111"))
    exhibited(
        folder, exhibit(folder), exhibit(folder, taught="relabels:11111111", per_class=[0.5] * 2)
    )
    (shown,) = gather([folder])
    found = shown.exhibit(shown.main)
    assert found is not None
    assert found.per_class == [0.5, 0.5]
