"""Rows, baselines and the ledger: the same thing measured twice is one record."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stillroom.artefacts.store import Store
from stillroom.data.benchmarks import from_arrays
from stillroom.distilled import load, set_bytes, set_digest
from stillroom.errors import StillroomError
from stillroom.evaluation.protocol import Protocol
from stillroom.evaluation.published import find_protocol
from stillroom.evaluation.score import Score
from stillroom.nets.zoo import resolve
from stillroom.recipe import from_preset
from stillroom.records import read_records
from stillroom.run.distil import distil, plan
from stillroom.run.judge import evaluate
from stillroom.run.judging import Asked
from stillroom.run.options import Machine
from stillroom.session import Session
from stillroom.tables import lines
from toy import toy_images

FAST = {"epochs": 2}


def changed(question: Asked, **fields) -> Asked:
    return Asked(**{**dict(question), **fields})


def asked(*archs: str, **changes) -> Asked:
    quick = find_protocol("quick@1").model_copy(update=FAST)
    return Asked(protocol=quick, archs=archs, seeds=2, baselines=True, **changes)


def made(bench, store: Path, out: Path) -> None:
    recipe, _ = from_preset("dm", "toy", 2, {"outer": {"steps": 1}, "arch": "convnet1-w8"})
    machine = Machine(threads=1)
    distil(plan(recipe, bench, machine, Session(), store=Store(store), out=out), machine)


def counts(folder: Path) -> dict[tuple[str, str], int]:
    return {
        (line.row, line.arch): line.summary.n
        for line in lines(read_records(folder / "records.jsonl"))
    }


def test_evaluating_again_replaces_and_never_doubles(bench, store, tmp_path):
    out = tmp_path / "out"
    made(bench, store, out)
    machine = Machine(threads=1)
    for archs in (["convnet1-w8", "convnet1-w4"], ["convnet1-w4"]):
        ledger = out / "records.jsonl"
        evaluate(out, bench, asked(*archs), Store(store), machine, Session(), ledger)
    found = counts(out)
    for arch in ("convnet1-w8", "convnet1-w4"):
        assert found["random", arch] == 5
        assert found["class-mean", arch] == 2
        assert found["k-means", arch] == 2
        assert found["dm@1", arch] == 2


def test_baselines_get_the_sets_augmentation_size_and_seeds(bench, store, tmp_path):
    out = tmp_path / "out"
    made(bench, store, out)
    found = evaluate(out, bench, asked("convnet1-w8"), Store(store), Machine(threads=1), Session())
    records = [r for r in found if r.metric == "accuracy"]
    assert {r.ipc for r in records} == {2}
    assert sorted(r.draw for r in records if r.row == "random") == [0, 1, 2, 3, 4]
    assert [r.seed for r in records if r.row == "dm@1"] == [0, 1]
    own = next(r for r in records if r.row == "dm@1")
    assert own.set_key == set_digest(out)
    assert all(r.versions["compile"] == "off" for r in records)


def test_more_seeds_keep_the_students_that_were_trained(bench, store, tmp_path, monkeypatch):
    out = tmp_path / "out"
    made(bench, store, out)
    two, four = asked("convnet1-w8"), changed(asked("convnet1-w8"), seeds=4)
    trained = []
    make = Score.make
    monkeypatch.setattr(
        Score, "make", lambda self, *rest: trained.append(self.seeds) or make(self, *rest)
    )
    judge = (Store(store), Machine(threads=1), Session())
    first = evaluate(out, bench, changed(two, baselines=False), *judge)
    more = evaluate(out, bench, changed(four, baselines=False), *judge)
    assert trained == [(0,), (1,), (2,), (3,)]
    assert first == [r for r in more if r.seed < 2]


def test_records_of_full_data_go_where_one_says(bench, store, tmp_path):
    how = (bench, changed(asked("convnet1-w8"), baselines=False), Store(store))
    records = evaluate(None, *how, Machine(threads=1), Session())
    assert list(tmp_path.glob("*.jsonl")) == []
    ledger = tmp_path / "deep" / "all.jsonl"
    for _ in range(2):
        assert evaluate(None, *how, Machine(threads=1), Session(), ledger) == records
        assert read_records(ledger) == records
    assert {(r.row, r.step, r.bytes) for r in records} == {("full", None, bench.train.nbytes)}


def test_a_set_is_what_students_see(bench, store, tmp_path):
    """Another author of the same images is the same set; other images are another one."""
    out = tmp_path / "out"
    made(bench, store, out)
    data = load(out)
    replace(data, provenance={"key": "somebody else"}).save(tmp_path / "same")
    replace(data, images=data.images + 1).save(tmp_path / "other")
    replace(data, augment="flip").save(tmp_path / "flipped")
    assert set_digest(tmp_path / "same") == set_digest(out)
    assert set_digest(tmp_path / "other") != set_digest(out)
    assert set_digest(tmp_path / "flipped") != set_digest(out)


def test_dropout_of_a_users_network_is_keyed(bench, store, tmp_path):
    """Two evaluations of a network with dropout agree, whatever was drawn before."""
    from torch import nn

    def dropping(classes: int) -> nn.Module:
        head = nn.Linear(3 * 64, classes)
        return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), head)

    out = tmp_path / "out"
    made(bench, store, out)
    values = []
    for i in range(2):
        torch.manual_seed(i)
        other = Store(tmp_path / f"store{i}")
        question = Asked(protocol=find_protocol("quick@1"), archs=[dropping], seeds=1)
        from stillroom.data.benchmarks import from_arrays
        from toy import toy_images

        again = from_arrays(
            *toy_images(),
            *toy_images(seed=1),
            classes=("left", "right"),
            name="toy",
            store=other.root,
        )
        values.append(evaluate(out, again, question, other, Machine(threads=1), Session()))
    assert [r.value for r in values[0]] == [r.value for r in values[1]]


def test_every_selection_rule_is_kept_and_one_is_the_headline(bench, store, tmp_path):
    """Without validation images there is no val; with them it is chosen there, not on test."""
    from stillroom.data.benchmarks import from_arrays
    from toy import toy_images

    carved = from_arrays(
        *toy_images(), *toy_images(seed=1), name="toy", val=0.5, store=store, classes=("l", "r")
    )
    for real, rules in ((bench, {"last", "best"}), (carved, {"last", "best", "val"})):
        out = tmp_path / f"{len(rules)}"
        made(real, store, out)
        one = changed(asked("convnet1-w8"), baselines=False, seeds=1)
        once = evaluate(out, real, one, Store(store), Machine(threads=1), Session())
        assert [r.selection for r in once] == ["last"], "of one test there is nothing to select"
        twice = one.protocol.model_copy(update={"epochs": 4, "checks": 2})
        one = changed(one, protocol=twice)
        found = evaluate(out, real, one, Store(store), Machine(threads=1), Session())
        assert {r.selection for r in found} == rules
        assert [r.selection for r in found if r.metric == "accuracy"] == ["last"]
        by_rule = {r.selection: r for r in found}
        assert by_rule["best"].metric == "accuracy.best"
        assert by_rule["best"].value >= by_rule["last"].value
        assert len(lines(found)) == 1


def test_a_protocol_that_needs_validation_images_says_so(bench, store, tmp_path):
    out = tmp_path / "out"
    made(bench, store, out)
    how = (Store(store), Machine(threads=1), Session())
    search = changed(asked("convnet1-w8"), protocol=find_protocol("search@1"))
    with pytest.raises(StillroomError, match=r"search@1 selects on validation images"):
        evaluate(out, bench, search, *how)


def test_soft_labels_are_refused_where_hard_ones_are_asked_for(bench, store, tmp_path):
    out = tmp_path / "out"
    made(bench, store, out)
    data = load(out)
    soft = torch.eye(2)[data.labels]
    replace(data, labels=soft, label_kind="probs").save(tmp_path / "soft")
    vico = Asked(protocol=find_protocol("vico@1+epochs=2"), archs=["convnet1-w8"], seeds=1)
    how = (Store(store), Machine(threads=1), Session())
    with pytest.raises(StillroomError, match=r"vico@1\+epochs=2 trains on hard labels.*datm@1"):
        evaluate(tmp_path / "soft", bench, vico, *how)
    plain = find_protocol("datm@1+epochs=2").model_dump()
    taught = Protocol(**{**plain, "why": "", "loss": "kl", "labels": "logits"})
    with pytest.raises(StillroomError, match="logits of teachers and the set has probs labels"):
        evaluate(tmp_path / "soft", bench, changed(vico, protocol=taught), *how)
    datm = changed(vico, protocol=find_protocol("datm@1+epochs=2"))
    one, *_ = evaluate(tmp_path / "soft", bench, datm, *how)
    assert (one.protocol, one.selection) == ("datm@1+epochs=2", "last")


def test_test_images_drawn_from_data_that_grew_are_refused(store, tmp_path):
    """Some of them would be images that the set was made of: the draw depends on their number."""
    from stillroom.data.benchmarks import from_arrays

    how = {"classes": ("left", "right"), "name": "toy", "store": store}
    first = from_arrays(*toy_images(20), **how)
    out = tmp_path / "out"
    made(first, store, out)
    one = changed(asked("convnet1-w8"), baselines=False, seeds=1)
    assert evaluate(out, first, one, Store(store), Machine(threads=1), Session())
    grown = from_arrays(*toy_images(22), **how)
    with pytest.raises(StillroomError, match="test images were drawn here, so some of them may"):
        evaluate(out, grown, one, Store(store), Machine(threads=1), Session())
    own_tests = from_arrays(*toy_images(22), *toy_images(seed=5), **how)
    assert evaluate(out, own_tests, one, Store(store), Machine(threads=1), Session())


def test_canvases_are_refused_until_something_takes_them_apart(bench, store, tmp_path):
    out = tmp_path / "out"
    made(bench, store, out)
    replace(load(out), tiles=2).save(tmp_path / "tiled")
    with pytest.raises(StillroomError, match=r"canvases of 2 x 2 images \(tiles\)"):
        evaluate(
            tmp_path / "tiled",
            bench,
            asked("convnet1-w8"),
            Store(store),
            Machine(threads=1),
            Session(),
        )


def test_records_say_which_labels_students_had(bench, store, tmp_path):
    out = tmp_path / "out"
    made(bench, store, out)
    data = load(out)
    replace(data, labels=torch.eye(2)[data.labels], label_kind="probs").save(tmp_path / "soft")
    for folder, kind in ((out, "hard"), (tmp_path / "soft", "probs")):
        found = evaluate(
            folder, bench, asked("convnet1-w8"), Store(store), Machine(threads=1), Session()
        )
        assert {r.labels for r in found if r.row == "dm@1" or r.row == "soft"} <= {kind}
        assert {r.labels for r in found if r.row == "random"} == {"hard"}


def test_the_searched_rate_is_chosen_on_validation_images(store, tmp_path, monkeypatch):
    """The rate whose student is best there wins, though another one is better on test."""
    from stillroom.data.benchmarks import from_arrays
    from stillroom.evaluation import score
    from toy import toy_images

    carved = from_arrays(*toy_images(), *toy_images(seed=1), name="toy", val=0.5, store=store)
    out = tmp_path / "out"
    made(carved, store, out)
    val_of = {0.005: 0.2, 0.01: 0.9, 0.02: 0.1, 0.05: 0.3, 0.1: 0.4}

    def fake(self, lr, taught, bench, rt):
        point = {"epoch": 1, "test": 1 - val_of[lr], "val": val_of[lr]}
        predicted = torch.zeros(len(bench.test), dtype=torch.int64)
        whole = {"seed": 0, "rate": lr, "curve": [point], "predicted": predicted}
        return [{**whole, "last": point, "best": point, "val": point}]

    monkeypatch.setattr(score.Score, "_trained", fake)
    search = Asked(protocol=find_protocol("search@1"), archs=["convnet1-w8"], seeds=1)
    found = evaluate(out, carved, search, Store(store), Machine(threads=1), Session())
    assert next(r for r in found if r.metric == "accuracy").value == pytest.approx(0.1)


def large(bench, store, tmp_path: Path, copies: int = 16) -> None:
    """Copies of the images: a set so large that many JPEGs have as many bytes."""
    made(bench, store, tmp_path / "out")
    big = load(tmp_path / "out")
    many = [t.repeat_interleave(copies, 0) for t in (big.images, big.labels, big.of_class)]
    replace(big, images=many[0], labels=many[1], of_class=many[2]).save(tmp_path / "big")


def test_real_jpegs_fill_the_bytes_of_the_set_and_no_more(bench, store, tmp_path):
    large(bench, store, tmp_path)
    how = changed(asked("convnet1-w8"), baselines=False, seeds=1, real_jpegs=True)
    args = (bench, how, Store(store), Machine(threads=1), Session())
    found = [r for r in evaluate(tmp_path / "big", *args) if r.metric == "accuracy"]
    jpegs = [r for r in found if r.row == "random-jpeg"]
    assert {r.draw for r in jpegs} == {0, 1, 2}
    counts = sorted({r.ipc for r in jpegs})
    assert max(counts) <= min(len(bench.train.rows_of(c)) for c in (0, 1))
    by_count = [next(r.bytes for r in jpegs if r.ipc == n) for n in counts]
    assert by_count == sorted(by_count)
    table = {(x.row, x.conditions.ipc): x.counts for x in lines(found)}
    assert all(table["random-jpeg", n] == "draws" for n in counts)


def test_the_bytes_that_jpegs_fill_are_the_sets_own(bench, store, tmp_path, monkeypatch):
    """Also where baselines of other sizes stand between."""
    from stillroom.run import judge

    large(bench, store, tmp_path, copies=5)
    budgets = []
    monkeypatch.setattr(judge, "real_jpeg_rows", lambda *of: budgets.append(of[2]) or [])
    for baselines in (False, True):
        how = changed(asked("convnet1-w4"), seeds=1, real_jpegs=True, baselines=baselines)
        judge.prepared(tmp_path / "big", bench, how, Store(store), Machine(threads=1), Session())
    assert budgets == [set_bytes(tmp_path / "big")] * 2


def test_a_record_says_what_trained_its_student(bench, store, tmp_path):
    """Not what the command ran on that found it in the store."""
    out = tmp_path / "out"
    made(bench, store, out)
    how = changed(asked("convnet1-w4"), baselines=False, seeds=1)
    first, again = (
        evaluate(out, bench, how, Store(store), Machine(threads=n), Session()) for n in (1, 2)
    )
    assert first == again
    assert first[0].versions["threads"] == "1"
    assert first[0].memory > 2**20


def test_full_data_are_taught_as_the_sets_of_their_benchmark(store):
    """Digits are not mirrored; so their full row stands beside sets of digits."""
    from stillroom.run.machine import benchmark
    from stillroom.run.options import DataOptions

    digits = benchmark("digits", DataOptions(), Store(store))
    how = Asked(protocol=find_protocol("quick@1+epochs=1"), archs=["convnet1-w4"], seeds=1)
    (record,) = evaluate(None, digits, how, Store(store), Machine(threads=1), Session())
    assert record.augment == "dsa:color_crop_cutout_scale_rotate"
    longer = changed(how, protocol=find_protocol("vico@1+epochs=1"))
    (other,) = evaluate(None, digits, longer, Store(store), Machine(threads=1), Session())
    assert other.augment == "dsa:color_crop_cutout_flip_scale_rotate"


def test_real_images_of_an_earlier_evaluation_are_removed(bench, store, tmp_path):
    out = tmp_path / "out"
    made(bench, store, out)
    how = changed(asked("convnet1-w4"), baselines=False, seeds=1)
    args = (Store(store), Machine(threads=1), Session(), out / "records.jsonl")
    evaluate(out, bench, how, *args)
    assert (out / "exhibits" / "neighbours.safetensors").is_file()
    evaluate(out, bench, changed(how, real_images=False), *args)
    assert not (out / "exhibits" / "neighbours.safetensors").exists()


def test_baselines_are_made_alike_whatever_students_compute_in(bench, store, tmp_path):
    """Their key says float32, so another number's bytes must not lie under it."""
    from stillroom.run.rows import Maker
    from stillroom.runtime import Runtime

    digests = set()
    for name, numerics in (("a", "float32"), ("b", "float64")):
        rt = Runtime(device=torch.device("cpu"), numerics=numerics)
        (tmp_path / name).mkdir()
        maker = Maker(bench, Store(store), Machine(store=store), rt, resolve("convnet1-w4"), "none")
        folder = maker.folder("class-mean", 2, 0)
        digests.add(set_digest(folder))
        for path in store.glob("distilled-*"):
            path.rename(tmp_path / name / path.name)
    assert len(digests) == 1


