"""Every recipe inside the package builds, says where it comes from, and names what exists."""

from __future__ import annotations

import pytest

from stillroom.cite import PAPERS
from stillroom.data.named import NAMED
from stillroom.evaluation.protocol import PROTOCOLS
from stillroom.methods import METHODS, PRESETS
from stillroom.methods.base import Outer
from stillroom.nets.zoo.names import canonical
from stillroom.recipe import Packaged, find_row, from_preset, packaged, read_yaml, validate

ALL = packaged()


def test_there_are_some() -> None:
    assert len(ALL) >= 9
    assert len({row.name for row in ALL}) == len(ALL)


@pytest.mark.parametrize("row", ALL, ids=lambda row: row.name)
def test_packaged_recipe(row: Packaged) -> None:
    text = row.path.read_text(encoding="utf-8")
    header = text.splitlines()[:3]
    assert header[0] == f"# stillroom distill {row.name}"
    assert header[1].startswith("# paper: ")
    assert "arXiv:" in header[1] or header[1].startswith("# paper: none")
    assert header[2].startswith("# ours: ")
    made = validate(read_yaml(row.path), row.name)
    preset, _, rest = row.name.partition("/")
    assert rest == f"{made.benchmark}-ipc{made.ipc}"
    assert PRESETS[preset].kind == made.method.kind
    assert made.benchmark in NAMED
    assert made.arch == "auto" or canonical(made.arch) == made.arch
    assert made.evaluate
    for spec in made.evaluate:
        assert spec.protocol in PROTOCOLS, "a recipe names the version"
    assert set(made.method.papers) <= set(PAPERS)
    again, name = from_preset(preset, made.benchmark, made.ipc, {}, made.benchmark)
    assert name == row.name
    assert (again.method, again.outer, again.arch) == (made.method, made.outer, made.arch)


@pytest.mark.parametrize("name", PRESETS)
def test_preset_builds(name: str) -> None:
    made, row = from_preset(name, "nothing-published", 1, {})
    assert row is None
    assert type(made.method) is METHODS[PRESETS[name].kind]
    assert made.method.steps(made.outer) == made.outer.steps
    assert made.outer == Outer(**PRESETS[name].outer)


def test_rows_are_found_exactly() -> None:
    assert find_row("dm", "cifar10", 10) is not None
    assert find_row("dm", "cifar1", 10) is None
    assert find_row("dm", "cifar10", 11) is None
    assert find_row("dm", "*", 10) is None
