"""Charts as inline SVG: text stays text, colours are CSS variables, bytes are always the same."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from stillroom.tables import Line, percent, size

WIDTH = 460  # natural width in CSS pixels; on a phone it shrinks to about 350
MAX_DOTS = 24
MAX_POINTS = 240

# Colours that matplotlib writes and that are replaced by CSS variables afterwards.
INK, MUTED, GRID, SET, BASE, REF, PAPER = (
    "#010201",
    "#010202",
    "#010203",
    "#010204",
    "#010205",
    "#010206",
    "#010207",
)
_VARIABLES = {
    INK: "ink",
    MUTED: "muted",
    GRID: "rule",
    SET: "accent",
    BASE: "base",
    REF: "ref",
    PAPER: "paper",
}


@dataclass(frozen=True)
class Dot:
    """One row of the dot chart; `reported` are papers' numbers, for a row here or (no line) not."""

    label: str
    line: Line | None
    own: bool
    reported: Sequence[float] = ()


def short(text: str, most: int) -> str:
    """A foreign name as a label: printable, and cut in the middle where it is long."""
    clean = "".join(c if c.isprintable() else "�" for c in text)
    return clean if len(clean) <= most else f"{clean[: most - 4]}…{clean[-3:]}"


def dot_chart(dots: Sequence[Dot], reference: float | None, prefix: str) -> str:
    """Mean, 95 % interval and single students of every row; the reference is random's mean."""
    rows = list(dots)[:MAX_DOTS]
    names = [short(dot.label, 22) for dot in rows]

    def draw(axes: Any) -> None:
        for place, (dot, name) in enumerate(zip(rows, names, strict=True)):
            y = -place
            if dot.line is not None:
                _row(axes, y, dot.line, SET if dot.own else REF if dot.line.drawn else BASE)
            hollow = {"facecolors": PAPER, "edgecolors": MUTED, "linewidths": 1.4, "zorder": 5}
            above = [y + 0.26 * (dot.line is not None)] * len(dot.reported)
            axes.scatter(dot.reported, above, s=34, marker="D", **hollow)
            mean = dot.line.summary.mean if dot.line else max(dot.reported)
            _beside(axes, (0, y), name, -10, INK, ha="right")
            _beside(axes, (1, y), f"{percent(mean)} %", 10, INK if dot.line else MUTED)
        if reference is not None:
            axes.axvline(reference, color=REF, linewidth=1, linestyle=(0, (3, 3)), zorder=1)
        axes.set_xlim(*_limits([v for d in rows for v in (*d.reported, *_extent(d.line))]))
        axes.set_ylim(-len(rows) + 0.45, 0.55)
        axes.set_yticks([])
        axes.grid(axis="x", color=GRID, linewidth=1)
        _percent_axis(axes.xaxis, 6)

    left = 16 + max(60, 7 * max(map(len, names)))
    return _svg(draw, 38 * len(rows) + 34, prefix, left=left, right=62, top=4, bottom=30)


def _row(axes: Any, y: float, line: Line, colour: str) -> None:
    s, small = line.summary, {"s": 9, "alpha": 0.65, "linewidths": 0, "zorder": 3}
    if s.half is not None:
        axes.plot([s.low, s.high], [y, y], color=colour, linewidth=2, solid_capstyle="round")
    axes.scatter(line.values, [y - 0.24] * len(line.values), color=colour, **small)
    axes.scatter([s.mean], [y], s=64, color=colour, edgecolors=PAPER, linewidths=1.6, zorder=4)


def _beside(
    axes: Any,
    at: tuple[float, float],
    text: str,
    shift: int,
    colour: str,
    ha: str = "left",
    coords: str = "axes fraction",
) -> None:
    """Text in a margin: `at` is a fraction of the axes across, and a value of the data up."""
    axes.annotate(
        text,
        at,
        xycoords=(coords, "data"),
        xytext=(shift, 0),
        textcoords="offset points",
        ha=ha,
        va="center",
        color=colour,
        parse_math=False,
        annotation_clip=False,
    )


