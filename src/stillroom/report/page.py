"""The page itself: everything put in its place, escaped, and closed to foreign scripts."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from stillroom.cite import bibtex
from stillroom.report import comparisons, figures, grids, loading, pictures, provenance, sentences
from stillroom.report.gather import Shown, unsized
from stillroom.standing import TESTS
from stillroom.tables import Line, percent, plural

# Control characters, text-direction overrides and lone surrogates have no place in a page.
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)
_UNIT = re.compile(r"(?<=\d) (?=(?:%|B|kB|MB|GB|s|points|seeds?|draws?)(?!\w))")


def render(sets: Sequence[Shown], real_images: bool = True) -> str:
    """The page of one or several sets as HTML, with or without real training images."""
    return filled(
        "page.html.jinja",
        title=f"{len(sets)} distilled sets" if len(sets) > 1 else sets[0].name,
        several=len(sets) > 1,
        sets=[_view(shown, f"s{i}", real_images) for i, shown in enumerate(sets, 1)],
        comparison=_comparison(sets) if len(sets) > 1 else None,
    )


def filled(template: str, **values: Any) -> str:
    """A page of one of the templates here: the common look and script, everything escaped."""
    script, look = _part("page.js"), _part("page.css")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["typeset"] = typeset
    environment.filters["code"] = code
    environment.globals |= {"policy": _policy(script), "look": Markup(look)}
    environment.globals["script"] = Markup(script)
    whole = environment.from_string(_part("macros.html.jinja") + _part(template))
    return _UNPRINTABLE.sub("�", whole.render(**values).strip()) + "\n"


def typeset(text: str) -> Markup:
    """Escaped text in which a number and its unit stay on one line."""
    return Markup(_UNIT.sub("\u00a0", str(escape(text))))


def code(text: str) -> Markup:
    """Escaped Python with its comments marked."""
    marked = []
    for line in text.rstrip("\n").split("\n"):
        found = re.match(r"^(|.*  )(# .*)$", line)
        marked.append(
            Markup('{}<span class="c">{}</span>').format(*found.groups()) if found else escape(line)
        )
    return Markup("\n").join(marked)


def _part(name: str) -> str:
    return files("stillroom.report").joinpath(name).read_text(encoding="utf-8")


def _policy(script: str) -> str:
    """Nothing is fetched, and only the page's own script runs, whatever a set's texts hold."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )


def _view(shown: Shown, prefix: str, real_images: bool) -> dict[str, Any]:
    lead, facts = sentences.headline(shown)
    return {
        "id": prefix,
        "name": shown.name,
        "subtitle": _subtitle(shown),
        "lead": lead,
        "facts": facts,
        "legend": sentences.legend(shown),
        "gallery": pictures.gallery(shown.data),
        "made": sentences.made(shown),
        "nearest": _nearest(shown, real_images),
        "seen": _seen(shown),
        "grid": grids.accuracy_grid(shown) if shown.lines else None,
        "tables": _tables(shown),
        "classes": _classes(shown),
        "charts": _charts(shown, prefix),
        "groups": provenance.groups(shown),
        "recipe": provenance.whole_recipe(shown),
        "plain": loading.plain_code(shown.name, shown.data),
        "training": loading.training_code(
            shown.data, bool(shown.main and shown.main.conditions.taught)
        ),
        "stillroom": loading.stillroom_code(shown.name, shown.data),
        "limits": sentences.limits(shown),
        "bibtex": bibtex(provenance.papers(shown)),
    }


def _subtitle(shown: Shown) -> str:
    data = shown.data
    name = data.data.get("name")
    known = [name[:80]] if isinstance(name, str) and name else []
    per_class = "per class" if len(data) == data.ipc * len(data.classes) else "per class at most"
    made = [] if shown.label == shown.name else [f"made by {shown.label}"]
    images = f"{plural(data.ipc, 'image')} {per_class}"
    return ", ".join([*known, plural(len(data.classes), "class"), images, *made])


