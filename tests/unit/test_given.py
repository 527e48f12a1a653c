"""Weights that a user brings: named by digest, tested before they teach, or refused with why."""

from __future__ import annotations

import dataclasses
import hashlib
import http.server
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import released
from stillroom.artefacts.executor import Serial
from stillroom.artefacts.given import other_order, settled
from stillroom.artefacts.originals import Original, OriginalModel, opened, pool_of
from stillroom.artefacts.schooling import Schooling
from stillroom.artefacts.store import Store, obtain
from stillroom.data.benchmarks import Benchmark, from_arrays
from stillroom.data.imagenet import WNIDS, indices
from stillroom.distilled import load
from stillroom.errors import StillroomError
from stillroom.evaluation.published import find_protocol
from stillroom.files import canonical
from stillroom.methods.observers import aims, observer
from stillroom.nets.zoo import build, resolve
from stillroom.nets.zoo import canonical as canonical_name
from stillroom.nets.zoo import weights as module
from stillroom.recipe import from_preset
from stillroom.rng import rng
from stillroom.run.assess import held_out
from stillroom.run.distil import distil, plan
from stillroom.run.judge import evaluate
from stillroom.run.judging import Asked
from stillroom.run.options import Machine
from stillroom.run.prepare import cost_of_originals, obtain_originals, originals
from stillroom.run.teachers import Faculty, faculty
from stillroom.runtime import Runtime
from stillroom.session import Session
from toy import toy_images

ARCH = "convnet1-w4"
MACHINE = Machine(threads=1)
RT = Runtime(device=torch.device("cpu"), threads=1)
GUESSING = Machine(threads=1, allow_guessing=True)


class Told(Session):
    """Remembers what is said."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> OriginalModel:
    """A network that has learned the toy classes."""
    folder = tmp_path_factory.mktemp("learned")
    bench = from_arrays(
        *toy_images(), *toy_images(seed=1), classes=("left", "right"), name="toy", store=folder
    )
    how = Schooling(epochs=20, batch=8, lr=0.05)
    stage = Original(how, bench.describe(), resolve(ARCH), 0, folder)
    return obtain(Store(folder), stage, Serial(), RT)


@pytest.fixture
def file(learned: OriginalModel, tmp_path: Path) -> Path:
    assert learned.accuracy > 0.9
    path = tmp_path / "net.safetensors"
    save_file(learned.weights, path)
    return path


def exchanged(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same network with its classes in the other order."""
    head = ("classifier.weight", "classifier.bias")
    return {n: t.flip(0).contiguous() if n in head else t for n, t in weights.items()}


def pool(bench: Benchmark, store: Path, *names: str, num: int = 1) -> list[Original]:
    return originals(bench, names, num, Schooling(epochs=1, batch=8), Store(store))


# -- names and keys -------------------------------------------------------------------------------
def test_a_file_becomes_its_digest(
    bench: Benchmark, store: Path, tmp_path: Path, file: Path, learned: OriginalModel
) -> None:
    name = settled(f"{ARCH}={file}", bench, store)
    torch.save(learned.weights, tmp_path / "net.pth")
    torch.save({"state_dict": learned.weights, "epoch": 3}, tmp_path / "whole.pth.tar")
    for other in ("net.pth", "whole.pth.tar"):
        assert settled(f"{ARCH}={tmp_path / other}", bench, store) == name
    assert settled(name, bench, store) == name
    assert settled(f"auto={file}", bench, store, resolve(ARCH)) == name
    assert settled(ARCH, bench, store) == ARCH
    assert len(name.split("=")[1]) == 16
    moved = {n: t + (n == "classifier.bias") for n, t in learned.weights.items()}
    save_file(moved, tmp_path / "moved.safetensors")
    assert settled(f"{ARCH}={tmp_path / 'moved.safetensors'}", bench, store) != name