def bar_chart(groups: Sequence[tuple[str, float, float]], text: str, prefix: str) -> str:
    """Two bars a group, one below the other, with their numbers; they start at zero."""
    names = [short(name, 18) for name, *_ in groups]

    def draw(axes: Any) -> None:
        for place, ((_, *pair), name) in enumerate(zip(groups, names, strict=True)):
            for value, shift, colour in zip(pair, (0.2, -0.2), (BASE, SET), strict=True):
                axes.barh(shift - place, value, 0.34, color=colour)
                _beside(axes, (value, shift - place), text.format(value), 6, INK, coords="data")
            _beside(axes, (0, -place), name, -10, INK, ha="right")
        axes.set_xlim(0, 1.02 * max(max(pair) for _, *pair in groups))
        axes.set_ylim(-len(groups) + 0.45, 0.55)
        axes.set_xticks([])
        axes.set_yticks([])

    left = 16 + max(60, 7 * max(map(len, names)))
    return _svg(draw, 44 * len(groups) + 12, prefix, left=left, right=72, top=4, bottom=8)


def step_chart(curve: Sequence[Line], baselines: Sequence[Line], prefix: str) -> str:
    """Accuracy over kept steps with its interval; baselines as level lines named on the right."""
    steps = [line.step or 0 for line in curve]
    means = [line.summary.mean for line in curve]
    known = [line for line in curve if line.summary.half is not None]

    def draw(axes: Any) -> None:
        axes.fill_between(
            [line.step for line in known],
            [line.summary.low for line in known],
            [line.summary.high for line in known],
            color=SET,
            alpha=0.16,
            linewidth=0,
        )
        tags = [(means[-1], short(curve[-1].row.split("@")[0], 12), SET)]
        for line in baselines:
            colour = REF if line.drawn else BASE
            axes.axhline(line.summary.mean, color=colour, linewidth=1.4, linestyle=(0, (4, 3)))
            if line.drawn and line.summary.half is not None:
                band = line.summary.low, line.summary.high
                axes.axhspan(*band, color=colour, alpha=0.1, linewidth=0)
            tags.append((line.summary.mean, short(line.row, 12), colour))
        axes.plot(steps, means, color=SET, linewidth=2.2, zorder=3)
        axes.scatter(steps, means, s=34, color=SET, edgecolors=PAPER, linewidths=1.4, zorder=4)
        bounds = [v for x in (*known, *curve, *baselines) for v in (x.summary.mean, *_ends(x))]
        low, high = _limits(bounds)
        axes.set_ylim(low, high)
        axes.grid(axis="y", color=GRID, linewidth=1)
        axes.set_xlabel("step", color=MUTED)
        _percent_axis(axes.yaxis, 5)
        _steps_axis(axes, steps)
        for y, (value, name, colour) in zip(
            _apart(tags, (high - low) / 13), sorted(tags), strict=True
        ):
            _beside(axes, (1, y), f"{name} {percent(value)}", 8, colour)

    return _svg(draw, 286, prefix, left=50, right=124, top=8, bottom=46)


def bytes_chart(series: Mapping[str, Sequence[Line]], own: Set[str], prefix: str) -> str:
    """Accuracy against bytes on disk, with intervals; rows of several sizes are curves.

    A dot stands at all bytes; images, labels and teachers are told apart left of it.
    """
    lines = [line for some in series.values() for line in some]
    least, most = min(line.bytes for line in lines), max(line.shipped for line in lines)
    low, high = _limits([v for line in lines for v in (line.summary.mean, *_ends(line))])
    room = (most / least) ** 0.42  # for the names, right of the points

    def draw(axes: Any) -> None:
        tags = []
        for name, some in series.items():
            x, y = [line.shipped for line in some], [line.summary.mean for line in some]
            colour = SET if name in own else REF if some[0].drawn else BASE
            ends = [_ends(line) or (line.summary.mean,) for line in some]
            span = [e[0] for e in ends], [e[-1] for e in ends]
            axes.vlines(x, *span, color=colour, linewidth=2, alpha=0.45, zorder=1)
            axes.plot(x, y, color=colour, linewidth=1.6, zorder=2)
            axes.scatter(x, y, s=52, color=colour, edgecolors=PAPER, linewidths=1.4, zorder=4)
            for line in some:
                _parts(axes, line, colour)
            tags.append((x[-1], (y[-1], name, colour)))
        axes.set_xscale("log")
        axes.set_xlim(least / room**0.12, most * room)
        axes.set_ylim(low, high)
        axes.grid(axis="both", color=GRID, linewidth=1)
        axes.set_xlabel("bytes on disk", color=MUTED)
        _percent_axis(axes.yaxis, 5)
        near = most < 3 * least  # marks at every round number, so that some lie among the points
        subs = range(1, 10) if near else (1, 2, 5) if most < 40 * least else (1,)
        _plain_log(axes.xaxis, lambda v: size(round(v)).replace(".0 ", " "), subs)
        groups: list[list[tuple[float, str, str]]] = []  # of names that could touch
        right = 0.0
        for x_end, tag in sorted(tags):
            if x_end > right:
                groups.append([])
            groups[-1].append(tag)
            right = x_end * (most / least * room) ** 0.3
        for some_tags in groups:
            heights = _apart(some_tags, (high - low) / 15)
            for height, (_, name, colour) in zip(heights, sorted(some_tags), strict=True):
                at = (series[name][-1].shipped, height)
                _beside(axes, at, short(name, 18), 9, colour, coords="data")

    return _svg(draw, 320, prefix, left=50, right=8, top=8, bottom=46)


