"""The ledger's cells: what counts as the same number, and what the table makes of a ledger."""

from __future__ import annotations

import json

import numpy
import pytest
from scipy import stats

from stillroom.config import DSA
from stillroom.errors import StillroomError
from stillroom.evaluation.published import find_protocol
from stillroom.evaluation.statistics import Summary, summarise
from stillroom.methods import PRESETS
from stillroom.records import NETWORK_ACCURACY
from stillroom.reported import reported
from stillroom.run.cells import CELLS, Cell, agrees
from stillroom.run.ledger import measured_json, reproduction
from stillroom.run.reproduce import find_cell
from stillroom.run.studies import clom_study, networks_table, taught_study
from stillroom.standing import verdict
from toy import record

TINY = ("edc", "tiny-imagenet", 1, "resnet18-bn")
CIFAR = {
    "benchmark": "cifar10",
    "ipc": 10,
    "arch": "convnet3",
    "protocol": "vico@1",
    "protocol_hash": find_protocol("vico@1").digest(),
    "numerics": "float32",
    "augment": DSA,
}


def ledger(values: dict[str, list[float]]) -> list:
    """Records of rows by name; "random" rows are draws, rows with an @ are sets."""
    return [
        record(
            value,
            i,
            row=row,
            draw=i if row == "random" else None,
            step=int(row.partition("@")[2]) if "@" in row else None,
            **CIFAR,
        )
        for row, some in values.items()
        for i, value in enumerate(some)
    ]


def test_cells_are_sound() -> None:
    for name, cell in CELLS.items():
        assert name == cell.name
        assert cell.preset in (*PRESETS, "full")
        assert find_protocol(cell.protocol).id == cell.protocol


def test_a_cell_takes_its_own_rows_only() -> None:
    rows = {"random": [0.30, 0.32], "dm@300": [0.45, 0.46], "dm@100": [0.4], "k-means": [0.29]}
    records = ledger(rows)
    found = {n: c.measured(records) for n, c in CELLS.items()}
    held = {n: [x.summary.n for x in lines] for n, lines in found.items() if lines}
    assert held == {
        "random/cifar10-ipc10": [2],
        "k-means/cifar10-ipc10": [1],
        "dm/cifar10-ipc10@300": [2],
    }
    assert [x.row for x in CELLS["dm/cifar10-ipc10@300"].measured(records, "dm@100")] == ["dm@100"]
    other = [record(0.5, row="k-means", step=None, **{**CIFAR, "protocol_hash": "of another"})]
    assert not CELLS["k-means/cifar10-ipc10"].measured(other)
    assert CELLS["dm/cifar10-ipc10"].rows == ("dm@20000",)
    assert CELLS["dm/cifar10-ipc10@300"].rows == ("dm@100", "dm@300")
    assert CELLS["dm/cifar10-ipc10"].measured(ledger({"dm@20000": [0.48]}))
    two = [*ledger({"dm@300": [0.45]}), record(0.4, 0, row="dm@300", step=300,
                                               **{**CIFAR, "set_key": "other"})]  # fmt: skip
    with pytest.raises(StillroomError, match="2 rows for dm/cifar10-ipc10@300"):
        CELLS["dm/cifar10-ipc10@300"].measured(two)


def test_a_baseline_is_held_to_what_its_students_see() -> None:
    """Under quick@1 the set says what that is, so there is a cell for each."""
    protocol = {"protocol": "quick@1", "protocol_hash": find_protocol("quick@1").digest()}
    of = {**CIFAR, **protocol, "row": "k-means", "step": None}
    records = [record(0.3, 0, **of), record(0.2, 0, **{**of, "augment": "none"})]
    for name, value in (("quick", 0.3), ("quick-none", 0.2)):
        (line,) = CELLS[f"k-means/cifar10-ipc10:{name}"].measured(records)
        assert line.values == (value,)