def test_keys_hold_the_digest_and_no_path(bench: Benchmark, store: Path, file: Path) -> None:
    (given,), (trained,) = pool(bench, store, f"{ARCH}={file}"), pool(bench, store, ARCH)
    assert given.key() != trained.key()
    assert given.identity()["weights"] == given.weights
    assert "schooling" not in given.identity()
    assert str(file) not in canonical(given.identity())
    other = dataclasses.replace(given, schooling=Schooling(epochs=9))
    assert other.key() == given.key(), "nothing is trained"
    assert Store(store).complete(f"weights-{given.weights}") is False, "no artefact of a stage"
    assert list(Store(store).verify()) == []


def test_it_is_the_network_of_the_file(
    bench: Benchmark, store: Path, file: Path, learned: OriginalModel
) -> None:
    (stage,) = pool(bench, store, f"{ARCH}={file}")
    found: OriginalModel = obtain(Store(store), stage, Serial(), RT)
    assert found.accuracy == learned.accuracy
    assert all(torch.equal(found.weights[n], t) for n, t in learned.weights.items())
    assert not found.raw
    assert found.moved == ()
    cost, _ = cost_of_originals([stage], MACHINE, Session(), Store(store))
    assert (cost.total, cost.left) == (1, 0)
    shutil.rmtree(store / f"weights-{stage.weights}")
    assert Store(store).complete(stage.key()), "it holds its own copy"


def test_damaged_weights_are_noticed(bench: Benchmark, store: Path, file: Path) -> None:
    (stage,) = pool(bench, store, f"{ARCH}={file}")
    kept = store / f"weights-{stage.weights}" / "weights.safetensors"
    data = bytearray(kept.read_bytes())
    data[-1] ^= 1
    kept.write_bytes(data)
    assert [name for name, _ in Store(store).verify()] == [f"weights-{stage.weights}"]
    with pytest.raises(StillroomError, match="was altered or damaged"):
        obtain(Store(store), stage, Serial(), RT)
    assert pool(bench, store, f"{ARCH}={file}") == [stage], "brought again, it is whole again"
    obtain(Store(store), stage, Serial(), RT)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (f"{ARCH}=nowhere.pth", r"nowhere\.pth: no such file"),
        (f"{ARCH}=0123456789abcdef", "the store has no such weights"),
        (f"{ARCH}=published", "tells 1000 classes apart and toy has 2"),
        ("nonet=published", "1000 classes|not a known network"),
        (f"{ARCH}=https://host/net.pth", "by the head of its SHA-256 behind a '#'"),
        (f"{ARCH}=ftp://host/net.pth#{'0' * 64}", "not the https address"),
        ("convnet2-w4={file}", r"has no 'features\.4"),
        ("nonet={file}", "not a known network"),
    ],
)
def test_what_cannot_be_had(
    name: str, words: str, bench: Benchmark, store: Path, file: Path
) -> None:
    with pytest.raises(StillroomError, match=words) as caught:
        settled(name.format(file=file), bench, store)
    assert "\n" not in str(caught.value)
    assert list(store.glob("weights-*")) == []


def test_other_numbers_of_classes_are_refused(
    bench: Benchmark, store: Path, tmp_path: Path
) -> None:
    net = build(ARCH, 7, 3, 8)
    save_file(net.state_dict(), tmp_path / "seven.safetensors")
    with pytest.raises(StillroomError, match="tells 7 classes apart and the data have 2"):
        settled(f"{ARCH}={tmp_path / 'seven.safetensors'}", bench, store)


def test_weights_of_other_data_do_not_go_under_the_same_digest(
    bench: Benchmark, store: Path, file: Path
) -> None:
    name = settled(f"{ARCH}={file}", bench, store)
    labels = torch.arange(24) % 3
    other = from_arrays(toy_images()[0], labels, toy_images()[0], labels, store=store)
    (stage,) = pool_of([name], 1, Schooling(), other.describe(), resolve(ARCH), store)
    with pytest.raises(StillroomError, match="its weights are of other classes"):
        obtain(Store(store), stage, Serial(), RT)


