"""Cheap baselines: sets that are chosen or averaged, not optimised. They run no outer step.

random, herding (Welling 2009), k-center (Sener and Savarese 2018, greedy), k-means and class-mean.
A method that does not beat them under the same protocol is broken until one knows why.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from stillroom.config import DSA
from stillroom.errors import TooFewImagesError
from stillroom.methods.base import Context, Method, Outer, Synth

if TYPE_CHECKING:
    from torch import Tensor

Rule = Literal["random", "class-mean", "herding", "k-center", "k-means"]


class Selection(Method):
    """Choose (or average) real images, class by class, by one rule."""

    kind: Literal["selection"] = "selection"
    rule: Rule = Field("random", description="how images are chosen")
    space: Literal["pixels", "net"] = Field(
        "pixels",
        description="distances in pixels or in features of one random network "
        "(herding, k-center, k-means)",
    )
    centroids: bool = Field(
        False, description="k-means: publish the cluster means, not the nearest real images"
    )
    augment: str = Field(DSA, description="augmentation with which students are trained")
    papers: ClassVar[tuple[str, ...]] = ()

    def steps(self, outer: Outer) -> int:
        """Selection is done at the start."""
        return 0

    @model_validator(mode="after")
    def _refuse_unread(self) -> Selection:
        """An option that the rule would not read is a mistake, not a choice."""
        if self.centroids and self.rule != "k-means":
            raise ValueError(f"centroids belongs to k-means, not to {self.rule}; leave it out")
        if self.space == "net" and self.rule in ("random", "class-mean"):
            raise ValueError(f"space=net changes nothing for {self.rule}; leave it out")
        return self

    def uses_networks(self) -> bool:
        """Only distances in feature space do."""
        return self.space == "net"

    def name(self) -> str:
        """The rule."""
        return self.rule

    def start(self, ctx: Context, rows: Tensor) -> Synth:
        """Apply the rule to every class."""
        import torch

        of_class = rows // ctx.ipc
        images = torch.cat([self._of_class(ctx, int(c)) for c in of_class.unique()])
        return Synth(images, of_class.to(ctx.device), of_class.to(ctx.device))

    def loss(self, ctx: Context, synth: Synth, it: int) -> Iterator[Tensor]:
        """Nothing is optimised."""
        return iter(())

    def _of_class(self, ctx: Context, c: int) -> Tensor:
        """[ipc,ch,H,W] for class c."""
        import torch

        from stillroom.methods import coreset

        if self.rule == "random":
            return ctx.real_images(torch.arange(c * ctx.ipc, (c + 1) * ctx.ipc))
        images = ctx.real(c, 10**9, "all", c)
        if self.rule == "class-mean":
            return class_means_of(images, ctx.ipc)
        points = images.flatten(1) if self.space == "pixels" else self._features(ctx, images)
        if self.rule == "k-means":
            return self._k_means(ctx, c, images, points)
        pick = coreset.herding if self.rule == "herding" else coreset.k_center
        return images[pick(points, ctx.ipc).to(images.device)]

    def _k_means(self, ctx: Context, c: int, images: Tensor, points: Tensor) -> Tensor:
        import torch

        from stillroom.methods import coreset

        same = coreset.distinct(images)
        held, name = int(same.max()) + 1, ctx.bench.classes[c]
        if held < ctx.ipc:
            raise TooFewImagesError(
                f"ipc={ctx.ipc} but class {name!r} has {held} distinct training images, too few "
                "for k-means; lower --ipc or drop the class"
            )
        seed = int(torch.randint(2**31, (), generator=ctx.rng("k-means", c)))
        labels, nearest = coreset.k_means(points.cpu(), ctx.ipc, seed, same)
        if not self.centroids:
            return images[nearest.to(images.device)]
        filled = len(labels.unique())
        if filled < ctx.ipc:
            raise TooFewImagesError(
                f"ipc={ctx.ipc} but k-means fills only {filled} clusters of class {name!r}: its "
                f"{held} distinct training images lie too close together; lower --ipc"
            )
        labels = labels.to(images.device)
        return torch.stack([images[labels == j].mean(0) for j in range(ctx.ipc)])

    def _features(self, ctx: Context, images: Tensor) -> Tensor:
        import torch

        with torch.no_grad():
            return ctx.nets(1, "select").features(images)[0]


def class_means_of(images: Tensor, ipc: int) -> Tensor:
    """Means of `ipc` equal, disjoint parts of a (keyed, shuffled) class: [n,ch,H,W] -> [ipc,...].

    With one image a class this is the class mean.
    """
    import torch

    return torch.stack([part.mean(0) for part in images.tensor_split(ipc)])