def _charts(shown: Shown, prefix: str) -> list[dict[str, Any]]:
    """Dot chart, accuracy over steps and bytes, loss: each with a heading and a caption."""
    found: list[dict[str, Any]] = []
    line = shown.main
    if line is not None:
        beside = shown.beside(line)
        found.append(_dots(shown, line, beside, prefix))
        if len(curve := shown.curve()) > 1:
            level = [x for x in beside if x.row != "random-jpeg"]
            svg = figures.step_chart(curve, level, f"{prefix}-steps")
            ends = [f"{percent(x.summary.mean)} % at step {x.step}" for x in (curve[0], curve[-1])]
            caption = (
                "Accuracy of students on the set as it was at each kept step, with its 95 % "
                f"interval: {', '.join(ends)}. Level lines are baselines, that of random with its "
                "interval."
            )
            found.append(figure("Accuracy over kept steps", svg, caption))
        found += _bytes([shown], f"{prefix}-bytes")
    if shown.metrics:
        some = (shown.metrics[0], shown.metrics[-1])
        text = ", ".join(f"{point['loss']:.4g} at step {point['step']:g}" for point in some)
        svg = figures.curve_chart(shown.metrics, "loss", f"{prefix}-loss")
        caption = f"What the method minimised: {text}. It is no measure of accuracy."
        caption += figures.averaged(shown.metrics, "loss")
        found.append(figure("Loss of the distillation", svg, caption))
    return found + [_watched(shown, name, prefix) for name in shown.watched()]


def _watched(shown: Shown, name: str, prefix: str) -> dict[str, Any]:
    some = [point for point in shown.metrics if name in point]
    text = ", ".join(f"{p[name]:.4g} at step {p['step']:g}" for p in (some[0], some[-1]))
    caption = (
        f"{text}, by a network trained on the real images that the method never used. It is no "
        "accuracy of students."
    )
    heading = name.replace("-", " ").capitalize() + " over steps"
    return figure(heading, figures.curve_chart(some, name, f"{prefix}-{name}"), caption)


def figure(heading: str, svg: str, caption: str) -> dict[str, Any]:
    """A chart of `figures` with its words."""
    return {"heading": heading, "svg": Markup(svg), "caption": caption}


def _dots(shown: Shown, line: Line, beside: Sequence[Line], prefix: str) -> dict[str, Any]:
    alike: dict[str, list[float]] = {}
    papers: dict[str, list[float]] = {}
    for r in shown.reported:  # one row is shared only by what was judged alike
        same, standing = shown.here(r)
        shared = same is not None and standing in TESTS
        of, name = (alike, same.row) if same and shared else (papers, f"{r.row} (paper)")
        of.setdefault(name, []).append(r.value)
    rows = sorted([line, *beside], key=lambda x: -x.summary.mean)
    dots = [figures.Dot(x.row, x, x is line, alike.get(x.row, [])) for x in rows]
    dots += [figures.Dot(row, None, False, values) for row, values in papers.items()]
    caption = [
        f"{line.row} is this set; {line.arch}, {line.protocol}. Large dot: mean; bar: 95 % "
        "interval; small dots: single students."
    ]
    if shown.random:
        caption.append("The dashed line is the mean of random images.")
    if shown.reported:
        caption.append("Hollow: a paper’s number, not measured here.")
    if papers:
        caption.append("Rows “(paper)” have nothing here that was made and judged alike.")
    if (left := len(dots) - figures.MAX_DOTS) > 0:
        caption.append(f"{left} more rows are in the tables only.")
    mean = shown.random.summary.mean if shown.random else None
    svg = figures.dot_chart(dots, mean, f"{prefix}-dots")
    return figure("Against baselines" if beside else "Accuracy", svg, " ".join(caption))


