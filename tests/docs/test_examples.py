"""The method of the documents passes the contract tests and runs from its recipe."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "docs" / "examples"


def environment() -> dict[str, str]:
    """With the examples importable, as PYTHONPATH says in the documents."""
    return {**os.environ, "PYTHONPATH": str(EXAMPLES), "PYTHONDONTWRITEBYTECODE": "1"}


def test_contributing_shows_the_example_as_it_is():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    shown = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    assert (EXAMPLES / "variance.py").read_text(encoding="utf-8") in shown


def test_recipe_of_the_example_runs(tmp_path: Path):
    from stillroom.distilled import load

    command = [sys.executable, "-c", "from stillroom.cli import main; main()"]
    arguments = ["distill", str(EXAMPLES / "variance.yaml"), "outer.steps=2", "--out", "out"]
    done = subprocess.run(
        [*command, *arguments, "--threads", "2"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert len(load(tmp_path / "out")) == 20


def test_a_taught_method_and_a_term_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the page says: a network made first and once, pixels in range, a term that pulls."""
    import torch

    from stillroom.cli import run
    from stillroom.distilled import load

    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    made = {}
    for weight in ("0.5", "2"):
        line = ["distill", str(EXAMPLES / "taught.yaml"), f"regularisers.0.weight={weight}"]
        line += ["outer.steps=3", "arch=convnet1-w4", "--out", f"{tmp_path}/{weight}"]
        assert run([*line, "--store", f"{tmp_path}/store", "--threads", "1", "--quiet"]) == 0
        made[weight] = load(tmp_path / weight)
    assert len(list((tmp_path / "store").glob("original-*"))) == 1
    recipes = {weight: data.provenance["recipe"] for weight, data in made.items()}
    assert list(recipes["2"]["wants"]) == ["teacher"]
    (term,) = recipes["2"]["regularisers"]
    assert (term["class"], term["weight"]) == ("taught:Smoothness", 2)
    assert len(term["code"]) == 16
    rough = []
    for data in made.values():
        pixels = data.preprocess.invert(data.images)
        assert -1e-5 <= float(pixels.min()) <= float(pixels.max()) <= 1 + 1e-5
        rough.append(float(data.images.diff(dim=3).abs().mean()))
    assert rough[1] < rough[0]
    assert not torch.equal(made["0.5"].images, made["2"].images)
    assert made["2"].provenance["label"] == "logit_matching+smoothness"


@pytest.mark.slow
def test_example_passes_the_contract():
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/contract"),
            *("--method", "variance:VarianceMatching"),
        ],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]
