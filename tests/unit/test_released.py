"""Released statistics: read as they are meant, mended by name, and no archive is trusted."""

from __future__ import annotations

import io
import os
import re
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import released
from stillroom.artefacts.executor import Serial
from stillroom.artefacts.given import settled
from stillroom.artefacts.npz_tree import FILE_BYTES, MOST_VALUES, Place, Tree
from stillroom.artefacts.originals import Original, pool_of
from stillroom.artefacts.released import ReleasedStatistics
from stillroom.artefacts.released_names import released_name
from stillroom.artefacts.schooling import Schooling
from stillroom.artefacts.statistics import Observed, Statistics
from stillroom.artefacts.store import Store, obtain
from stillroom.data.benchmarks import Benchmark, from_arrays
from stillroom.errors import StillroomError
from stillroom.nets.zoo import resolve
from stillroom.run.given import bring, of_tree
from stillroom.runtime import Runtime

RT = Runtime(device=torch.device("cpu"), threads=1)
Arrays = dict[str, released.Arrays]


def given(bench: Benchmark, store: Path, path: Path, seed: int = 0) -> Original:
    """A network with the weights of a file."""
    name = settled(f"{released.ARCH}={released.weights(bench, path, seed)}", bench, store)
    arch = resolve(released.ARCH)
    (stage,) = pool_of([name], 1, Schooling(), bench.describe(), arch, store)
    return stage


def read(source: Path, model: Original, store: Path, *repair: str, by_class: bool = True):
    (stage,) = of_tree([model], source, repair, by_class)
    found = bring(stage, source, Store(store), RT)
    assert found is not None
    return found


@pytest.fixture
def model(bench: Benchmark, store: Path, tmp_path: Path) -> Original:
    return given(bench, store, tmp_path / "net.safetensors")


@pytest.fixture
def right(bench: Benchmark) -> Arrays:
    return released.collected(released.network(bench), bench, 8)


def check(found: Observed, right: Arrays, bench: Benchmark) -> None:
    """Everything under the name of what it is."""
    names = {"mean": "running_dd_mean", "var": "running_dd_var",
             "patch_mean": "running_patch_mean", "patch_var": "running_patch_var"}  # fmt: skip
    kept = dict(released.network(bench).state_dict())
    for i, layer in enumerate(found.layers):
        mine = {k: v.numpy() for k, v in found.of(i).items()}
        hook = {"conv": "Conv", "norm": "BN"}[layer.kind]
        place = f"ConvNet={layer.name}/running.npz"
        own = names if layer.kind == "conv" else {n: names[n] for n in ("mean", "var")}
        for ours, theirs in own.items():
            classes = [right[f"{hook}FeatureHook/class_{c}/{place}"][theirs] for c in range(2)]
            key = f"class.{ours.replace('var', 'within')}"
            np.testing.assert_allclose(mine[key], np.stack(classes), rtol=1e-6)
            if layer.kind == "conv":
                key = ours if ours.endswith("mean") else f"batch_{ours}"
                np.testing.assert_allclose(
                    mine[key], right[f"ConvFeatureHook/{place}"][theirs], rtol=1e-6
                )
        if layer.kind == "norm":
            np.testing.assert_array_equal(mine["running.mean"], kept[f"{layer.name}.running_mean"])
    assert [layer.kind for layer in found.layers] == ["conv", "norm"] * 2
    assert found.patch == 4


# -- what is read ---------------------------------------------------------------------------------
@pytest.mark.parametrize("packed", [False, True])
def test_as_released(
    packed: bool, bench: Benchmark, store: Path, tmp_path: Path, model: Original, right: Arrays
) -> None:
    """Patches of classes stand under each other's names: seen by variances that are negative."""
    source = released.written(released.released(right), tmp_path / "statistic")
    if packed:
        source = released.zipped(source)
    found = read(source, model, store)
    assert found.repairs == ("swapped-patch (detected, 2 layers)",)
    check(found, right, bench)
    (stage,) = of_tree([model], source, (), True)
    told = (Store(store).folder(stage.key()) / "statistics.json").read_text()
    assert "swapped-patch (detected" in told
    assert str(tmp_path) not in told
    assert bring(stage, source, Store(store), RT) is None, "it is there already"


