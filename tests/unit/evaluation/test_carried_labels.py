"""Sets judged by the labels that they carry: beside baselines with the same, apart from others."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import stillroom
from stillroom.artefacts.carried import carried, load
from stillroom.artefacts.label_shards import SOFT
from stillroom.artefacts.store import Store
from stillroom.data.benchmarks import from_arrays
from stillroom.distilled import RELABELS, set_bytes
from stillroom.errors import StillroomError
from stillroom.evaluation.published import find_protocol
from stillroom.files import canonical, sha256
from stillroom.nets.zoo import resolve
from stillroom.recipe import from_preset
from stillroom.records import add_records, read_records
from stillroom.run import judge
from stillroom.run import relabel as relabels
from stillroom.run.distil import distil, plan
from stillroom.run.judging import Asked, cost_of_teachers
from stillroom.run.options import Machine
from stillroom.run.rows import Maker, Row, real_jpeg_rows
from stillroom.run.teachers import Faculty, check_alike
from stillroom.runtime import Runtime
from stillroom.session import Session
from stillroom.tables import compare, lines
from stillroom.types import Record
from toy import toy_images

MACHINE = Machine(threads=1)
TWO = Faculty(archs=("convnet1-w4", "mlp"), schooling="default+epochs=2+batch=8")
ONE = Faculty(archs=("mlp",), schooling="default+epochs=2+batch=8")
STORED = find_protocol("edc@1+epochs=3")
LIVE = find_protocol("edc-cifar10@1+epochs=3")
QUICK = find_protocol("quick@1+epochs=3")


class World:
    def __init__(self, root: Path) -> None:
        self.store = Store(root / "store")
        self.store.root.mkdir()
        images = (*toy_images(), *toy_images(seed=1))
        self.bench = from_arrays(
            *images, classes=("left", "right"), name="toy", store=self.store.root
        )
        self.plain = root / "plain"
        recipe, _ = from_preset("random", "toy", 5, {})
        planned = plan(recipe, self.bench, MACHINE, Session(), store=self.store, out=self.plain)
        distil(planned, MACHINE)
        self.made = self.carrying(root / "made", epochs=4)

    def carrying(self, folder: Path, teachers: Faculty = TWO, **asked: Any) -> Path:
        what = relabels.Relabelling(**{"protocol": STORED, "teachers": teachers, **asked})
        session = Session()
        planned = relabels.plan(self.plain, self.bench, what, MACHINE, session, self.store, folder)
        relabels.relabel(planned, MACHINE)
        return folder

    def judged(
        self, folder: Path, protocol: Any = STORED, teachers: Faculty | None = None, **more: Any
    ) -> list[Record]:
        given = {"teachers": teachers or Faculty(), "archs": ("convnet1-w4",), "seeds": 2}
        asked = Asked(**{"protocol": protocol, **given, **more})
        found = judge.evaluate(folder, self.bench, asked, self.store, MACHINE, Session())
        return [r for r in found if r.metric == "accuracy"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


def test_carried_labels_teach_what_the_teachers_would_say_here(
    world: World, tmp_path: Path
) -> None:
    """The same numbers, whether the labels are the set's or made here; but nobody is needed."""
    here = world.judged(world.plain, teachers=TWO)
    empty = Store(tmp_path / "store")
    shutil.copytree(world.store.root, empty.root)
    for path in [*empty.root.glob("original-*"), *empty.root.glob("relabels-*")]:
        shutil.rmtree(path)
    asked = Asked(protocol=STORED, archs=("convnet1-w4",), seeds=2)
    how, rows = judge.prepared(world.made, world.bench, asked, empty, MACHINE, Session())
    assert cost_of_teachers(how, rows) is None
    found = judge.evaluate(world.made, world.bench, asked, empty, MACHINE, Session())
    brought = [r for r in found if r.metric == "accuracy"]
    assert not list(empty.root.glob("original-*"))
    assert [r.value for r in brought] == [r.value for r in here]
    assert {r.labels for r in brought} == {r.labels for r in here}
    assert brought[0].labels.startswith("relabels:")
    assert brought[0].taught == brought[0].labels
    labels = carried(world.made)
    assert labels is not None
    assert {(r.bytes, r.label_bytes, r.teacher_bytes) for r in brought} == {
        (set_bytes(world.made), labels.nbytes, 0)
    }