def _bytes(sets: Sequence[Shown], prefix: str) -> list[dict[str, Any]]:
    """Accuracy against bytes, where rows of one protocol and network differ in size."""
    mains = [s.main for s in sets if s.main]
    if len({unsized(line) for line in mains}) != 1:
        return []
    lines = [*mains, *(x for shown in sets for x in shown.any_size())]
    found = {(x.row, x.conditions, x.summary): x for x in lines}
    lines = sorted((x for x in found.values() if x.bytes > 0), key=lambda x: x.shipped)
    taught = any(x.shipped > x.bytes for x in lines)
    if not lines or lines[-1].shipped < 1.5 * min(x.bytes for x in lines):
        return []
    own = {
        (shown.name if len(sets) > 1 else shown.main.row): [shown.main]
        for shown in sets
        if shown.main
    }
    series = dict(list(own.items())[: figures.MAX_DOTS])
    for x in lines:
        if x in mains:
            continue
        name = f"{x.row} (baseline)" if x.row in own else x.row  # a random set beside draws
        if name in series or len(series) < figures.MAX_DOTS:
            series.setdefault(name, []).append(x)
    svg = figures.bytes_chart(series, own.keys(), prefix)
    caption = (
        "What the bytes buy: accuracy against size on disk (a logarithmic scale), with 95 % "
        "intervals. Further left is smaller, higher is better."
    )
    if taught:
        caption += (
            " A dot stands at everything that a student needs; the hollow mark left of it at the "
            "images alone, the thick line between them is labels, the dotted one teachers."
        )
    if any(x.row == "random-jpeg" for x in lines):
        caption += " random-jpeg is real images kept as JPEG."
    return [figure("Accuracy against bytes", svg, caption)]


def _tables(shown: Shown) -> list[tuple[str, grids.Grid, str]]:
    """Tables after the main one: (heading, table, sentence)."""
    networks = grids.networks_of(shown)
    found = [
        ("On other networks", networks, sentences.of_networks(shown) if networks else ""),
        ("Beside papers", grids.reported_grid(shown), sentences.REPORTED),
        ("Other selection rules", grids.selection_grid(shown), sentences.FLATTERS),
        ("Other measurements", grids.others_grid(shown), ""),
    ]
    return [(heading, grid, text) for heading, grid, text in found if grid is not None]


def _classes(shown: Shown) -> dict[str, Any] | None:
    own, random = shown.exhibit(shown.main), shown.exhibit(shown.random)
    if own is None or shown.main is None:
        return None
    names = shown.data.classes
    return {
        "sentence": sentences.of_classes(names, own, random),
        "right": grids.class_grid(names, shown.main.row, own, random),
        "taken": grids.confusion_grid(names, own),
        "many": len(names) > 12,
    }


def _nearest(shown: Shown, real_images: bool) -> dict[str, Any] | None:
    found = shown.neighbours
    if found is None or not found.fits:
        return None
    pairs = pictures.pairs(shown.data, found) if real_images else []
    left = found.total - len(pairs) if real_images else 0
    cut = f" {left} of {found.total} pairs are left out." if left else ""
    return {"pairs": pairs, "sentence": sentences.of_neighbours(found, real_images) + cut}


def _seen(shown: Shown) -> dict[str, Any] | None:
    found = shown.maps
    if found is None:
        return None
    pairs = pictures.seen(shown.data, found)
    left = found.total - len(pairs)
    cut = f" {left} of {found.total} images are left out." if left else ""
    return {"pairs": pairs, "sentence": sentences.of_maps(found) + cut}


def _comparison(sets: Sequence[Shown]) -> dict[str, Any]:
    mains = [(shown, shown.main) for shown in sets if shown.main is not None]
    differ = grids.differing([line for _, line in mains])
    ranked = sorted(mains, key=lambda pair: -pair[1].summary.mean)
    charts = []
    if mains:
        dots = [figures.Dot(shown.name, line, True) for shown, line in ranked]
        caption = "Large dot: mean; bar: 95 % interval; small dots: single students."
        svg = figures.dot_chart(dots, None, "all-dots")
        charts = [figure("Accuracy", svg, caption), *_bytes(sets, "all-bytes")]
    counts = {len(shown.data) for shown in sets}
    warnings = []
    if differ:
        warnings.append(
            f"These sets were not judged alike: they differ in {', '.join(differ)}. Their "
            "accuracies are not comparable with one another."
        )
    if len(counts) > 1:
        warnings.append("They hold different numbers of images; compare accuracy with size.")
    silent = len(sets) - len(mains)
    if silent:
        warnings.append(f"{silent} of them {'has' if silent == 1 else 'have'} not been judged yet.")
    return {
        "grid": comparisons.comparison_grid(sets),
        "charts": charts,
        "paired": comparisons.paired_grid(sets),
        "networks": comparisons.compared_networks(sets),
        "warnings": warnings,
    }