def test_without_defects_nothing_is_mended(
    bench: Benchmark, store: Path, tmp_path: Path, model: Original, right: Arrays
) -> None:
    found = read(released.written(right, tmp_path / "tree"), model, store)
    assert found.repairs == ()
    check(found, right, bench)


def test_it_is_what_we_collect_ourselves(
    bench: Benchmark, store: Path, tmp_path: Path, model: Original
) -> None:
    """All images in one batch, so that batches make no difference."""
    tree = released.collected(released.network(bench), bench)
    found = read(released.written(released.released(tree), tmp_path / "tree"), model, store)
    own: Observed = obtain(Store(store), Statistics(model), Serial(), RT)
    for name, value in found.tensors.items():
        assert torch.allclose(value, own.tensors[name], rtol=1e-4, atol=1e-6), name
    assert set(own.tensors) - set(found.tensors) == {
        *(f"{i:03d}.{n}" for i in (1, 3) for n in ("mean", "var", "batch_var", "class.var")),
        *(f"{i:03d}.{p}var" for i in (0, 2) for p in ("", "patch_", "class.", "class.patch_")),
    }


def test_doubled_is_halved(
    bench: Benchmark, store: Path, tmp_path: Path, model: Original, right: Arrays
) -> None:
    tree = released.doubled(released.released(right))
    found = read(released.written(tree, tmp_path / "tree"), model, store)
    assert [r.split()[0] for r in found.repairs] == ["swapped-patch", "doubled"]
    check(found, right, bench)


def test_another_network_of_the_same_class_is_left_out(
    bench: Benchmark, store: Path, tmp_path: Path, model: Original, right: Arrays
) -> None:
    more = {n.replace("features.0", "features.9"): a for n, a in right.items()}
    found = read(released.written({**more, **right}, tmp_path / "tree"), model, store)
    assert found.repairs == ("colliding (detected, 1 layers left out)",)
    check(found, right, bench)
    whole = {n: a for n, a in {**more, **right}.items() if "/class_" not in n}
    source = released.written(whole, tmp_path / "whole")
    with pytest.raises(StillroomError, match="take them with --repair colliding"):
        read(source, model, store, by_class=False)
    taken = read(source, model, store, "colliding", by_class=False)
    assert taken.repairs == ("colliding (asked for, 1 layers left out)",)


def test_a_larger_network_of_the_same_names_is_not_taken(
    bench: Benchmark, store: Path, tmp_path: Path, model: Original, right: Arrays
) -> None:
    """Every layer of a ResNet-18 has its name in a ResNet-50 too; the released tree holds both."""
    large = {n.replace("ConvNet", "ConvNet_large"): a for n, a in right.items()}
    large |= {n.replace("features.0", "features.9"): a for n, a in large.items()}
    found = read(released.written({**large, **right}, tmp_path / "tree"), model, store)
    assert found.repairs == ()
    check(found, right, bench)


def test_as_it_is(tmp_path: Path, store: Path, model: Original, right: Arrays) -> None:
    """`none`: what the released code compares images with, variances that are means."""
    tree = released.doubled(released.released(right))
    found = read(released.written(tree, tmp_path / "tree"), model, store, "none")
    assert found.repairs == ()
    place = "ConvNet=features.0/running.npz"
    twice = 2 * right[f"ConvFeatureHook/{place}"]["running_dd_mean"]
    np.testing.assert_allclose(found.of(0)["mean"], twice, rtol=1e-6)
    means = [right[f"ConvFeatureHook/class_{c}/{place}"]["running_patch_mean"] for c in range(2)]
    np.testing.assert_allclose(found.of(0)["class.patch_within"], np.stack(means), rtol=1e-6)