def test_the_sets_own_data_read_otherwise_are_refused(store, tmp_path):
    """Another split would test on images that the set was made of."""
    from stillroom.data.benchmarks import from_arrays
    from toy import toy_images

    pixels, labels = toy_images()
    first, other = (
        from_arrays(pixels, labels, name="toy", split_seed=seed, store=store) for seed in (0, 7)
    )
    assert first.content == other.content
    out = tmp_path / "out"
    made(first, store, out)
    how = (Store(store), Machine(threads=1), Session())
    with pytest.raises(StillroomError, match=r"read otherwise \(split_seed 0 against 7\)"):
        evaluate(out, other, asked("convnet1-w8"), *how)
    strangers = from_arrays(*toy_images(seed=5), *toy_images(seed=6), name="toy", store=store)
    assert evaluate(out, strangers, changed(asked("convnet1-w8"), baselines=False), *how)


def test_what_is_asked_for_twice_is_judged_once(bench, store, tmp_path):
    made(bench, store, tmp_path / "out")
    how = (bench, Store(store), Machine(threads=1), Session())
    once = changed(asked("convnet1-w8"), baselines=False)
    twice = changed(asked("convnet1-w8", "convnet1-w8"), baselines=False, steps="1,1")
    found = [evaluate(tmp_path / "out", how[0], one, *how[1:]) for one in (once, twice)]
    assert [(r.seed, r.value) for r in found[0]] == [(r.seed, r.value) for r in found[1]]