def _parts(axes: Any, line: Line, colour: str) -> None:
    """Images, labels and teachers of a row: a hollow mark, a thick line, a dotted one."""
    if line.shipped == line.bytes:
        return
    y, labelled = line.summary.mean, line.bytes + line.label_bytes
    hollow = {"facecolors": PAPER, "edgecolors": colour, "linewidths": 1.4, "zorder": 3}
    axes.scatter([line.bytes], [y], s=26, **hollow)
    axes.plot([line.bytes, labelled], [y, y], color=colour, linewidth=3.2, alpha=0.5, zorder=2)
    dots = {"linestyle": (0, (1, 2)), "linewidth": 2, "zorder": 2}
    axes.plot([labelled, line.shipped], [y, y], color=colour, **dots)


def curve_chart(points: Sequence[dict[str, float]], name: str, prefix: str) -> str:
    """A logged number of the distillation; many points are averaged, their range is a band."""
    steps, mean, low, high = _binned([(p["step"], p[name]) for p in points if name in p])

    def draw(axes: Any) -> None:
        if low != high:
            axes.fill_between(steps, low, high, color=SET, alpha=0.16, linewidth=0)
        axes.plot(steps, mean, color=SET, linewidth=1.5, solid_joinstyle="round")
        if len(steps) == 1:
            axes.scatter(steps, mean, s=34, color=SET)
        if min(low) > 0 and max(high) > 10 * min(low):
            axes.set_yscale("log")
            _plain_log(axes.yaxis, lambda v: f"{v:g}")
        axes.grid(axis="y", color=GRID, linewidth=1)
        axes.set_xlabel("step", color=MUTED)
        _steps_axis(axes, [])

    return _svg(draw, 286, prefix, left=64, right=12, top=8, bottom=46)


def averaged(points: Sequence[dict[str, float]], name: str) -> str:
    """A sentence where `curve_chart` does not draw every point."""
    steps = {p["step"] for p in points if name in p}
    if len(steps) <= MAX_POINTS:
        return ""
    return " Drawn are means of neighbouring points; the band is from lowest to highest."


def _binned(
    points: Sequence[tuple[float, float]],
) -> tuple[list[float], list[float], list[float], list[float]]:
    """Mean, lowest and highest value by step, or by equal ranges of steps where there are many."""
    first, last = min(s for s, _ in points), max(s for s, _ in points)
    many = len({s for s, _ in points}) > MAX_POINTS
    bins: dict[float, list[tuple[float, float]]] = {}
    for step, loss in points:
        key = int((step - first) / (last - first) * (MAX_POINTS - 1)) if many else step
        bins.setdefault(key, []).append((step, loss))
    groups = [bins[key] for key in sorted(bins)]
    return (
        [sum(s for s, _ in g) / len(g) for g in groups],
        [sum(v for _, v in g) / len(g) for g in groups],
        [min(v for _, v in g) for g in groups],
        [max(v for _, v in g) for g in groups],
    )


