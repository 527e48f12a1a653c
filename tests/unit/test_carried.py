"""Labels that a set carries: whole and its own, or refused; the set itself is what it was."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import stillroom
from stillroom import distilled
from stillroom.artefacts.carried import carried, load, sizes
from stillroom.artefacts.executor import Serial
from stillroom.artefacts.label_header import epoch_bytes
from stillroom.artefacts.originals import opened
from stillroom.artefacts.store import Store, obtain
from stillroom.cli import run
from stillroom.data.benchmarks import Benchmark, from_arrays
from stillroom.data.views import apply
from stillroom.distilled import RELABELS, set_bytes, set_digest
from stillroom.errors import StillroomError
from stillroom.evaluation.published import find_protocol
from stillroom.files import canonical, sha256
from stillroom.recipe import from_preset
from stillroom.report.gather import gather
from stillroom.report.loading import stillroom_code
from stillroom.report.provenance import groups
from stillroom.run import relabel as relabels
from stillroom.run.distil import distil
from stillroom.run.distil import plan as plan_set
from stillroom.run.options import Machine
from stillroom.run.publish import export_folder, export_labels, export_tensors
from stillroom.run.teachers import Faculty
from stillroom.runtime import Runtime
from stillroom.session import Session
from toy import toy_images

MACHINE = Machine(threads=1)
TEACHERS = Faculty(archs=("convnet1-w4", "mlp"), schooling="default+epochs=2+batch=8")
PROTOCOL = find_protocol("edc@1+epochs=6")


class World:
    """A benchmark, a store, a set of five images a class, and labels that it carries."""

    def __init__(self, root: Path) -> None:
        self.store = Store(root / "store")
        self.store.root.mkdir()
        images = (*toy_images(), *toy_images(seed=1))
        self.bench: Benchmark = from_arrays(
            *images, classes=("left", "right"), name="toy", store=self.store.root
        )
        self.plain = self.a_set(root / "plain")
        self.made = root / "carrying"
        self.prepare(self.plain, self.made)

    def a_set(self, folder: Path, seed: int = 0, **more: Any) -> Path:
        recipe, _ = from_preset("random", "toy", 5, {"seed": seed})
        planned = plan_set(
            recipe, self.bench, MACHINE, Session(), store=self.store, out=folder, **more
        )
        distil(planned, MACHINE)
        return folder

    def plan(self, folder: Path, out: Path | None = None, **asked: Any) -> relabels.Planned:
        usual = {"protocol": PROTOCOL, "teachers": TEACHERS}
        what = relabels.Relabelling(**{**usual, **asked})
        return relabels.plan(folder, self.bench, what, MACHINE, Session(), self.store, out)

    def prepare(self, folder: Path, out: Path | None = None, **asked: Any) -> relabels.Planned:
        planned = self.plan(folder, out, **asked)
        relabels.relabel(planned, MACHINE)
        return planned


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


def contents(folder: Path) -> dict[str, bytes]:
    files = (p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != "run.json")
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


def test_a_carried_batch_run_through_the_teachers_gives_the_stored_logits(world: World) -> None:
    """From the files of the set alone; and so does the one soft label of every image."""
    data, rt = stillroom.load(world.made), Runtime(torch.device("cpu"), threads=1)
    stages = world.plan(world.made).stage.teachers
    models = [obtain(world.store, stage, Serial(), rt) for stage in stages]
    nets = [opened(model, world.bench, rt) for model in models]

    def said(images: torch.Tensor) -> torch.Tensor:
        return torch.stack([net.logits(images)[0] for net in nets]).mean(0)

    labels = data.relabels
    assert labels is not None
    assert labels.folder == world.made / RELABELS
    assert torch.allclose(labels.soft(), said(data.images), rtol=2e-3, atol=2e-3)
    seen = []
    for epoch in range(6):
        for rows, drawn, logits in labels.epoch(epoch):
            assert torch.allclose(logits, said(apply(data.images[rows], drawn)), 2e-3, 2e-3)
            seen.append(logits)
    assert float((seen[0] - seen[1]).abs().max()) > 0.01, "every epoch has views of its own"


def test_what_a_set_is_does_not_depend_on_what_it_carries(world: World) -> None:
    """A set without labels keeps its bytes, its digest and its fields; so does one with them."""
    mine, other = (contents(folder) for folder in (world.plain, world.made))
    assert mine == {name: blob for name, blob in other.items() if not name.startswith(RELABELS)}
    assert set_digest(world.plain) == set_digest(world.made)
    assert set_bytes(world.plain) == set_bytes(world.made)
    assert stillroom.load(world.plain).relabels is None
    assert distilled.load(world.made).relabels is None, "images alone do not need the labels"
    assert sizes(world.plain) == (set_bytes(world.plain), 0)


def test_bytes_are_those_on_disk(world: World, tmp_path: Path) -> None:
    below = world.made / RELABELS
    found = sizes(world.made)
    assert found.labels == sum(path.stat().st_size for path in below.iterdir())
    assert found.all == found.images + found.labels
    formula = 6 * epoch_bytes(10, 2, 10, "fp16") + 10 * 2 * 2
    payload = sum(t.nbytes for p in below.glob("*.safetensors") for t in load_file(p).values())
    assert payload == formula == world.plan(world.made).header.nbytes
    data = distilled.load(world.plain)
    soft = torch.full((10, 2), 0.5)
    replace(data, labels=soft, label_kind="probs").save(tmp_path)
    assert sizes(tmp_path) == (set_bytes(tmp_path) - 80, 80), "soft labels of its own are labels"


def test_labels_are_added_to_a_set_in_its_own_folder(world: World, tmp_path: Path) -> None:
    folder = shutil.copytree(world.plain, tmp_path / "set")
    world.prepare(folder)
    assert contents(folder) == contents(world.made)
    world.prepare(folder)  # again: the same labels
    before = contents(folder)
    with pytest.raises(StillroomError, match=r"carries other labels of teachers .* with --force"):
        world.plan(folder, codec="int8")
    assert contents(folder) == before
    world.prepare(folder, codec="int8", force=True)
    labels = carried(folder)
    assert labels is not None
    assert (labels.header.codec, labels.header.epochs) == ("int8", 6)
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ["data.safetensors", "images", "labels.csv", "meta.json", "metrics.jsonl", "relabels",
         "run.json"]
    )  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"protocol": find_protocol("vico@1")}, "vico@1 stores no labels of teachers; name one of"),
        ({"codec": "topk:1"}, "edc@1.epochs=6: loss=mse_gt compares logits and codec=topk:1"),
        ({"codec": "zip"}, "codec='zip' is unknown; known: fp16, int8, topk:K"),
        ({"codec": "topk:3", "protocol": find_protocol("sre2l@1")}, "codec='topk:3' of 2 classes"),
        ({"budget": 100}, "a budget of 100 bytes holds no epoch of labels"),
        ({"teachers": Faculty()}, "needs teachers and the set names none"),
        ({"teachers": Faculty(num=2)}, "--teacher-num and --schooling belong to --teachers"),
    ],
)
def test_what_is_refused_before_anything_is_run(world: World, asked: dict, words: str) -> None:
    with pytest.raises(StillroomError, match=words) as caught:
        world.plan(world.plain, **asked)
    assert "\n" not in str(caught.value)


def test_other_folders_are_refused(world: World, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    other = world.a_set(tmp_path / "other", seed=1)
    for out in (tmp_path / "notes", other, tmp_path / "notes" / "a.txt"):
        with pytest.raises(StillroomError, match=r"holds something else than .* a new folder"):
            world.plan(world.plain, out)


def test_a_budget_is_told_and_kept(world: World, tmp_path: Path) -> None:
    planned = world.prepare(world.plain, tmp_path / "set", epochs=400, budget=12_000)
    assert planned.said.endswith("of 400 epochs fit into 12.0 kB")
    told = dict(planned.pairs())
    assert told["stored as"] == f"fp16: {planned.said}", "of two classes int8 is no smaller"
    assert 4_000 < sizes(tmp_path / "set").labels <= 12_000
    assert "0 epochs to label" in told["labelling"]


def test_top_k_is_for_losses_of_softmax(world: World, tmp_path: Path) -> None:
    protocol = find_protocol("sre2l@1+epochs=2")
    world.prepare(world.plain, tmp_path / "set", codec="topk:1", protocol=protocol)
    labels = carried(tmp_path / "set")
    assert labels is not None
    assert labels.header.coder.layout(2)["indices"] == ("int16", 1)


def test_a_set_takes_its_labels_along(world: World, tmp_path: Path) -> None:
    data = stillroom.load(world.made)
    data.save(tmp_path / "copy")
    assert contents(tmp_path / "copy").keys() == {
        name for name in contents(world.made) if name.split("/")[0] in (
            "data.safetensors", "meta.json", RELABELS)
    }  # fmt: skip
    assert stillroom.load(tmp_path / "copy").relabels is not None
    data.save(world.made)  # where they lie already
    with pytest.raises(StillroomError, match="the labels of teachers are of other images than"):
        replace(data, images=data.images + 1).save(tmp_path / "other")
    replace(data, images=data.images + 1, relabels=None).save(tmp_path / "another")


def test_those_who_labelled_a_set_label_it_anew(world: World, tmp_path: Path) -> None:
    """Where nobody else is named: for another protocol, or in place of what is damaged."""
    folder = shutil.copytree(world.made, tmp_path / "set")
    asked = {"teachers": Faculty(), "protocol": find_protocol("sre2l@1+epochs=2"), "force": True}
    first = world.plan(world.made).stage.teachers
    assert world.plan(folder, **asked).stage.teachers == first
    (folder / RELABELS / "relabels.json").write_text("{")
    with pytest.raises(StillroomError, match="needs teachers and the set names none"):
        world.plan(folder, **asked)
    world.prepare(folder, force=True)
    assert contents(folder) == contents(world.made)


@pytest.mark.parametrize("name", ["labels-000000.safetensors", "soft.safetensors"])
def test_a_flipped_bit_is_neither_shown_nor_copied(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    folder = shutil.copytree(world.made, tmp_path / "set")
    path = folder / RELABELS / name
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    for command in (
        ["inspect", str(folder)],
        ["export", str(folder), "--to", "folder", "--out", str(tmp_path / "copy")],
    ):
        assert run(command) == 2
        assert "SHA-256 does not match" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "copy" / RELABELS / name).exists()


def test_a_page_tells_what_a_set_carries_and_how_to_read_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    (shown,) = gather([world.made])
    labels = carried(world.made)
    assert labels is not None
    told = dict(dict(groups(shown))["The set"])["Labels of teachers"]
    assert told.startswith(
        "6 epochs of drawn views and one of the images by convnet1-w4, mlp: fp16"
    )
    assert told.endswith(f"{labels.nbytes / set_bytes(world.made):.3g} times the images")
    assert "Labels of teachers" not in str(groups(gather([world.plain])[0]))
    monkeypatch.chdir(world.made.parent)
    names: dict[str, Any] = {}
    exec(stillroom_code(world.made.name, shown.data), names)
    assert names["views"].shape == names["images"].shape
    assert torch.equal(names["soft"], labels.soft())
    assert "relabels" not in stillroom_code(world.plain.name, load(world.plain))


def test_publishing_again_keeps_labels_of_the_same_images(world: World, tmp_path: Path) -> None:
    folder = world.a_set(tmp_path / "set")
    world.prepare(folder)
    (folder / f".{RELABELS}-abcdefgh.tmp").mkdir()  # of a killed `prepare`
    (folder / f".{RELABELS}-abcdefgh.tmp" / "soft.safetensors").write_bytes(b"half")
    world.a_set(folder, force=True)
    assert contents(folder) == contents(world.made)
    world.a_set(folder, seed=1, force=True)
    assert not (folder / RELABELS).exists()
    (folder / RELABELS).mkdir()
    (folder / RELABELS / "notes.txt").write_text("mine")
    with pytest.raises(StillroomError, match=r"holds 'relabels/notes.txt', which stillroom did"):
        world.a_set(folder, seed=2, force=True)


def test_other_forms_carry_what_they_have_room_for(world: World, tmp_path: Path) -> None:
    data = load(world.made)
    export_folder(data, tmp_path / "folder")
    told = export_labels(data, "folder", tmp_path / "folder")
    assert told == "labels of teachers in relabels/, by the row in labels.csv"
    copied = {path.name: path.read_bytes() for path in (tmp_path / "folder" / RELABELS).iterdir()}
    assert copied == {p.name: p.read_bytes() for p in (world.made / RELABELS).iterdir()}
    export_tensors(data, tmp_path / "tensors")
    told = export_labels(data, "tensors", tmp_path / "tensors")
    assert "in teacher_logits.pt; their labels of drawn views are left out" in told
    assert data.relabels is not None
    soft = torch.load(tmp_path / "tensors" / "teacher_logits.pt", weights_only=True)
    assert torch.equal(soft, data.relabels.soft())
    assert "are left out" in export_labels(data, "classes", tmp_path)
    assert export_labels(load(world.plain), "folder", tmp_path / "none") == ""
    assert not (tmp_path / "none").exists()
    exact = replace(data, storage="float32")
    assert "PNGs are rounded" in export_labels(exact, "folder", tmp_path / "rounded")


def test_parquet_has_a_column_of_soft_labels(world: World, tmp_path: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    pytest.importorskip("datasets")
    from stillroom.run.publish import export_hf

    data = load(world.made)
    export_hf(data, tmp_path)
    assert data.relabels is not None
    table = pq.read_table(tmp_path / "train.parquet")
    assert torch.equal(torch.tensor(table["teacher_logits"].to_pylist()), data.relabels.soft())
    assert "teacher_logits" in export_labels(data, "hf", tmp_path)


def other_images(folder: Path, world: World) -> None:
    data = distilled.load(folder)
    replace(data, images=data.images.flip(3)).save(folder)


def a_link(folder: Path, world: World) -> None:
    shutil.rmtree(folder / RELABELS)
    (folder / RELABELS).symlink_to(world.made / RELABELS)


def of_another_set(folder: Path, world: World) -> None:
    """A right digest and a set that it is not of."""
    path = folder / RELABELS / "relabels.json"
    manifest = json.loads(path.read_text())
    manifest.pop("digest")
    manifest["header"]["set_digest"] = "f" * 16
    manifest["digest"] = sha256(canonical(manifest))
    path.write_text(json.dumps(manifest))


def cut_off(folder: Path, world: World) -> None:
    path = folder / RELABELS / "labels-000000.safetensors"
    path.write_bytes(path.read_bytes()[:-9])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (other_images, "labels are for the set .* and this one is .* make the labels again"),
        (a_link, "relabels: a symbolic link, which no labels have"),
        (of_another_set, "a shard of other labels|labels are for the set f{16}"),
        (cut_off, "not a whole safetensors file"),
    ],
)
def test_damaged_and_hostile_labels_are_one_line(
    world: World, damage: Callable[[Path, World], None], words: str, tmp_path: Path
) -> None:
    folder = shutil.copytree(world.made, tmp_path / "set")
    damage(folder, world)
    for what in (stillroom.load, sizes):
        with pytest.raises(StillroomError, match=words) as caught:
            what(folder)
        assert "\n" not in str(caught.value)
    assert len(distilled.load(folder)) == 10, "the images are whole"
