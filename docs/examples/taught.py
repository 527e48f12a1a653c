"""A method that wants a trained network, and a term of one's own; examples, not published ones.

Run them from this folder with `PYTHONPATH=. stillroom distill taught.yaml --out out/taught`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from stillroom.artefacts.schooling import NamedSchooling, Schooling
from stillroom.methods.base import Context, Method, Synth
from stillroom.methods.regularisers import Regulariser

if TYPE_CHECKING:
    from torch import Tensor

    from stillroom.artefacts.stage import Stage
    from stillroom.nets.ensemble import Ensemble
    from stillroom.nets.zoo import Arch


class LogitMatching(Method):
    """Match the mean logits of one trained network, class by class; pixels stay in [0, 1]."""

    kind: Literal["logit_matching"] = "logit_matching"
    batch_real: int = Field(64, ge=1, strict=True, description="real images per class, drawn once")
    schooling: NamedSchooling = Field(Schooling(epochs=2), description="of the trained network")

    def stages(self, bench: dict[str, Any], arch: Arch, store: Path) -> dict[str, Stage]:
        """One network of the recipe's architecture, trained on the real images."""
        from stillroom.artefacts.originals import Original

        return {"teacher": Original(self.schooling, bench, arch, 0, store)}

    def start(self, ctx: Context, rows: Tensor) -> Synth:
        """Real images of each class."""
        of_class = (rows // ctx.ipc).to(ctx.device)
        return Synth(ctx.real_images(rows).requires_grad_(), of_class, of_class)

    def loss(self, ctx: Context, synth: Synth, it: int) -> Iterator[Tensor]:
        """One term a class; the network and what it says of real images are made once."""
        from stillroom.artefacts.originals import opened

        teacher = ctx.once("teacher", lambda: opened(ctx.artefacts["teacher"], ctx.bench, ctx.rt))
        for c in ctx.share(len(ctx.bench.classes)):
            aim = ctx.once(f"aim/{c}", functools.partial(self._aim, ctx, teacher, c))
            made = teacher.logits(synth.images[synth.of_class == c])[0].mean(0)
            yield (made - aim).square().sum()

    def _aim(self, ctx: Context, teacher: Ensemble, c: int) -> Tensor:
        """Mean logits [C] of real images of a class."""
        import torch

        with torch.no_grad():
            return teacher.logits(ctx.real(c, self.batch_real, "aim"))[0].mean(0)

    def project(self, ctx: Context, synth: Synth) -> None:
        """Pixels stay in [0, 1]: the loop calls this after every step, without gradients."""
        synth.images.copy_(ctx.bench.preprocess.clamp(synth.images))


class Smoothness(Regulariser):
    """weight times the mean absolute difference of neighbouring pixels."""

    kind: Literal["smoothness"] = "smoothness"
    weight: float = Field(1.0, ge=0, description="of the term")

    def stages(self, bench: dict[str, Any], arch: Arch, store: Path, slot: int) -> dict[str, Stage]:
        """Nothing is needed."""
        return {}

    def term(self, ctx: Context, synth: Synth, it: int, slot: int) -> Tensor | None:
        """None, where there is nothing to add."""
        if self.weight == 0:
            return None
        across = synth.images.diff(dim=3).abs().mean()
        return self.weight * (across + synth.images.diff(dim=2).abs().mean())
