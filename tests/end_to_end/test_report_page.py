"""The page in a real browser: sorting, narrow screens, dark mode, hostile names.

Needs the package playwright and a Chromium: STILLROOM_CHROMIUM, or one on the PATH.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from stillroom.distilled import Distilled, load, set_digest
from stillroom.files import canonical, write_atomic, write_json
from stillroom.report import write_report
from stillroom.types import Preprocess, Record

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="the page's tests need a browser: make browser"
)
CHROMIUM = os.environ.get("STILLROOM_CHROMIUM") or shutil.which("chromium")
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
NAMES = (
    "<script>window.hacked = 1</script>",
    '"><img src=x onerror="window.hacked = 1">',
    "n" * 300,
    "日本語",
)
pytestmark = pytest.mark.skipif(
    not CHROMIUM, reason="the page's tests need a browser: no chromium; set STILLROOM_CHROMIUM"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield started
        started.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A page of two sets with hostile class and row names, and with every part that there is."""
    root = tmp_path_factory.mktemp("sets")
    out = write_report([_set(root / "one", 12), _set(root / ("two" * 40), 3)], root / "page.html")
    return out.as_uri()


def _set(folder: Path, ipc: int) -> Path:
    of_class = torch.arange(len(NAMES)).repeat_interleave(ipc)
    preprocess = Preprocess("half", (0.5,) * 3, (0.5,) * 3)
    pixels = torch.rand(len(of_class), 3, 8, 8, generator=torch.Generator().manual_seed(ipc))
    Distilled(
        images=preprocess.apply(pixels),
        labels=of_class.clone(),
        label_kind="hard",
        of_class=of_class,
        classes=NAMES,
        preprocess=preprocess,
        arch="convnet1",
        data={"name": NAMES[0]},
        provenance={"label": "dm", "key": NAMES[1]},
    ).save(folder)
    key = set_digest(folder)
    rows: list[tuple[str, str, int | None, int | None, tuple[float, ...], dict[str, Any]]] = [
        ("dm@10", "", 10, None, (0.7, 0.72), {}),
        ("dm@30", key, 30, None, (0.8, 0.82), {}),
        ("dm@30", key, 30, None, (0.3, 0.32), {"arch": "mlp"}),
        ("dm@30", key, 30, None, (0.81, 0.83), {"metric": "accuracy.best", "selection": "best"}),
        ("dm@30", key, 30, None, (12.5,), {"metric": "fid"}),
        ("random", "r", None, 0, (0.5,), {}),
        ("random", "s", None, 1, (0.52,), {}),
        ("random-jpeg", "j", None, 0, (0.4,), {"bytes": 900}),
        ("random-jpeg", "k", None, 0, (0.6,), {"bytes": 4000, "ipc": ipc + 1}),
        (NAMES[2], "t", None, None, (0.9, 0.1), {}),
        (NAMES[1], "u", None, None, (0.6,), {}),
    ]
    usual = {"protocol": "quick@1", "arch": "convnet1", "metric": "accuracy", "unit": "fraction"}
    usual |= {"selection": "last", "source": "measured", "numerics": "float32", "ipc": ipc}
    usual |= {"benchmark": NAMES[0], "data_digest": "d", "protocol_hash": "abc", "bytes": 2048}
    usual |= {"device": "cpu", "code": "c", "split": "given", "seconds": 1.5}
    kept = folder / "steps" / "10"
    replace(load(folder), lr=0.5).save(kept)
    records = []
    for row, digest, step, draw, values, other in rows:
        judged = {"row": row, "set_key": digest or set_digest(kept), "step": step, "draw": draw}
        for seed, value in enumerate(values):
            fields = {**usual, **other, **judged, "seed": seed, "value": value}
            records.append(Record.from_dict(fields, "a test"))
    write_atomic(folder / "records.jsonl", "".join(canonical(r.to_dict()) + "\n" for r in records))
    curve = [canonical({"step": i, "loss": 100 / i}) + "\n" for i in range(1, 500)]
    write_atomic(folder / "metrics.jsonl", "".join(curve))
    _exhibits(
        folder, {k: usual[k] for k in ("arch", "protocol_hash", "numerics", "data_digest")}, ipc
    )
    return folder


