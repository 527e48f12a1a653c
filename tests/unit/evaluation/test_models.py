"""Weights of students that are kept: those that the number is of, and nobody else's are lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stillroom.artefacts.store import Store
from stillroom.cli import run
from stillroom.distilled import load
from stillroom.errors import StillroomError
from stillroom.evaluation.published import find_protocol
from stillroom.evaluation.students import Kept
from stillroom.nets.zoo import resolve
from stillroom.recipe import from_preset
from stillroom.run.distil import distil, plan
from stillroom.run.judge import evaluate, prepared
from stillroom.run.judging import Asked, wanted
from stillroom.run.options import Machine
from stillroom.session import Session

MACHINE = Machine(threads=1)


def made(bench, store: Path, out: Path, seed: int = 0) -> Path:
    given = {"outer": {"steps": 1}, "arch": "convnet1-w4", "seed": seed}
    recipe, _ = from_preset("dm", "toy", 2, given)
    distil(plan(recipe, bench, MACHINE, Session(), store=Store(store), out=out), MACHINE)
    return out


def asked(folder: Path | None, protocol: str = "quick@1+epochs=3", **more) -> Asked:
    question = {"archs": ["convnet1-w4-bn", "mlp"], "seeds": 2, **more}
    return Asked(protocol=find_protocol(protocol), save_models=folder, **question)


def accuracy_of(bench, folder: Path, name: str) -> float:
    """As anybody would who has the two files alone: a plain network, its `state_dict`."""
    told = json.loads((folder / f"{name}.json").read_text())
    net = resolve(told["arch"]).build(len(told["classes"]), told["channels"], told["size"])
    net.load_state_dict(load_file(folder / f"{name}.safetensors"))
    x = bench.test.take(torch.arange(len(bench.test))).float() / 255
    mean, std = (torch.tensor(told["preprocess"][k]).view(1, -1, 1, 1) for k in ("mean", "std"))
    with torch.no_grad():
        logits = net.eval()((x - mean) / std)
    return float((logits.argmax(1) == bench.test.labels).double().mean())


@pytest.mark.parametrize("students", ["loop", "vmap"])
@pytest.mark.parametrize("protocol", ["quick@1+epochs=3", "clom-plain-released@1+epochs=12"])
def test_the_weights_are_those_that_the_number_is_of(
    students, protocol, bench, store, tmp_path
) -> None:
    out, kept = made(bench, store, tmp_path / "set"), tmp_path / "kept"
    question = asked(kept, protocol, students=students)
    records = evaluate(out, bench, question, Store(store), MACHINE, Session())
    told = {(r.arch, r.seed): r.value for r in records if r.metric == "accuracy"}
    assert len(told) == 4
    files = {path.name for path in kept.iterdir()}
    assert len(files) == 8
    for (arch, seed), value in told.items():
        name = f"dm-1-{arch}-seed{seed}"
        assert {f"{name}.json", f"{name}.safetensors"} <= files
        about = json.loads((kept / f"{name}.json").read_text())
        assert (about["arch"], about["seed"], about["accuracy"]) == (arch, seed, value)
        assert about["classes"] == ["left", "right"]
        assert about["protocol"] == protocol
        assert about["preprocess"] == load(out).preprocess.describe()
        assert accuracy_of(bench, kept, name) == pytest.approx(value, abs=1e-9)


class Walking:
    """Two networks whose one weight counts the checks."""

    k = 2

    def __init__(self) -> None:
        self.weight = torch.zeros(2)

    def member(self, i: int):
        return {"w": self.weight[i]}, {"b": self.weight[i] + 0.5}


@pytest.mark.parametrize(
    ("select", "ends"), [("last", (4.0, 4.0)), ("best", (2.0, 1.0)), ("val", (3.0, 4.0))]
)
def test_the_check_that_the_rule_selects_is_kept(select: str, ends: tuple[float, float]) -> None:
    """Of equal ones the earlier; of every student its own; as it was then, not as it is now."""
    nets, kept = Walking(), Kept(select)
    tests = [(0.5, 0.8), (0.9, 0.8), (0.9, 0.1), (0.7, 0.0)]
    vals = [(0.0, 0.1), (0.2, 0.2), (0.3, 0.2), (0.3, 0.4)]
    for test, val in zip(tests, vals, strict=True):
        nets.weight += 1
        kept.see(nets, torch.tensor(test), torch.tensor(val))
    nets.weight += 1
    for i, end in enumerate(ends):
        assert kept.weights[i] == {"w": torch.tensor(end), "b": torch.tensor(end + 0.5)}


def test_they_are_kept_where_they_are_asked_for_alone(bench, store, tmp_path) -> None:
    """And a key of before is what it was."""
    out = made(bench, store, tmp_path / "set")
    stages = [
        wanted(*prepared(out, bench, asked(f), Store(store), MACHINE, Session()))[0][1]
        for f in (None, tmp_path / "kept")
    ]
    assert "models" not in stages[0].identity()
    assert stages[1].identity() == {**stages[0].identity(), "models": True}
    evaluate(out, bench, asked(None), Store(store), MACHINE, Session())
    assert not list(store.glob("scores-*/*/student-*"))
    evaluate(out, bench, asked(tmp_path / "kept"), Store(store), MACHINE, Session())
    assert len(list(store.glob("scores-*/*/student-*.safetensors"))) == 4


def test_other_students_are_refused_before_anybody_is_trained(bench, store, tmp_path) -> None:
    one, two = (made(bench, store, tmp_path / f"{seed}", seed) for seed in (0, 1))
    kept = tmp_path / "kept"
    evaluate(one, bench, asked(kept), Store(store), MACHINE, Session())
    before = {path.name: path.read_bytes() for path in kept.iterdir()}
    evaluate(one, bench, asked(kept), Store(store), MACHINE, Session())  # the same ones
    scores = sorted(store.glob("scores-*"))
    with pytest.raises(StillroomError, match=r"dm-1-.*\.json holds another student.*--force"):
        evaluate(two, bench, asked(kept), Store(store), MACHINE, Session())
    assert sorted(store.glob("scores-*")) == scores
    assert {path.name: path.read_bytes() for path in kept.iterdir()} == before
    evaluate(two, bench, asked(kept, force=True), Store(store), MACHINE, Session())
    after = {path.name: path.read_bytes() for path in kept.iterdir()}
    assert after.keys() == before.keys()
    assert all(after[name] != before[name] for name in after)
    (kept / "dm-1-mlp-seed0.json").unlink()  # whose the weights are cannot be told any more
    with pytest.raises(StillroomError, match=r"seed0\.safetensors holds another student"):
        evaluate(two, bench, asked(kept), Store(store), MACHINE, Session())
    (tmp_path / "file").write_text("")
    with pytest.raises(StillroomError, match="is a file; name a folder"):
        evaluate(two, bench, asked(tmp_path / "file"), Store(store), MACHINE, Session())


def test_weights_that_somebody_changed_are_not_overwritten(bench, store, tmp_path) -> None:
    out, kept = made(bench, store, tmp_path / "set"), tmp_path / "kept"
    evaluate(out, bench, asked(kept), Store(store), MACHINE, Session())
    own = kept / "dm-1-mlp-seed1.safetensors"
    own.write_bytes(b"mine")
    with pytest.raises(StillroomError, match="holds another student"):
        evaluate(out, bench, asked(kept), Store(store), MACHINE, Session())
    assert own.read_bytes() == b"mine"


def test_the_flags(tmp_path: Path, capsys) -> None:
    common = ["--store", f"{tmp_path}/store", "--threads", "1", "--quiet"]
    line = ["distill", "dc", "--data", "digits", "--ipc", "1", "--steps", "1"]
    for seed in "01":
        more = ["--arch", "convnet1-w4", "--seed", seed, "--out", f"{tmp_path}/{seed}"]
        assert run([*line, *more, *common]) == 0
    judge = ["evaluate", f"{tmp_path}/0", "--protocol", "quick@1+epochs=2", "--seeds", "3"]
    assert run([*judge, "--force", *common]) == 2
    assert "--force belongs to --save-models" in capsys.readouterr().err
    kept = ["--save-models", f"{tmp_path}/kept", "--against", f"{tmp_path}/1"]
    assert run([*judge, *kept, *common]) == 0  # the rival's of equal name are not kept
    assert len(list((tmp_path / "kept").iterdir())) == 6
