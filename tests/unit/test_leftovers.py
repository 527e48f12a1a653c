"""A folder is replaced only if all in it is ours; limits that show only inside a run."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from stillroom.artefacts import opened
from stillroom.cli import run
from stillroom.data.benchmarks import Benchmark, from_arrays
from stillroom.errors import StillroomError
from stillroom.methods import coreset
from stillroom.methods.context import RunContext
from stillroom.methods.selection import Selection
from stillroom.nets.ensemble import Nets
from stillroom.nets.zoo import resolve
from stillroom.run import publish as publishing
from stillroom.runtime import Runtime, available_memory
from stillroom.session import Session
from stillroom.tables import size

RT = Runtime(device=torch.device("cpu"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set with kept steps that was judged and reported on, and the store beside it."""
    root = tmp_path_factory.mktemp("finished")
    for line in (dm(root), ["evaluate", f"{root}/set", "--seeds", "1", *common(root)]):
        assert run(line) == 0
    assert run(["report", f"{root}/set"]) == 0
    return root


def common(root: Path) -> list[str]:
    return ["--store", str(root / "store"), "--threads", "1", "--quiet"]


def dm(root: Path) -> list[str]:
    line = ["distill", "dm", "--data", "digits", "--ipc", "1", "--steps", "3", "--keep", "1,2"]
    return [*line, "--arch", "convnet1-w4", "--out", f"{root}/set", *common(root)]


@pytest.fixture
def world(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "world"))


def test_what_stillroom_wrote_is_replaced(world: Path) -> None:
    """Everything that its verbs leave in a set's folder, killed ones too."""
    for name in (".records.lock", ".meta.json-x1y2z3w_.tmp", "steps/1/.meta.json-x1y2z3w_.tmp"):
        (world / "set" / name).touch()
    publishing.refuse_foreign(world / "set")
    names = {p.name for p in (world / "set").iterdir()}
    assert {*publishing.SET_FILES, *publishing.OTHER_FILES, "images", "steps"} <= names
    assert run([*dm(world), "--force"]) == 0
    left = {p.relative_to(world).as_posix() for p in (world / "set").rglob("*")}
    assert not [name for name in left if name.endswith(".tmp")]
    assert "set/steps/1/meta.json" in left


@pytest.mark.parametrize(
    "name",
    [
        "notes.txt",
        ".DS_Store",
        "z/deep/er.txt",
        "images/mine.png",
        "images/sub/0000_0_0000.png",
        "steps/2/run.json",
        "steps/last/meta.json",
        "steps/readme",
        ".notes-x1y2z3w_.tmp",
    ],
)
def test_the_first_foreign_file_is_named(name: str, world: Path) -> None:
    path = world / "set" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("mine")
    with pytest.raises(StillroomError, match="which stillroom did not write") as caught:
        publishing.refuse_foreign(world / "set")
    assert f"holds {name!r}, " in str(caught.value)


def test_folders_links_and_listings(world: Path) -> None:
    out = world / "set"
    (out / "empty").mkdir()
    with pytest.raises(StillroomError, match="holds 'empty',"):
        publishing.refuse_foreign(out)
    (out / "empty").rmdir()
    (out / "report.html").unlink()
    (out / "report.html").symlink_to(world / "store")
    with pytest.raises(StillroomError, match=r"holds 'report\.html',"):
        publishing.refuse_foreign(out)
    (out / "report.html").unlink()
    (out / "labels.csv").unlink()  # then nothing says which pictures are ours
    with pytest.raises(StillroomError, match=r"holds 'images/0000_0_0000\.png',"):
        publishing.refuse_foreign(out)


def test_same_run_without_force_leaves_notes_alone(world: Path) -> None:
    (world / "set" / "notes.txt").write_text("mine")
    assert run(dm(world)) == 0
    assert (world / "set" / "notes.txt").read_text() == "mine"