def test_verdicts() -> None:
    random = CELLS["random/cifar10-ipc10"]  # reported 31.0

    def of(mean: float, std: float = 0.001, n: int = 3) -> Summary:
        return Summary(n, mean, std, None)

    assert random.verdict(of(0.324)) == "reproduced"
    assert random.verdict(of(0.326)) == "not reproduced"
    assert random.verdict(of(0.324, std=0.02)) == "reproduced"  # of draws
    assert random.verdict(of(0.324, n=1)) == "one draw"
    dm = CELLS["dm/cifar10-ipc10"]
    assert dm.verdict(of(0.48, std=0.015)) == "reproduced"
    assert dm.verdict(of(0.48, std=0.016)) == "students too far apart"
    assert dm.verdict(of(0.48, n=1)) == dm.verdict(of(0.1, n=1)) == "one student"
    assert CELLS["random/cifar10-ipc1"].verdict(of(0.178)) == "reproduced"  # 15.4, 1 image a class
    assert CELLS["dm/cifar10-ipc10@300"].verdict(of(0.489)) == "fewer steps"
    few = Cell("dm", "cifar10", 10, protocol="vico@1+epochs=9")
    assert few.verdict(of(0.489)) == "fewer epochs"
    (tiny,) = (r for r in reported() if (r.row, r.benchmark, r.ipc, r.arch) == TINY)
    said = {  # 39.2 after 1,000 epochs
        told: verdict(tiny, f"edc-tiny{told}", of(0.392))
        for told in ("@2+epochs=1000", "@2", "@2+epochs=2000", "@2+epochs=9+lr=0.5", "@1")
    }
    assert said == {
        "@2+epochs=1000": "reproduced", "@2": "fewer epochs", "@2+epochs=2000": "other protocol",
        "@2+epochs=9+lr=0.5": "other protocol", "@1": "other protocol",
    }  # fmt: skip
    (first,) = {r.protocol for r in reported() if r.protocol == "edc-cifar10@2"}  # with milestones
    paper = next(r for r in reported() if r.protocol == first)
    for told, word in (
        ("+epochs=100", "fewer epochs"), ("+epochs=2000", "other protocol"),
        ("+epochs=100+lr=0.5", "other protocol"), ("+ema=0.9", "other protocol"),
    ):  # fmt: skip
        assert verdict(paper, first + told, of(0.5)) == word
    assert CELLS["herding/cifar10-ipc10"].verdict(of(0.316)) == "other protocol"
    assert CELLS["k-means/cifar10-ipc10"].verdict(of(0.3)) == "nothing reported"
    assert Cell("dm", "cifar10", 10, protocol="quick@1").verdict(of(0.489)) == "other protocol"


def test_agreement() -> None:
    old = summarise([0.30, 0.31, 0.32])  # half an interval is 2.5 points
    assert agrees(summarise([0.315, 0.32, 0.325]), old, 10)
    assert not agrees(summarise([0.32, 0.33, 0.34]), old, 10), "the intervals touch, but 2 points"
    assert agrees(summarise([0.32, 0.33, 0.34]), old, 1)
    sure = summarise([0.3100, 0.3101, 0.3102])
    assert not agrees(summarise([0.3201, 0.3202, 0.3203]), sure, 10), "1 point, but separate"
    assert agrees(summarise([0.30]), summarise([0.31]), 10)
    assert not agrees(summarise([0.30]), summarise([0.32]), 10)


def test_table_and_summary_of_a_ledger() -> None:
    records = ledger({"random": [0.30, 0.31, 0.32], "dm@300": [0.45], "dm@100": [0.39, 0.41]})
    text = reproduction(records)
    row = next(line for line in text.splitlines() if "`random/cifar10-ipc10`" in line)
    told = "| `random/cifar10-ipc10` | vico@1 | 31.0 ± 0.5 | 31.0 (28.5 to 33.5) | 3 draws | +0.0 "
    assert row.startswith(told + "| - | reproduced |")
    assert "| `dm/cifar10-ipc10` | vico@1 | 48.9 ± 0.6 | - | - | - | - | not measured | - |" in text
    assert "| 45.0 | 1 seed | -3.9 | +14.0 | fewer steps | float32" in text
    assert "| ... at step 100 | vico@1 |  | 40.0 (27.3 to 52.7) | 2 seeds |  | +9.0 |" in text
    summary = json.loads(measured_json(records))
    assert summary["dm/cifar10-ipc10@300"] == {"float32": {"d": [0.45]}}


