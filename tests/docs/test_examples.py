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
