"""Stored labels: what is written comes back with its draws, and everything else is refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from stillroom.artefacts import label_shards, labels
from stillroom.artefacts.label_header import Header, Told, epoch_bytes, epochs_within, fit
from stillroom.artefacts.label_shards import (
    MANIFEST,
    SOFT,
    Batch,
    finish,
    stored_epochs,
    write_shard,
    write_soft,
)
from stillroom.artefacts.labels import Relabels
from stillroom.data import frozen
from stillroom.data.policy import Policy
from stillroom.data.views import apply
from stillroom.errors import StillroomError
from stillroom.files import canonical, sha256

DIGEST = "0123456789abcdef"


def header(**changes: Any) -> Header:
    fields = {
        "images": 11,
        "classes": 6,
        "source": (12, 12),
        "epochs": 9,
        "kept": 5,
        "batch": 4,
        "codec": "fp16",
        "policy": Policy(size=8),
        "seed": 3,
        "set_digest": DIGEST,
        "teachers": ("original-aa", "original-bb"),
    }
    return Header(**(fields | changes))


def images() -> Tensor:
    return torch.randn(11, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def teacher(classes: int = 6) -> Callable[[Tensor], Tensor]:
    gen = torch.Generator().manual_seed(1)
    net = nn.Linear(3 * 8 * 8, classes)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=gen) / 8)
    return lambda x: net(x.flatten(1)).detach()


def labelled(head: Header, first: int, epochs: int) -> Iterator[Batch]:
    net = teacher(head.classes)
    for epoch in range(first, first + epochs):
        for rows, drawn in head.draws(epoch):
            yield rows, drawn, net(apply(images()[rows], drawn))


def soft(head: Header) -> Tensor:
    gen = torch.Generator().manual_seed(2)
    return torch.randn(head.images, head.classes, generator=gen)


def container(folder: Path, head: Header | None = None) -> Path:
    head = head or header()
    write_soft(folder, head, soft(head))
    for first in range(0, head.kept, 2):
        write_shard(folder, head, first, labelled(head, first, min(2, head.kept - first)))
    finish(folder, head)
    return folder


# -- what comes back -------------------------------------------------------------------------------
@pytest.mark.parametrize("codec", ["fp16", "int8", "topk:2", "topk:6"])
@pytest.mark.parametrize("mix", ["none", "cutmix", "mixup"])
def test_teachers_say_again_what_is_stored(codec: str, mix: str, tmp_path: Path) -> None:
    """The replay test: decode a batch, make its views, ask the teacher: the same labels."""
    head = header(codec=codec, policy=Policy(size=8, mix=mix))  # type: ignore[arg-type]
    opened = Relabels.open(container(tmp_path, head))
    assert opened.header == head
    net, seen = teacher(), []
    for epoch in range(head.kept):
        batches = list(opened.epoch(epoch))
        assert [len(rows) for rows, _, _ in batches] == [4, 4, 3]
        seen.append(torch.cat([rows for rows, _, _ in batches]).tolist())
        assert sorted(seen[-1]) == list(range(11))
        for rows, drawn, logits in batches:
            again = net(apply(images()[rows], drawn))
            stored = head.coder.decode(head.coder.encode(again), 6)
            assert torch.equal(logits, stored)
            if codec == "fp16":
                assert float((logits - again).abs().max()) <= float(again.abs().max()) * 2**-11
    assert len({tuple(order) for order in seen}) == head.kept


def test_epochs_beyond_the_kept_ones_are_these_again(tmp_path: Path) -> None:
    opened = Relabels.open(container(tmp_path))
    for far, near in ((5, 0), (8, 3)):
        pairs = zip(opened.epoch(far), opened.epoch(near), strict=True)
        for (rows, drawn, logits), (rows2, drawn2, logits2) in pairs:
            assert torch.equal(rows, rows2)
            assert drawn.digest() == drawn2.digest()
            assert torch.equal(logits, logits2)


def test_same_labels_same_bytes(tmp_path: Path) -> None:
    """And how epochs are split over shards changes nothing that comes back."""
    one, two, other = (container(tmp_path / name) for name in ("a", "b", "c"))
    for path in sorted(one.iterdir()):
        assert path.read_bytes() == (two / path.name).read_bytes()
    for path in other.iterdir():
        path.unlink()
    write_shard(other, header(), 0, labelled(header(), 0, 5))
    write_soft(other, header(), soft(header()))
    finish(other, header())
    assert len(list(other.iterdir())) == 3
    for epoch in range(5):
        pairs = zip(Relabels.open(one).epoch(epoch), Relabels.open(other).epoch(epoch), strict=True)
        assert all(torch.equal(a[2], b[2]) for a, b in pairs)


def test_bytes(tmp_path: Path) -> None:
    """On disk the closed form within 2 %, with a head a file and a manifest; payloads exactly."""
    head = header(images=1000, classes=100, batch=100, kept=4, policy=Policy(size=2))
    net = torch.zeros(100, 100)
    for first in (0, 2):
        some = ((r, d, net) for e in (first, first + 1) for r, d in head.draws(e))
        write_shard(tmp_path, head, first, some)
    write_soft(tmp_path, head, torch.zeros(1000, 100))
    finish(tmp_path, head)
    formula = 4 * epoch_bytes(1000, 100, 100, "fp16") + 1000 * 200
    assert formula == head.nbytes == 4 * (1000 * 200 + 10 * 8) + 1000 * 200
    opened = Relabels.open(tmp_path)
    assert opened.nbytes == sum(p.stat().st_size for p in tmp_path.iterdir())
    assert formula < opened.nbytes < 1.02 * formula
    payload = sum(
        t.numel() * t.element_size()
        for p in tmp_path.glob("*.safetensors")
        for t in load_file(p).values()
    )
    assert payload == formula


def test_budget() -> None:
    each = epoch_bytes(100, 10, 25, "fp16")
    assert each == 100 * 20 + 4 * 8
    shape = (100, 10, 25, "fp16")
    assert epochs_within(each, *shape, 1000) == 1
    assert epochs_within(10 * each - 1, *shape, 1000) == 9
    assert epochs_within(10**9, *shape, 1000) == 1000
    with pytest.raises(StillroomError, match=f"{each - 1} bytes hold no epoch.* takes {each}"):
        epochs_within(each - 1, *shape, 1000)


def test_a_budget_chooses_a_codec_first_and_then_fewer_epochs(tmp_path: Path) -> None:
    shape = (200, 50, 100)
    each = {codec: epoch_bytes(*shape, codec) for codec in ("fp16", "int8")}
    more = 200 * 50 * 2 + 2**12 + 2 * 2**10  # the soft labels; heads, of one teacher and shard

    def chosen(budget: int, codec: str | None = None) -> tuple[str, int]:
        return fit(budget, *shape, 40, codec)

    assert chosen(40 * each["fp16"] + more) == ("fp16", 40)
    assert chosen(40 * each["fp16"] + more - 1) == ("int8", 40)
    assert chosen(40 * each["int8"] + more - 1) == ("int8", 39)
    assert chosen(7 * each["fp16"] + more, "fp16") == ("fp16", 7)
    assert chosen(40 * each["fp16"] + more, "topk:3") == ("topk:3", 40)
    assert fit(10_000, 20, 2, 10, 400)[0] == "fp16", "of two classes int8 is no smaller"
    with pytest.raises(StillroomError, match="holds no epoch of labels: one takes 10816 in int8"):
        chosen(each["int8"] + more - 1)
    head = header(images=200, classes=50, batch=100, kept=5, policy=Policy(size=2), codec="int8")
    write_soft(tmp_path, head, torch.zeros(200, 50))
    some = ((r, d, torch.zeros(100, 50)) for e in range(5) for r, d in head.draws(e))
    write_shard(tmp_path, head, 0, some)
    finish(tmp_path, head, told=[Told(arch="mlp", index=i, schooling={"lr": 0.1}) for i in (0, 1)])
    held = Relabels.open(tmp_path).nbytes
    assert fit(held + 2**13, *shape, 40, "int8", teachers=2)[1] >= 5
    assert held <= 5 * each["int8"] + more + 2**10, "a budget is kept on disk, heads and all"


# -- going on after a kill -------------------------------------------------------------------------
def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    container(whole)
    head = header()

    def dies() -> Iterator[Batch]:
        yield from labelled(head, 2, 1)
        raise KeyboardInterrupt

    assert stored_epochs(broken, head) == 0
    write_shard(broken, head, 0, labelled(head, 0, 2))
    with pytest.raises(KeyboardInterrupt):
        write_shard(broken, head, 2, dies())
    assert stored_epochs(broken, head) == 2
    assert [p.name for p in broken.iterdir()] == ["labels-000000.safetensors"]  # nothing of half
    with pytest.raises(StillroomError, match=r"labels of epoch 2 are missing, 5 epochs"):
        finish(broken, head)
    while (first := stored_epochs(broken, head)) < head.kept:
        assert write_shard(broken, head, first, labelled(head, first, min(2, 5 - first))) > 0
    with pytest.raises(StillroomError, match=r"soft\.safetensors: no such file"):
        finish(broken, head)
    write_soft(broken, head, soft(head))
    finish(broken, head)
    for path in whole.iterdir():
        assert path.read_bytes() == (broken / path.name).read_bytes()


def test_parts_are_joined_and_joining_goes_on(tmp_path: Path, monkeypatch) -> None:
    head, folder = header(), tmp_path / "all"
    parts = [tmp_path / f"{i:04d}" for i in range(3)]
    for i, part in enumerate(parts):
        write_shard(part, head, 2 * i, labelled(head, 2 * i, 2 if i < 2 else 1))
    write_soft(parts[0], head, soft(head))
    folder.mkdir()
    with monkeypatch.context() as patched:
        patched.setattr(label_shards, "sha256_file", lambda path: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            finish(folder, head, parts)
    finish(folder, head, parts)
    container(tmp_path / "straight")
    for path in (tmp_path / "straight").iterdir():
        assert path.read_bytes() == (folder / path.name).read_bytes()


@pytest.mark.parametrize(
    ("first", "change", "words"),
    [
        (0, lambda b: b[:-1], "2 batches from epoch 0 on are not whole epochs of 3"),
        (0, lambda b: [], "0 batches"),
        (5, lambda b: b, "below 5"),
        (0, lambda b: b[::-1], r"batch 0 of labels has 3 images .* \[4,6\] is its turn"),
        (0, lambda b: [(b[0][0], b[0][1], b[0][2][:, :5])], r"logits \[4, 5\]"),
        (0, lambda b: [(b[0][0][:3], b[0][1], b[0][2])], "has 3 images"),
        (0, lambda b: [(b[0][0], b[0][1], b[0][2] / 0)], "NaN or beyond"),
    ],
)
def test_what_is_not_written(first, change, words: str, tmp_path: Path) -> None:
    batches = list(labelled(header(), 0, 1))
    with pytest.raises(StillroomError, match=words):
        write_shard(tmp_path, header(), first, change(batches))
    assert list(tmp_path.iterdir()) == []


# -- what is refused -------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"batch": 5}, "batches of 4 and not of 5, and a mix holds for its batch only"),
        ({"epochs": 10}, "for 9 epochs and not for 10"),
        ({"images": 12}, "for 11 images and the set has 12"),
        ({"classes": 7}, "of 6 classes and the set has 7"),
        ({"set_digest": "f" * 16}, f"for the set {DIGEST} and this one is {'f' * 16}"),
        (
            {"policy": Policy(size=8, scale=(0.5, 1), mix="mixup")},
            r"views by scale \(0.08, 1.0\), mix cutmix and not by scale \(0.5, 1.0\), mix mixup",
        ),
    ],
)
def test_labels_of_something_else(asked: dict, words: str, tmp_path: Path) -> None:
    container(tmp_path)
    right = {"images": 11, "classes": 6, "set_digest": DIGEST, "batch": 4, "epochs": 9}
    right |= {"policy": Policy(size=8)}
    Relabels.open(tmp_path, **right)
    Relabels.open(tmp_path, **(right | {"epochs": 3}))
    with pytest.raises(StillroomError, match=words) as caught:
        Relabels.open(tmp_path, **(right | asked))
    assert "\n" not in str(caught.value)


def run_through(folder: Path) -> None:
    opened = Relabels.open(folder)
    for epoch in range(opened.header.kept):
        for _ in opened.epoch(epoch):
            pass


def shard(folder: Path, first: int = 2) -> Path:
    return folder / f"labels-{first:06d}.safetensors"


def flip_bit(folder: Path) -> None:
    data = bytearray(shard(folder).read_bytes())
    data[-1] ^= 1
    shard(folder).write_bytes(data)


def cut(folder: Path) -> None:
    shard(folder).write_bytes(shard(folder).read_bytes()[:-10])


def cut_to_nothing(folder: Path) -> None:
    shard(folder).write_bytes(b"")


def remove(folder: Path) -> None:
    shard(folder).unlink()


def a_folder(folder: Path) -> None:
    shard(folder).unlink()
    shard(folder).mkdir()


def swap(folder: Path) -> None:
    shard(folder).write_bytes(shard(folder, 0).read_bytes())


def of_other_labels(folder: Path) -> None:
    other = header(seed=4)
    write_shard(folder, other, 2, labelled(other, 2, 2))


def garbage(folder: Path) -> None:
    (folder / MANIFEST).write_text("[1, 2")


def no_object(folder: Path) -> None:
    (folder / MANIFEST).write_text("[]")


def linked(name: str) -> Callable[[Path], None]:
    """The very file, moved away and led to: whoever copies the labels would copy what is there."""

    def damage(folder: Path) -> None:
        (folder / name).rename(folder / "elsewhere")
        (folder / name).symlink_to(folder / "elsewhere")

    return damage


def of_a_device(folder: Path) -> None:
    shard(folder).unlink()
    os.mkfifo(shard(folder))


def long_head(folder: Path) -> None:
    """A head of a mebibyte, all white space: a larger one would fill the memory of its reader."""
    blob = shard(folder).read_bytes()
    size = int.from_bytes(blob[:8], "little")
    told = blob[8 : 8 + size] + b" " * (2**20 - size)
    shard(folder).write_bytes((2**20).to_bytes(8, "little") + told + blob[8 + size :])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (linked("labels-000002.safetensors"), "000002.safetensors: a symbolic link"),
        (linked(MANIFEST), "relabels.json: a symbolic link"),
        (linked(SOFT), "soft.safetensors: a symbolic link"),
        (of_a_device, "no such file; the labels are incomplete"),
        (long_head, "a head of 1048576 bytes is not of stored labels"),
        (lambda folder: (folder / SOFT).unlink(), "soft.safetensors: no such file"),
        (lambda folder: (folder / SOFT).write_bytes(b"x" * 40), "soft.safetensors: not a whole"),
        (flip_bit, "was altered or damaged .its SHA-256"),
        (cut, "not a whole safetensors file"),
        (cut_to_nothing, "not a whole safetensors file"),
        (remove, "no such file; the labels are incomplete"),
        (a_folder, "no such file; the labels are incomplete"),
        (swap, "a shard of other labels"),
        (of_other_labels, "a shard of other labels"),
        (garbage, "not readable as JSON"),
        (no_object, "not the manifest of stored labels"),
    ],
)
def test_damage(damage, words: str, tmp_path: Path) -> None:
    run_through(container(tmp_path))
    damage(tmp_path)
    with pytest.raises(StillroomError, match=words) as caught:
        run_through(tmp_path)
    assert "\n" not in str(caught.value)


def forged(folder: Path, change: Callable[[dict], None], digest: bool = True) -> None:
    """A manifest with a change, under a right digest or the old one."""
    path = folder / MANIFEST
    manifest = json.loads(path.read_text())
    old = manifest.pop("digest")
    change(manifest)
    manifest["digest"] = sha256(canonical(manifest)) if digest else old
    path.write_text(json.dumps(manifest))


def head(**fields: Any) -> Callable[[dict], None]:
    return lambda manifest: manifest["header"].update(fields)


TOLD = {"arch": "mlp", "index": 0, "schooling": {}}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (head(frozen=2), "drawn by version 2 of the frozen generator.* has version 1"),
        (head(frozen=None), "drawn by version None"),
        (head(frozen=True), "frozen: .*valid integer"),
        (lambda m: m.update(format=1), "format 1, this version reads 2"),
        (lambda m: m.pop("soft"), "field 'soft' is absent"),
        (lambda m: m.update(told=[{}]), "tells of other teachers than it has"),
        (lambda m: m.update(told=[{}, {}]), "arch: Field required"),
        (lambda m: m.update(told=[TOLD | {"arch": "x" * 301}] * 2), "arch: .*at most 300"),
        (lambda m: m.update(told=[TOLD | {"index": -1}] * 2), "index: "),
        (lambda m: m.update(told=[TOLD | {"schooling": "import os"}] * 2), "schooling: "),
        (lambda m: m.pop("format"), "no 'format'"),
        (lambda m: m.pop("header"), "field 'header' is absent"),
        (lambda m: m.update(shards={}), "field 'shards' is absent or of the wrong type"),
        (lambda m: m["shards"].pop(), "5 epochs are kept and its shards hold 4"),
        (lambda m: m["shards"].reverse(), "not in a row"),
        (lambda m: m["shards"].append({"first": 5, "epochs": 1, "sha256": ""}), "not in a row"),
        (lambda m: m["shards"].__setitem__(0, "labels-000000"), "not in a row"),
        (lambda m: m["shards"][0].update(epochs=1), "the manifest says otherwise"),
        (lambda m: m["shards"][0].update(sha256=7), "the manifest says otherwise"),
        (lambda m: m["shards"][0].update(sha256="00"), "its SHA-256 does not match"),
        (head(seed=4), "a shard of other labels"),  # it would be drawn otherwise
        (head(batch=5), "a shard of other labels"),
        (head(images=12), "'digests'|expected"),
        (head(codec="int8"), "not those of codec 'int8'"),
        (head(codec="rot13"), "codec='rot13' is unknown"),
        (head(codec="topk:7"), "of 6 classes"),
        (head(images=2**40), "images: .*less than or equal"),
        (head(images="11"), "images: .*valid integer"),
        (head(images=True), "images: .*valid integer"),
        (head(batch=0), "batch: .*greater than or equal"),
        (head(batch=2**16, images=2**20, classes=2**20), "at most 2.26 logits"),
        (head(batch=2**12, images=2**20, policy={"size": 2048}), "at most 2.27 pixels"),
        (head(batch=12), "batch=12 of 11 images"),
        (head(kept=10), "kept=10 epochs of labels for 9"),
        (head(source=[12]), "source"),
        (head(source=[12, 10**9]), "source.1: .*less than or equal"),
        (head(set_digest="x"), "set_digest: "),
        (head(teachers=["x" * 301]), "teachers.0: "),
        (head(policy={"size": 8, "scale": [0, 1]}), "policy: .*0 < least"),
        (head(policy={"size": 8, "scale": [10**400, 1]}), "policy.scale"),
        (head(policy={"size": 8, "pickle": "x"}), "policy.pickle: Extra inputs"),
        (head(policy={"size": 8, "shuffle": 13}), "shuffle=13 patches"),
        (head(extra=1), "extra: Extra inputs"),
    ],
)
def test_foreign_manifests(change, words: str, tmp_path: Path) -> None:
    forged(container(tmp_path), change)
    with pytest.raises(StillroomError, match=words) as caught:
        run_through(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_manifest_that_was_edited(tmp_path: Path) -> None:
    forged(container(tmp_path), head(epochs=10), digest=False)
    with pytest.raises(StillroomError, match="its digest does not match"):
        Relabels.open(tmp_path)


def test_a_manifest_without_end(tmp_path: Path, monkeypatch) -> None:
    container(tmp_path)
    monkeypatch.setattr(labels, "MAX_MANIFEST_BYTES", 100)
    with pytest.raises(StillroomError, match="larger than 0 MiB"):
        Relabels.open(tmp_path)


def test_a_shard_too_large(tmp_path: Path, monkeypatch) -> None:
    container(tmp_path)
    monkeypatch.setattr(label_shards, "MAX_SHARD_BYTES", 100)
    with pytest.raises(StillroomError, match="larger than 8 GiB"):
        Relabels.open(tmp_path)


def rewritten(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    """Shard 2 with other tensors, and a manifest that agrees: all that a forger can do."""
    path = shard(folder)
    tensors = load_file(path)
    change(tensors)
    told = label_shards._told(header(), 2, 2)
    path.write_bytes(save(tensors, metadata={"stillroom": told}))
    forged(folder, lambda m: m["shards"][1].update(sha256=sha256(path.read_bytes())))


def replaced(name: str, value: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], None]:
    return lambda tensors: tensors.update({name: value(tensors[name]).contiguous()})


def other_draw(value: Tensor) -> Tensor:
    value[1, 2, 0] ^= 1
    return value


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (replaced("digests", other_draw), "batch 2 of epoch 3 was labelled under another draw"),
        (replaced("logits", lambda t: t / 0), "epoch 2, batch 0: stored logits are NaN or inf"),
        (replaced("logits", lambda t: t.float()), "'logits' is F32 .*expected float16"),
        (replaced("logits", lambda t: t[:, :10]), r"'logits' is F16 \[2, 10, 6\], expected"),
        (replaced("logits", lambda t: t[:1]), r"'logits' is F16 \[1, 11, 6\], expected"),
        (replaced("digests", lambda t: t[:, :2]), "'digests' is U8"),
        (replaced("digests", lambda t: t.flatten()), r"expected float16 \[48, 11, 6\]"),
        (replaced("digests", lambda t: t[0, 0, 0].clone()), r"expected float16 \[0, 11, 6\]"),
        (lambda tensors: tensors.pop("logits"), "not those of codec 'fp16'"),
        (lambda tensors: tensors.update(more=torch.zeros(1)), "not those of codec 'fp16'"),
    ],
)
def test_foreign_shards(change, words: str, tmp_path: Path) -> None:
    rewritten(container(tmp_path), change)
    with pytest.raises(StillroomError, match=words) as caught:
        run_through(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"logits": torch.zeros(11, 7).half()}, "must hold"),
        ({"logits": torch.zeros(11, 6)}, "must hold"),
        ({"logits": torch.zeros(11, 6).half(), "more": torch.zeros(1)}, "must hold"),
        ({"of": torch.zeros(11, 6).half()}, "must hold"),
        ({"logits": torch.full((11, 6), torch.nan).half()}, "stored logits are NaN or infinite"),
        ({"logits": torch.ones(11, 6).half()}, "its SHA-256 does not match"),
        (None, "soft labels of another set"),
    ],
)
def test_foreign_soft_labels(tensors, words: str, tmp_path: Path) -> None:
    path = container(tmp_path) / SOFT
    told = label_shards._told_soft(header())
    if tensors is None:
        write_soft(tmp_path, header(seed=4), soft(header()))
    else:
        path.write_bytes(save(tensors, metadata={"stillroom": told}))
    if "SHA" not in words:
        forged(tmp_path, lambda m: m.update(soft=sha256(path.read_bytes())))
    with pytest.raises(StillroomError, match=words) as caught:
        Relabels.open(tmp_path).soft()
    assert "\n" not in str(caught.value)


def test_soft_labels_come_back_rounded_to_float16(tmp_path: Path) -> None:
    told = Relabels.open(container(tmp_path)).soft()
    assert torch.equal(told, soft(header()).half().float())
    for wrong in (torch.zeros(11, 5), torch.zeros(10, 6)):
        with pytest.raises(StillroomError, match=r"\[11,6\] is theirs"):
            write_soft(tmp_path, header(), wrong)


def test_a_copy_is_the_same_labels(tmp_path: Path) -> None:
    first = Relabels.open(container(tmp_path / "a"))
    (tmp_path / "a" / "other.txt").write_text("not theirs")
    first.copy(tmp_path / "b")
    assert Relabels.open(tmp_path / "b").digest == first.digest
    assert len(list((tmp_path / "b").iterdir())) == len(first.files) == 5
    first.copy(tmp_path / "a")
    run_through(tmp_path / "a")


def test_another_generator_is_noticed(tmp_path: Path, monkeypatch) -> None:
    """Should the numbers ever change without a new version: every batch says so."""
    container(tmp_path)
    real = frozen.words
    monkeypatch.setattr(frozen, "words", lambda n, seed, *key: real(n, seed + 1, *key))
    with pytest.raises(StillroomError, match="batch 0 of epoch 0 was labelled under another draw"):
        run_through(tmp_path)


def test_a_shard_is_hashed_once(tmp_path: Path, monkeypatch) -> None:
    container(tmp_path)
    seen: list[str] = []
    real = labels.sha256_file
    monkeypatch.setattr(labels, "sha256_file", lambda path: (seen.append(path.name), real(path))[1])
    opened = Relabels.open(tmp_path)
    for epoch in (0, 1, 0, 6):
        list(opened.epoch(epoch))
    opened.soft()
    opened.soft()
    assert seen == ["labels-000000.safetensors", SOFT]
    assert Relabels.open(tmp_path)._sound == set()


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(StillroomError, match=r"relabels\.json: no such file"):
        Relabels.open(tmp_path / "nowhere")
    assert stored_epochs(tmp_path / "nowhere", header()) == 0


def test_a_header_is_checked_when_it_is_made() -> None:
    with pytest.raises(ValidationError, match="batch=12 of 11 images; lower the batch"):
        header(batch=12)
    assert header().digest != header(seed=4).digest
    assert header().steps == 3
    assert header(batch=11).steps == 1