def test_a_baseline_is_whole_or_absent(bench, store, tmp_path, monkeypatch):
    """What the data cannot give is left out as a whole; any other failure ends the run."""
    from stillroom.errors import TooFewImagesError
    from stillroom.run.rows import Maker

    made(bench, store, tmp_path / "out")
    real, how = Maker.folder, (Store(store), Machine(threads=1), Session())

    def fails(error):
        def folder(self, rule, ipc, draw, storage="auto"):
            if (rule, draw) == ("random", 2):
                raise error
            return real(self, rule, ipc, draw, storage)

        return folder

    monkeypatch.setattr(Maker, "folder", fails(TooFewImagesError("too few")))
    found = evaluate(tmp_path / "out", bench, asked("convnet1-w8"), *how)
    assert {r.row for r in found} == {"dm@1", "class-mean", "k-means"}
    monkeypatch.setattr(Maker, "folder", fails(StillroomError("the disk is full")))
    with pytest.raises(StillroomError, match="the disk is full"):
        evaluate(tmp_path / "out", bench, asked("convnet1-w8"), *how)


def test_neighbours_are_those_of_the_sets_own_data(bench, store, tmp_path):
    out = tmp_path / "out"
    made(bench, store, out)
    how, ledger = changed(asked("convnet1-w4"), baselines=False, seeds=1), out / "records.jsonl"
    args = (how, Store(store), Machine(threads=1), Session(), ledger)
    evaluate(out, bench, *args)
    kept = (out / "exhibits" / "neighbours.safetensors").read_bytes()
    images, labels = toy_images(seed=7)
    args_of_other = {"store": store, "classes": bench.classes}
    other = from_arrays(images, labels, images, labels, **args_of_other)
    evaluate(out, other, *args)
    assert (out / "exhibits" / "neighbours.safetensors").read_bytes() == kept


