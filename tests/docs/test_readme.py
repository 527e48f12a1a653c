"""What README.md shows runs as it stands."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
WITHOUT_STILLROOM = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "stillroom":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
sys.modules.pop("stillroom", None)
"""


def block(heading: str) -> str:
    """The Python block under the heading that contains these words."""
    section = re.split(r"^## ", README.read_text(encoding="utf-8"), flags=re.M)
    (found,) = [part for part in section if heading in part.partition("\n")[0]]
    (code,) = re.findall(r"```python\n(.*?)```", found, flags=re.S)
    return code


def run(code: str, folder: Path) -> str:
    """Run a block as a file of its own in `folder`; returns what it prints."""
    (folder / "block.py").write_text(code, encoding="utf-8")
    settings = {**os.environ, "STILLROOM_STORE": str(folder / "store"), "OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "block.py"], cwd=folder, env=settings, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def count(code: str) -> int:
    return sum(1 for line in code.splitlines() if line.strip())


def test_ten_lines_distil_a_dataset_and_a_module_of_ones_own(tmp_path: Path):
    code = block("ten lines")
    assert count(code) <= 10
    printed = run(code, tmp_path)
    assert "torch.Size([2, 1, 16, 16])" in printed

    from stillroom.distilled import load

    made = load(tmp_path / "out" / "bars")
    assert made.classes == ("0", "1")
    assert made.arch.startswith("user:Net-")
    assert made.provenance["step"] == 20
    records = (tmp_path / "out" / "bars" / "records.jsonl").read_text(encoding="utf-8")
    assert 0 <= json.loads(records.splitlines()[0])["value"] <= 1


def test_five_lines_load_a_set_without_stillroom(tmp_path: Path):
    from stillroom import distill

    distill("class-mean", "digits", ipc=1, out=tmp_path / "out" / "demo")
    code = block("five lines")
    assert count(code) == 5
    assert "import stillroom" not in code
    check = """
images, labels = data["images"], data["labels"]
assert "stillroom" not in sys.modules and images.shape == (10, 1, 8, 8)
weight = net[1].weight
assert float(weight.grad.abs().sum()) > 0
after = torch.nn.functional.cross_entropy(net(images), labels)
with torch.no_grad():
    for p in net.parameters():
        p += 0.1 * p.grad  # undo the step
before = torch.nn.functional.cross_entropy(net(images), labels)
assert after < before, (after, before)
print("trained")
"""
    assert run(WITHOUT_STILLROOM + code + check, tmp_path).strip() == "trained"


def test_nothing_hides_the_function_evaluate():
    """A subpackage of that name once replaced it after the first import."""
    code = "import stillroom; stillroom.distill; assert callable(stillroom.evaluate)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_lead_somewhere(name: str):
    text = (ROOT / name).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        if "://" in target or target == "docs/images/digits.png":  # the picture is made by a run
            continue
        assert (ROOT / target).exists(), f"{name} links to {target}"
