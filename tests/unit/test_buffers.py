"""Experts of others, out of replay buffers: followed as they are, or refused in one line."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stillroom.artefacts.buffers import GivenExpert, find_buffers
from stillroom.artefacts.executor import Serial
from stillroom.artefacts.experts import Expert
from stillroom.artefacts.opened import nets_for
from stillroom.artefacts.store import Store, obtain_all
from stillroom.data.benchmarks import Benchmark
from stillroom.data.named import NAMED
from stillroom.errors import StillroomError
from stillroom.nets.inner import views
from stillroom.nets.zoo.weights import read_checkpoint
from stillroom.recipe import from_preset
from stillroom.run.distil import Plan, distil, plan
from stillroom.run.options import Machine
from stillroom.runtime import Runtime
from stillroom.session import Session

ARCH = "convnet1-w4"
SCHOOLING = {"epochs": 3, "batch": 8, "lr": 0.05}
MACHINE = Machine(threads=1)
Written = list[list[list[Tensor]]]


def planned(
    bench: Benchmark, store: Path, experts: int = 3, out: Path | None = None, **method: Any
) -> Plan:
    window = {"last": 1, "epochs": 2}
    given = {"experts": experts, "window": window, "inner": 2, **method}
    fields = {"arch": ARCH, "method": given, "outer": {"steps": 3}}
    recipe, _ = from_preset("datm", "toy", 1, fields)
    return plan(recipe, bench, MACHINE, Session(), store=Store(store), out=out)


@pytest.fixture
def trained(bench: Benchmark, store: Path) -> tuple[Plan, Written]:
    """A run with its own experts; and these as the reference keeps them."""
    own = planned(bench, store, schooling=SCHOOLING)
    rt = Runtime(device=torch.device("cpu"), threads=1)
    stages = [s for s in own.stage.wants().values() if isinstance(s, Expert)]
    found = obtain_all(Store(store), stages, Serial(), rt)
    like = nets_for(found[0].arch, bench, rt).make(1, 0, "expert").member(0)[0]
    written = [
        [
            [t.clone() for t in views(torch.from_numpy(row.copy()), like).values()]
            for row in one.rows
        ]
        for one in found
    ]
    return own, written


def save(folder: Path, *files: Any) -> Path:
    folder.mkdir(exist_ok=True)
    for n, experts in enumerate(files):
        torch.save(experts, folder / f"replay_buffer_{n}.pt")
    return folder


def test_given_experts_are_followed_as_own_ones(
    bench: Benchmark, store: Path, tmp_path: Path, trained: tuple[Plan, Written]
) -> None:
    """The same experts out of two files, in the order of their numbers: the same set, to a bit."""
    own, written = trained
    folder = save(tmp_path / "buffers", written[:2], written[2:])
    torch.save([], folder / "replay_buffer_x.pt")  # none of theirs
    given = planned(bench, store, out=tmp_path / "set", buffers=str(folder))
    digest = find_buffers(folder).digest
    assert given.stage.method.buffers == digest  # no path is in a key or a set
    first, second = distil(own, MACHINE), distil(given, MACHINE)
    assert torch.equal(first.images, second.images)
    assert torch.equal(first.labels, second.labels)
    assert first.lr == second.lr
    assert own.stage.key() != given.stage.key()
    assert "schooling" not in second.provenance["recipe"]["method"]  # nobody knows it
    experts = [s for s in own.stage.wants().values() if isinstance(s, Expert)]
    ends = {f"expert {s.index}": s.load(Store(store).folder(s.key())).accuracy for s in experts}
    assert json.loads((tmp_path / "set" / "run.json").read_text())["given"] == ends
    shutil.rmtree(folder)
    again = planned(bench, store, buffers=digest)  # they lie in the store now
    assert again.stage.key() == given.stage.key()


def test_their_accuracy_is_told_and_looked_at(
    bench: Benchmark, store: Path, tmp_path: Path, trained: tuple[Plan, Written]
) -> None:
    _, written = trained
    for expert in written:  # outputs exchanged: classes in another order
        for snapshot in expert:
            snapshot[-2:] = [t.flip(0) for t in snapshot[-2:]]
    folder = save(tmp_path / "buffers", written)
    given = planned(bench, store, buffers=str(folder), init="real")
    with pytest.raises(StillroomError, match=r"given expert 0 is right on .* in another order"):
        distil(given, MACHINE)
    taken = Machine(threads=1, allow_guessing=True)
    assert len(distil(given, taken)) == 2


def test_only_what_is_read_is_kept(
    bench: Benchmark, store: Path, tmp_path: Path, trained: tuple[Plan, Written]
) -> None:
    """A stretch of their way and their ends; a stretch that was not kept asks for the files."""
    _, written = trained
    folder = save(
        tmp_path / "buffers", [[*e, *f[3:]] for e, f in zip(written, clones(written), strict=True)]
    )
    window = {"first": 1, "last": 2, "begin": 1, "grow": 0, "epochs": 1}
    given = planned(bench, store, buffers=str(folder), window=window)
    stages = [s for s in given.stage.wants().values() if isinstance(s, GivenExpert)]
    found = stages[1].load(Store(store).folder(stages[1].key()))
    assert found.epochs == (1, 2, 4)
    assert torch.equal(found.last(), torch.cat([t.flatten() for t in written[1][3]]))
    digest = given.stage.method.buffers
    with pytest.raises(StillroomError, match="name the folder of their replay buffers again"):
        planned(bench, store, buffers=digest, window={**window, "last": 3})
    array = Store(store).folder(stages[0].key()) / "0000" / "trajectory.npy"
    array.chmod(0o644)
    array.write_bytes(array.read_bytes()[:-8])
    with pytest.raises(StillroomError, match="not readable"):
        stages[0].load(Store(store).folder(stages[0].key()))


def clones(written: Written) -> Written:
    return [[[t.clone() for t in snapshot] for snapshot in expert] for expert in written]


def test_they_are_asked_for_again_when_the_store_has_lost_them(
    bench: Benchmark, store: Path
) -> None:
    with pytest.raises(StillroomError, match="name the folder of their replay buffers again"):
        planned(bench, store, buffers="0123456789abcdef")


class Boom:
    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, ("boom",)


def damaged(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def deflated(path: Path) -> None:
    with zipfile.ZipFile(path) as old:
        members = {m.filename: old.read(m) for m in old.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name, data in members.items():
            new.writestr(name, data)


def pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps(Boom()))


def numbered(path: Path) -> None:
    shutil.copy(path, path.with_name("replay_buffer_00.pt"))


def repeated(w: Written) -> Any:
    """One snapshot, referred to many times: two bytes each."""
    return [w[0][:1] * 50_000]


def squared(w: Written) -> Any:
    """One list of experts in which all are one, of one snapshot."""
    return [w[0][:1] * 2000] * 2000


FOREIGN = [
    (repeated, "repeats its tensors; save clones"),
    (squared, "more than 100000 snapshots"),
    (lambda w: [], "holds a list, no list of experts"),
    (lambda w: {"experts": w}, "holds a dict, no list of experts"),
    (lambda w: [w[0][0]], "a snapshot of expert 0 is no list of tensors"),
    (lambda w: [[], *w], "expert 0 is no list of snapshots"),
    (lambda w: [[[Boom()]]], r"holds more than (lists of )?tensors \("),
    (lambda w: [[[torch.zeros(()).expand(10**9)]]], "a snapshot of expert 0 is no list"),
    (lambda w: [[s[:-1] for s in e] for e in w], r"other classes: \d tensors here, \d there"),
    (lambda w: [[s[::-1] for s in e] for e in w], "is of another network or other classes"),
    (lambda w: [[[t * torch.nan for t in s] for s in e] for e in w], "holds NaN"),
    (lambda w: w[:1], "holds 1 experts and 3 are asked for; say --experts 1"),
    (lambda w: [e[:2] for e in w], "read up to epoch 2 and .* holds one of 1; give --window"),
]


@pytest.mark.parametrize(("change", "said"), FOREIGN)
def test_foreign_files_get_one_line(
    bench: Benchmark, store: Path, tmp_path: Path, trained: tuple[Plan, Written],
    change: Callable[[Written], Any], said: str, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    folder = save(tmp_path / "buffers", change(trained[1]))
    with pytest.raises(StillroomError, match=said) as error:
        planned(bench, store, buffers=str(folder))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "boom").exists()
    assert not [p for p in store.glob("expert-*/stage.json") if "buffers" in p.read_text()]


BOMBS = {  # instructions of a pickle that weights_only follows
    "bytes": b"\x80\x02cbuiltins\nbytearray\nJ\x00\x00\x00\x40\x85R.",
    "by name": b"\x80\x04\x8c\x08builtins\x8c\tbytearray\x93J\x00\x00\x00\x40\x85R.",
    "behind what is no pickle": b"\x80\x02(c\xff\n\ncbuiltins\nbytearray\nJ\x00\x00\x00\x40\x85R.",
    "lists": b"\x80\x02](" + b"]" * (17 * 2**20) + b"e.",
}


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize("name", ["archive/data.pkl", "archive/DATA.PKL", ""])
def test_no_pickle_fills_the_memory(tmp_path: Path, bomb: str, name: str) -> None:
    """Judged before it is followed, in a zip under whatever name, and in the older format."""
    path = tmp_path / "replay_buffer_0.pt"
    if name:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(name, BOMBS[bomb])
            archive.writestr("archive/version", "3\n")
    else:
        path.write_bytes(BOMBS[bomb])
    tracemalloc.start()
    with pytest.raises(StillroomError, match=r"(holds|lists) more than|not a whole"):
        read_checkpoint(path, path.read_bytes(), 2**31)
    assert tracemalloc.get_traced_memory()[1] < 200 * 2**20
    tracemalloc.stop()
    if name:
        with pytest.raises(StillroomError, match=r"(holds|lists) more than|not a whole"):
            find_buffers(tmp_path)


def test_numbers_go_from_zero_on(tmp_path: Path, trained: tuple[Plan, Written]) -> None:
    folder = save(tmp_path / "buffers", trained[1])
    numbered(folder / "replay_buffer_0.pt")
    with pytest.raises(StillroomError, match="there twice or not at all"):
        find_buffers(folder)
    (folder / "replay_buffer_00.pt").rename(folder / "replay_buffer_2.pt")
    with pytest.raises(StillroomError, match="there twice or not at all"):
        find_buffers(folder)


@pytest.mark.parametrize("harm", [damaged, deflated, pickled])
def test_files_that_torch_did_not_write_are_not_read(
    bench: Benchmark, store: Path, tmp_path: Path, trained: tuple[Plan, Written],
    harm: Callable[[Path], None],
) -> None:  # fmt: skip
    folder = save(tmp_path / "buffers", trained[1])
    harm(folder / "replay_buffer_0.pt")
    with pytest.raises(StillroomError, match=r"replay_buffer_0\.pt: (no whole file|its members)"):
        planned(bench, store, buffers=str(folder))


def test_networks_with_batchnorm_are_refused(
    bench: Benchmark, store: Path, tmp_path: Path, trained: tuple[Plan, Written]
) -> None:
    folder = save(tmp_path / "buffers", trained[1])
    fields = {"arch": "convnet1-w4-bn", "method": {"experts": 1, "buffers": str(folder)}}
    recipe, _ = from_preset("mtt", "toy", 1, fields)
    with pytest.raises(StillroomError, match="statistics of BatchNorm"):
        plan(recipe, bench, MACHINE, Session(), store=Store(store))


@pytest.mark.parametrize("preset", ["mtt", "ftd", "tesla", "datm", "pad", "edf"])
@pytest.mark.parametrize("data", ["digits", "cifar10", "nothing-known"])
def test_every_preset_takes_them(preset: str, data: str) -> None:
    """Whatever its schooling, and however data change that; none of it is in what is kept."""
    known = data if data in NAMED else None
    recipe, _ = from_preset(preset, data, 1, {"method": {"buffers": "x"}}, known)
    assert recipe.method.buffers == "x"
    told = recipe.method.model_dump()
    assert "schooling" not in told
    assert type(recipe.method).model_validate({**told, "schooling": "datm"}) == recipe.method


def test_schooling_is_not_of_given_experts(bench: Benchmark, store: Path) -> None:
    with pytest.raises(StillroomError, match="--schooling is of experts that are trained here"):
        planned(bench, store, buffers="x", schooling=SCHOOLING)
    with pytest.raises(StillroomError, match=r"no folder with replay_buffer_0\.pt"):
        planned(bench, store, buffers=str(store))