def _ends(line: Line) -> tuple[float, ...]:
    return () if line.summary.half is None else (line.summary.low, line.summary.high)


def _extent(line: Line | None) -> tuple[float, ...]:
    return () if line is None else (line.summary.mean, *line.values, *_ends(line))


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """Range of an accuracy axis: the values with a margin; never far outside 0..1."""
    low, high = max(0.0, min(values)), min(1.0, max(values))
    margin = max(0.01, 0.07 * (high - low))
    return max(-0.01, low - margin), min(1.01, high + margin)  # a dot at the end is whole


def _apart(tags: Sequence[tuple[float, str, str]], least: float) -> list[float]:
    """Heights of labels, lowest first, moved so that neighbours are `least` apart."""
    places = [value for value, _, _ in sorted(tags)]
    for _ in range(40):
        for i in range(len(places) - 1):
            if (lack := least - (places[i + 1] - places[i])) > 1e-12:
                places[i] -= lack / 2
                places[i + 1] += lack / 2
    return places


def _percent_axis(axis: Any, most: int) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

    ticks = MaxNLocator(most, steps=[1, 2, 2.5, 5, 10]).tick_values(*axis.get_view_interval())
    axis.set_major_locator(FixedLocator([v for v in ticks if -1e-9 <= v <= 1 + 1e-9]))
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{round(100 * v, 2):g} %"))


def _steps_axis(axes: Any, kept: Sequence[int]) -> None:
    """Ticks at the kept steps where they are few, else round numbers."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

    few = 0 < len(kept) <= 5
    free = MaxNLocator(5, integer=True, steps=[1, 2, 5, 10])
    axes.xaxis.set_major_locator(FixedLocator(kept) if few else free)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}".replace(",", " ")))


def _plain_log(axis: Any, text: Callable[[float], str], subs: Sequence[float] = (1, 2, 5)) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_major_locator(LogLocator(subs=subs, numticks=9))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda v, _: text(v)))


def _svg(
    draw: Callable[[Any], None],
    height: int,
    prefix: str,
    *,
    left: int,
    right: int,
    top: int,
    bottom: int,
) -> str:
    """Draw on axes with margins in pixels; return `<svg>` markup safe to stand beside others."""
    from matplotlib import style
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    settings = {"svg.fonttype": "none", "svg.hashsalt": "stillroom", "font.size": 12.5}
    with style.context(["default", settings], after_reset=True), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a name in a script that the default font lacks
        figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72, facecolor="none")
        FigureCanvasSVG(figure)
        box = (
            left / WIDTH,
            bottom / height,
            1 - (left + right) / WIDTH,
            1 - (top + bottom) / height,
        )
        axes = figure.add_axes(box, facecolor="none")
        axes.set_axisbelow(True)
        axes.tick_params(length=0, pad=7, labelcolor=MUTED)
        for spine in axes.spines.values():
            spine.set_visible(False)
        draw(axes)
        stream = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(stream, format="svg", transparent=True, metadata=nothing)
    return _inlined(stream.getvalue(), prefix)


def _inlined(svg: str, prefix: str) -> str:
    """Strip what belongs to a file of its own; make ids unique; colours and font the page's."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"\s*<style type=\"text/css\">.*?</style>", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, count=1, flags=re.DOTALL)
    box = re.search(r'viewBox="([^"]+)"', svg)
    view = box.group(1) if box else f"0 0 {WIDTH} {WIDTH}"
    opening = f'<svg class="chart" viewBox="{view}" aria-hidden="true" focusable="false">'
    svg = re.sub(r"<!--.*?-->\s*", "", svg[svg.index(">") + 1 :], flags=re.DOTALL)
    return opening + re.sub(r"<[^>]+>", lambda tag: _tag(tag.group(), prefix), svg)


def _tag(tag: str, prefix: str) -> str:
    """One tag with the page's ids, colours and font; foreign names are never inside a tag."""
    tag = re.sub(r'(\sid="|url\(#|href="#)', rf"\g<1>{prefix}-", tag)
    tag = re.sub(r"font-family: [^;\"]*;? ?", "", tag)
    for colour, name in _VARIABLES.items():
        tag = tag.replace(colour, f"var(--{name})")
    return re.sub(r"\s+", " ", tag)
