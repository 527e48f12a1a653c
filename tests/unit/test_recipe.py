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


def test_an_override_finds_an_entry_of_a_list_by_its_place() -> None:
    clom = {"kind": "clom", "weights": [1000, 2000], "pool": ["convnet2", "mlp"], "num": 3}
    base = {**MINE, "regularisers": [clom], "evaluate": [{"seeds": 2}, {"seeds": 3}]}
    texts = ["regularisers.0.weights=[5]", "regularisers.0.pool.1=lenet", "evaluate.1.seeds=7"]
    made = validate(with_overrides(base, texts), "x")
    assert made.regularisers[0].weights == (5.0,)
    assert made.regularisers[0].pool == ("convnet2", "lenet")
    assert made.regularisers[0].num == 3
    assert [spec.seeds for spec in made.evaluate] == [2, 7]
    assert base["regularisers"][0]["weights"] == [1000, 2000]
    for text, told in (
        ("regularisers.1.num=2", "'1' is none of the 1 entries, counted from 0"),
        ("regularisers.num=2", "'num' is none of the 1 entries"),
        ("regularisers.-1.num=2", "'-1' is none of the 1 entries"),
        ("regularisers.0.num.x=2", "'3' has no 'x' to change; give all of it"),
    ):
        with pytest.raises(StillroomError, match=f"^override '{text[:20]}.*{told}"):
            with_overrides(base, [text])


def test_what_is_shown_of_a_term_can_be_copied_back() -> None:
    """The default of the one form is no number of the other."""
    for form, count in (("ce", None), ("cos", 8196)):
        term = {"kind": "clom", "weights": [1.0], "distance": form}
        made = validate({**MINE, "regularisers": [term]}, "r").regularisers[0]
        assert made.batch_real == count
        shown = made.model_dump(mode="json")
        assert validate({**MINE, "regularisers": [shown]}, "r").regularisers[0] == made
        named = validate({**MINE, "regularisers": [{**term, "batch_real": None}]}, "r")
        assert named.regularisers[0] == made
    with pytest.raises(StillroomError, match="batch_real belongs to distance cos"):
        validate({**MINE, "regularisers": [{**term, "distance": "ce", "batch_real": 8}]}, "r")
    for wrong in (0, 2.5):
        with pytest.raises(StillroomError, match="batch_real"):
            validate({**MINE, "regularisers": [{**term, "batch_real": wrong}]}, "r")


OWN_TERM = """
from stillroom.methods.regularisers import Regulariser
class Own(Regulariser):
    kind: str = "own"
    size: float = 1.0
    def stages(self, bench, arch, store, slot): return {{}}
    def term(self, ctx, synth, it, slot): {body}
class Unfinished(Regulariser):
    pass
"""


def test_a_term_of_ones_own_by_import_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its code is in the key: an edit makes another set."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    import linecache

    keys = []
    for body in ("return None", "return 0 * synth.images.sum()"):
        (tmp_path / "own_term.py").write_text(OWN_TERM.format(body=body))
        sys.modules.pop("own_term", None)
        linecache.clearcache()
        term = {"kind": "own_term:Own", "size": 2}
        made = validate({**MINE, "regularisers": [term]}, "r")
        assert type(made.regularisers[0]).__name__ == "Own"
        assert made.regularisers[0].size == 2
        keys.append(_foreign_code(made.regularisers[0]))
    assert [k["class"] for k in keys] == ["own_term:Own"] * 2
    assert keys[0]["code"] != keys[1]["code"]
    for kind, told in (
        ("own_term:Unfinished", "is not a finished subclass of stillroom.methods.regularisers"),
        ("contract.toys:SecondOrder", "is not a finished subclass"),
        ("own_term:None", "does not import"),
        ("own", r"is none of: clom \(or pkg.mod:Class\)"),
    ):
        with pytest.raises(StillroomError, match=told):
            validate({**MINE, "regularisers": [{"kind": kind}]}, "r")


def test_a_term_that_metadata_names_is_text(bench, store: Path, tmp_path: Path) -> None:
    """Judging, reading and showing a foreign set imports nothing that it names."""
    import torch

    from stillroom.cli import run
    from stillroom.distilled import Distilled, load

    labels = torch.tensor([0, 1])
    recipe = {"regularisers": [{"kind": "this:s", "class": "this:s", "code": "0" * 16}]}
    data = Distilled(
        torch.rand(2, 3, 8, 8), labels, "hard", labels, bench.classes, bench.preprocess,
        provenance={"recipe": recipe},
    )  # fmt: skip
    data.save(tmp_path / "set")
    sys.modules.pop("this", None)
    assert load(tmp_path / "set").provenance["recipe"] == recipe
    assert run(["inspect", str(tmp_path / "set")]) == 0
    assert "this" not in sys.modules


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


@pytest.mark.parametrize(
    "more",
    [
        {"regularisers": [{"kind": "clom", "weights": [100]}]},
        {"watch": {"measures": ["original-model-accuracy"]}},
    ],
)
def test_terms_of_a_run_without_steps_are_refused(more: dict) -> None:
    """They would be trained for and never asked."""
    chosen = {"benchmark": "digits", "ipc": 1, "method": {"kind": "selection", "rule": "random"}}
    with pytest.raises(StillroomError, match="regularisers and watch belong to steps, and random"):
        validate({**chosen, "outer": {"steps": 0}, **more}, "some")
    matched = {**chosen, "method": {"kind": "distribution_matching"}, "outer": {"steps": 0}}
    with pytest.raises(StillroomError, match="belong to steps"):
        validate({**matched, **more}, "some")
    validate({**matched, "outer": {"steps": 1}, **more}, "some")