def test_a_file_that_came_during_the_run_stays(
    world: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from stillroom.run import distil

    real = distil.obtain

    def obtain(*given: object) -> object:
        (world / "set" / "notes.txt").write_text("mine")
        return real(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(distil, "obtain", obtain)
    assert run([*dm(world), "--force"]) == 2
    assert "holds 'notes.txt', which stillroom did not write" in capsys.readouterr().err
    assert (world / "set" / "notes.txt").read_text() == "mine"
    (world / "set" / "notes.txt").rename(world / "notes.txt")
    monkeypatch.undo()
    assert run([*dm(world), "--force"]) == 0


# -- k-means of copies -------------------------------------------------------------------------


def test_distinct_rows_are_numbered() -> None:
    rows = torch.tensor([[1.0, 2], [3, 4], [1, 2], [5, 6], [3, 4]])
    assert coreset.distinct(rows).tolist() == [0, 1, 0, 2, 1]


def test_nearest_points_are_never_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """The point nearest to a mean may be one that another mean has, and of which there are two."""

    class Fitted:
        cluster_centers_ = np.array([[0.0], [1.0]])
        labels_ = np.array([0, 0, 1, 1])

        def __init__(self, k: int, **options: object) -> None: ...

        def fit(self, points: object) -> Fitted:
            return self

    monkeypatch.setattr("sklearn.cluster.KMeans", Fitted)
    points = torch.tensor([[0.0], [0.0], [2.5], [-3.0]])
    for same, wanted in (([0, 1, 2, 3], [0, 1]), (coreset.distinct(points).tolist(), [0, 2])):
        _, nearest = coreset.k_means(points, 2, 0, torch.tensor(same))
        assert nearest.tolist() == wanted


def context(images: torch.Tensor, ipc: int, store: Path) -> RunContext:
    """One class of images [n,1,4,4], and a second one of noise."""
    noise = torch.randint(256, images.shape, generator=torch.Generator().manual_seed(0))
    both = torch.cat([images, noise]).to(torch.uint8)
    labels = torch.arange(2).repeat_interleave(len(images))
    bench = from_arrays(both, labels, both, labels, classes=("same", "noise"), store=store)
    return RunContext(bench, ipc, 0, RT, Nets(resolve("mlp"), 2, 1, 4, RT))


@pytest.mark.parametrize("centroids", [False, True])
@pytest.mark.parametrize("space", ["pixels", "net"])
def test_too_few_distinct_images(centroids: bool, space: str, store: Path) -> None:
    levels = torch.tensor([10, 200, 10, 200, 10, 90]).view(-1, 1, 1, 1)
    ctx = context(levels.expand(-1, 1, 4, 4), 4, store)
    method = Selection(rule="k-means", centroids=centroids, space=space)
    with pytest.raises(StillroomError, match="class 'same' has 3 distinct training images, too"):
        method.start(ctx, torch.arange(8))
    ctx.ipc = 3
    images = method.start(ctx, torch.arange(6)).images
    assert bool(images.isfinite().all())
    assert len(images.unique(dim=0)) == 6


def test_cluster_that_stays_empty_is_told(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lumped(points: torch.Tensor, k: int, *rest: object) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(len(points), dtype=torch.int64), torch.arange(k)

    monkeypatch.setattr(coreset, "k_means", lumped)
    ctx = context(torch.arange(6).view(-1, 1, 1, 1).expand(-1, 1, 4, 4), 2, store)
    assert len(Selection(rule="k-means").start(ctx, torch.arange(4)).images) == 4
    with pytest.raises(StillroomError, match="fills only 1 clusters of class 'same': its 6 dist"):
        Selection(rule="k-means", centroids=True).start(ctx, torch.arange(4))


# -- networks that no memory holds ---------------------------------------------------------------


@pytest.mark.parametrize("name", ["convnet1-w8", "resnet18-bn", "mlp", "lenet"])
@pytest.mark.parametrize("numerics", ["float32", "float64"])
def test_need_is_that_of_weights_gradients_and_momentum(
    name: str, numerics: str, bench: Benchmark, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = dataclasses.replace(bench, size=32)
    rt = Runtime(device=torch.device("cpu"), numerics=numerics)  # type: ignore[arg-type]
    net = Nets(resolve(name), 2, 3, 32, rt).build(0)
    need = 3 * sum(p.numel() * p.element_size() for p in net.parameters())
    before = torch.get_rng_state()
    monkeypatch.setattr("stillroom.runtime.available_memory", lambda device: need)
    opened.nets_for(resolve(name), bench, rt)
    monkeypatch.setattr("stillroom.runtime.available_memory", lambda device: need - 1)
    opened.nets_for(resolve(name), bench, rt)  # known to the session
    fresh = dataclasses.replace(rt, session=Session())
    with pytest.raises(StillroomError, match=f"^arch={name} needs at least"):
        opened.nets_for(resolve(name), bench, fresh)
    assert torch.equal(before, torch.get_rng_state())


def test_widest_name_is_refused_without_building_it(bench: Benchmark) -> None:
    began = torch.get_rng_state()
    device = torch.device("cpu")
    if available_memory(device) > 60 * 2**30:
        pytest.skip("this machine could hold it")
    with pytest.raises(
        StillroomError, match=r"^arch=convnet10-w8192-np needs at least 6\d\.\d GiB"
    ):
        opened.nets_for(resolve("ConvNetD10W8192NP"), bench, Runtime(device=device))
    assert torch.equal(began, torch.get_rng_state())


def test_a_users_own_network_is_left_alone(
    bench: Benchmark, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def factory(classes: int) -> torch.nn.Module:
        made.append(str(torch.zeros(()).device))
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, classes))

    monkeypatch.setattr("stillroom.runtime.available_memory", lambda device: 0)
    nets = opened.nets_for(resolve(factory), bench, RT)
    assert made == []
    nets.build(0)
    assert made == ["cpu"]


def test_the_store_says_what_it_holds(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["store", "list", "--store", str(finished / "store")]) == 0
    lines = capsys.readouterr().out.splitlines()
    told = {line.partition("-")[0]: line for line in lines}
    assert "dm of digits, ipc 1, 3 steps, seed 0" in told["distilled"]
    assert "quick@1, convnet1-w4, student 0" in told["scores"]
    assert "1797 images of 10 classes, 8 px" in told["data"]
    held = sum(p.stat().st_size for p in (finished / "store").rglob("*") if p.is_file())
    assert lines[-1].endswith(f"in {finished}/store")
    assert lines[-1].startswith(size(held))


def test_exported_classes_are_read_again(finished: Path, tmp_path: Path) -> None:
    """As the data of a run, and as its start."""
    for _ in range(2):  # a new folder only
        code = run(["export", f"{finished}/set", "--to", "classes", "--out", f"{tmp_path}/small"])
        assert code == (2 if _ else 0)
    names = sorted(p.relative_to(tmp_path / "small").as_posix() for p in tmp_path.rglob("*.png"))
    assert names == [f"{c}/{c:05d}.png" for c in range(10)]
    start = ["--init-from", f"{tmp_path}/small", "--steps", "1", "--arch", "convnet1-w4"]
    line = ["distill", "dm", "--data", "digits", "--ipc", "1", *start, *common(finished)]
    assert run([*line, "--out", f"{tmp_path}/again"]) == 0


def test_class_folders_of_one_name_are_numbered(tmp_path: Path) -> None:
    from stillroom.distilled import Distilled
    from stillroom.types import Preprocess

    made = Distilled(
        images=torch.zeros(2, 1, 4, 4),
        labels=torch.tensor([0, 1]),
        of_class=torch.tensor([0, 1]),
        classes=("a/b", "a b"),
        label_kind="hard",
        preprocess=Preprocess("none", (0.0,), (1.0,)),
    )
    publishing.export_classes(made, tmp_path)
    assert sorted(p.parent.name for p in tmp_path.rglob("*.png")) == ["0000_a-b", "0001_a-b"]
