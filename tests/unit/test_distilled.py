"""A set on disk: what goes in comes out, the same bytes every time, and damage is noticed."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch

from stillroom.distilled import Distilled, load, set_bytes
from stillroom.errors import StillroomError
from stillroom.types import Preprocess, Zca

SIZE = 4


def whitening() -> Zca:
    gen = torch.Generator().manual_seed(5)
    d = 3 * SIZE * SIZE
    half = torch.randn(d, d, generator=gen) / d
    return Zca(torch.rand(d, generator=gen), torch.eye(d) + (half + half.T) / 2)


def example(storage: str = "float32", kind: str = "hard", zca: bool = False) -> Distilled:
    gen = torch.Generator().manual_seed(1)
    of_class = torch.tensor([0, 0, 1, 1, 2, 2])
    soft = torch.randn(6, 3, generator=gen)
    labels = {"hard": of_class.clone(), "probs": soft.softmax(1), "logits": soft}[kind]
    pre = (
        Preprocess("none", (0.0,) * 3, (1.0,) * 3, whitening())
        if zca
        else Preprocess("cifar10", (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
    )
    return Distilled(
        images=pre.apply(torch.rand(6, 3, SIZE, SIZE, generator=gen)),
        labels=labels,
        label_kind=kind,  # type: ignore[arg-type]
        of_class=of_class,
        classes=("../x", "<script>", "é"),
        preprocess=pre,
        augment="flip",
        arch="convnet3",
        lr=0.01,
        tiles=2,
        storage=storage,  # type: ignore[arg-type]
        data={"name": "toy", "content": "0" * 64},
        provenance={"key": "k", "step": 3, "papers": ["zhao2023dm"]},
    )


ALL = list(product(("float32", "float16", "uint8"), ("hard", "probs", "logits"), (False, True)))


@pytest.mark.parametrize(("storage", "kind", "zca"), ALL)
def test_round_trip(storage: str, kind: str, zca: bool, tmp_path: Path) -> None:
    """What is loaded is what `quantised` promised, to the bit."""
    made = example(storage, kind, zca)
    made.save(tmp_path)
    back, promised = load(tmp_path), made.quantised()
    for name in ("images", "labels", "of_class"):
        assert torch.equal(getattr(back, name), getattr(promised, name)), name
        assert getattr(back, name).dtype == getattr(promised, name).dtype
    for name in ("label_kind", "classes", "augment", "arch", "lr", "tiles", "storage", "data"):
        assert getattr(back, name) == getattr(made, name), name
    assert back.provenance == made.provenance
    assert back.preprocess.describe() == made.preprocess.describe()
    if zca:
        assert torch.equal(back.preprocess.zca.transform, made.preprocess.zca.transform)
    assert float((back.pixels() - made.pixels()).abs().max()) < (0.01 if storage != "float32" else
                                                                 1e-6)  # fmt: skip
    assert set_bytes(tmp_path) == sum(p.stat().st_size for p in tmp_path.iterdir())


@pytest.mark.parametrize(("storage", "kind", "zca"), ALL)
def test_saving_what_was_loaded_changes_no_byte(
    storage: str, kind: str, zca: bool, tmp_path: Path
) -> None:
    made = example(storage, kind, zca)
    made.quantised().save(tmp_path / "one")
    load(tmp_path / "one").save(tmp_path / "two")
    for name in ("data.safetensors", "meta.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_quantising_twice_is_quantising_once() -> None:
    for storage, zca in product(("float32", "float16", "uint8"), (False, True)):
        once = example(storage, zca=zca).quantised()
        assert torch.equal(once.quantised().images, once.images), (storage, zca)


def test_bytes_repeat_in_other_processes(tmp_path: Path) -> None:
    """Hash order, which differs between processes, must not reach a file."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path; "
        "from test_distilled import example; "
        "example('uint8', 'probs', True).save(Path(sys.argv[2]))"
    )
    example("uint8", "probs", True).save(tmp_path / "here")
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(Path(__file__).parent), str(tmp_path / seed)],
            env={**os.environ, "PYTHONHASHSEED": seed},
        )
        for seed in ("1", "2")
    ]
    assert [process.wait() for process in running] == [0, 0]
    for name in ("data.safetensors", "meta.json"):
        assert len({(tmp_path / n / name).read_bytes() for n in ("here", "1", "2")}) == 1


def test_every_flipped_byte_is_noticed(tmp_path: Path) -> None:
    """In the tensors, all of them; in the metadata, every one that is not white space."""
    made = example("uint8")
    made.save(tmp_path)
    for name in ("data.safetensors", "meta.json"):
        path = tmp_path / name
        whole = path.read_bytes()
        for at in range(0, len(whole), 7):
            spoilt = bytearray(whole)
            spoilt[at] ^= 4
            path.write_bytes(bytes(spoilt))
            try:
                back = load(tmp_path)
            except StillroomError:
                continue
            # padding of the header, or the one field that says where the file is from
            assert name == "meta.json" or at < len(whole) - 6 * 51
            assert torch.equal(back.images, made.quantised().images)
            assert torch.equal(back.labels, made.labels)
            assert back.classes == made.classes
        path.write_bytes(whole)


def test_no_path_and_no_time_is_kept(tmp_path: Path) -> None:
    example().save(tmp_path / "set")
    text = (tmp_path / "set" / "meta.json").read_text()
    assert str(tmp_path) not in text
    for word in ("seconds", "device", "host", "date", "torch_version"):
        assert word not in text


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"images": torch.full((6, 3, SIZE, SIZE), float("inf"))}, "NaN or infinite"),
        ({"of_class": torch.tensor([0, 0, 1, 1, 2, 3])}, "of_class must lie in 0..2"),
        ({"labels": torch.zeros(5, dtype=torch.int64)}, "hard labels must be int64"),
        ({"classes": ("a", "b", "a")}, "same name"),
        ({"classes": ("a", "b", "x" * 301)}, "1 to 300 letters"),
        ({"lr": 0.0}, "must be positive"),
        ({"tiles": 0}, "must be positive"),
        ({"preprocess": Preprocess("x", (0.0,), (1.0,))}, "one number a channel"),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_a_set_that_contradicts_itself(
    change: dict[str, object], problem: str, tmp_path: Path
) -> None:
    replace(example(), **change).save(tmp_path)  # type: ignore[arg-type]
    with pytest.raises(StillroomError, match=problem):
        load(tmp_path)


def test_ipc_is_that_of_the_largest_class() -> None:
    assert example().ipc == 2
    assert replace(example(), of_class=torch.tensor([0, 1, 1, 1, 2, 2])).ipc == 3
    assert len(example()) == 6
