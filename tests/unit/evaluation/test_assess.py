"""`assess` on sets whose numbers are known."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import stillroom
from stillroom.artefacts.features import RealFeatures, real_rows
from stillroom.artefacts.originals import opened
from stillroom.artefacts.schooling import Schooling, find_schooling
from stillroom.artefacts.store import Store
from stillroom.data.benchmarks import Benchmark
from stillroom.distilled import load
from stillroom.errors import StillroomError
from stillroom.nets.ensemble import Nets
from stillroom.nets.maps import activation_maps, deepest
from stillroom.nets.zoo import resolve
from stillroom.recipe import from_preset
from stillroom.records import read_records
from stillroom.report.gather import gather
from stillroom.report.grids import others_grid
from stillroom.run.asked import schooling_in_words
from stillroom.run.assess import SOURCES, assess, held_out
from stillroom.run.distil import distil, plan
from stillroom.run.measures import RANDOM_NETS, READ_AS, REAL, held_at_once, of_matching
from stillroom.run.options import Machine
from stillroom.run.prepare import originals
from stillroom.runtime import Runtime
from stillroom.session import Session
from stillroom.types import Preprocess
from toy import record

MACHINE = Machine(threads=1)


def measured(bench: Benchmark, store: Path, folder: Path, preset: str, **more):
    recipe, _ = from_preset(preset, "toy", 2, {"arch": "convnet1-w4", **more})
    distil(plan(recipe, bench, MACHINE, Session(), store=Store(store), out=folder), MACHINE)
    stages = originals(
        bench, ["convnet1-w4", "mlp"], 2, Schooling(epochs=20, batch=8), Store(store)
    )
    ledger = folder / "records.jsonl"
    found, _ = assess(folder, bench, stages, Store(store), MACHINE, Session(), ledger)
    return {(m.name, m.arch): m.value for m in found}


def test_real_images_are_what_originals_know(bench: Benchmark, store: Path, tmp_path: Path) -> None:
    found = measured(bench, store, tmp_path / "random", "random")
    assert found["nearest-real-distance", "none"] == pytest.approx(0, abs=1e-3)
    for arch in ("convnet1-w4", "mlp"):
        assert found["original-model-accuracy", arch] > 0.7
        assert found["original-model-loss", arch] > 0
        assert 0 <= found["original-model-calibration-error", arch] <= 1
        assert 1 <= found["effective-rank", arch] <= 3 + 1e-9
        assert found["distance-within-class", arch] > 0
    written = {(r.metric, r.arch): r.value for r in read_records(tmp_path / "random/records.jsonl")}
    assert written == found
    assert {name for name, _ in found} == set(READ_AS)


def test_noise_is_told_from_real_images(bench: Benchmark, store: Path, tmp_path: Path) -> None:
    """By every measure of likeness; and it is more varied than they."""
    noise = {"method": {"init": "noise"}, "outer": {"steps": 1, "images": {"lr": 1e-9}}}
    bad = measured(bench, store, tmp_path / "noise", "dm", **noise)
    good = measured(bench, store, tmp_path / "random", "random")
    for name in ("feature-matching-loss", "gradient-matching-loss", "original-model-loss",
                 "original-model-calibration-error", "frechet-distance", "kernel-distance",
                 "distance-within-class"):  # fmt: skip
        assert bad[name, "convnet1-w4"] > good[name, "convnet1-w4"], name
        assert bad[name, "mlp"] > good[name, "mlp"], name
    name = "original-model-accuracy"
    assert bad[name, "convnet1-w4"] < good[name, "convnet1-w4"] == good[name, "mlp"] == 1
    assert bad["effective-rank", "mlp"] > good["effective-rank", "mlp"]
    assert bad["nearest-real-distance", "none"] > 0.1


def test_matching_losses_are_zero_of_the_real_images_themselves(
    bench: Benchmark, store: Path
) -> None:
    """Where the set holds just the real images that it is compared with."""
    from stillroom.distilled import Distilled
    from stillroom.runtime import Runtime

    rows = real_rows(bench, REAL)
    assert len(rows) <= REAL * len(bench.classes)
    labels = bench.train.labels[rows]
    made = Distilled(
        images=bench.preprocess.apply(bench.train.take(rows)),
        labels=labels,
        label_kind="hard",
        of_class=labels,
        classes=bench.classes,
        preprocess=bench.preprocess,
    )
    rt = Runtime(device=torch.device("cpu"))
    arch = resolve("convnet1-w4")
    matching = of_matching(arch, made, bench, rows, rt, arch.name)
    found = {m.name: m.value for m in matching}
    assert found["feature-matching-loss"] == pytest.approx(0, abs=1e-6)
    assert found["gradient-matching-loss"] < 0.5  # 1e-6 is added to the norms
    other = Preprocess("other", (0.9, 0.1, 0.4), (0.1, 0.5, 2.0))  # the same pixels, kept otherwise
    made = replace(made, preprocess=other, images=other.apply(bench.train.take(rows)))
    again = {m.name: m.value for m in of_matching(arch, made, bench, rows, rt, arch.name)}
    assert again["feature-matching-loss"] == pytest.approx(0, abs=1e-6)
    assert again["gradient-matching-loss"] < 0.5


def test_what_real_images_look_like_to_a_model_is_kept(
    bench: Benchmark, store: Path, tmp_path: Path
) -> None:
    first = measured(bench, store, tmp_path / "random", "random")
    kept = sorted(store.glob("features-*"))
    assert len(kept) == 2  # one an architecture
    again = measured(bench, store, tmp_path / "random", "random")
    assert again == first
    assert sorted(store.glob("features-*")) == kept
    (stage,) = originals(bench, ["mlp"], 1, Schooling(epochs=20, batch=8), Store(store))
    seen = RealFeatures(stage, REAL)
    theirs = seen.load(store / seen.key())
    weights = stage.load(store / stage.key()).weights
    rows = real_rows(bench, REAL)
    x = bench.preprocess.apply(bench.train.take(rows)).flatten(1)
    layers = {}  # by what they take
    for name, w in weights.items():
        if name.endswith("weight"):
            layers.setdefault(w.shape[1], []).append(
                (w, weights[name.removesuffix("weight") + "bias"])
            )
    (one,), (two,) = layers[x.shape[1]], [pair for pair in layers[128] if len(pair[1]) == 128]
    for w, b in (one, two):
        x = (x @ w.T + b).relu()
    torch.testing.assert_close(theirs, x)


def test_extreme_values_are_named(bench: Benchmark, store: Path, tmp_path: Path) -> None:
    measured(bench, store, tmp_path / "set", "random")
    data = load(tmp_path / "set")
    replace(data, images=data.images * 1e30, storage="float32").save(tmp_path / "extreme")
    stages = originals(bench, ["convnet1-w4"], 1, Schooling(epochs=20, batch=8), Store(store))
    with pytest.raises(StillroomError, match="extreme values"):
        assess(tmp_path / "extreme", bench, stages, Store(store), MACHINE, Session())


def test_another_pool_is_another_measurement(bench: Benchmark, store: Path, tmp_path: Path) -> None:
    measured(bench, store, tmp_path / "set", "random")
    ledger = tmp_path / "set" / "records.jsonl"
    before = read_records(ledger)
    stages = originals(bench, ["mlp"], 1, Schooling(epochs=20, batch=8), Store(store))
    assess(tmp_path / "set", bench, stages, Store(store), MACHINE, Session(), ledger)
    after = read_records(ledger)
    assert len(after) > len(before)
    assert after[: len(before)] == before


def test_what_was_asked_is_in_the_records_and_on_the_page(
    bench: Benchmark, store: Path, tmp_path: Path
) -> None:
    """Two runs with other questions say why they differ; the same question is asked once."""
    folder = tmp_path / "set"
    measured(bench, store, folder, "random")
    ledger = folder / "records.jsonl"
    fewer = originals(bench, ["mlp"], 1, Schooling(epochs=2, lr=0.1), Store(store))
    again = originals(bench, ["mlp"], 2, Schooling(epochs=20, batch=8), Store(store))
    for stages in (fewer, again):
        assess(folder, bench, stages, Store(store), MACHINE, Session(), ledger)
    told = {}
    for r in read_records(ledger):
        told.setdefault((r.metric, r.arch), []).append(r.note)
    usual = "default+epochs=20, batch 8"
    assert told["original-model-accuracy", "mlp"] == [
        f"2 models trained as {usual}",
        "1 model trained as default+epochs=2, lr 0.1",
    ]
    assert told["frechet-distance", "mlp"][0] == f"model 0 trained as {usual}"
    assert told["gradient-matching-loss", "convnet1-w4"] == ["3 fresh networks"]
    assert told["nearest-real-distance", "none"] == [""]
    grid = others_grid(gather([folder])[0])
    assert [c.name for c in grid.columns][-1] == "asked of"
    shown = [tuple(cell.text for cell in row.cells) for row in grid.rows]
    mine = [row for row in shown if row[0] == "original-model-accuracy" and row[2] == "mlp"]
    assert [row[-1] for row in mine] == told["original-model-accuracy", "mlp"]
    asked = [(row[0], row[2], row[-1]) for row in shown]
    assert len(asked) == len(set(asked))


def test_where_the_first_network_that_has_a_map_sees_classes(
    bench: Benchmark, store: Path, tmp_path: Path
) -> None:
    folder, held = tmp_path / "random", Store(store)
    measured(bench, store, folder, "random")
    maps = folder / "exhibits/maps.safetensors"
    found = load_file(maps)
    (stage,) = originals(bench, ["convnet1-w4"], 1, Schooling(epochs=20, batch=8), held)
    rt = Runtime(device=torch.device("cpu"), threads=1)
    nets = opened(stage.load(store / stage.key()), bench, rt)
    data = load(folder)
    wanted = activation_maps(nets, deepest(nets), data.images, data.of_class)
    assert found["rows"].tolist() == list(range(len(data)))
    assert int((found["maps"].long() - (wanted * 255).round().long()).abs().max()) <= 1
    (shown,) = gather([folder])
    assert shown.maps is not None
    assert (shown.maps.arch, shown.maps.layer) == ("convnet1-w4", deepest(nets))
    before = maps.read_bytes()
    flat = originals(bench, ["mlp"], 1, Schooling(epochs=20, batch=8), held)
    both = [*flat, stage]
    session = Said()
    for stages in (flat, both):
        maps.unlink(missing_ok=True)
        assess(folder, bench, stages, held, MACHINE, session, folder / "records.jsonl")
    assert maps.read_bytes() == before
    assert session.lines == ["no activation maps: no layer of mlp is a map"]
    maps.unlink()
    assess(folder, bench, both, held, MACHINE, session, tmp_path / "elsewhere.jsonl")
    assert not maps.exists()  # a ledger that is not the set's own leaves the set alone


class Said(Session):
    """Keeps what is said."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def test_of_what_was_asked_twice_the_newest_is_shown(tmp_path: Path) -> None:
    """An older ledger keeps apart what was measured along with other networks."""
    from types import SimpleNamespace

    of = {"metric": "original-model-accuracy", "unit": "fraction", "protocol": "assess@1"}
    old, new = (record(v, protocol_hash=h, **of) for v, h in ((0.2, "a"), (1.0, "b")))
    other = record(0.5, protocol_hash="c", note="3 models trained as default", **of)
    grid = others_grid(SimpleNamespace(records=(old, new, other)))
    assert [row.cells[3].text for row in grid.rows] == ["1 fraction", "0.5 fraction"]


