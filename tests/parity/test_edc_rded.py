"""Padding, scores, choice, mosaics and patch shuffle, as the released RDED code makes them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from golden import golden, max_abs, max_rel
from stillroom.data.mosaic import best_of_each, mosaics, padded
from stillroom.data.replay import MixDraw
from stillroom.data.views import apply

data = golden("edc_rded")
RESOLUTION, FACTOR, IPC = (int(data.take(name)) for name in ("resolution", "factor", "ipc"))


def teacher() -> nn.Module:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )
    prefix = "teacher."
    net.load_state_dict({k.removeprefix(prefix): data.take(k) for k in data.keys(prefix)})
    return net.eval()


def chosen() -> Tensor:
    images, crops = best_of_each(data.take("score"), IPC * FACTOR**2)
    return data.take("crops")[images, crops]


def test_padding() -> None:
    assert torch.equal(padded(data.take("crops")[0], RESOLUTION), data.take("padded_first"))
    odd, wanted = data.take("pad_odd_in"), data.take("pad_odd_out")
    assert torch.equal(padded(odd, tuple(wanted.shape[2:])), wanted)


def test_scores() -> None:
    crops, net = data.take("crops"), teacher()
    flat = padded(crops.flatten(0, 1), RESOLUTION)
    label = data.take("label").expand(len(flat))
    with torch.no_grad():
        ours = F.cross_entropy(net(flat), label, reduction="none").view(crops.shape[:2])
    assert max_rel(ours, data.take("score")) <= 1e-4


def test_choice() -> None:
    score = data.take("score")
    everything, best = best_of_each(score, len(score))
    assert torch.equal(best[everything.argsort()], data.take("best_crop"))
    images, _ = best_of_each(score, IPC * FACTOR**2)
    assert torch.equal(images, data.take("rank"))
    assert torch.equal(chosen(), data.take("selected"))


def test_mosaics() -> None:
    ours = mosaics(chosen(), RESOLUTION, FACTOR, "spread")
    assert torch.equal(ours, data.take("mosaic"))
    side, factor, ipc = data.take("mosaic_odd_size").tolist()
    crops = data.take("mosaic_odd_in")
    assert len(crops) == ipc * factor**2
    assert torch.equal(mosaics(crops, side, factor, "spread"), data.take("mosaic_odd_out"))


@pytest.mark.parametrize("which", ["even", "odd"])
def test_patch_shuffle(which: str) -> None:
    x, wanted = (data.take(f"shuffle_{which}_{end}") for end in ("in", "out"))
    cols, rows = (data.take(f"shuffle_{which}_{end}")[None] for end in ("cols", "rows"))
    assert cols.shape[1] == rows.shape[1] == int(data.take(f"shuffle_{which}_factor"))
    size = tuple(wanted.shape[1:])
    box = torch.tensor([[0, 0, *size]])
    none = torch.zeros(1, dtype=torch.bool)
    drawn = MixDraw(tuple(x.shape[1:]), size, box, none, cols, rows)
    assert max_abs(apply(x[None], drawn)[0], wanted) == 0


def test_every_tensor_was_checked(request: pytest.FixtureRequest) -> None:
    data.finish(request)
