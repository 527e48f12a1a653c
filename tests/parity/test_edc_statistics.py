"""Layer statistics against EDC (origin: shared/parity/README-edc-edf.md)."""

from __future__ import annotations

import pytest
import torch

from golden import Golden, max_rel
from golden import golden as load_golden
from stillroom.nets.hooks import Stats, Sums, cells, of_batch, of_images

NAMES = {"mean": "dd_mean", "var": "dd_var", "patch_mean": "patch_mean", "patch_var": "patch_var"}


@pytest.fixture(scope="module")
def golden() -> Golden:
    return load_golden("edc_statistics")


def sums(golden: Golden, patch: int | None = 4) -> Sums:
    found = Sums(len(golden.take("class_count")))
    for part in "ab":
        found.add(golden.take(f"x_{part}"), golden.take(f"labels_{part}"), patch)
    return found


@pytest.mark.parametrize(
    ("x", "prefix", "patch"),
    [("x_a", "batch_a", 4), ("x_b", "batch_b", 4), ("x_odd", "odd", 4), ("x_k16", "k16", 16)],
)
def test_of_a_batch(golden: Golden, x: str, prefix: str, patch: int) -> None:
    found = of_batch(golden.take(x), patch)
    assert list(found) == list(NAMES)
    for name, theirs in NAMES.items():
        tolerance = 2e-5 if "patch" in name else 1e-5
        assert max_rel(found[name], golden.take(f"{prefix}_{theirs}")) <= tolerance, name


def test_of_all_batches(golden: Golden) -> None:
    """As released, variances averaged over batches; and exactly, of the union."""
    found = sums(golden).statistics(by_class=False)
    for name, theirs in NAMES.items():
        released = found[f"batch_{name}"] if name.endswith("var") else found[name]
        assert max_rel(released, golden.take(f"conv_global_{theirs}")) <= 1e-5, name
        assert max_rel(found[name], golden.take(f"exact_{name}")) <= 1e-6, name
    assert max_rel(found["batch_var"], found["var"]) > 1e-3, "they are two things"


def test_of_every_class(golden: Golden) -> None:
    """As released, the mean of the variances inside an image; and pooled over a class's images."""
    whole = sums(golden)
    assert torch.equal(whole.tensors["count"].flatten().long(), golden.take("class_count"))
    found = whole.statistics(by_class=True)
    released = {
        "dd_mean": found["class.mean"],
        "dd_var": found["class.within"],
        "patch_mean": found["class.patch_mean"],
        "patch_var": found["class.patch_within"],
    }
    for name, mine in released.items():
        assert max_rel(mine, golden.take(f"conv_class_{name}")) <= 3e-5, name
        if name.startswith("dd"):
            assert max_rel(mine, golden.take(f"bn_class_{name}")) <= 1e-5, name
    for name in ("mean", "var", "patch_var"):
        theirs = golden.take(f"class_total_{name}")
        assert max_rel(found[f"class.{name}"], theirs) <= 1e-6, name


def test_patches_of_every_size(golden: Golden) -> None:
    sizes = golden.take("patch_count_size").tolist()
    for patch in (4, 16):
        theirs = golden.take(f"patch_count_k{patch}").tolist()
        for size, count in zip(sizes, theirs, strict=True):
            stats: Stats = of_images(torch.zeros(1, 1, size, size), patch)
            assert stats["patch_mean"].shape == (1, count), (patch, size)
            assert cells(torch.zeros(1, 1, size, size), patch).shape[2] ** 2 == count


def test_every_tensor_was_looked_at(golden: Golden, request: pytest.FixtureRequest) -> None:
    golden.finish(request)
