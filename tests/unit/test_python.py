"""The same runs from Python: what the command line can, arguments can."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import stillroom
from stillroom.data.benchmarks import from_arrays
from stillroom.errors import StillroomError
from stillroom.records import read_records
from toy import toy_images

NET = {"net": "convnet1-w4", "machine": {"threads": 1}}


def dm(out: Path, **more):
    data = toy_images(40)
    return stillroom.distill("dm", data, ipc=2, out=out, **{**NET, "steps": 3, **more})


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STILLROOM_STORE", str(tmp_path / "store"))


def test_kept_steps_and_another_start(tmp_path: Path) -> None:
    dm(tmp_path / "a", keep=[1, 2])
    assert sorted(p.name for p in (tmp_path / "a" / "steps").iterdir()) == ["1", "2"]
    first = stillroom.load(tmp_path / "a")
    other = dm(tmp_path / "b", init_from=tmp_path / "a", seed=1)
    plain = dm(tmp_path / "c", seed=1)
    near = (other.images - first.images).abs().mean()
    assert near < (plain.images - first.images).abs().mean()


def test_force_overwrites_another_run_and_nothing_else_does(tmp_path: Path) -> None:
    dm(tmp_path / "a")
    with pytest.raises(StillroomError, match="holds another run"):
        dm(tmp_path / "a", seed=1)
    made = dm(tmp_path / "a", seed=1, force=True)
    assert torch.equal(made.images, stillroom.load(tmp_path / "a").images)


def test_progress_is_asked_for(tmp_path: Path, capsys) -> None:
    dm(tmp_path / "a")
    judged = {"data": toy_images(40), "test": toy_images(20, seed=1), "seeds": 2, **NET}
    quiet = stillroom.evaluate(tmp_path / "a", **judged)
    assert capsys.readouterr() == ("", "")
    assert len(quiet) == 2
    stillroom.evaluate(tmp_path / "a", progress=True, **judged)
    out, err = capsys.readouterr()
    assert out == ""
    assert "dm@3 on convnet1-w4" in err


def test_assess_measures_a_set_and_keeps_the_records(tmp_path: Path) -> None:
    """Of models that the set was not made with, and as often as it is asked the same."""
    clom = {"kind": "clom", "weights": [5.0], "num": 1, "schooling": {"epochs": 1}}
    dm(tmp_path / "a", options={"regularisers": [clom]}, test=toy_images(20, seed=1))
    asked = {"num": 2, "originals": "default+epochs=1", "machine": NET["machine"]}
    found = stillroom.assess(tmp_path / "a", **asked)
    told = {r.metric: r for r in found if r.arch == NET["net"]}
    assert told["original-model-accuracy"].note == "2 models trained as default+epochs=1"
    assert told["frechet-distance"].note == "model 1 trained as default+epochs=1"  # 0 was used
    assert 0 <= told["original-model-accuracy"].value <= 1
    assert read_records(tmp_path / "a" / "records.jsonl") == found
    data = {"data": toy_images(40), "test": toy_images(20, seed=1)}
    again = stillroom.assess(tmp_path / "a", net=["convnet1-w4"], **data, **asked)
    assert [r.value for r in again] == [r.value for r in found]
    assert len(read_records(tmp_path / "a" / "records.jsonl")) == len(found)
    for wrong, why in (
        ({"num": 0}, "num=0 must be a whole number in 1..1000"),
        ({"originals": "clam"}, "schooling='clam' is unknown"),
        ({"net": "nosuchnet"}, "nosuchnet"),
    ):
        with pytest.raises(StillroomError, match=why):
            stillroom.assess(tmp_path / "a", **{**asked, **wrong})
    with pytest.raises(StillroomError, match="measures a set on disk"):
        stillroom.assess(stillroom.load(tmp_path / "a"))


def test_compare_and_page(tmp_path: Path) -> None:
    judged = {"data": toy_images(40), "test": toy_images(20, seed=1), "seeds": 3, **NET}
    found = []
    for name, seed in (("a", 0), ("b", 1)):
        dm(tmp_path / name, seed=seed)
        found.append(stillroom.evaluate(tmp_path / name, **judged))
    paired = stillroom.compare(*found)
    mean = [sum(r.value for r in some) / 3 for some in found]
    assert paired is not None
    assert paired.difference.n == 3
    assert paired.difference.mean == pytest.approx(mean[0] - mean[1])
    page = stillroom.write_report([tmp_path / "a", str(tmp_path / "b")], tmp_path / "page.html")
    assert "2 distilled sets" in page.read_text("utf-8").partition("</title>")[0]
    table = stillroom.write_report([tmp_path / "a"], str(tmp_path / "table.csv"))
    assert table.read_text("utf-8").startswith("row,accuracy %,95 % low,95 % high,")


def test_a_limit_of_time_is_a_keyboard_interrupt(tmp_path: Path) -> None:
    machine = {"threads": 1, "minutes": 0.003}
    with pytest.raises(KeyboardInterrupt, match="the same call goes on"):
        dm(tmp_path / "a", steps=100_000, machine=machine)
    assert not (tmp_path / "a").exists()


def test_whitening_is_of_the_data(tmp_path: Path) -> None:
    """No option of a run; and a published row of whitened images says so of others."""
    with pytest.raises(StillroomError, match=r'data_options=\{"zca": True\}'):
        stillroom.distill("random", toy_images(40), ipc=1, options={"zca": True})
    gen = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (40, 3, 32, 32), generator=gen).to(torch.uint8)
    bench = from_arrays(pixels, torch.arange(40) % 10, name="cifar10", store=tmp_path)
    assert bench.known == "cifar10"
    few = {"experts": 1, "inner": 1, "schooling": {"epochs": 3}}
    made = {"ipc": 1, "steps": 1, "net": "convnet1-w4", "options": {"method": few}}
    machine = {"store": tmp_path, "threads": 1}
    with pytest.warns(UserWarning, match="mtt/cifar10-ipc1 is of whitened images"):
        stillroom.distill("mtt", bench, machine=machine, **made)
