"""Gradient matching: weight gradients on synthetic images against those on real ones, by class.

DC: Zhao, Mopuri and Bilen 2021, "Dataset Condensation with Gradient Matching", arXiv:2006.05929.
DSA: Zhao and Bilen 2021, "Dataset Condensation with Differentiable Siamese Augmentation",
arXiv:2102.08259: the same loop with one augmentation for both sides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from stillroom.errors import StillroomError
from stillroom.methods.base import Context, Method, Synth

if TYPE_CHECKING:
    from torch import Tensor

    from stillroom.nets.ensemble import Ensemble, Nets

# Images a class -> matches of one network, epochs that it is trained between two of them.
PUBLISHED = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}
NORM_IMAGES = 16  # real images a class that give BatchNorm its statistics
EPOCHS = 500  # of one network, in all
LONGEST = 50  # matches; beyond that the authors advise to keep them


def loops(ipc: int) -> tuple[int, int]:
    """Matches of one network, and epochs between them: the published table, else a rule.

    The rule keeps what the table has in common: as many matches as images a class, 50 at most, and
    about 500 epochs for one network in all.
    """
    matches = min(ipc, LONGEST)
    return PUBLISHED.get(ipc, (matches, round(EPOCHS / matches)))


class GradientMatching(Method):
    """Distance of weight gradients, summed over classes; the network advances on the images."""

    kind: Literal["gradient_matching"] = "gradient_matching"
    batch_real: int = Field(256, ge=1, strict=True, description="real images per class and step")
    distance: Literal["layerwise", "mse", "cos"] = Field(
        "layerwise",
        description="layerwise: 1 - cosine by output unit; mse, cos: of all gradients as one",
    )
    matches: int | None = Field(
        None, ge=1, strict=True, description="steps of one network; default by ipc"
    )
    net_epochs: int | None = Field(
        None, ge=1, strict=True, description="its epochs on the images in between; by ipc"
    )
    net_lr: float = Field(0.01, gt=0, description="its step size, of SGD without momentum")
    net_batch: int = Field(256, ge=1, strict=True, description="its batch")
    augment: str = Field("none", description="Siamese augmentation, also used to train students")
    batchnorm: Literal["intended", "released"] = Field(
        "intended",
        description="statistics of BatchNorm layers while gradients are taken: those of 16 real "
        "images a class, or, as released, a tenth of them and nine tenths of the old ones",
    )
    init: Literal["real", "noise"] = Field("real", description="first images: real or noise")
    papers: ClassVar[tuple[str, ...]] = ("zhao2021dc", "zhao2021dsa")

    def loops(self, ipc: int) -> tuple[int, int]:
        """Matches and epochs as given, else as the table or the rule has them.

        With other matches than these, as many epochs as make about 500 for one network in all.
        """
        matches, epochs = loops(ipc)
        if self.matches is not None and self.matches != matches:
            matches, epochs = self.matches, max(1, round(EPOCHS / self.matches))
        return matches, self.net_epochs or epochs

    def refuse_unread(self, ipc: int, nets_of: Callable[[str], Nets], steps: int) -> None:
        """Settings of the network's training where it has none, of norms where there are none."""
        nets = nets_of("auto")
        fields = type(self).model_fields
        if nets.classes < 2:
            raise StillroomError(
                "gradients of a classification say nothing of one class alone; give data of two or "
                "more classes, or take dm"
            )
        if min(steps, self.loops(ipc)[0]) < 2:
            for name in ("net_epochs", "net_lr", "net_batch"):
                if getattr(self, name) != fields[name].default:
                    raise StillroomError(
                        f"method.{name}: at ipc {ipc} and {steps} steps a network "
                        "matches once and is never trained; leave it out, or ask for more steps or "
                        "more matches with method.matches=2"
                    )
        if self.batchnorm != fields["batchnorm"].default and not nets.has_batchnorm():
            raise StillroomError(
                f"method.batchnorm: {nets.arch.name} has no BatchNorm; leave it out, or name a "
                "network that has, such as --arch convnet3-bn"
            )

    def image_forwards(self, classes: int, ipc: int) -> float:
        """Gradients of the real images, twice differentiated synthetic ones, the network's steps.

        A gradient counts as three forwards, the gradient of a gradient as nine.
        """
        matches, epochs = self.loops(ipc)
        trained = 3 * ipc * epochs * (matches - 1) / matches
        return classes * (3 * self.batch_real + 9 * ipc + trained)

    def images_held(self, classes: int, ipc: int) -> int:
        """One class: its real images, or synthetic ones under two derivatives; or a batch that the
        network is trained on."""
        trained = min(self.net_batch, classes * ipc) if self.loops(ipc)[0] > 1 else 0
        return max(self.batch_real, 3 * ipc, trained)

    def norm_images(self, classes: int) -> int:
        """Those that settle the statistics before a network matches."""
        return NORM_IMAGES * classes

    def name(self) -> str:
        """The preset's name."""
        return "dc" if self.augment == "none" else "dsa"

    def start(self, ctx: Context, rows: Tensor) -> Synth:
        """Real images of each class, or Gaussian noise in network space (the papers have both)."""
        from stillroom.methods.starts import start_images

        of_class = (rows // ctx.ipc).to(ctx.device)
        return Synth(start_images(ctx, rows, self.init).requires_grad_(), of_class, of_class)

    def loss(self, ctx: Context, synth: Synth, it: int) -> Iterator[Tensor]:
        """One term a class, so that one class's graph is held at a time (spec: exact)."""
        matches, epochs = self.loops(ctx.ipc)
        turn, match = divmod(it, matches)
        nets = ctx.nets(1, "net", turn)
        if match:
            _recall(nets, synth)
            self._advance(ctx, nets, synth, it, epochs)
        if nets.nets.has_batchnorm():
            self._freeze(ctx, nets, it)
        _remember(nets, synth, keep=match + 1 < matches)
        yield from self._matched(ctx, nets, synth, it)

    def _matched(self, ctx: Context, nets: Ensemble, synth: Synth, it: int) -> Iterator[Tensor]:
        """The distance of every class of this rank."""
        import torch

        from stillroom.data.augment import apply, draw, parse
        from stillroom.methods.gradient_distance import DISTANCES

        strategy = parse(self.augment)
        for c in ctx.share(len(ctx.bench.classes)):
            # One draw a class and step, the same for real and synthetic images (Siamese).
            drawn = draw(strategy, 1, ctx.bench.size, ctx.rng("augment", it, c), siamese=True)
            real = apply(ctx.real(c, self.batch_real, it, c), drawn)
            target = nets.grads(real, torch.full((len(real),), c, device=ctx.device))
            rows = (synth.of_class == c).nonzero().squeeze(1)
            images = apply(synth.images[rows], drawn)
            yield nets.match(images, synth.labels[rows], target, DISTANCES[self.distance])

    def _freeze(self, ctx: Context, nets: Ensemble, it: int) -> None:
        """A class alone has no statistics that a network could use, so all classes give them."""
        import torch

        classes = range(len(ctx.bench.classes))
        batch = torch.cat([ctx.real(c, NORM_IMAGES, "norm", it, c) for c in classes])
        nets.freeze_norms(batch, None if self.batchnorm == "intended" else 0.1)

    def _advance(self, ctx: Context, nets: Ensemble, synth: Synth, it: int, epochs: int) -> None:
        """Train the network on the images as they are now, before it matches again."""
        import torch

        from stillroom.data.augment import parse
        from stillroom.nets.sources import Images
        from stillroom.nets.train import Training, train

        images = synth.images.detach()
        data = Images(lambda rows: images[rows.to(images.device)], synth.labels, ctx.bench.size)
        training = Training(
            epochs=epochs,
            batch=self.net_batch,
            lr=self.net_lr,
            momentum=0.0,
            weight_decay=0.0,
            schedule="constant",
            augment=parse(self.augment),
        )
        seed = int(torch.randint(2**62, (), generator=ctx.rng("inner", it)))
        nets.frozen = False  # BatchNorm then moves with the synthetic batches, as in the reference
        train(nets, data, training, [seed])


def _remember(nets: Ensemble, synth: Synth, keep: bool) -> None:
    """Keep the network for the next step; after its last match there is nothing to keep."""
    synth.memory.clear()
    if keep:
        params, buffers = nets.member(0)
        synth.memory.update({f"net.{n}": t for n, t in {**params, **buffers}.items()})


def _recall(nets: Ensemble, synth: Synth) -> None:
    """Give a network the weights that the last step left."""
    for part in nets.member(0):
        for name, tensor in part.items():
            value = synth.memory[f"net.{name}"]
            assert not isinstance(value, float)
            tensor.copy_(value)