def test_a_set_made_again_stands_below_the_first() -> None:
    """The same recipe and seed on another machine: other bytes, and a verdict on the number."""
    cell = CELLS["dm/cifar10-ipc10@300"]
    made = [
        record(v, i, row="dm@300", step=300, family="f", set_seed=0, **{**CIFAR, "set_key": key})
        for key, values in (("a", (0.45, 0.46, 0.47)), ("b", (0.455, 0.465)), ("c", (0.5, 0.501)))
        for i, v in enumerate(values)
    ]
    (first,) = cell.measured(made)
    assert first.summary.mean == pytest.approx(0.46)
    again = cell.made_again(made, first)
    assert [line.summary.n for line in again] == [2, 2]
    assert cell.made_again([r for r in made if r.set_key == "a"], first) == []
    text = reproduction(made)
    told = "| ... made again | vico@1 |  | 46.0 (39.6 to 52.4) | 2 seeds |  | - | agrees with the "
    assert told + "row above (+0.0) | float32" in text
    assert "| does not agree with the row above (+4.0) | float32" in text
    assert json.loads(measured_json(made))[cell.name]["float32"] == {"d": [0.45, 0.46, 0.47]}


def test_an_unknown_cell_is_named() -> None:
    with pytest.raises(StillroomError, match="did you mean 'herding/cifar10-ipc10'"):
        find_cell("hrding/cifar10-ipc10")


def test_several_distillations_and_other_data_have_rows_of_their_own() -> None:
    cell = CELLS["dm/cifar10-ipc10@300"]
    some = [
        record(
            v, 0, row="dm@300", step=300, **{**CIFAR, "set_key": k, "family": "f", "set_seed": i}
        )
        for i, (k, v) in enumerate((("a", 0.45), ("b", 0.47)))
    ]
    (whole,) = cell.measured(some)
    assert (whole.counts, whole.summary.n) == ("distillations", 2)
    real = record(0.5, 0, row="dm@300", step=300, **{**CIFAR, "data_digest": "genuine0"})
    assert len(cell.measured([*some, real])) == 2
    held = json.loads(measured_json([*some, real]))[cell.name]["float32"]
    assert held == {"d": [0.45, 0.47], "genuine0": [0.5]}