def test_variances_are_estimated(store: Path, tmp_path: Path) -> None:
    """Those of all pixels, far nearer to them than what the files hold; in real batches of 64.

    Of images that differ in brightness; in classes that come at random, as in a shuffled pass.
    """
    gen = torch.Generator().manual_seed(0)
    bright = torch.randint(0, 150, (256, 1, 1, 1), generator=gen)
    labels = torch.randint(0, 2, (256,), generator=gen)
    pixels = torch.randint(0, 60, (256, 3, 8, 8), generator=gen) + bright
    pixels[labels == 1, :, :4] += 20
    data = (pixels.to(torch.uint8), labels, pixels[:24].to(torch.uint8), labels[:24])
    bench = from_arrays(*data, classes=("left", "right"), name="bright", store=store)
    model = given(bench, store, tmp_path / "net.safetensors")
    tree = released.collected(released.network(bench), bench, 64)
    found = read(released.written(tree, tmp_path / "tree"), model, store, "variance")
    assert found.repairs == ("variance (asked for, 4 layers)",)
    exact: Observed = obtain(Store(store), Statistics(model), Serial(), RT)
    for i, layer in enumerate(found.layers):
        mine, own = found.of(i), exact.of(i)
        for name in ("class.var", "class.patch_var") if layer.kind == "conv" else ("class.var",):
            off = float((mine[name] - own[name]).norm())
            assert off < 0.25 * float((own[name.replace("var", "within")] - own[name]).norm())
        if layer.kind == "conv":
            for name in ("var", "patch_var"):
                assert torch.allclose(mine[name], own[name], rtol=0.02)


def test_keys_tell_trees_repairs_and_networks_apart(
    bench: Benchmark, store: Path, tmp_path: Path, model: Original, right: Arrays
) -> None:
    one = released.written(right, tmp_path / "one")
    two = released.written(released.doubled(right), tmp_path / "two")
    other = given(bench, store, tmp_path / "other.safetensors", seed=1)
    keys = [
        of_tree([who], source, repair, by_class)[0].key()
        for who, source, repair, by_class in (
            (model, one, (), True), (model, two, (), True), (other, one, (), True),
            (model, one, ("variance",), True), (model, one, ("none",), True),
            (model, one, (), False),
        )
    ]  # fmt: skip
    assert len(set(keys)) == 6
    moved = one.rename(tmp_path / "moved")
    assert of_tree([model], moved, (), True)[0].key() == keys[0]


def test_what_is_gone_is_said(store: Path, model: Original) -> None:
    stage = ReleasedStatistics(model, "0123456789abcdef")
    with pytest.raises(StillroomError, match="no released statistics 0123456789abcdef"):
        obtain(Store(store), stage, Serial(), RT)


# -- what does not fit ----------------------------------------------------------------------------
def spoiled(tree: Arrays, change: Callable[[str, released.Arrays], released.Arrays]) -> Arrays:
    return {name: change(name, dict(arrays)) for name, arrays in tree.items()}


def scaled(name: str, arrays: released.Arrays) -> released.Arrays:
    return arrays if "/class_" in name else {k: 0.4 * v for k, v in arrays.items()}


def negative(name: str, arrays: released.Arrays) -> released.Arrays:
    return {k: -v if k == "running_dd_var" else v for k, v in arrays.items()}


def wide(name: str, arrays: released.Arrays) -> released.Arrays:
    return {k: np.tile(v, 2) if "features.4" in name else v for k, v in arrays.items()}


def without(part: str) -> Callable[[Arrays], Arrays]:
    return lambda tree: {n: a for n, a in tree.items() if part not in n}