def _exhibits(folder: Path, conditions: dict[str, Any], ipc: int) -> None:
    """Students of the set and of random images, and the set's own images as its neighbours."""
    data, c = load(folder), len(NAMES)
    for name, step, key in (("dm@30", 30, set_digest(folder)), ("random", None, None)):
        confusion = [[(50 if a == b else 7 * a + b) for b in range(c)] for a in range(c)]
        content = {
            **conditions,
            "row": name,
            "step": step,
            "set_key": key,
            "ipc": ipc,
            "classes": NAMES,
            "students": [{}],
            "per_class": [row[a] / sum(row) for a, row in enumerate(confusion)],
            "confusion": confusion,
        }
        write_json(folder / "exhibits" / f"students-{name}.json", content)
    images = (data.pixels() * 255).round().to(torch.uint8)
    tensors = {
        "rows": torch.arange(len(data)),
        "images": images,
        "distance": torch.zeros(len(data)),
    }
    write_atomic(folder / "exhibits" / "neighbours.safetensors", save(tensors))


@pytest.fixture(params=["light", "dark"])
def page(browser: Any, address: str, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The page at 390 px; any message on the console or request outside fails the test."""
    context = browser.new_context(
        viewport={"width": 390, "height": 844}, color_scheme=request.param
    )
    opened, problems = context.new_page(), []
    opened.on("console", lambda message: problems.append(message.text))
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.on(
        "request",
        lambda asked: (
            problems.append(asked.url) if not asked.url.startswith(("file:", "data:")) else None
        ),
    )
    opened.goto(address)
    yield opened
    context.close()
    assert problems == []


def test_sorting_by_click_and_by_keyboard(page: Any) -> None:
    def column(index: int) -> list[str]:
        script = "(t, i) => Array.from(t.tBodies[0].rows, r => r.cells[i].dataset.value)"
        return list(table.evaluate(script, index))

    table = page.locator("table:has(#s1-table-caption)")
    head = table.locator("th[scope=col]").nth(1)
    values = [float(v) for v in column(1)]
    assert values == sorted(values, reverse=True)
    assert head.get_attribute("aria-sort") == "descending"
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert [float(v) for v in column(1)] == sorted(values)
    assert "Sorted by accuracy" in page.locator("#said").inner_text()
    other = table.locator("th[scope=col]").nth(2)
    head.locator("button").focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert other.get_attribute("aria-sort") == "descending"
    assert head.get_attribute("aria-sort") is None
    assert column(2)[-1] == ""
    assert page.locator("[aria-sort]").count() == 3  # one a table: the comparison, both sets
    page.keyboard.press("Space")
    assert other.get_attribute("aria-sort") == "ascending"
    assert column(2)[-1] == ""


def test_every_part_is_there_and_every_table_sorts(page: Any) -> None:
    for heading in (
        "Against baselines",
        "Accuracy over kept steps",
        "Accuracy against bytes",
        "On other networks",
        "Other selection rules",
        "Other measurements",
        "Class by class",
        "Beside the nearest real images",
    ):
        assert page.get_by_role("heading", name=heading, exact=True).count() >= 2, heading
    assert page.locator("table").count() == page.locator("table > caption").count() == 14
    assert page.locator("th:not([scope])").count() == 0
    assert page.locator("figure:not(:has(figcaption))").count() == 0
    assert page.locator("img:not([alt])").count() == 0
    for head in page.locator("#s1 .sortable th[scope=col] button").all():
        head.click()
        assert "ending" in (head.locator("..").get_attribute("aria-sort") or "")
    assert page.locator(".square:not(.sortable) button").count() == 0


def test_nothing_overflows_and_nothing_hostile_runs(page: Any) -> None:
    for width in (320, 390, 768, 1280):
        page.set_viewport_size({"width": width, "height": 844})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("window.hacked") is None
    assert page.locator("script").count() == 1
    broken = "images => images.filter(i => !i.complete || i.naturalWidth === 0).length"
    assert page.eval_on_selector_all("img", broken) == 0


def test_both_colour_schemes_are_legible(page: Any) -> None:
    """Text of every kind has a contrast of 4.5 to 1 or more, charts included."""
    worst = page.evaluate("""() => {
      const often = { willReadFrequently: true };
      const canvas = document.createElement("canvas").getContext("2d", often);
      const light = (colour) => {
        canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
        const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map((v) => {
          const x = v / 255;
          return x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4;
        });
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
      };
      const paper = light(getComputedStyle(document.body).backgroundColor);
      const ratio = (a, b = paper) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
      const heat = [...document.querySelectorAll("td.heat")].map((e) => getComputedStyle(e))
        .map((e) => ratio(light(e.color), light(e.backgroundColor)));
      return Math.min(...heat,
        ...["p", "td", "th", "a", "dt", "dd", "figcaption", "h1", "svg text", ".few"]
        .flatMap((s) => [...document.querySelectorAll(s)])
        .map((e) => ratio(light(e instanceof SVGElement ? getComputedStyle(e).fill
                                                         : getComputedStyle(e).color))));
    }""")
    assert worst >= 4.5