def test_the_back_end_of_students_is_in_their_record(bench, store, tmp_path):
    made(bench, store, tmp_path / "out")
    how = (bench, Store(store), Machine(threads=1), Session())
    both = [
        evaluate(
            tmp_path / "out", how[0], changed(asked("convnet1-w4"), baselines=False, **k), *how[1:]
        )
        for k in ({}, {"students": "vmap"})
    ]
    assert [{r.numerics for r in some} for some in both] == [{"float32"}, {"float32/vmap"}]
    assert len(lines([*both[0], *both[1]])) == 2


@pytest.mark.parametrize(
    "fields",
    [{"numerics": "float16"}, {"students": "vmpa"}, {"seeds": 2.5}, {"seeds": 0}, {"archs": ()},
     {"steps": 1}],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_asked_is_refused(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        changed(asked("convnet1-w4"), **fields)


def test_peak_memory_is_that_of_the_student(bench, store, tmp_path):
    """Not of whatever the process had done before."""
    made(bench, store, tmp_path / "out")
    how = (bench, Store(store), Machine(threads=1), Session())
    big = torch.zeros(2**27)  # 512 MiB, gone before the student starts
    big += 1
    del big
    (only,) = evaluate(
        tmp_path / "out", how[0], changed(asked("mlp"), baselines=False, seeds=1), *how[1:]
    )
    status = Path("/proc/self/status").read_text()
    now = 1024 * int(next(x for x in status.splitlines() if x.startswith("VmRSS")).split()[1])
    assert only.memory < now + 2**28