def test_what_save_models_wrote_is_checked(bench: Benchmark, store: Path, file: Path) -> None:
    """Beside the weights stands what they are of: class names, their order, the normalisation."""
    beside = file.with_suffix(".json")
    told = {"classes": list(bench.classes), "preprocess": bench.preprocess.describe()}
    beside.write_text(json.dumps(told))
    settled(f"{ARCH}={file}", bench, store)
    for wrong, words in (
        ({"classes": ["right", "left"]}, "'right' against 'left'"),
        ({"classes": ["left"]}, "1 against 2"),
        ({"preprocess": {**told["preprocess"], "std": [1, 1, 1]}}, "normalised otherwise"),
    ):
        beside.write_text(json.dumps({**told, **wrong}))
        with pytest.raises(StillroomError, match=words):
            settled(f"{ARCH}={file}", bench, store)
    beside.write_text('{"classes": 3}')
    settled(f"{ARCH}={file}", bench, store)


def test_one_file_is_one_model(bench: Benchmark, store: Path, file: Path) -> None:
    with pytest.raises(StillroomError, match="is one model and 2 of each network are asked for"):
        pool(bench, store, f"{ARCH}={file}", num=2)
    found = pool(bench, store, f"{ARCH}={file}", "mlp", num=1)
    assert [bool(stage.weights) for stage in found] == [True, False]


def test_students_and_distillers_have_no_weights() -> None:
    for name in (f"{ARCH}=published", f"{ARCH}=a:b", "torchvision/resnet50=x.pth"):
        with pytest.raises(StillroomError, match="networks begin afresh here"):
            resolve(name)
    with pytest.raises(StillroomError, match="networks begin afresh here"):
        canonical_name(f"{ARCH}=0123456789abcdef")


def test_of_a_network_of_imagenet_the_classes_of_the_data_are_taken(
    tmp_path: Path, store: Path
) -> None:
    """By WordNet id, in the order of the data; of other classes it stays refused."""
    net = build(ARCH, 1000, 3, 8)
    with torch.no_grad():
        for tensor in net.parameters():
            tensor.normal_(generator=rng(0, "imagenet"))
    save_file(net.state_dict(), tmp_path / "thousand.safetensors")
    names = ("n02102040", "n01440764")  # numbers 217 and 0 of ImageNet-1K
    some = from_arrays(*toy_images(), *toy_images(seed=1), classes=names, name="two", store=store)
    name = settled(f"{ARCH}={tmp_path / 'thousand.safetensors'}", some, store)
    (stage,) = pool(some, store, name)
    model = obtain(Store(store), stage, Serial(), RT)
    images = torch.randn(5, 3, 8, 8, generator=rng(0, "images"))
    with torch.no_grad():
        wanted = net.eval()(images)[:, [217, 0]]
        torch.testing.assert_close(opened(model, some, RT).logits(images)[0], wanted)
    other = from_arrays(
        *toy_images(), *toy_images(seed=1), classes=("a", "b"), name="ab", store=store
    )
    with pytest.raises(StillroomError, match="tells 1000 classes apart and the data have 2"):
        settled(f"{ARCH}={tmp_path / 'thousand.safetensors'}", other, store)
    assert indices(names) == (217, 0)
    assert indices(("n01440764", "tench")) is None
    assert [WNIDS[i] for i in sorted(WNIDS)] == sorted(
        WNIDS.values()
    )  # as ImageNet-1K numbers them


# -- published ------------------------------------------------------------------------------------
def thousand(store: Path, normalise: str = "imagenet") -> Benchmark:
    labels = torch.arange(1000)
    images = torch.zeros(1000, 3, 32, 32, dtype=torch.uint8)
    return from_arrays(images, labels, images[:10], labels[:10], normalise=normalise, store=store)