def test_baselines_with_the_same_labels_stand_in_one_group(world: World, tmp_path: Path) -> None:
    """Labels as they are unusual too; other teachers, or other labels, make another group."""
    folder = world.carrying(tmp_path / "odd", codec="int8", epochs=50, budget=7400, seed=7)
    odd = world.judged(folder, baselines=True)
    (kind,) = {r.labels for r in odd}
    assert kind.endswith(",int8,2 epochs,seed 7")
    rows = {line.row: line for line in lines(odd) if line.drawn or line.step is not None}
    (mine,) = [line for line in lines(odd) if line.step is not None]
    assert mine.gap is not None
    assert rows["random"].conditions == mine.conditions
    assert all(line.label_bytes > 0 for line in lines(odd))

    other = world.judged(world.made, teachers=ONE)
    whole = world.judged(world.made)
    assert len({r.labels for r in (*odd, *other, *whole)}) == 3
    ledger = tmp_path / "all.jsonl"
    for some in (odd, other, whole):
        assert add_records(ledger, some) == 0
    told = read_records(ledger)
    assert len(told) == len(odd) + len(other) + len(whole), "none takes the place of another"
    own = [line for line in lines(told) if line.step is not None]
    assert [line.gap is not None for line in own].count(True) == 1
    with pytest.raises(StillroomError, match="not judged alike: taught differ"):
        compare(whole, other)


def test_labels_that_do_not_fit_are_refused_with_the_remedy(world: World, tmp_path: Path) -> None:
    top = world.carrying(
        tmp_path / "top", codec="topk:1", protocol=find_protocol("sre2l@1+epochs=3")
    )
    squared = STORED.model_copy(update={"view": find_protocol("sre2l@1").view})
    cases = (
        (world.made, find_protocol("edc@1"), "labels are for 4 epochs and not for 300"),
        (world.made, STORED.model_copy(update={"batch": 5}), "batches of 10 and not of 5"),
        (world.made, find_protocol("sre2l@1+epochs=3"), r"views by scale \(0.5, 1.0\) and not by"),
        (top, squared, "loss=mse_gt compares logits and codec=topk:1"),
    )
    for folder, protocol, words in cases:
        with pytest.raises(StillroomError, match=words) as caught:
            world.judged(folder, protocol)
        assert "\n" not in str(caught.value)
        assert f"stillroom prepare relabels {folder} --protocol {protocol.id}" in str(caught.value)
        assert "--teachers" in str(caught.value)
    assert world.judged(world.made, cases[0][1].model_copy(update={"epochs": 2}))
    assert world.judged(top, find_protocol("sre2l@1+epochs=3"))[0].labels.endswith(",topk:1")
    anew = world.judged(world.made, cases[1][1], ONE)
    assert len(anew) == 2, "named teachers label anew, whatever the set carries"


def test_one_soft_label_an_image_is_a_regime_of_its_own(world: World) -> None:
    """Of the set what it carries, of its baselines the same made here; bytes of the file."""
    soft = Faculty(soft=True)
    found = world.judged(world.made, QUICK, soft, baselines=True)
    (kind,) = {r.labels for r in found}
    stored = world.judged(world.made)[0].labels
    assert kind == stored.replace("relabels:", "soft:")
    size = (world.made / RELABELS / SOFT).stat().st_size
    assert {r.label_bytes for r in found if r.set_key == found[0].set_key} == {size}
    labels = carried(world.made)
    assert labels is not None
    data = replace(load(world.plain), labels=labels.soft(), label_kind="logits")
    own = world.plain.parent / "own"
    data.save(own)
    same = world.judged(own, QUICK)
    assert [r.value for r in same] == [r.value for r in found if r.step is not None]
    assert {(r.labels, r.label_bytes, r.taught) for r in same} == {("logits", 10 * 2 * 4, "")}
    named = world.judged(world.plain, QUICK, TWO.model_copy(update={"soft": True}))
    assert [r.value for r in named] == [r.value for r in same]
    for protocol, words in ((find_protocol("vico@1"), "trains on hard labels"),
                            (STORED, "has labels of drawn views")):  # fmt: skip
        with pytest.raises(StillroomError, match=f"{words}; --soft-labels belong"):
            world.judged(world.made, protocol, soft)


def test_live_teachers_are_those_of_the_labels_and_their_weights_count(world: World) -> None:
    found = world.judged(world.made, LIVE)
    (kind,) = {r.labels for r in found}
    labels = carried(world.made)
    assert labels is not None
    weights = [
        world.store.root / key / "0000/weights.safetensors" for key in labels.header.teachers
    ]
    # By what they are, not by their keys: another version of the code may train the same.
    held = [hashlib.sha256(path.read_bytes()).hexdigest() for path in weights]
    assert kind == f"teachers:{sha256(canonical(held))[:8]}"
    total = sum(path.stat().st_size for path in weights)
    assert {(r.label_bytes, r.teacher_bytes) for r in found} == {(0, total)}
    assert lines(found)[0].shipped == lines(found)[0].bytes + total


