"""Feature-variance matching: distribution matching plus second moments.

An example of a method in one file, not a published one. Run it from this folder with
`PYTHONPATH=. stillroom distill variance.yaml --out out/variance`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from stillroom.methods.base import Context, Method, Synth

if TYPE_CHECKING:
    from torch import Tensor


class VarianceMatching(Method):
    """Match mean and variance of the features of random networks, class by class."""

    kind: Literal["variance_matching"] = "variance_matching"
    batch_real: int = Field(256, ge=2, strict=True, description="real images per class and step")
    weight: float = Field(0.1, ge=0, description="weight of the second-moment term")
    papers: ClassVar[tuple[str, ...]] = ()

    def start(self, ctx: Context, rows: Tensor) -> Synth:
        """Real images of each class; `requires_grad_` makes them what the loop moves."""
        of_class = (rows // ctx.ipc).to(ctx.device)
        return Synth(ctx.real_images(rows).requires_grad_(), of_class, of_class)

    def loss(self, ctx: Context, synth: Synth, it: int) -> Iterator[Tensor]:
        """One term a class; the loop runs backward on each as it comes."""
        import torch

        nets = ctx.nets(1, "net", it)  # fresh at every step, because the step is in the key
        for c in ctx.share(len(ctx.bench.classes)):
            with torch.no_grad():
                real = nets.features(ctx.real(c, self.batch_real, it, c), train=True)  # [K,B,D]
            made = nets.features(synth.images[synth.of_class == c], train=True)  # [K,ipc,D]
            mean = (real.mean(1) - made.mean(1)).square().sum()
            spread = real.var(1, correction=0) - made.var(1, correction=0)
            yield mean + self.weight * spread.square().sum()
