"""Terms that the outer loop adds to any method. No torch at import: recipes are made from here."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from stillroom.artefacts.schooling import MOST_MODELS, NamedSchooling, Schooling
from stillroom.config import Model

if TYPE_CHECKING:
    from torch import Tensor

    from stillroom.artefacts.stage import Stage
    from stillroom.methods.base import Context, Synth
    from stillroom.nets.zoo import Arch

Watchable = Literal[
    "original-model-accuracy", "original-model-loss", "original-model-calibration-error"
]
BATCH_REAL = 8196  # real images of a step of the contrastive term


class Watch(Model):
    """Assessments that are logged during a run, by one original model of its architecture.

    It is the first that no term uses: what a used one says is what is minimised.
    """

    measures: tuple[Watchable, ...] = Field(description="which", min_length=1)
    schooling: NamedSchooling = Field(
        Schooling.model_construct(), description="how the model is trained"
    )


class Regulariser(Model, ABC):
    """One scalar term a step, beside those of the method; the loop runs backward on it too.

    A recipe may hold several of one kind: `slot` is the place of this one, and belongs into the
    names of its artefacts and into what keys its draws.
    """

    papers: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def stages(self, bench: dict[str, Any], arch: Arch, store: Path, slot: int) -> dict[str, Stage]:
        """Return the artefacts that the term wants, by the names under which `term` finds them."""

    def renamed(self, rename: Callable[[str], str]) -> Regulariser:
        """The same with the networks of its pool under other names, as `Method.renamed`."""
        return self

    def adds(self) -> bool:
        """Whether it ever adds anything: a run whose terms never do is the run without them."""
        return True

    def networks(self) -> tuple[str, ...]:
        """The networks that its steps show images to, each as often; sizes plans, never results."""
        return ("auto",)

    def image_forwards(self, images: int) -> float:
        """Image forwards of one step over so many synthetic images, a backward counted as two."""
        return 3.0 * images

    def real_images(self) -> int:
        """Real images that one step holds, shown without a graph; sizes plans, never results."""
        return 0

    @abstractmethod
    def term(self, ctx: Context, synth: Synth, it: int, slot: int) -> Tensor | None:
        """Return the scalar term of step `it`, or None if there is nothing to add."""


class Clom(Regulariser):
    """Classification loss of an original model on the synthetic images ("CLOM").

    weight · CE(f(S), y), the mean over all images of the chunk, un-augmented, f one frozen model in
    evaluation mode, drawn by key at every step: an architecture of the pool, each as likely, then
    one of its `num` models. Source: the seed of CLOM, first generation; `distance` "cos" is the
    contrastive form of its later generations: weight · sum(M D) / sum(D) over pairs of a synthetic
    and a real image, D = 1 - cosine of features, M = 1 where the labels agree.
    """

    papers: ClassVar[tuple[str, ...]] = ("lu2023pretrained",)
    kind: Literal["clom"] = "clom"
    weights: tuple[Annotated[float, Field(ge=0)], ...] = Field(
        description="alpha: one for all architectures of the pool, or one each"
    )
    pool: tuple[str, ...] = Field(("auto",), description="architectures; auto: the distiller's")
    num: int = Field(5, ge=1, le=MOST_MODELS, strict=True, description="models of each")
    schooling: NamedSchooling = Field(
        Schooling.model_construct(), description="how they are trained"
    )
    distance: Literal["ce", "cos"] = Field("ce", description="cross-entropy, or contrastive cosine")
    batch_real: int | None = Field(
        None, ge=1, strict=True, description="real images of cos, a step; by default 8196"
    )

    @model_validator(mode="before")
    @classmethod
    def _default(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        value = dict(value)
        for name, one in (("weights", (int, float)), ("pool", str)):  # one alone needs no list
            if isinstance(value.get(name), one) and not isinstance(value[name], bool):
                value[name] = (value[name],)
        # As the papers' page has it. Filled in, so that a key and a listing hold the number.
        if value.get("distance") == "cos" and value.get("batch_real") is None:
            value["batch_real"] = BATCH_REAL
        return value

    @model_validator(mode="after")
    def _fit(self) -> Clom:
        if not self.pool:
            raise ValueError("pool names no architecture")
        if twice := next((n for i, n in enumerate(self.pool) if n in self.pool[:i]), None):
            raise ValueError(f"{twice} is named twice in the pool")
        if all("=" in name for name in self.pool) and self.schooling != Schooling():
            raise ValueError(
                "schooling: every network of the pool has given weights, so none is trained; leave "
                "it out"
            )
        if self.distance == "ce" and self.batch_real is not None:
            raise ValueError("batch_real belongs to distance cos")
        if len(self.weights) not in (1, len(self.pool)):
            raise ValueError(
                f"{len(self.weights)} weights for {len(self.pool)} architectures; give one, or one "
                "each"
            )
        return self

    def stages(self, bench: dict[str, Any], arch: Arch, store: Path, slot: int) -> dict[str, Stage]:
        """Every model of the pool, but those of weight zero, which nothing asks."""
        from stillroom.artefacts.originals import pool_of

        models = pool_of(self.pool, self.num, self.schooling, bench, arch, store)
        return {
            f"clom/{slot}/{k // self.num}/{k % self.num}": model
            for k, model in enumerate(models)
            if self.weight(k // self.num)
        }

    def renamed(self, rename: Callable[[str], str]) -> Clom:
        """The pool under other names; weights that are all alike are one."""
        alike = len(set(self.weights)) == 1
        weights = self.weights[:1] if alike else self.weights
        return self.model_copy(update={"pool": tuple(map(rename, self.pool)), "weights": weights})

    def adds(self) -> bool:
        """Where any weight is not zero."""
        return any(self.weights)

    def networks(self) -> tuple[str, ...]:
        """Those of the pool that have a weight."""
        return tuple(name for k, name in enumerate(self.pool) if self.weight(k))

    def image_forwards(self, images: int) -> float:
        """Of the steps that draw a network with a weight: there and back, but to no weights."""
        return (2.0 * images + self.real_images()) * len(self.networks()) / len(self.pool)

    def real_images(self) -> int:
        """Those that the contrastive form compares with."""
        return self.batch_real or 0

    def weight(self, arch: int) -> float:
        """That of an architecture of the pool."""
        return self.weights[arch if len(self.weights) > 1 else 0]

    def drawn(self, ctx: Context, it: int, slot: int) -> tuple[int, int]:
        """Architecture and number of the model of a step."""
        import torch

        gen = ctx.rng("clom", slot, it)
        arch = int(torch.randint(len(self.pool), (), generator=gen))
        return arch, int(torch.randint(self.num, (), generator=gen))

    def term(self, ctx: Context, synth: Synth, it: int, slot: int) -> Tensor | None:
        """See the class."""
        from stillroom.methods.original_loss import contrast, cross_entropy

        arch, index = self.drawn(ctx, it, slot)
        weight = self.weight(arch)
        if weight == 0:
            return None
        model = ctx.artefacts[f"clom/{slot}/{arch}/{index}"]
        if self.distance == "ce":
            return weight * cross_entropy(ctx, model, synth.images, synth.labels)
        assert self.batch_real is not None
        return weight * contrast(ctx, model, synth, self.batch_real, (slot, it))


REGULARISERS: dict[str, type[Regulariser]] = {"clom": Clom}