def test_sets_that_the_same_networks_label_are_ranked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against random images with the same labels; hard labels beneath, of the same numerics."""
    protocol, teachers = "edc-cifar10@1+epochs=300", ("mlp", "lenet")
    made = [Cell("random", "cifar10", 10, protocol, teachers=teachers),
            Cell("edc", "cifar10", 10, protocol, steps=(9,), teachers=teachers),
            Cell("random", "cifar10", 10)]  # fmt: skip
    for module in ("cells", "studies", "ledger"):
        monkeypatch.setattr(f"stillroom.run.{module}.CELLS", {cell.name: cell for cell in made})
    views = find_protocol(protocol)
    of = {**CIFAR, "protocol": views.id, "protocol_hash": views.digest(), "labels": "teachers:abc"}
    augment = views.augment if views.augment != "set" else DSA
    of["augment"] = augment
    known = [
        *(record(v, 0, **{**of, "row": "random", "draw": i, "step": None, "set_key": str(i)})
          for i, v in enumerate((0.6, 0.61, 0.62))),
        *(record(v, i, **{**of, "row": "edc@9", "step": 9, "set_key": "edc"})
          for i, v in enumerate((0.7, 0.71, 0.72))),
        *(record(v, 0, **{**CIFAR, "row": "random", "draw": i, "step": None, "numerics": n})
          for n in ("float32", "bf16") for i, v in enumerate((0.3, 0.32))),
    ]  # fmt: skip
    rows = [line.split(" | ") for line in taught_study(known).splitlines() if line[:2] == "| "][1:]
    assert [row[0].strip("| ") for row in rows] == ["edc@9", "random", "random"]
    assert [row[1] for row in rows] == ["mlp lenet", "mlp lenet", "hard"]
    assert [row[5] for row in rows] == ["+10.0 *", "-", "-"]
    assert taught_study([]) == ""
    assert taught_study(known) in reproduction(known)


def test_networks_of_the_real_data_have_a_table() -> None:
    """By data, network and schooling; no other row of the ledger is touched by them."""
    of = {**CIFAR, "row": "network", "ipc": 0, "metric": NETWORK_ACCURACY, "step": None}
    some = [
        *(record(v, i, **{**of, "protocol": "default"}) for i, v in enumerate((0.7, 0.8, 0.9))),
        record(0.5, 0, **{**of, "protocol": "clom", "arch": "mlp"}),
    ]
    text = networks_table(some)
    assert "| cifar10 | convnet3 | default | 80.0 (55.2 to 100.0) | 3 | " in text
    assert "| cifar10 | mlp | clom | 50.0 | 1 | " in text
    assert networks_table([]) == ""
    assert text in reproduction(some)
    assert measured_json(some) == measured_json([])


def test_with_and_without_clom(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row a pair: difference seed by seed, and what held-out models make of both sets."""
    pool = {"steps": (9,), "assess": ("lenet",)}
    made = [Cell(p, "cifar10", 10, clom=w, **pool) for p in ("dm", "dsa") for w in (None, 7.0)]
    cells = {cell.name: cell for cell in made}
    assert list(cells)[1] == "dm+clom/cifar10-ipc10@9"
    for module in ("cells", "studies", "ledger"):
        monkeypatch.setattr(f"stillroom.run.{module}.CELLS", cells)
    records = []
    values = {"dm": (0.4, 0.42, 0.44), "dm+clom": (0.45, 0.46, 0.5), "dsa": (0.3,) * 3,
              "dsa+clom": (0.31, 0.32, 0.33)}  # fmt: skip
    for k, (row, some) in enumerate(values.items()):
        of = {**CIFAR, "row": f"{row}@9", "step": 9, "set_key": row}
        records += [record(v, i, **of) for i, v in enumerate(some)]
        told = {"metric": "original-model-accuracy", "arch": "lenet", "protocol_hash": "assess"}
        own = {**told, "arch": "convnet3"}  # somebody asked the set's own network: not held out
        records.append(record(0.99, 0, **{**of, **own}))
        records.append(record(0.1, 0, **{**of, **told, "protocol_hash": "older"}))
        records.append(record(0.5 + k / 10, 0, **{**of, **told}))
        records.append(record(600.0 + 60 * k, 0, **{**of, "metric": "distillation"}))
    text = clom_study(records)
    gaps = [0.05, 0.04, 0.06]
    t = float(numpy.mean(gaps) / (numpy.std(gaps, ddof=1) / 3**0.5))
    p = 2 * float(stats.t.sf(t, 2))
    row = "| dm@9, dm+clom@9 | vico@1 | 10, 11 | 42.0 (37.0 to 47.0) | 47.0 (40.4 to 53.6) | +5.0 "
    assert row in text
    assert f"| {p:.2g} | 50.0, 60.0 |" in text
    r = stats.pearsonr([0.5, 0.6, 0.7, 0.8], [0.42, 0.47, 0.3, 0.32]).statistic
    assert "Over 4 distilled sets whose students saw DSA, of one size" in text
    assert f"r = {r:.2f} " in text
    early = {"row": "dm@4", "step": 4, "set_key": "early"}
    of = {**CIFAR, **early}
    more = [record(v, i, **of) for i, v in enumerate((0.2, 0.21, 0.22))]
    more.append(record(655.0, 0, **{**of, "metric": "distillation"}))
    longer = {"dm/cifar10-ipc10@9": Cell("dm", "cifar10", 10, **{**pool, "steps": (4, 9)})}
    monkeypatch.setattr("stillroom.run.studies.CELLS", {**longer, **cells, **longer})
    assert "| dm@4, dm+clom@9 | vico@1 | 11, 11 | 21.0 " in clom_study([*records, *more])
    monkeypatch.setattr("stillroom.run.studies.CELLS", cells)
    assert clom_study([]) == ""
    whole = reproduction(records)
    assert text in whole
    assert "| float32, made in 13 min, 2 s a student, data d |" in whole
    given = cells["dm+clom/cifar10-ipc10@9"].given()["regularisers"][0]
    assert (given["weights"], given["num"], given["schooling"]) == ([7.0], 3, "default+epochs=5")


def test_papers_report_no_baseline_that_teachers_label() -> None:
    assert CELLS["random/cifar10-ipc10"].reported() is not None
    assert CELLS["random/cifar10-ipc10:edc-cifar10"].reported() is None
    assert CELLS["gvbsm/cifar10-ipc10@1000:edc-cifar10"].reported() is not None
