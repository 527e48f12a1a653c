"""`Difficulty`: how difficult each training image is, by networks early in their training.

EL2N and GraNd: Paul et al. 2021, arXiv:2107.07075. PAD (arXiv:2408.03360) orders the data of its
experts so; specification of trajectory matching, 3.6.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save
from torch import Tensor

from stillroom.artefacts.opened import nets_for, open_bench, real_images
from stillroom.artefacts.originals import Original, OriginalModel, opened
from stillroom.artefacts.schooling import SCHOOLINGS, Order, Schooling, changed
from stillroom.artefacts.stage import COMMON, Stage
from stillroom.artefacts.store import Store
from stillroom.errors import StillroomError
from stillroom.files import write_atomic
from stillroom.nets.zoo import Arch
from stillroom.runtime import Runtime

FILE = "scores.safetensors"
TOGETHER = 256  # images of one forward

Rule = Literal["grand", "el2n"]


@dataclass(frozen=True)
class Difficulty(Stage):
    """A score of every training image, float32 [N]: the mean over networks, larger is harder."""

    kind: ClassVar[str] = "difficulty"
    sources: ClassVar[tuple[str, ...]] = (
        *COMMON,
        "artefacts/difficulty.py",
        "artefacts/schooling.py",
    )

    rule: Rule
    models: tuple[Original, ...]

    def identity(self) -> dict[str, Any]:
        """The models' keys cover data, network and training."""
        return {"rule": self.rule, "models": [model.key() for model in self.models]}

    def about(self) -> str:
        """What it is, for a listing."""
        one = self.models[0]
        return f"{self.rule} of {one.bench['name']} by {len(self.models)} {one.arch.name}"

    def needs(self) -> tuple[Stage, ...]:
        """The networks that are asked."""
        return self.models

    def make(self, shard: int, out: Path, rt: Runtime) -> None:
        """Ask every network about every image."""
        rt = dataclasses.replace(rt, compile=False)
        one = self.models[0]
        bench, store = open_bench(one.bench, one.store, rt), Store(one.store)
        total = torch.zeros(len(bench.train), dtype=torch.float64)
        rt.session.begin("difficulty", len(self.models), 0)
        for done, stage in enumerate(self.models):
            model: OriginalModel = stage.load(store.folder(stage.key()))
            nets = opened(model, bench, rt)
            data = real_images(bench.train, model.space(bench), bench.size, rt)
            for rows in torch.arange(len(data)).split(TOGETHER):
                x, labels = data.take(rows), data.labels[rows.to(data.labels.device)]
                with torch.no_grad():
                    features = nets.features(x)[0] if self.rule == "grand" else None
                    found = scores(nets.logits(x)[0], labels, features)
                total[rows] += found.double().cpu()
                rt.session.check()
            rt.session.update(done + 1)
        rt.session.end()
        write_atomic(out / FILE, save({"scores": (total / len(self.models)).float()}))

    def flops(self, rt: Runtime) -> float:
        """Operations of the passes: a static count."""
        one, looks = self.models[0], 2.0 if self.rule == "grand" else 1.0
        bench = open_bench(one.bench, one.store, rt)
        each = nets_for(one.arch, bench, rt).forward_flops()
        return looks * len(self.models) * len(bench.train) * each

    def memory(self, rt: Runtime) -> int:
        """Bytes that a pass holds: a batch on its way."""
        one = self.models[0]
        bench = open_bench(one.bench, one.store, rt)
        largest = nets_for(one.arch, bench, rt).largest_activation()
        return TOGETHER * (4 * bench.channels * bench.size**2 + 4 * largest)

    def load(self, folder: Path) -> Tensor:
        """float32 [N], in the order of the training images."""
        found = load_file(folder / "0000" / FILE)["scores"]
        count = int(self.models[0].bench["counts"]["train"])
        if found.shape != (count,) or not bool(torch.isfinite(found).all()):
            raise StillroomError(
                f"{folder}: {list(found.shape)} scores that are not the finite ones of {count} "
                "images; remove it and make it again"
            )
        return found


def scores(logits: Tensor, labels: Tensor, features: Tensor | None = None) -> Tensor:
    """EL2N [B]: |softmax(logits) - one-hot|; with the features [B,D] GraNd of the last layer.

    That is the norm of the gradient of an image's cross-entropy in the last layer's weights and
    bias, which are (p - y) h^T and p - y. As common toolkits have it; the paper means all layers.
    """
    error: Tensor = (logits.softmax(1) - F.one_hot(labels, logits.shape[1])).norm(dim=1)
    return error if features is None else error * (1 + features.square().sum(1)).sqrt()


def by_difficulty(found: Tensor, labels: Tensor) -> list[Tensor]:
    """Rows int64 [N_c] of every class, the easiest first; of equal ones the earlier row."""
    return [
        rows[found[rows].argsort(stable=True)]
        for c in range(int(labels.max()) + 1)
        if len(rows := (labels == c).nonzero().squeeze(1))
    ]


def difficulty_of(
    order: Order, bench: dict[str, Any], arch: Arch, store: Path
) -> Difficulty | None:
    """The scores that an order needs; None where it needs none."""
    if order.scores == "none":
        return None
    usual = SCHOOLINGS["default"]  # stopped early in its course, not a short one run to its end
    long = {"epochs": max(usual.epochs, order.epochs), "stop": order.epochs}
    taught: Schooling = changed(usual, long)
    models = (Original(taught, bench, arch, i, store) for i in range(order.models))
    return Difficulty(order.scores, tuple(models))
