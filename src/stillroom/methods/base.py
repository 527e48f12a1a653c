"""The contract between the outer loop and a method. No torch at import: flags are made from here.

A method is a frozen pydantic model whose fields are its hyper-parameters. It owns mathematics and
nothing else: the loop (`outer.py`) owns backward, optimisers, snapshots, ranks and NaN guards.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from pydantic import Field, ValidationInfo, field_validator

from stillroom.config import Grown, Model

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import Tensor

    from stillroom.artefacts.stage import Stage
    from stillroom.data.benchmarks import Benchmark
    from stillroom.nets.ensemble import Ensemble, Nets
    from stillroom.nets.zoo import Arch
    from stillroom.runtime import Runtime


class Optim(Grown):
    """The optimiser of one learnable."""

    later: ClassVar[tuple[str, ...]] = ("beta2", "schedule")

    kind: Literal["sgd", "adam"] = Field("sgd", description="sgd (with momentum) or adam")
    lr: float = Field(1.0, gt=0, description="step size")
    momentum: float = Field(0.5, ge=0, lt=1, description="momentum of sgd; beta1 of adam")
    beta2: float = Field(0.999, ge=0, lt=1, description="of adam")
    schedule: Literal["constant", "cosine"] = Field(
        "constant", description="of the step size: as it is, or half a cosine down to zero"
    )

    def rate(self, step: int, steps: int) -> float:
        """The step size of a step (0-based) of so many."""
        if self.schedule == "cosine":
            return self.lr * 0.5 * (1 + math.cos(math.pi * step / steps))
        return self.lr


class Outer(Model):
    """The outer loop: how many steps, and how each learnable moves."""

    steps: int = Field(1000, ge=0, le=10**7, strict=True, description="outer steps")
    images: Optim = Field(Optim.model_construct(), description="optimiser of the images")
    labels: Optim | None = Field(None, description="optimiser of learned labels, where learned")
    rate: Optim | None = Field(None, description="optimiser of a learned rate, where learned")
    keep: tuple[int, ...] = Field((), description="steps whose sets are published beside the last")

    @field_validator("keep")
    @classmethod
    def _within(cls, value: tuple[int, ...], info: ValidationInfo) -> tuple[int, ...]:
        steps = info.data.get("steps")
        outside = [s for s in value if steps is not None and not 1 <= s <= steps]
        if outside:
            raise ValueError(f"step {outside[0]} lies outside the run's {steps} steps")
        return tuple(sorted(set(value)))


@dataclass
class Synth:
    """The complete state of one chunk of synthetic images: a snapshot of it is enough to resume.

    images float32 [N,ch,H,W]; labels int64 [N] or float32 [N,C]; of_class int64 [N], class-major;
    lr float32 scalar or None; memory, tensors and numbers that the method carries from step to
    step, empty at the start of every chunk.
    """

    images: Tensor
    labels: Tensor
    of_class: Tensor
    lr: Tensor | None = None
    memory: dict[str, Tensor | float] = field(default_factory=dict)

    def learnables(self) -> dict[str, Tensor]:
        """The tensors that the outer loop moves, by name."""
        found = {"images": self.images, "labels": self.labels, "rate": self.lr}
        return {k: v for k, v in found.items() if v is not None and v.requires_grad}


class Context(Protocol):
    """Everything that a method may touch (implemented by `context.RunContext`)."""

    bench: Benchmark
    ipc: int
    seed: int
    chunk: int
    steps: int
    rt: Runtime
    artefacts: Mapping[str, Any]

    @property
    def device(self) -> torch.device:
        """Where tensors live."""

    def rng(self, *key: str | int) -> torch.Generator:
        """A fresh CPU generator for (seed, chunk, *key)."""

    def share(self, n: int) -> range:
        """This rank's part of n independent terms."""

    def real(self, c: int, n: int, *key: str | int) -> Tensor:
        """[min(n, size of class c),ch,H,W] real images of class c, drawn by key, preprocessed."""

    def real_rows(self, c: int, *key: str | int) -> Tensor:
        """int64 [size of class c]: its training images in an order drawn by key."""

    def take(self, rows: Tensor) -> Tensor:
        """[len(rows),ch,H,W] training images, preprocessed."""

    def real_images(self, rows: Tensor) -> Tensor:
        """[len(rows),ch,H,W]: a distinct real image of its class for every synthetic row."""

    def nets(self, k: int, *key: str | int, arch: str | None = None) -> Ensemble:
        """K freshly initialised networks, keyed."""

    def groups(self, per_class: int) -> list[list[int]]:
        """This rank's classes in groups that share one forward of `per_class` images each."""

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """What `make` returned when `name` was first asked for in this chunk."""

    def log(self, **metrics: float | Tensor) -> None:
        """Numbers for `metrics.jsonl`, beside the loss."""


