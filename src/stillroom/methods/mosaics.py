"""Mosaics of real crops that a trained network finds easy; nothing is optimised.

RDED: Sun et al. 2024, arXiv:2312.03526. "edc" is the variant that EDC starts from, as its code has
it (arXiv:2404.13733). Specification of the decoupled methods, 3.1 and 7.4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from stillroom.artefacts.schooling import NamedSchooling, Schooling
from stillroom.methods.base import Context, Method, Outer, Synth
from stillroom.methods.crops import Crops

if TYPE_CHECKING:
    from torch import Tensor

    from stillroom.artefacts.stage import Stage
    from stillroom.nets.zoo import Arch


class Mosaics(Method):
    """Crops of real images that trained networks classify best, put together."""

    kind: Literal["mosaics"] = "mosaics"
    observers: tuple[str, ...] = Field(
        ("auto",), min_length=1, description="networks that score, together; auto: the recipe's"
    )
    schooling: NamedSchooling = Field(
        Schooling.model_construct(), description="how they are trained"
    )
    crops: Crops = Field(Crops.model_construct(), description="what is scored")
    augment: str = Field("crop_flip", description="what students should be trained with")
    papers: ClassVar[tuple[str, ...]] = ("sun2024rded",)

    def renamed(self, rename: Callable[[str], str]) -> Mosaics:
        """Observers under other names."""
        return self.model_copy(update={"observers": tuple(map(rename, self.observers))})

    def steps(self, outer: Outer) -> int:
        """None: crops are chosen at the start."""
        return 0

    def name(self) -> str:
        """The preset."""
        return "rded"

    def stages(self, bench: dict[str, Any], arch: Arch, store: Path) -> dict[str, Stage]:
        """The networks that score."""
        from stillroom.artefacts.originals import pool_of

        models = pool_of(self.observers, 1, self.schooling, bench, arch, store)
        return {f"observer/{k}": model for k, model in enumerate(models)}

    def networks(self) -> tuple[str, ...]:
        """Those that score."""
        return self.observers

    def start_cost(self, sizes: Sequence[int], ipc: int) -> tuple[float, int]:
        """Scoring."""
        return float(sum(map(self.crops.scored, sizes))), max(map(self.crops.held, sizes))

    def judged_by(self) -> str:
        """Students of its paper learn what trained networks say of the images."""
        return "rded@1"

    def too_few(self, images: int, ipc: int, size: int) -> str:
        """Why no class of so many images gives enough crops."""
        return self.crops.too_few(images, ipc, size)

    def start(self, ctx: Context, rows: Tensor) -> Synth:
        """Choose and compose, class by class."""
        from stillroom.methods.scored import mosaics_of

        of_class = (rows // ctx.ipc).to(ctx.device)
        return Synth(mosaics_of(self.crops, ctx, rows), of_class, of_class)

    def loss(self, ctx: Context, synth: Synth, it: int) -> Iterator[Tensor]:
        """Nothing is optimised."""
        return iter(())