@pytest.mark.parametrize(
    ("schooling", "words"),
    [
        (Schooling(), "default"),
        (find_schooling("clom"), "clom"),
        (find_schooling("clom+epochs=30"), "clom+epochs=30"),
        (Schooling(epochs=5), "default+epochs=5"),
        (find_schooling("clom").model_copy(update={"lr": 0.5}), "clom, lr 0.5"),
    ],
    ids=str,
)
def test_a_schooling_in_words(schooling: Schooling, words: str) -> None:
    assert schooling_in_words(schooling) == words


@pytest.mark.parametrize("arch", ["convnet1-w4", "convnet1-w4-bn"])
def test_what_needs_more_memory_than_there_is_is_refused(
    bench: Benchmark, store: Path, tmp_path: Path, arch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before a model is trained; by what `--plan` tells."""
    recipe, _ = from_preset("random", "toy", 2, {"arch": "convnet1-w4"})
    folder = tmp_path / "random"
    made = distil(plan(recipe, bench, MACHINE, Session(), store=Store(store), out=folder), MACHINE)
    stages = originals(bench, [arch], 1, Schooling(epochs=77), Store(store))
    need = held_at_once(made, bench, stages, Runtime(torch.device("cpu")))
    monkeypatch.setattr("stillroom.runtime.available_memory", lambda _: need - 1)
    monkeypatch.setattr("stillroom.artefacts.opened.refuse_too_large", lambda *_: None)
    with pytest.raises(StillroomError, match=r"^measuring on these networks needs about"):
        assess(folder, bench, stages, Store(store), MACHINE, Session())
    assert not Store(store).complete(stages[0].key())


def test_a_record_is_of_all_code_that_decides_its_number() -> None:
    """What the measures import is digested, but for what says, stores or chooses."""
    root = Path(stillroom.__file__).parent
    folders = ("evaluation", "methods", "nets", "artefacts")
    text = (root / "run" / "assess.py").read_text(encoding="utf-8")
    named = re.findall(r"^from stillroom\.([\w.]+) import", text, flags=re.M)
    wanted = {f"{n.replace('.', '/')}.py" for n in named if n.split(".")[0] in folders}
    wanted |= {"nets/verdicts.py", "nets/train.py", "nets/ensemble.py", "run/assess.py"}
    indifferent = {
        "artefacts/stage.py", "artefacts/store.py", "methods/regularisers.py", "nets/zoo.py",
        "evaluation.py",
    }  # fmt: skip
    assert wanted - indifferent <= {*SOURCES}
    assert "evaluation/assessments.py" in SOURCES
    assert "nets/zoo" in SOURCES
    assert all((root / name).exists() for name in SOURCES)


def test_models_that_a_set_was_made_with_are_left_aside(
    bench: Benchmark, store: Path, tmp_path: Path
) -> None:
    """What they say of it is what was minimised."""
    term = {"kind": "clom", "weights": [5.0], "num": 2, "schooling": {"epochs": 2, "batch": 8}}
    given = {"outer": {"steps": 2}, "arch": "convnet1-w4", "regularisers": [term]}
    recipe, _ = from_preset("dm", "toy", 2, given)
    out = tmp_path / "out"
    made = distil(plan(recipe, bench, MACHINE, Session(), store=Store(store), out=out), MACHINE)
    schooling = Schooling(epochs=2, batch=8)
    pool = held_out(made, bench, ["convnet1-w4", "mlp"], 2, schooling, Store(store))
    assert [(s.arch.name, s.index) for s in pool] == [
        ("convnet1-w4", 2), ("convnet1-w4", 3), ("mlp", 0), ("mlp", 1),
    ]  # fmt: skip
    other = held_out(made, bench, ["convnet1-w4"], 2, Schooling(epochs=3, batch=8), Store(store))
    assert [s.index for s in other] == [2, 3]  # otherwise trained, but from the same weights
    for foreign in ([1], {"a": ["b"]}, {"a": [["b"], 2]}, {"a": 3}, "none", None):
        told = replace(made, provenance={"models": foreign})
        assert [s.index for s in held_out(told, bench, ["mlp"], 1, schooling, Store(store))] == [0]


def test_networks_with_batchnorm_see_all_classes_at_once(
    bench: Benchmark, store: Path, tmp_path: Path
) -> None:
    """One image a class has no statistics of its own; as dm does, all classes are one batch."""
    recipe, _ = from_preset("random", "toy", 1, {})
    distil(plan(recipe, bench, MACHINE, Session(), store=Store(store), out=tmp_path / "s"), MACHINE)
    schooling = Schooling(epochs=2, batch=8)
    stages = originals(bench, ["convnet1-w4-bn"], 1, schooling, Store(store))
    found, _ = assess(tmp_path / "s", bench, stages, Store(store), MACHINE, Session())
    values = {m.name: m.value for m in found}
    assert "gradient-matching-loss" not in values
    rt = Runtime(device=torch.device("cpu"))
    made = load(tmp_path / "s")
    rows = real_rows(bench, REAL)
    real = bench.preprocess.apply(bench.train.take(rows))
    total = 0.0
    for i in range(RANDOM_NETS):
        nets = Nets(resolve("convnet1-w4-bn"), 2, 3, 8, rt).make(1, i, "assess")
        with torch.no_grad():
            mine, theirs = (nets.features(x, train=True)[0] for x in (made.images, real))
        for c in range(2):
            near = theirs[bench.train.labels[rows] == c].mean(0)
            total += float((mine[made.of_class == c].mean(0) - near).square().sum())
    assert values["feature-matching-loss"] == pytest.approx(total / RANDOM_NETS, rel=1e-5)