class Method(Model, ABC):
    """A family of distillation methods; papers are recipes over its fields."""

    papers: ClassVar[tuple[str, ...]] = ()
    numerics: ClassVar[tuple[str, ...]] = ("float32", "tf32", "bf16", "float64")
    """Those that change something: the others are refused."""
    unkeyed: ClassVar[tuple[str, ...]] = ()
    """Fields that change where things are kept, and no result."""
    of_init: ClassVar[tuple[str, ...]] = ()
    """Fields of a row that mean nothing where another `init` is asked for than the row's."""

    @abstractmethod
    def start(self, ctx: Context, rows: Tensor) -> Synth:
        """Make the first state of a chunk; rows int64 [N] index the whole set, class-major."""

    @abstractmethod
    def loss(self, ctx: Context, synth: Synth, it: int) -> Iterator[Tensor]:
        """Yield scalar terms of step `it`; the loop runs backward on each at once."""

    def adjust(self, ctx: Context, synth: Synth, it: int) -> bool:
        """Edit `.grad` before the optimisers move; return False to drop the step."""
        return True

    def project(self, ctx: Context, synth: Synth) -> None:
        """Bring the learnables back to where they may be, after the optimisers moved them."""

    def published(self, synth: Synth) -> Tensor:
        """The images [N,ch,H,W] that a set of this state holds: those that are moved, usually."""
        return synth.images

    def published_labels(self, synth: Synth) -> Tensor:
        """The labels of such a set, int64 [N] or logits [N,C]: those of the state, usually."""
        return synth.labels

    def chunks(self, classes: int, ipc: int) -> Sequence[range]:
        """Rows that are optimised together; by default all of them."""
        return [range(classes * ipc)]

    def stages(self, bench: dict[str, Any], arch: Arch, store: Path) -> dict[str, Stage]:
        """Artefacts that the method wants made first, by the names of `ctx.artefacts`.

        `bench` is what `Benchmark.describe` gave, `arch` the recipe's network.
        """
        return {}

    def renamed(self, rename: Callable[[str], str]) -> Method:
        """The same with its trained networks under other names.

        A run gives those with weights of a user's own (`NETWORK=FILE`) the names that go into keys.
        """
        return self

    @classmethod
    def let_go(cls, own: dict[str, Any], asked: dict[str, Any]) -> None:
        """Take out of a preset's or row's fields what means nothing beside those asked for."""
        if asked.get("init", own.get("init")) != own.get("init"):
            for name in cls.of_init:
                own.pop(name, None)

    def settle_start(self, ctx: Context, synth: Synth) -> None:
        """Settle what follows from the first images after given ones took their place."""

    def steps(self, outer: Outer) -> int:
        """How many outer steps this method runs; selection methods run none."""
        return outer.steps

    def uses_networks(self) -> bool:
        """Whether the recipe's network changes the images; else it is no part of the key."""
        return True

    def image_forwards(self, classes: int, ipc: int) -> float:
        """Image forwards of one step, a backward counted as two: sizes plans, never results."""
        return 3.0 * classes * ipc

    def keyed(self) -> dict[str, Any]:
        """The fields that determine the pixels, as JSON."""
        found = self.model_dump(mode="json")
        return {name: value for name, value in found.items() if name not in self.unkeyed}

    def refuse_unread(self, ipc: int, nets_of: Callable[[str], Nets], steps: int) -> None:
        """Refuse what the user set and this ipc, network and number of steps leave nothing to read.

        `nets_of`: makes networks by name, "auto" being the recipe's.
        Raises: StillroomError naming the field.
        """

    def networks(self) -> tuple[str, ...]:
        """The networks that a step shows images to, "auto" being the recipe's; sizes plans."""
        return ("auto",)

    def looked_at(self, images: int) -> dict[str, int]:
        """Networks beside those of `networks`, and how many of the set's images each is shown at
        once with a graph; sizes plans.
        """
        return {}

    def images_held(self, classes: int, ipc: int) -> int | None:
        """Images whose activations are in memory at once, at most; sizes plans, never results.

        None: a group of classes, as `Context.groups` makes them.
        """
        return None

    def times_held(self, compiled: bool) -> float:
        """How many times its activations such an image holds: more than once where gradients are
        differentiated; sizes plans, never results.
        """
        return 1.0

    def parameters_held(self, on_gpu: bool) -> int:
        """Copies of a network's parameters that a step keeps on its device; sizes plans, never
        results.
        """
        return 0

    def norm_images(self, classes: int) -> int:
        """Real images of one forward without a graph that gives BatchNorm its statistics, where the
        network has any; sizes plans, never results.
        """
        return 0

    def start_cost(self, sizes: Sequence[int], ipc: int) -> tuple[float, int]:
        """Real images that each of the networks is shown beside the steps, and how many images are
        held then at once; from the number of images of every class. Sizes plans, never results.
        """
        return 0.0, 0

    def judged_by(self) -> str:
        """A protocol that any set of the method can be judged by, where students are to learn from
        more than its images and labels: teachers, or a rate of its own; else nothing.
        """
        return ""

    def too_few(self, images: int, ipc: int, size: int) -> str:
        """Why a class of so many real images, of `size` pixels, is too small to start from, with
        the remedy; nothing if it is not.
        """
        if images >= ipc or getattr(self, "init", "real") not in ("real", "known"):
            return ""
        return f"has {images} training images; lower --ipc or drop the class"

    def name(self) -> str:
        """What tables call the method: the preset it is, else its kind."""
        return str(getattr(self, "kind", type(self).__name__)).rpartition(":")[2]

    def augment_name(self) -> str:
        """The augmentation that a student of the set should be trained with."""
        return str(getattr(self, "augment", "none"))
