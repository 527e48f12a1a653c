"""Distribution matching (DM): class means of random-network features, real against synthetic.

Zhao and Bilen 2023, "Dataset Condensation with Distribution Matching", arXiv:2110.04181, eq. 6.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from stillroom.config import DSA
from stillroom.methods.base import Context, Method, Synth

if TYPE_CHECKING:
    from torch import Tensor


class DistributionMatching(Method):
    """Squared distance of mean features, summed over features and classes (not averaged)."""

    kind: Literal["distribution_matching"] = "distribution_matching"
    batch_real: int = Field(256, ge=1, strict=True, description="real images per class and step")
    nets: int = Field(1, ge=1, strict=True, description="fresh random networks per step")
    augment: str = Field(DSA, description="Siamese augmentation, also used to train students")
    init: Literal["real", "noise"] = Field("real", description="first images: real or noise")
    papers: ClassVar[tuple[str, ...]] = ("zhao2023dm",)

    def image_forwards(self, classes: int, ipc: int) -> float:
        """Real forwards without a graph; synthetic ones with a backward to the images alone."""
        return float(self.nets * classes * (self.batch_real + 2 * ipc))

    def name(self) -> str:
        """The preset's name."""
        return "dm"

    def start(self, ctx: Context, rows: Tensor) -> Synth:
        """Real images of each class (the paper's choice), or Gaussian noise in network space."""
        from stillroom.methods.starts import start_images

        of_class = (rows // ctx.ipc).to(ctx.device)
        return Synth(start_images(ctx, rows, self.init).requires_grad_(), of_class, of_class)

    def loss(self, ctx: Context, synth: Synth, it: int) -> Iterator[Tensor]:
        """One term a group of classes; a group shares one forward on either side."""
        import torch

        from stillroom.data.augment import apply_groups, draw, parse

        nets = ctx.nets(self.nets, "net", it)
        strategy = parse(self.augment)
        for classes in ctx.groups(self.batch_real):
            draws = [
                # One draw a class and step, the same for real and synthetic images (Siamese).
                draw(strategy, 1, ctx.bench.size, ctx.rng("augment", it, c), siamese=True)
                for c in classes
            ]
            real = [ctx.real(c, self.batch_real, it, c) for c in classes]
            rows = [(synth.of_class == c).nonzero().squeeze(1) for c in classes]
            counts = [len(r) for r in rows]
            with torch.no_grad():
                batch = apply_groups(torch.cat(real), [len(r) for r in real], draws)
                target = class_means(nets.features(batch, train=True), [len(r) for r in real])
            images = apply_groups(synth.images[torch.cat(rows)], counts, draws)
            made = class_means(nets.features(images, train=True), counts)
            yield mean_feature_distance(made, target)


def class_means(features: Tensor, counts: Sequence[int]) -> Tensor:
    """Means over consecutive groups: features [K,B,D], counts summing to B -> [K,G,D]."""
    import torch

    if len(set(counts)) == 1:
        k, _, d = features.shape
        return features.reshape(k, len(counts), counts[0], d).mean(2)
    return torch.stack([part.mean(1) for part in features.split(list(counts), dim=1)], dim=1)


def mean_feature_distance(made: Tensor, target: Tensor) -> Tensor:
    """Sum over classes and features of the squared difference of means: [K,G,D] -> scalar.

    Paper: eq. 6. Differs from the paper for K > 1 networks: their mean (the paper has K = 1).
    """
    return (made - target).square().sum((1, 2)).mean()
