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
from stillroom.report import figures, grids, loading, pictures, provenance, sentences
from stillroom.report.gather import Shown
from stillroom.tables import Line, percent

# Control characters, text-direction overrides and lone surrogates have no place in a page.
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)
_UNIT = re.compile(r"(?<=\d) (?=(?:%|B|kB|MB|GB|s|points|seeds?|draws?)(?!\w))")


def render(sets: Sequence[Shown]) -> str:
    """The page of one or several sets as HTML."""
    script, look = _part("page.js"), _part("page.css")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["typeset"] = typeset
    environment.filters["code"] = code
    template = environment.from_string(_part("page.html.jinja"))
    page = template.render(
        title=_title(sets),
        several=len(sets) > 1,
        sets=[_view(shown, f"s{i}") for i, shown in enumerate(sets, 1)],
        comparison=_comparison(sets) if len(sets) > 1 else None,
        policy=_policy(script),
        script=Markup(script),
        look=Markup(look),
    )
    return _UNPRINTABLE.sub("�", page.strip()) + "\n"


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


def _title(sets: Sequence[Shown]) -> str:
    if len(sets) > 1:
        return f"{len(sets)} distilled sets"
    return sets[0].name


def _view(shown: Shown, prefix: str) -> dict[str, Any]:
    lead, *more = sentences.headline(shown)
    table = shown.lines
    return {
        "id": prefix,
        "name": shown.name,
        "subtitle": _subtitle(shown),
        "lead": lead,
        "more": more,
        "gallery": pictures.gallery(shown.data),
        "grid": grids.accuracy_grid(shown) if table else None,
        "others": _others(shown),
        "charts": _charts(shown, prefix),
        "groups": provenance.groups(shown),
        "recipe": provenance.whole_recipe(shown),
        "plain": loading.plain_code(shown.name, shown.data),
        "training": loading.training_code(shown.data),
        "stillroom": loading.stillroom_code(shown.name),
        "limits": sentences.limits(shown),
        "bibtex": bibtex(provenance.papers(shown)),
    }


def _subtitle(shown: Shown) -> str:
    data = shown.data
    name = data.data.get("name")
    known = [name[:80]] if isinstance(name, str) and name else []
    per_class = "per class" if len(data) == data.ipc * len(data.classes) else "per class at most"
    made = [] if shown.label == shown.name else [f"made by {shown.label}"]
    images = f"{sentences.plural(data.ipc, 'image')} {per_class}"
    return ", ".join([*known, sentences.plural(len(data.classes), "class"), images, *made])


def _charts(shown: Shown, prefix: str) -> list[dict[str, Any]]:
    """Dot chart, accuracy over steps, loss: each with a heading and a caption in words."""
    found: list[dict[str, Any]] = []
    line = shown.main
    if line is not None:
        beside = shown.beside(line)
        found.append(_dots(shown, line, beside, prefix))
        if len(curve := shown.curve()) > 1:
            found.append(
                {
                    "heading": "Accuracy over kept steps",
                    "svg": Markup(figures.step_chart(curve, beside, f"{prefix}-steps")),
                    "caption": "Accuracy of students on the set as it was at each kept step, "
                    f"with its 95 % interval: {_first_to_last(curve)}. Level lines are baselines.",
                }
            )
    if shown.metrics:
        first, last = shown.metrics[0], shown.metrics[-1]
        ends = (
            f"{first['loss']:.4g} at step {first['step']:g}, {last['loss']:.4g} at step "
            f"{last['step']:g}"
        )
        found.append(
            {
                "heading": "Loss of the distillation",
                "svg": Markup(figures.loss_chart(shown.metrics, f"{prefix}-loss")),
                "caption": f"What the method minimised: {ends}. It is no measure of accuracy.",
            }
        )
    return found


def _dots(shown: Shown, line: Line, beside: Sequence[Line], prefix: str) -> dict[str, Any]:
    rows = sorted([line, *beside], key=lambda x: -x.summary.mean)
    dots = [figures.Dot(x.row, x, x is line) for x in rows]
    random = next((x.summary.mean for x in beside if x.drawn and x.row == "random"), None)
    dashed = "" if random is None else " The dashed line is the mean of random images."
    left = len(dots) - figures.MAX_DOTS
    cut = f" {left} more rows are in the table only." if left > 0 else ""
    return {
        "heading": "Against baselines",
        "svg": Markup(figures.dot_chart(dots, random, f"{prefix}-dots")),
        "caption": f"{line.arch}, {line.protocol}. Large dot: mean; bar: 95 % interval; small "
        f"dots: single students.{dashed}{cut}",
    }


def _first_to_last(curve: Sequence[Line]) -> str:
    first, last = curve[0], curve[-1]
    return (
        f"{percent(first.summary.mean)} % at step {first.step}, "
        f"{percent(last.summary.mean)} % at step {last.step}"
    )


def _others(shown: Shown) -> list[tuple[str, str, str, str]]:
    """Measurements other than accuracy: (metric, row, student, value), at most 200."""
    return [
        (r.metric, r.row, r.arch, f"{r.value:.6g} {r.unit}".strip())
        for r in shown.records
        if r.metric != "accuracy"
    ][:200]


def _comparison(sets: Sequence[Shown]) -> dict[str, Any]:
    mains = [(shown, shown.main) for shown in sets if shown.main is not None]
    mixed = len({line.conditions for _, line in mains}) > 1
    ranked = sorted(mains, key=lambda pair: -pair[1].summary.mean)
    svg = None
    if mains:
        dots = [figures.Dot(shown.name, line, True) for shown, line in ranked]
        svg = Markup(figures.dot_chart(dots, None, "all-dots"))
    counts = {len(shown.data) for shown in sets}
    warnings = []
    if mixed:
        warnings.append(
            "These sets were not all judged on the same data, network, protocol and numerics: "
            "their accuracies are not comparable line by line."
        )
    if len(counts) > 1:
        warnings.append("They hold different numbers of images; compare accuracy with size.")
    silent = len(sets) - len(mains)
    if silent:
        warnings.append(f"{silent} of them {'has' if silent == 1 else 'have'} not been judged yet.")
    return {"grid": grids.comparison_grid(sets), "svg": svg, "warnings": warnings}
