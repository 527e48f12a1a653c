"""The ledger and the table made of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from stillroom.errors import StillroomError
from stillroom.records import add_records, read_records
from stillroom.tables import compare, lines, lines_of
from toy import record


def test_a_set_named_random_is_not_mixed_with_random_draws() -> None:
    own = [record(v, i, row="random") for i, v in enumerate((0.6, 0.61))]
    draws = [record(v, i, row="random", draw=i, step=None) for i, v in enumerate((0.5, 0.52, 0.54))]
    table = lines([*own, *draws])
    assert [(x.counts, x.summary.n) for x in table] == [("seeds", 2), ("draws", 3)]
    assert table[0].gap == pytest.approx(0.085)
    assert table[1].gap is None


def test_a_set_stands_beside_the_best_coreset() -> None:
    own = [record(v, i) for i, v in enumerate((0.6, 0.61, 0.62))]
    means = [record(v, i, row="class-mean", step=None) for i, v in enumerate((0.3, 0.31, 0.32))]
    kmeans = [record(v, i, row="k-means", step=None) for i, v in enumerate((0.5, 0.51, 0.52))]
    found = {line.row: line.rival for line in lines([*own, *means, *kmeans])}
    assert found["k-means"] is None
    assert found["class-mean"] is None
    rival = found["dm@30"]
    assert rival is not None
    assert (rival.row, rival.separate) == ("k-means", True)
    assert rival.gap == pytest.approx(0.1)
    # A k-means set under judgement is not averaged with the k-means baseline beside it.
    same = lines([record(0.5, i, row="k-means", step=0) for i in range(3)] + kmeans)
    assert [(x.step, x.summary.n, x.rival is None) for x in same] == [
        (None, 3, True),
        (0, 3, False),
    ]


@pytest.mark.parametrize(
    "field", ["data_digest", "selection", "split", "protocol_hash", "numerics", "arch", "benchmark"]
)
def test_numbers_of_other_conditions_are_never_averaged(field: str) -> None:
    assert len(lines([record(0.5), record(0.6, 1, **{field: "other"})])) == 2
    assert len(lines([record(0.5), record(0.6, 1)])) == 1
    assert len(lines([record(0.5), record(0.6, 1, source="reported")])) == 2


def test_a_ledger_comes_back_as_written(tmp_path: Path) -> None:
    records = [record(0.5), record(0.6, 1, draw=3, step=None, note="n")]
    path = tmp_path / "records.jsonl"
    path.write_text("".join(json.dumps(r.to_dict()) + "\n" for r in records))
    assert read_records(path) == records


def test_a_line_leaves_out_what_says_nothing(tmp_path: Path) -> None:
    """And only that: what is 0 or null and could be something else stays."""
    silent = record(0.0, 0, step=0, draw=0, set_seed=None, note="", label_bytes=0, augment="none")
    loud = record(0.0, 1, step=None, set_seed=0, note="n", label_bytes=7, augment="", split="mine")
    silent = replace(silent, unit="fraction", split="given")
    path = tmp_path / "records.jsonl"
    add_records(path, [silent, loud])
    assert read_records(path) == [silent, loud]
    first, second = map(json.loads, path.read_text().splitlines())
    assert {"step", "draw", "value", "augment"} <= first.keys()
    unsaid = {"note", "label_bytes", "set_seed", "teacher_bytes", "unit", "split"}
    assert not first.keys() & unsaid
    assert {"note", "label_bytes", "set_seed", "split"} <= second.keys()
    assert "augment" not in second
    assert second["step"] is None  # of what was made, the step tells one set from another


@pytest.mark.parametrize(
    "field",
    [
        {"bytes": "many"},
        {"seconds": float("inf")},
        {"seconds": -1},
        {"step": "x"},
        {"draw": True},
        {"source": "dreamt"},
        {"value": 89.2},
        {"value": float("inf")},
        {"unit": None},
        {"versions": []},
        {"label_bytes": -1},
        {"teacher_bytes": 1.5},
        {"seed": 1.5},
        {"note": "n" * 5000},
        {"value": 10**400},
    ],
)
def test_a_mistyped_record_is_named_with_its_line(tmp_path: Path, field: dict[str, Any]) -> None:
    path = tmp_path / "records.jsonl"
    good = json.dumps(record(0.9).to_dict())
    path.write_text(good + "\n" + json.dumps({**record(0.9).to_dict(), **field}) + "\n")
    with pytest.raises(StillroomError, match=r"records\.jsonl:2: "):
        read_records(path)


def test_sets_of_other_settings_are_no_distillations_of_one_thing() -> None:
    def of(key: str, value: float, family: str) -> list:
        return [record(value, i, set_key=key, family=family) for i in range(3)]

    same = lines([*of("a", 0.5, "f"), *of("b", 0.6, "f")])
    assert [(x.counts, x.summary.n) for x in same] == [
        ("seeds", 3),
        ("distillations", 2),
        ("seeds", 3),
    ]
    for families in (("f", "g"), ("", "")):
        other = lines([*of("a", 0.5, families[0]), *of("b", 0.6, families[1])])
        assert {x.counts for x in other} == {"seeds"}


def test_augmentations_do_not_share_baselines() -> None:
    plain = [record(0.4, i, row="random", draw=i, step=None, augment="none") for i in range(3)]
    dsa = [record(0.3, i, row="random", draw=i, step=None, augment="dsa") for i in range(3)]
    own = [record(0.5, i, augment="dsa") for i in range(3)]
    found = {(x.row, x.conditions.augment): x.gap for x in lines([*plain, *dsa, *own])}
    assert found["dm@30", "dsa"] == pytest.approx(0.2)


def test_a_ledger_keeps_one_code_of_a_row(tmp_path: Path) -> None:
    path = tmp_path / "all.jsonl"
    add_records(path, [record(0.5, i, code="old") for i in range(5)])
    add_records(path, [record(0.5, 0, code="old", row="other", set_key="k2")])
    add_records(path, [record(0.6, i, code="new") for i in range(3)])
    found = read_records(path)
    assert sorted((r.row, r.code, r.seed) for r in found) == [
        ("dm@30", "new", 0),
        ("dm@30", "new", 1),
        ("dm@30", "new", 2),
        ("other", "old", 0),
    ]


def test_a_ledger_joined_by_hand_counts_nothing_twice(tmp_path: Path) -> None:
    some = [record(v, i) for i, v in enumerate((0.5, 0.6, 0.7))]
    others = [record(0.9, i, code="older") for i in range(2)]
    path = tmp_path / "joined.jsonl"
    path.write_text("".join(json.dumps(r.to_dict()) + "\n" for r in [*others, *some, *some]))
    found = read_records(path)
    assert found == some
    path.write_text("".join(json.dumps(r.to_dict()) + "\n" for r in [*some, *others]))
    assert read_records(path) == others, "of two codes the last one's numbers"
    papers = [record(0.5, source="reported", note=n) for n in ("A, Table 1", "B, Table 2")]
    path.write_text("".join(json.dumps(r.to_dict()) + "\n" for r in papers))
    assert read_records(path) == papers


def test_a_draw_is_counted_once_however_many_students_it_has() -> None:
    values = {(0, 0): 0.3, (0, 1): 0.5, (1, 0): 0.6, (1, 1): 0.8}
    draws = [record(v, s, row="random", draw=d, step=None) for (d, s), v in values.items()]
    (line,) = lines(draws)
    assert (line.counts, line.summary.n) == ("draws", 2)
    assert line.values == pytest.approx((0.4, 0.7))


def test_sets_judged_by_two_codes_are_no_distillations_of_one_thing() -> None:
    one = [record(0.5, i, set_key="a", family="f") for i in range(3)]
    two = [record(0.6, i, set_key="b", family="f", code="other") for i in range(3)]
    assert {x.counts for x in lines([*one, *two])} == {"seeds"}


def test_comparison_by_seed_is_a_paired_t_test() -> None:
    a, b = (0.50, 0.53, 0.55, 0.51), (0.48, 0.49, 0.52, 0.50)
    mine = [record(v, i, set_key="a") for i, v in enumerate(a)]
    other = [record(v, i, set_key="b", row="x@1", step=1) for i, v in enumerate(b)]
    found = compare(mine, other)
    assert found is not None
    assert found.difference.mean == pytest.approx(0.025)
    assert found.p == pytest.approx(stats.ttest_rel(a, b).pvalue)
    assert compare(mine[:2], other).p is None, "two pairs say nothing"
    assert compare(mine, [record(v - 0.1, i, set_key="b") for i, v in enumerate(a)]).p is None
    assert compare(mine[:1], other[1:2]) is None
    with pytest.raises(StillroomError, match="one side holds several"):
        compare(mine + other, other)
    with pytest.raises(StillroomError, match="not judged alike: arch, numerics differ"):
        compare(mine, [record(0.5, 0, set_key="b", arch="mlp", numerics="bf16")])


def test_a_student_counts_once() -> None:
    with pytest.raises(StillroomError, match="records of one student twice"):
        lines([record(0.4, 0), record(0.5, 0)])


def test_one_seed_distilled_twice_is_one_distillation() -> None:
    """On other threads the bytes differ; that is no other draw."""
    same = [record(v, 0, set_key=k, family="f", set_seed=0) for k, v in (("a", 0.4), ("b", 0.5))]
    assert [x.counts for x in lines(same)] == ["seeds", "seeds"]
    other = record(0.6, 0, set_key="c", family="f", set_seed=1)
    (whole,) = [x for x in lines([*same, other]) if x.counts == "distillations"]
    assert whole.values == (pytest.approx(0.45), 0.6)
    legacy = [record(v, 0, set_key=k, family="f") for k, v in (("a", 0.4), ("b", 0.5))]
    assert "distillations" in [x.counts for x in lines(legacy)]


def test_what_nobody_could_read_again_is_not_written(tmp_path: Path) -> None:
    ledger = tmp_path / "records.jsonl"
    for wrong in (
        {"versions": {"torch": float("nan")}},
        {"row": "\ud800"},
        {"benchmark": "\udfff"},
        {"numerics": "float32 | 99"},
        {"seed": -1},
    ):
        with pytest.raises(StillroomError):
            add_records(ledger, [record(0.5, **{"seed": 0, **wrong})])
        assert not ledger.exists()


def test_the_ledger_says_how_many_records_went(tmp_path: Path) -> None:
    ledger = tmp_path / "records.jsonl"
    assert add_records(ledger, [record(0.5, i) for i in range(5)]) == 0
    assert add_records(ledger, [record(0.6, 0)]) == 0  # measured again
    assert add_records(ledger, [record(0.6, 0, code="newer")]) == 4


def test_new_rows_stand_beside_the_baselines_that_a_ledger_holds() -> None:
    """What was judged now, with the gap to random draws of an earlier time; nothing else of it."""
    random = [record(v, i, row="random", draw=i, step=None) for i, v in enumerate((0.3, 0.32))]
    other = [record(v, i, row="dm@10", step=10, set_key="k10") for i, v in enumerate((0.4, 0.5))]
    elsewhere = [record(0.9, row="dm@30", protocol="vico@1", protocol_hash="v")]
    now = [record(v, i) for i, v in enumerate((0.6, 0.62))]
    (line,) = lines_of(now, [*random, *other, *elsewhere, *now])
    assert (line.row, line.summary.n) == ("dm@30", 2)
    assert line.gap == pytest.approx(0.3)
    assert [x.row for x in lines_of([*now, *random], [*random, *other, *now])] == [
        "dm@30",
        "random",
    ]
    assert lines_of(now, now)[0].gap is None


def test_distillations_are_said_to_lie_apart_from_nothing() -> None:
    """Their students share seeds, whose luck their interval leaves out and random's does not."""
    random = [record(v, i, row="random", draw=i, step=None) for i, v in enumerate((0.3, 0.31))]
    means = [record(v, i, row="k-means", step=None) for i, v in enumerate((0.3, 0.31))]
    sets = [
        record(v, i, set_key=key, family="f", set_seed=j)
        for j, key in enumerate("ab")
        for i, v in enumerate((0.6, 0.601, 0.602))
    ]
    sets = [r if r.set_key == "a" else replace(r, value=r.value + 0.0005) for r in sets]
    (whole,) = [x for x in lines([*random, *means, *sets]) if x.counts == "distillations"]
    assert whole.gap is not None
    assert whole.separate is None
    assert whole.rival is not None
    assert not whole.rival.separate
    assert all(
        x.separate for x in lines([*random, *sets]) if x.row == "dm@30" and x.counts == "seeds"
    )
