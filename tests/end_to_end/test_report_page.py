"""The page in a real browser: sorting, narrow screens, dark mode, hostile names.

Needs the package playwright and a Chromium: STILLROOM_CHROMIUM, or one on the PATH.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from stillroom.distilled import Distilled, set_digest
from stillroom.files import canonical, write_atomic
from stillroom.report import write_report
from stillroom.types import Preprocess, Record

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
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
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM, reason="there is no chromium; set STILLROOM_CHROMIUM"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield started
        started.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A page of two sets with hostile class and row names."""
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
    rows = [
        ("dm@30", key, 30, None, (0.8, 0.82)),
        ("random", "r", None, 0, (0.5,)),
        ("random", "s", None, 1, (0.52,)),
        (NAMES[2], "t", None, None, (0.9, 0.1)),
        (NAMES[1], "u", None, None, (0.6,)),
    ]
    records = [
        Record(
            benchmark=NAMES[0],
            data_digest="d",
            ipc=ipc,
            row=row,
            set_key=digest,
            step=step,
            draw=draw,
            protocol="quick@1",
            protocol_hash="abc",
            arch="convnet1",
            seed=seed,
            metric="accuracy",
            value=value,
            unit="fraction",
            selection="last",
            source="measured",
            bytes=2048,
            seconds=1.5 + seed,
            device="cpu",
            numerics="float32",
            code="c",
            split="given",
        )
        for row, digest, step, draw, values in rows
        for seed, value in enumerate(values)
    ]
    write_atomic(folder / "records.jsonl", "".join(canonical(r.to_dict()) + "\n" for r in records))
    curve = [canonical({"step": i, "loss": 100 / i}) + "\n" for i in range(1, 500)]
    write_atomic(folder / "metrics.jsonl", "".join(curve))
    return folder


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

    table = page.locator("table.sortable").nth(1)
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
    page.keyboard.press("Space")
    assert other.get_attribute("aria-sort") == "ascending"
    assert column(2)[-1] == ""


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
      const ratio = (a) => (Math.max(a, paper) + 0.05) / (Math.min(a, paper) + 0.05);
      return Math.min(...["p", "td", "th", "a", "dt", "figcaption", "h1", "svg text", ".few"]
        .flatMap((s) => [...document.querySelectorAll(s)])
        .map((e) => ratio(light(e instanceof SVGElement ? getComputedStyle(e).fill
                                                         : getComputedStyle(e).color))));
    }""")
    assert worst >= 4.5