BAD: list[tuple[str, Callable[[Arrays], Arrays], tuple[str, ...], str]] = [
    ("several passes", lambda t: spoiled(t, scaled), (), r"are 0\.4 times those of the classes"),
    ("negative", lambda t: spoiled(t, negative), (), r"a variance of features\.0 is negative"),
    ("wrong repair", lambda t: t, ("swapped-patch",), "times those of the classes|is negative"),
    ("nothing collides", lambda t: t, ("colliding",), "leave --repair colliding out"),
    ("none alone", lambda t: t, ("none", "doubled"), "name it alone"),
    ("wider", lambda t: spoiled(t, wide), (), r"has 8 values of mean and convnet2-w4-bn 4"),
    ("no class", without("class_1/"), (), r"has no statistics of class_1 for ConvNet="),
    ("no global", without("Hook/ConvNet=features.0"), (), r"no statistics of all data"),
    ("no layer", without("features.4"), (), r"no network with the layers of convnet2-w4-bn"),
    ("more classes", lambda t: {**t, **{n.replace("class_1", "class_2"): a for n, a in t.items()
                                        if "class_1" in n}}, (), "has class_2, and toy only 2"),
    ("two networks", lambda t: {**t, **{n.replace("ConvNet", "Other"): a for n, a in t.items()}},
     (), "ConvNet and Other both have the layers"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("spoil", "repair", "words"), [b[1:] for b in BAD], ids=[b[0] for b in BAD]
)
def test_what_does_not_fit_is_refused(
    spoil: Callable[[Arrays], Arrays], repair: tuple[str, ...], words: str,
    store: Path, tmp_path: Path, model: Original, right: Arrays,
) -> None:  # fmt: skip
    source = released.written(spoil(right), tmp_path / "tree")
    with pytest.raises(StillroomError, match=words) as caught:
        read(source, model, store, *repair)
    assert str(caught.value).startswith(str(source))
    assert "\n" not in str(caught.value)


def test_statistics_of_other_weights_are_refused(
    bench: Benchmark, store: Path, tmp_path: Path, model: Original
) -> None:
    other = released.collected(released.network(bench, seed=5), bench, 8)
    source = released.written(other, tmp_path / "tree")
    with pytest.raises(StillroomError, match=r"does not go with the means that these weights keep"):
        read(source, model, store)
    assert read(source, model, store, "none").repairs == ()


def test_networks_that_are_trained_here_have_no_released_statistics(
    bench: Benchmark, store: Path, tmp_path: Path, right: Arrays
) -> None:
    trained = Original(Schooling(), bench.describe(), resolve("convnet1"), 0, store)
    with pytest.raises(StillroomError, match=r"name weights: convnet1=published or =FILE"):
        read(released.written(right, tmp_path / "tree"), trained, store)


# -- hostile archives -----------------------------------------------------------------------------
GOOD = "statistic/ConvFeatureHook/ConvNet=features.0/running.npz"


def npz(**arrays: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def plain(**change: np.ndarray) -> bytes:
    names = ("dd_mean", "dd_var", "patch_mean", "patch_var")
    usual = {f"running_{name}": np.zeros(3, np.float32) for name in names}
    return npz(**{**usual, **change})


def header(text: bytes, values: bytes = b"") -> bytes:
    """An npz whose first vector is an npy with this header."""
    npy = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + values
    return repacked(plain(), npy)


def repacked(data: bytes, first: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(stream, "w") as new:
        for i, name in enumerate(old.namelist()):
            new.writestr(name, first if i == 0 else old.read(name), zipfile.ZIP_DEFLATED)
    return stream.getvalue()


class Ran(Exception):  # noqa: N818 - what a pickle would raise, if it were read
    pass


class Bomb:
    def __reduce__(self) -> tuple[type[Ran], tuple[()]]:
        return Ran, ()


def pickled() -> bytes:
    array = np.empty(1, object)
    array[0] = Bomb()
    return plain(running_dd_mean=array)


def member(name: str, data: bytes = b"x", mode: int = 0) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


def archive(path: Path, *members: tuple[zipfile.ZipInfo | str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        for info, data in members:
            made.writestr(info, data)
    return path


LISTS: dict[str, tuple[list[tuple[zipfile.ZipInfo | str, bytes]], str]] = {
    "leads out": ([("../../etc/passwd", b"x")], r"leads out of it"),
    "leads out inside": ([("statistic/../../x", b"x")], r"leads out of it"),
    "absolute": ([("/etc/passwd", b"x")], "absolute or odd name '/etc/passwd'"),
    "drive": ([("C:/x", b"x")], "absolute or odd name"),
    "backslash": ([("a\\..\\b", b"x")], "absolute or odd name"),
    "link": ([(member("statistic/l", mode=stat.S_IFLNK | 0o777), b"/etc/passwd")], "is a link"),
    "device": ([(member("statistic/d", mode=stat.S_IFCHR | 0o666), b"")], "is a link or a device"),
    "nested": ([("statistic/inner.zip", b"PK")], "holds another zip"),
    "two trees": ([(GOOD.replace("statistic", "two"), plain())], "holds several trees"),
}
FILES: dict[str, tuple[bytes, str]] = {
    "pickle": (pickled(), "is of object; only real numbers"),
    "other key": (npz(weights=np.zeros(3)), "holds 'weights.npy', which is no statistic"),
    "too few": (npz(running_dd_mean=np.zeros(3)), "of a conv it should hold"),
    "integers": (plain(running_dd_mean=np.zeros(3, np.int64)), "is of int64"),
    "matrix": (plain(running_dd_mean=np.zeros((3, 3))), r"has shape \(3, 3\)"),
    "long": (plain(running_dd_mean=np.zeros(MOST_VALUES + 1, np.float16)), "at most 65536"),
    "number": (plain(running_dd_mean=np.zeros(())), "no image came to this layer"),
    "nan": (plain(running_dd_mean=np.array([1, np.nan])), "NaN or infinite"),
    "too large": (plain(running_dd_mean=np.array([1e300])), "NaN or infinite"),
    "huge shape": (header(b"{'descr': '<f4', 'fortran_order': False, 'shape': (60000,)}\n"),
                   "has 0 bytes of values"),
    "code": (header(b"{'descr': __import__('os').system('x'), 'shape': (3,)}\n"),
             "damaged or no npz of plain numbers"),
    "deep": (header(b"(" * 3000 + b")" * 3000), "header has 6000|damaged or no npz"),
    "odd type": (header(b"{'descr': 'zz', 'shape': (3,)}\n"), "damaged or no npz"),
    "structure": (header(b"{'descr': [('a', '<f4')], 'shape': (3,)}\n"), "not a plain array"),
    "inflates": (repacked(plain(), bytes(2**22)), "declares 4194304 bytes"),
    "cut off": (plain()[:-30], "damaged or no npz"),
    "text": (b"not an archive", "damaged or no npz"),
    "empty": (b"", "damaged or no npz"),
    "large": (bytes(FILE_BYTES + 1), "which no layer's statistics are"),
}  # fmt: skip


@pytest.mark.parametrize("name", LISTS)
def test_hostile_lists(name: str, tmp_path: Path) -> None:
    members, words = LISTS[name]
    source = archive(tmp_path / "bad.zip", (GOOD, plain()), *members)
    with pytest.raises(StillroomError, match=words) as caught, Tree.open(source):
        pass
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("name", FILES)
def test_hostile_files(name: str, packed: bool, tmp_path: Path) -> None:
    data, words = FILES[name]
    if packed:
        source = archive(tmp_path / "bad.zip", (GOOD, data))
    else:
        source = tmp_path / "bad"
        (source / GOOD).parent.mkdir(parents=True)
        (source / GOOD).write_bytes(data)
    place = Place("conv", "ConvNet", "features.0")
    with Tree.open(source) as tree, pytest.raises(StillroomError, match=words) as caught:
        tree.vectors(place)
    assert "\n" not in str(caught.value)
    assert GOOD in str(caught.value)


def patched(path: Path, *changes: tuple[bytes, int, bytes]) -> Path:
    """A zip with bytes at an offset from the last occurrence of a signature replaced."""
    data = bytearray(path.read_bytes())
    for signature, offset, new in changes:
        at = data.rfind(signature) + offset
        data[at : at + len(new)] = new
    path.write_bytes(data)
    return path


def test_lying_archives(tmp_path: Path) -> None:
    """Encrypted, of an unknown method, a size that is not the content's, two files of one name."""
    place = Place("conv", "ConvNet", "features.0")
    for i, (changes, words) in enumerate(
        (
            ([(b"PK\x01\x02", 8, b"\x01\x00"), (b"PK\x03\x04", 6, b"\x01\x00")], "is encrypted"),
            ([(b"PK\x01\x02", 10, b"\x0e\x00")], "is packed by method 14"),
            ([(b"PK\x01\x02", 24, struct.pack("<I", 2**31))], "declares 2147483648 bytes"),
            ([(b"PK\x01\x02", 24, struct.pack("<I", 2**10))], "cut off|damaged"),
            ([(b"PK\x01\x02", 16, b"\0\0\0\0")], "damaged|cannot be read"),
            ([(b"PK\x01\x02", 42, struct.pack("<I", 9))], "damaged|cannot be read"),
        )
    ):
        source = patched(archive(tmp_path / f"{i}.zip", (GOOD, plain())), *changes)
        with pytest.raises(StillroomError, match=words) as caught, Tree.open(source) as tree:
            tree.vectors(place)
        assert "\n" not in str(caught.value)
    long = patched(archive(tmp_path / "l.zip", (GOOD, plain())), (b"PK\5\6", 12, b"\0\0\0\x7f"))
    with pytest.raises(StillroomError, match=r"lists 2032 MiB of names"):
        Tree.open(long)
    with pytest.warns(UserWarning, match="Duplicate name"):
        twice = archive(tmp_path / "twice.zip", (GOOD, plain()), (GOOD, plain()))
    with pytest.raises(StillroomError, match="holds two files"):
        Tree.open(twice)


def test_neither_folder_nor_zip(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.zip").write_bytes(b"hello")
    (tmp_path / "cut.zip").write_bytes(
        archive(tmp_path / "a.zip", (GOOD, plain())).read_bytes()[:99]
    )
    for name, words in (
        ("absent", "no such folder or zip"), ("empty", "holds no ConvFeatureHook"),
        ("text.zip", "nor a whole zip"), ("cut.zip", "nor a whole zip"),
    ):  # fmt: skip
        with pytest.raises(StillroomError, match=words):
            Tree.open(tmp_path / name)
    os.mkfifo(tmp_path / "pipe.zip")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "ConvFeatureHook").symlink_to(tmp_path / "empty")
    with pytest.raises(StillroomError, match="ConvFeatureHook is a link"):
        Tree.open(tmp_path / "linked")


def test_files_beside_a_tree_are_left_alone(tmp_path: Path) -> None:
    source = archive(
        tmp_path / "a.zip", (GOOD, plain()), ("statistic/README.md", b"hello"),
        ("__MACOSX/statistic/._running.npz", b"x"),
        ("statistic/ConvFeatureHook/class_00/ConvNet=features.0/running.npz", b"x"),
    )  # fmt: skip
    with Tree.open(source) as tree:
        assert list(tree.files.values()) == [GOOD]
        assert set(tree.vectors(Place("conv", "ConvNet", "features.0"))) == {
            "mean", "var", "patch_mean", "patch_var",
        }  # fmt: skip


def test_names_that_are_the_same_here() -> None:
    assert released_name("imagenet/resnet18", "layer2.0.downsample.0") == "layer2.0.downsample.0"
    assert released_name("resnet18-bn", "layer2.0.downsample.0") == "layer2.0.shortcut.0"
    assert re.fullmatch(r"block2\.layer\.0\.convShortcut", released_name("wrn16-2",
                        "layer2.0.shortcut"))  # fmt: skip