@pytest.mark.parametrize(
    "told",
    [
        [],
        [{"arch": "evil_teachers:Net", "index": 0, "schooling": {}}] * 2,
        [{"arch": "mlp", "index": 0, "schooling": {"epochs": 10**9}}] * 2,
        [{"arch": "mlp", "index": 0, "schooling": {"import": "os"}}] * 2,
        [{"arch": "mlp", "index": 0, "schooling": {"epochs": 2, "batch": 8}}] * 2,
    ],
    ids=["nothing", "an import path", "too long", "no field", "others"],
)
def test_what_labels_tell_of_their_teachers_counts_where_it_is_true(
    world: World, told: list[dict[str, Any]], tmp_path: Path
) -> None:
    """Never imported, never trained on trust: the set is judged, baselines need a name."""
    (tmp_path / "evil_teachers.py").write_text("raise SystemExit('imported')\n")
    folder = shutil.copytree(world.made, tmp_path / "set")
    path = folder / RELABELS / "relabels.json"
    manifest = json.loads(path.read_text())
    manifest.pop("digest")
    manifest["told"] = told
    path.write_text(json.dumps({**manifest, "digest": sha256(canonical(manifest))}))
    sys.path.insert(0, str(tmp_path))
    try:
        assert len(world.judged(folder)) == 2
        for protocol, more, words in (
            (STORED, {"baselines": True}, "baselines: the labels that"),
            (LIVE, {}, "those who labelled the set cannot be made"),
        ):
            with pytest.raises(StillroomError, match=words) as caught:
                world.judged(folder, protocol, **more)
            assert "--teachers" in str(caught.value)
            assert "\n" not in str(caught.value)
    finally:
        sys.path.remove(str(tmp_path))
    assert "evil_teachers" not in sys.modules


def test_python_names_teachers_too(world: World) -> None:
    here = world.judged(world.made, teachers=ONE)
    found = stillroom.evaluate(
        world.made, world.bench, protocol=STORED.id, net="convnet1-w4", seeds=2,
        teachers={"archs": ["mlp"], "schooling": ONE.schooling},
        machine={"threads": 1, "store": world.store.root},
    )  # fmt: skip
    assert [(r.value, r.labels) for r in found if r.metric == "accuracy"] == [
        (r.value, r.labels) for r in here
    ]


def test_sets_of_other_labels_are_not_compared(world: World, tmp_path: Path) -> None:
    """Said before anybody is trained; the same labels for both are welcome."""
    rival = world.carrying(tmp_path / "rival", teachers=ONE, epochs=4)
    shape = (STORED, world.bench, world.store)
    with pytest.raises(
        StillroomError, match=r"rival would get labels relabels:\w+ and .*made"
    ) as c:
        check_alike(Faculty(), world.made, [rival], *shape)
    assert "--teachers" in str(c.value)
    check_alike(TWO, world.made, [rival], *shape)
    check_alike(Faculty(), world.made, [world.made], *shape)
    check_alike(Faculty(), world.made, [rival], QUICK, *shape[1:])


def test_jpegs_fit_with_their_labels_into_the_bytes_of_a_set(world: World) -> None:
    arch, rt = resolve("convnet1-w4"), Runtime(torch.device("cpu"), threads=1)
    maker = Maker(world.bench, world.store, MACHINE, rt, arch, "none")

    def most(labels: Callable[[int], int]) -> Row:
        rows = real_jpeg_rows(maker, 2, 25_000, labels)
        assert max(row.bytes + labels(row.images) for row in rows) <= 25_000
        return max(rows, key=lambda row: row.ipc)

    alone, labelled = most(lambda images: 0), most(lambda images: 1000 * images)
    assert alone.ipc == 12, "all that there are"
    assert 2 < labelled.ipc < 9
    assert (labelled.ipc + 1) * 2 * 1000 + labelled.bytes > 25_000 - 2000


def test_labels_that_change_while_students_are_trained_are_noticed(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(world.made, tmp_path / "set")
    other = world.carrying(tmp_path / "other", teachers=ONE, epochs=4)
    real = judge.judge

    def replaced(*args: Any) -> Any:
        shutil.rmtree(folder / RELABELS)
        shutil.copytree(other / RELABELS, folder / RELABELS)
        return real(*args)

    monkeypatch.setattr(judge, "judge", replaced)
    protocol = STORED.model_copy(update={"epochs": 2})  # judged nowhere before
    with pytest.raises(StillroomError, match="the labels that it carries changed while"):
        world.judged(folder, protocol)
    assert torch.equal(load(other).images, load(folder).images)
