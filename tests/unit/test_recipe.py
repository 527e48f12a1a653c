"""Recipes: one validator for YAML, flags and Python; what overrides what."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from contract.toys import SecondOrder
from stillroom import recipe as recipes
from stillroom.errors import StillroomError
from stillroom.methods import PRESETS
from stillroom.methods.base import Outer
from stillroom.methods.distil import _foreign_code
from stillroom.methods.distribution_matching import DistributionMatching
from stillroom.recipe import (
    Recipe,
    from_preset,
    load_recipe,
    merged,
    method_class,
    read_yaml,
    validate,
    with_overrides,
)

MINE = {"benchmark": "digits", "ipc": 1, "method": {"kind": "distribution_matching"}}


def test_preset_then_row_then_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step wins over the one before, key by key, mapping by mapping."""
    row = tmp_path / "row.yaml"
    row.write_text(
        "benchmark: elsewhere\nipc: 3\narch: convnet2\n"
        "method: {kind: distribution_matching, batch_real: 64, nets: 2}\n"
        "outer: {steps: 77, images: {lr: 0.25}}\nevaluate: [{protocol: quick@1}]\n"
    )
    found = recipes.Packaged(name="dm/toy-ipc3", path=row)
    monkeypatch.setattr(recipes, "packaged", lambda: [found])
    plain, none = from_preset("dm", "toy", 2, {}, "toy")
    assert none is None
    default = PRESETS["dm"].outer["steps"]
    assert (plain.outer.steps, plain.outer.images.lr, plain.arch) == (default, 1.0, "auto")
    given = {"method": {"nets": 5}, "outer": {"images": {"momentum": 0.9}}, "seed": 4}
    assert from_preset("dm", "toy", 3, given)[1] is None, "a name alone is no claim to a row"
    made, name = from_preset("dm", "toy", 3, given, "toy")
    assert name == "dm/toy-ipc3"
    assert isinstance(made.method, DistributionMatching)
    assert (made.method.batch_real, made.method.nets) == (64, 5)
    assert (made.outer.steps, made.outer.images.lr, made.outer.images.momentum) == (77, 0.25, 0.9)
    assert (made.benchmark, made.arch, made.seed, made.evaluate) == ("toy", "convnet2", 4, ())


def test_overrides_are_yaml_and_nested() -> None:
    texts = ["outer.images.lr=1e-3", "method.batch_real=8", "outer={steps: 4}", "name=a=b"]
    made = validate(with_overrides(MINE, texts), "x")
    assert made.outer.images.lr == 1e-3  # PyYAML reads 1e-3 as text: YAML 1.1 wants 1.0e-3
    assert made.outer.steps == 4
    assert made.method.batch_real == 8
    assert made.name == "a=b"
    assert MINE == {"benchmark": "digits", "ipc": 1, "method": {"kind": "distribution_matching"}}


def test_rates_of_every_spelling(tmp_path: Path) -> None:
    for text in ("1e-3", "0.001", ".001", "1.0e-3", "1E-3"):
        path = tmp_path / "r.yaml"
        path.write_text(f"benchmark: digits\nipc: 1\nmethod: {{kind: selection}}\n"
                        f"outer: {{images: {{lr: {text}}}}}\n")  # fmt: skip
        assert validate(read_yaml(path), "r").outer.images.lr == 1e-3


@pytest.mark.parametrize("ipc", [2.5, True, "3", None, 0, 10**7, [1]])
def test_ipc_is_a_whole_number(ipc: object) -> None:
    with pytest.raises(StillroomError, match=r"^r: ipc: "):
        validate({**MINE, "ipc": ipc}, "r")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"stepz": 1}, "r: stepz: unknown key"),
        ({"outer": {"stpes": 1}}, "outer.stpes: unknown key; did you mean 'steps'"),
        ({"method": {"kind": "selection", "rul": 1}}, "method.rul: unknown key; did you mean"),
        ({"method": {"kind": "selection", "rule": "best"}}, "method.rule: Input should be"),
        ({"method": {"kind": "dm"}}, "kind 'dm' is unknown; known: distribution_matching"),
        ({"method": "dm"}, "must be a mapping with a kind"),
        ({"outer": {"images": {"lr": -1}}}, "outer.images.lr: Input should be greater than 0"),
        ({"outer": {"steps": 5, "keep": [5, 6]}}, "step 6 lies outside the run's 5 steps"),
        ({"outer": {"steps": 5, "keep": [0]}}, "step 0 lies outside"),
        ({"seed": -1}, "seed: Input should be greater than or equal to 0"),
        ({"numerics": "fp8"}, "numerics: Input should be 'float32'"),
        ({"evaluate": [{"seeds": 0}]}, "evaluate.0.seeds: Input should be greater"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_what_is_wrong_is_named(change: dict[str, object], problem: str) -> None:
    with pytest.raises(StillroomError) as caught:
        validate({**MINE, **change}, "r")
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


def test_all_problems_in_one_line() -> None:
    with pytest.raises(StillroomError) as caught:
        validate({"ipc": 0, "seed": "x"}, "r")
    text = str(caught.value)
    assert all(f"{key}: " in text for key in ("benchmark", "ipc", "method", "seed"))


def test_kept_steps_have_one_spelling() -> None:
    assert Outer(steps=9, keep=(5, 2, 5)).keep == (2, 5)


def test_a_method_of_ones_own_by_import_path() -> None:
    made = validate({**MINE, "method": {"kind": "contract.toys:SecondOrder"}}, "r")
    assert type(made.method) is SecondOrder
    assert made.method.kind == "toy_second_order"
    assert method_class("selection").__name__ == "Selection"


def test_code_of_ones_own_method_is_in_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The package's digest does not cover it, so the key must: an edit makes another artefact."""
    assert _foreign_code(DistributionMatching()) == {}
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    import linecache

    seen = []
    for body in ("return 1", "return 2"):
        (tmp_path / "own_method.py").write_text(
            "from stillroom.methods.base import Method\n"
            "class Own(Method):\n    kind: str = 'own'\n"
            f"    def start(self, ctx, rows): {body}\n    def loss(self, ctx, synth, it): yield\n"
        )
        sys.modules.pop("own_method", None)
        linecache.clearcache()
        seen.append(_foreign_code(method_class("own_method:Own")()))
    assert [s["class"] for s in seen] == ["own_method:Own"] * 2
    assert seen[0]["code"] != seen[1]["code"]


def test_merging_leaves_its_arguments_alone() -> None:
    base = {"a": {"b": 1, "c": 2}, "d": 3}
    assert merged(base, {"a": {"c": 5}, "d": {"e": 1}}) == {"a": {"b": 1, "c": 5}, "d": {"e": 1}}
    assert base == {"a": {"b": 1, "c": 2}, "d": 3}


def test_found_by_name_or_path(tmp_path: Path) -> None:
    value, source = load_recipe("dm/cifar10-ipc10")
    assert (value["name"], source) == ("dm/cifar10-ipc10", "dm/cifar10-ipc10")
    path = tmp_path / "mine.yaml"
    path.write_text("benchmark: digits\n")
    assert load_recipe(str(path))[0] == {"benchmark": "digits", "name": "mine"}


def test_storage_follows_the_method() -> None:
    def stored(**method: object) -> str:
        return Recipe(benchmark="digits", ipc=1, method={"kind": "selection", **method}).stored_as

    assert stored(rule="random") == stored(rule="k-means") == "uint8"
    assert stored(rule="k-means", centroids=True) == stored(rule="class-mean") == "float32"