def test_published_weights_are_those_of_torchvision(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "imagenet/shufflenet_v2_x0_5"
    net = build(name, 1000, 3, 32)
    path = tmp_path / "shuffle.pth"
    torch.save(net.state_dict(), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(module, "_HOST", tmp_path.as_uri() + "/")
    monkeypatch.setitem(module.PUBLISHED, name, (path.name, digest[:8]))
    bench = thousand(store)
    found = settled(f"{name}=published", bench, store)
    path.unlink()
    assert settled(f"{name}=published", bench, store) == found, "downloaded once"
    kept = load_file(store / f"weights-{found.split('=')[1]}" / "weights.safetensors")
    assert torch.equal(kept["fc.weight"], net.get_parameter("fc.weight"))
    with pytest.raises(StillroomError, match=r"takes images normalised as imagenet and these are"):
        settled(f"{name}=published", thousand(store, "half"), store)
    with pytest.raises(StillroomError, match="arch='convnet3' has no published weights here"):
        settled("convnet3=published", bench, store)


class Handler(http.server.BaseHTTPRequestHandler):
    content = b""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.content)

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def address(file: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")
    monkeypatch.setattr(Handler, "content", file.read_bytes())
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/net.safetensors"
        server.shutdown()


def test_an_address_is_taken_by_its_hash(
    bench: Benchmark, store: Path, file: Path, address: str
) -> None:
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    with pytest.raises(StillroomError, match=f"its SHA-256 is {digest} and should begin with 0000"):
        settled(f"{ARCH}={address}#{'0' * 64}", bench, store)
    assert list(store.glob("weights-*")) == list(store.glob("published/*")) == []
    name = settled(f"{ARCH}={address}#{digest}", bench, store)
    assert name == settled(f"{ARCH}={file}", bench, store)
    with pytest.raises(StillroomError, match="its SHA-256 is"):
        settled(f"{ARCH}={file.as_uri()}#{'f' * 16}", bench, store)
    assert settled(f"{ARCH}={file.as_uri()}#{digest[:8]}", bench, store) == name


# -- whether they may teach -----------------------------------------------------------------------
def test_another_order_of_classes_is_told_from_errors() -> None:
    labels = torch.arange(400) % 4
    right = labels.clone()
    right[::7] = 0
    assert other_order(right, labels, 4) == []
    order = torch.tensor([0, 2, 1, 3])
    found = other_order(order[right], labels, 4)
    assert [(m.own, m.said) for m in found] == [(1, 2), (2, 1)]
    assert all(0.8 < m.share < 1 for m in found)
    weak = labels.clone()
    weak[(labels == 1) & (torch.arange(400) % 3 > 0)] = 2  # most of one class taken for another
    assert other_order(weak, labels, 4) == []
    assert other_order(torch.zeros(400, dtype=torch.int64), labels, 4) == []


def obtained(
    bench: Benchmark, store: Path, name: str, machine: Machine = MACHINE
) -> tuple[dict[str, list[OriginalModel]], list[str]]:
    session = Told()
    rt = dataclasses.replace(RT, session=session)
    return obtain_originals(pool(bench, store, name), machine, Store(store), rt), session.lines


def test_accuracy_is_measured_once_and_said(
    bench: Benchmark, store: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, lines = obtained(bench, store, f"{ARCH}={file}")
    ((name, (model,)),) = found.items()
    assert name == f"{ARCH}={name.split('=')[1]}"
    assert lines == [f"{name}: right on {100 * model.accuracy:.1f} % of 24 test images of toy"]
    monkeypatch.setattr("stillroom.artefacts.originals.predict", lambda *a: pytest.fail("again"))
    assert obtained(bench, store, f"{ARCH}={file}")[1] == lines


def test_guessing_and_other_orders_are_refused(
    bench: Benchmark, store: Path, tmp_path: Path, learned: OriginalModel
) -> None:
    bad = {
        "exchanged": (exchanged(learned.weights), r"in another order \(class 0, 'left', is its 1"),
        "zero": ({n: torch.zeros_like(t) for n, t in learned.weights.items()},
                 r"no better than guessing \(50\.0 %\)"),
    }  # fmt: skip
    for name, (weights, words) in bad.items():
        save_file(weights, tmp_path / f"{name}.safetensors")
        asked = f"{ARCH}={tmp_path / name}.safetensors"
        with pytest.raises(StillroomError, match=rf"{words}.*--allow-guessing takes it"):
            obtained(bench, store, asked)
        assert len(obtained(bench, store, asked, GUESSING)[0]) == 1


def recipe(observers: list[str], **method: Any) -> Any:
    given = {
        "outer": {"steps": 2}, "arch": ARCH,
        "method": {"observers": observers, "schooling": {"epochs": 1, "batch": 8}, **method},
    }  # fmt: skip
    return from_preset("edc", "toy", 2, given)[0]


def made(bench: Benchmark, store: Path, out: Path | None, what: Any, session: Session | None = None,
         machine: Machine = MACHINE) -> Any:  # fmt: skip
    planned = plan(what, bench, machine, session or Session(), store=Store(store), out=out)
    return planned, distil(planned, machine)


def test_observers_and_teachers(
    bench: Benchmark, store: Path, tmp_path: Path, file: Path, learned: OriginalModel
) -> None:
    """A set recovered by given weights, and judged by the same; no path in it, its key, records."""
    session, out = Told(), tmp_path / "set"
    planned, _ = made(bench, store, out, recipe([f"{ARCH}={file}", "convnet2-w4"]), session)
    digest = planned.stage.method.observers[0].split("=")[1]
    assert any("right on" in line for line in session.lines)
    meta, run = (out / "meta.json").read_text(), json.loads((out / "run.json").read_text())
    assert str(file) not in meta
    assert run["given"] == {f"{ARCH}={digest}": learned.accuracy}
    data = load(out)
    assert data.provenance["models"] == {"observer/0": [f"{ARCH}={digest}", 0],
                                         "observer/1": ["convnet2-w4", 0]}  # fmt: skip
    again, _ = made(bench, store, None, recipe([f"{ARCH}={digest}", "convnet2-w4"]))
    assert again.stage.key() == planned.stage.key()
    protocol = find_protocol("edc@1+epochs=2")
    own = faculty(Faculty(), data, protocol, bench, Store(store))
    assert [s.name for s in own] == [f"{ARCH}={digest}", "convnet2-w4"]
    asked = Asked(protocol=protocol, archs=(ARCH,), seeds=1,
                  teachers=Faculty(archs=(f"{ARCH}={file}",)))  # fmt: skip
    found = evaluate(out, bench, asked, Store(store), MACHINE, session, out / "records.jsonl")
    assert {r.note for r in found} == {
        f"teachers on the test images: {ARCH}={digest} {100 * learned.accuracy:.1f} %"
    }
    assert str(file) not in (out / "records.jsonl").read_text()
    with pytest.raises(StillroomError, match="the set was made with these weights"):
        held_out(data, bench, [f"{ARCH}={file}"], 3, Schooling(), Store(store))


def test_foreign_metadata_open_no_file(
    bench: Benchmark, store: Path, tmp_path: Path, file: Path
) -> None:
    _, data = made(bench, store, tmp_path / "set", recipe([f"{ARCH}={file}"]))
    own, protocol = data.provenance["recipe"], find_protocol("edc@1+epochs=2")
    for name, words in (
        (f"{ARCH}={file}", "is no digest of weights"),
        (f"{ARCH}=published", "is no digest of weights"),
        (f"{ARCH}=0123456789abcdef", "the store has no such weights"),
    ):
        told = {"recipe": {**own, "method": {**own["method"], "observers": [name]}}}
        foreign = dataclasses.replace(data, provenance=told)
        with pytest.raises(StillroomError, match=words):
            faculty(Faculty(), foreign, protocol, bench, Store(store))


def test_a_teacher_that_guesses_does_not_teach(
    bench: Benchmark, store: Path, tmp_path: Path, learned: OriginalModel
) -> None:
    bad = tmp_path / "bad.safetensors"
    save_file(exchanged(learned.weights), bad)
    with pytest.raises(StillroomError, match="in another order"):
        made(bench, store, None, recipe([f"{ARCH}={bad}"]))
    assert list(store.glob("statistics-*")) == [], "before anything follows of it"
    _, data = made(bench, store, tmp_path / "set", recipe([f"{ARCH}={bad}"]), machine=GUESSING)
    assert len(data) == 4
    asked = Asked(protocol=find_protocol("edc@1+epochs=2"), archs=(ARCH,), seeds=1)
    with pytest.raises(StillroomError, match="in another order"):
        evaluate(tmp_path / "set", bench, asked, Store(store), MACHINE, Session())
    assert list(store.glob("relabels-*")) == []


def test_originals_of_clom(bench: Benchmark, store: Path, file: Path) -> None:
    """`--models-pool`: one model of each, so that their number is one."""
    term = {"kind": "clom", "weights": [1.0], "pool": [f"{ARCH}={file}"], "num": 1}
    given = {"arch": ARCH, "outer": {"steps": 1}, "regularisers": [term],
             "method": {"batch_real": 8}}  # fmt: skip
    what, _ = from_preset("dm", "toy", 1, given)
    planned, data = made(bench, store, None, what)
    assert str(file) not in canonical(planned.stage.identity())
    assert data.provenance["models"]["clom/0/0/0"][0].startswith(f"{ARCH}=")
    five, _ = from_preset("dm", "toy", 1, {**given, "regularisers": [{**term, "num": 5}]})
    with pytest.raises(StillroomError, match="is one model and 5 of each network"):
        plan(five, bench, MACHINE, Session(), store=Store(store))


# -- statistics that were released for them -------------------------------------------------------
def test_recover_by_released_statistics(bench: Benchmark, store: Path, tmp_path: Path) -> None:
    """What layers are drawn to is what the tree holds; the set names tree and repairs, no path."""
    path = released.weights(bench, tmp_path / "net.safetensors")
    arrays = released.collected(released.network(bench), bench, 8)
    source = released.zipped(released.written(released.released(arrays), tmp_path / "statistic"))
    what = recipe([f"{released.ARCH}={path}"], statistics=str(source), variance="released")
    planned, data = made(bench, store, tmp_path / "set", what, machine=GUESSING)
    method = planned.stage.method
    assert data.provenance["recipe"]["method"]["statistics"] == method.statistics
    assert len(method.statistics) == 16
    assert str(tmp_path) not in (tmp_path / "set" / "meta.json").read_text()
    from contract.test_contract import context

    ctx = context(bench, RT, method, store)
    synth = method.start(ctx, torch.arange(4))
    wanted = aims(method, ctx, synth, observer(ctx, 0, "all"))
    place = "ConvNet=features.0/running.npz"
    (_, whole), (_, near) = wanted["features.0"][0]
    own = [arrays[f"ConvFeatureHook/class_{c}/{place}"] for c in range(2)]
    for ours, theirs in (("mean", "dd_mean"), ("var", "dd_var"), ("patch_var", "patch_var")):
        name = f"running_{theirs}"
        assert torch.allclose(
            whole[ours], torch.from_numpy(arrays[f"ConvFeatureHook/{place}"][name])
        )
        mean = torch.from_numpy((own[0][name] + own[1][name]) / 2)
        assert torch.allclose(near[ours], mean, atol=1e-6)
    again = recipe([f"{released.ARCH}={path}"], statistics=method.statistics, variance="released")
    assert plan(again, bench, MACHINE, Session(), store=Store(store)).stage.key() == (
        planned.stage.key()
    )
    absent = again.model_copy(
        update={"method": again.method.model_copy(update={"statistics": "0" * 16})}
    )
    with pytest.raises(StillroomError, match=r"no released statistics 0+ for"):
        plan(absent, bench, MACHINE, Session(), store=Store(store))


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ({"statistics": "x.zip"}, "hold no exact variances; set variance to released"),
        ({"repair": ("doubled",)}, "repair mends released statistics; name them"),
        ({"statistics": "x.zip", "layers": "norms", "targets": "whole"}, "with layers norms"),
        ({"statistics": "x.zip", "variance": "released", "repair": ("nothing",)}, "repair"),
    ],
)
def test_what_does_not_go_together(method: dict[str, Any], words: str) -> None:
    with pytest.raises(StillroomError, match=words):
        recipe([ARCH], **method)
