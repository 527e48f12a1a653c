"""Trajectory matching: a student that trains on the images should end where an expert does.

MTT: Cazenavette et al. 2022, arXiv:2203.11932; FTD: Du et al. 2023, arXiv:2211.11004; TESLA: Cui et
al. 2023, arXiv:2211.10586; DATM: Guo et al. 2024, arXiv:2310.05773; PAD: Li et al. 2024,
arXiv:2408.03360; EDF: Wang et al. 2025, arXiv:2410.17193. One method, six settings of it;
specification of trajectory matching, section 4 to 6.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from stillroom.artefacts.schooling import SCHOOLINGS, NamedSchooling
from stillroom.config import DSA, Grown
from stillroom.errors import StillroomError, suggest
from stillroom.methods.base import Context, Method, Synth
from stillroom.methods.trajectory_options import (
    EXPERTS,
    Areas,
    Labeller,
    Parameters,
    Window,
    let_go_of_groups,
)
from stillroom.methods.trajectory_student import (
    AT_ONCE,
    batches,
    drawn,
    said_with,
    stretch,
    with_parameters,
)

if TYPE_CHECKING:
    from torch import Tensor

    from stillroom.artefacts.experts import Trajectory
    from stillroom.artefacts.stage import Stage
    from stillroom.methods.trajectory_start import Logits
    from stillroom.nets.ensemble import Nets
    from stillroom.nets.zoo import Arch

NOTHING_YET = 20  # steps, all of them dropped, after which that is said
LEAST_RATE = 1e-6  # of the student, which the reference lets turn negative


class TrajectoryMatching(Grown, Method):
    """Distance of a student's parameters to an expert's, through the student's whole training."""

    later: ClassVar[tuple[str, ...]] = ("labeller", "buffers", "kept")
    unkeyed: ClassVar[tuple[str, ...]] = ("theta",)

    kind: Literal["trajectory_matching"] = "trajectory_matching"
    experts: int = Field(20, ge=1, le=10**4, strict=True, description="networks that are followed")
    schooling: NamedSchooling = Field(
        SCHOOLINGS["mtt"], description="how they are trained; epochs as far as they are read"
    )
    buffers: str = Field(
        "", description="folder of replay_buffer_N.pt of others, in place of experts trained here"
    )
    kept: Literal["float32", "float16"] = Field(
        "float32", description="how experts lie on disk; float16: differences to their first epoch"
    )
    window: Window = Field(Window.model_construct(), description="which stretch is matched")
    inner: int = Field(50, ge=1, le=10**4, strict=True, description="steps of the student")
    batch: int = Field(
        256, ge=1, strict=True, description="synthetic images a step of the student; all if fewer"
    )
    rate: float = Field(0.01, gt=0, description="step size of the student, learned from there on")
    labels: Literal["hard", "learned", "assigned"] = Field(
        "hard",
        description="classes; logits that are learned (DATM); those of the expert that is matched "
        "(TESLA)",
    )
    parameters: Parameters = Field(
        Parameters.model_construct(), description="which count in the distance"
    )
    areas: Areas = Field(Areas.model_construct(), description="pixels that move more")
    gate: float | None = Field(
        None, gt=0, description="steps with a larger distance are dropped; none: no step is"
    )
    ema: float | None = Field(
        None, ge=0, lt=1, description="the set is a moving average of the images (FTD)"
    )
    engine: Literal["exact", "tesla", "unrolled"] = Field(
        "exact", description="of gradients; tesla is approximate beyond one step"
    )
    theta: Literal["device", "host", "recompute"] = Field(
        "device", description="where exact and tesla keep the student's parameters of every step"
    )
    augment: str = Field(DSA, description="of the student's batches, and of students of the set")
    init: Literal["real", "noise", "known"] = Field(
        "real", description="first images: real, noise, or real ones that an expert classifies"
    )
    labeller: Labeller = Field(
        Labeller.model_construct(), description="who knows first images, and labels them"
    )
    numerics: ClassVar[tuple[str, ...]] = ("float32", "tf32", "float64")
    """Second derivatives are in no bf16; experts have numerics of their own, in their schooling."""
    papers: ClassVar[tuple[str, ...]] = (
        "cazenavette2022mtt",
        "du2023ftd",
        "cui2023tesla",
        "guo2024datm",
        "li2024pad",
        "wang2025edf",
    )

    @model_validator(mode="after")
    def _every_field_is_read(self) -> TrajectoryMatching:
        if self.engine == "unrolled" and self.theta != "device":
            raise ValueError("theta is of exact and tesla; unrolled keeps the whole graph")
        if self.buffers and self.kept != "float32":
            raise ValueError("kept is of experts trained here, and buffers hold some")
        if not self.buffers and self.reads > self.schooling.passes:
            raise ValueError(
                f"an expert is read up to epoch {self.reads} ({self._read_last}), and trained for "
                f"{self.schooling.passes}; give schooling more epochs, or lower that"
            )
        if not self._asked and self.labeller != Labeller.model_construct():
            raise ValueError("labeller belongs to init known or to labels learned; set one of them")
        return self

    @model_validator(mode="before")
    @classmethod
    def _nobody_knows_how_given_experts_were_trained(cls, data: Any) -> Any:
        """A preset's or row's schooling is not that of experts that others trained."""
        if isinstance(data, dict) and data.get("buffers"):
            return {name: value for name, value in data.items() if name != "schooling"}
        return data

    def unsaid(self) -> tuple[str, ...]:
        """How given experts were trained."""
        return ("schooling",) if self.buffers else ()

    @property
    def reads(self) -> int:
        """The last epoch of an expert that is asked for by its number."""
        return max(self.window.needed, self.labeller.epoch or 0)

    @property
    def _read_last(self) -> str:
        """Which settings ask for that epoch, in words."""
        w = self.window
        if self.reads > w.needed:
            return f"labeller.epoch {self.labeller.epoch}"
        return f"window.last {w.last} - 1 + window.epochs {w.epochs}"

    @property
    def _asked(self) -> bool:
        """Whether somebody is asked about the first images."""
        return self.init == "known" or self.labels == "learned"

    def name(self) -> str:
        """The preset that it is nearest to."""
        if self.labels == "learned":
            if self.areas.beta is not None or self.parameters.drop == "easy":
                return "edf"
            ordered = self.schooling.order.scores != "none"
            return "pad" if ordered or self.parameters.drop == "shallow" else "datm"
        if self.engine == "tesla":
            return "tesla"
        return "mtt" if self.ema is None else "ftd"

    def stages(self, bench: dict[str, Any], arch: Arch, store: Path) -> dict[str, Stage]:
        """The experts, as far as each is read: all of them are asked of known images, else one."""
        from stillroom.artefacts.buffers import GivenExpert
        from stillroom.artefacts.experts import Expert
        from stillroom.artefacts.originals import pool_of

        own = self._asked and self.labeller.net == EXPERTS
        since = min(self.window.first, self.labeller.epoch or self.window.first)
        found: dict[str, Stage] = {}
        for i in range(self.experts):
            asked = own and (i == 0 or self.init == "known")
            whole = asked and self.labeller.epoch is None  # its end is asked
            found[f"expert/{i:04d}"] = (
                GivenExpert(self.buffers, bench, arch, i, since, self.reads, store)
                if self.buffers
                else Expert(
                    self.schooling, bench, arch, i, self.reads, whole, store, since, self.kept
                )
            )
        if self.areas.beta is not None:
            (found["looks"],) = pool_of(
                [self.areas.net], 1, self.areas.schooling, bench, arch, store
            )
        if self.labeller.net != EXPERTS:
            (found["labels"],) = pool_of(
                [self.labeller.net], 1, self.labeller.schooling, bench, arch, store
            )
        return found

    def renamed(self, rename: Callable[[str], str]) -> TrajectoryMatching:
        """The networks that look and label under other names."""
        update: dict[str, Any] = {}
        if self.areas.beta is not None:
            update["areas"] = self.areas.model_copy(update={"net": rename(self.areas.net)})
        if self.labeller.net != EXPERTS:
            update["labeller"] = self.labeller.model_copy(update={"net": rename(self.labeller.net)})
        return self.model_copy(update=update)

    @classmethod
    def let_go(cls, own: dict[str, Any], asked: dict[str, Any]) -> None:
        """The rest of a group that is switched off."""
        super().let_go(own, asked)
        let_go_of_groups(own, asked)

    def judged_by(self) -> str:
        """Students take the rate that was learned for them, and logits where labels are some."""
        if self.labels == "assigned":
            return "datm@1"
        return {"edf": "edf@1", "datm": "datm@1", "pad": "datm@1"}.get(self.name(), "mtt@1")

    def image_forwards(self, classes: int, ipc: int) -> float:
        """A gradient and the gradient of a gradient a step of the student: three and nine."""
        return 12.0 * self.inner * min(self.batch, classes * ipc)

    def images_held(self, classes: int, ipc: int) -> int:
        """A batch of the student."""
        return min(self.batch, classes * ipc)

    def looked_at(self, images: int) -> dict[str, int]:
        """The network that looks."""
        return {} if self.areas.beta is None else {self.areas.net: min(AT_ONCE, images)}

    def times_held(self, compiled: bool) -> float:
        """As measured of ConvNets of 32 and 128 pixels on a CPU."""
        if self.engine == "unrolled":
            return 4.0 + 1.6 * self.inner
        return 2.6 if compiled else 7.3

    def refuse_unread(self, ipc: int, nets_of: Callable[[str], Nets], steps: int) -> None:
        """A layer that is no map of the network that looks; experts that cannot be asked."""
        from stillroom.nets.maps import map_layers

        asked = self._asked and self.labeller.net == EXPERTS
        if (asked or self.labels == "assigned") and nets_of("auto").has_batchnorm():
            remedy = "other --labels" if self.labels == "assigned" else "name a --labeller.net"
            raise StillroomError(
                f"{nets_of('auto').arch.name} has BatchNorm, whose statistics experts are kept "
                f"without, so they cannot say what an image is; take another norm, or {remedy}"
            )
        areas = self.areas
        if areas.beta is None or areas.layer == "auto":
            return
        nets = nets_of(areas.net)
        if areas.layer not in (there := map_layers(nets.make(1, 0, "plan"))):
            raise StillroomError(
                f"areas.layer={areas.layer[:60]!r} is no map of {nets.arch.name}, whose maps are "
                f"{', '.join(there) or 'none'}{suggest(areas.layer, there)}"
            )

    def parameters_held(self, on_gpu: bool) -> int:
        """Those before every step of the student, or of a stretch of them, beside a step's own."""
        kept = {"device": self.inner, "host": 0 if on_gpu else self.inner}
        return 4 + kept.get(self.theta, 2 * math.isqrt(self.inner))

    def start(self, ctx: Context, rows: Tensor) -> Synth:
        """Real images or noise, the labels that go with them, and the rate."""
        import torch

        from stillroom.methods.starts import start_images
        from stillroom.methods.trajectory_start import first_labels, known_images

        of_class = (rows // ctx.ipc).to(ctx.device)
        asked = self._labellers(ctx)
        if self.init == "known":
            images = known_images(ctx, rows, asked)
        else:
            images = start_images(ctx, rows, self.init)
        labels = of_class
        if self.labels == "learned":
            known = self.init == "known"
            labels = first_labels(images, of_class, asked, known).requires_grad_()
        rate = torch.tensor(self.rate, dtype=ctx.rt.dtype, device=ctx.device, requires_grad=True)
        return Synth(images.requires_grad_(), labels, of_class, rate)

    def settle_start(self, ctx: Context, synth: Synth) -> None:
        """Learned labels begin as what the first labeller says of the given images."""
        import torch

        from stillroom.methods.trajectory_start import first_labels

        if self.labels == "learned":
            asked = self._labellers(ctx)[:1]
            labels = first_labels(synth.images.detach(), synth.of_class, asked, known=False)
            with torch.no_grad():
                synth.labels.copy_(labels)

    def loss(self, ctx: Context, synth: Synth, it: int) -> Iterator[Tensor]:
        """One term, of one expert: work is not shared among ranks."""
        from stillroom.methods.trajectory_distance import apart, counted
        from stillroom.methods.trajectory_start import misjudged
        from stillroom.nets.inner import Inner, through
        from stillroom.nets.losses import hard_ce, logit_ce

        if ctx.rt.rank:
            return
        expert = self._expert(ctx, drawn(ctx, self.experts, it))
        start, target = stretch(ctx, expert, self.window, it)
        labels = synth.labels
        if it == 0 and self.labels == "learned" and (told := misjudged(labels, synth.of_class)):
            ctx.rt.session.say(told)
        if self.labels == "assigned":  # by the network where the student should end
            labels = synth.memory["assigned"] = said_with(ctx, target, synth.images)
        assert synth.lr is not None
        problem = Inner(
            nets=with_parameters(ctx, start),
            start=start,
            steps=self.inner,
            shown=batches(ctx, synth.images, labels, it, self.inner, self.batch, self.augment),
            rate=synth.lr,
            loss=logit_ce if labels.is_floating_point() else hard_ce,
        )
        learned = [t for t in (synth.images, labels) if t.requires_grad]
        share, drop = self.parameters.share, self.parameters.drop

        def distance(end: Tensor) -> Tensor:
            return apart(end, start, target, counted(end, target, share, drop))

        value = through(problem, distance, learned, self.engine, self.theta)
        synth.memory["distance"] = float(value.detach())
        ctx.log(rate=synth.lr.detach())
        yield value

    def adjust(self, ctx: Context, synth: Synth, it: int) -> bool:
        """Emphasise active pixels; drop the step where the distance lies above the gate."""
        if self.areas.beta is not None and synth.images.grad is not None:
            from stillroom.methods.areas import emphasis, look

            if it % self.areas.every == 0 or "maps" not in synth.memory:
                synth.memory["maps"] = look(ctx, self.areas, synth, it)
            maps = synth.memory["maps"]
            assert not isinstance(maps, float)
            synth.images.grad *= emphasis(maps, self.areas.beta, self.areas.threshold)
        if self.gate is None:
            return True
        moves = float(synth.memory["distance"]) <= self.gate
        dropped = int(synth.memory.get("dropped", 0.0)) + (not moves)
        synth.memory["dropped"] = float(dropped)
        if dropped == it + 1 == NOTHING_YET or (it + 1 == ctx.steps and 2 * dropped > ctx.steps):
            ctx.rt.session.say(
                f"{dropped} of {it + 1} steps were dropped: their distance, now "
                f"{float(synth.memory['distance']):.2f}, lies above the gate, {self.gate:g}, so "
                "students stray; a longer --window.epochs, fewer --inner or a lower --rate help"
            )
        ctx.log(dropped=float(dropped))
        return moves

    def project(self, ctx: Context, synth: Synth) -> None:
        """The rate stays positive; the average follows the images.

        Differs from the reference, where the rate may turn negative and the run is lost.
        """
        assert synth.lr is not None
        synth.lr.clamp_(min=LEAST_RATE)
        if self.ema is not None:
            old = synth.memory.get("average", synth.images)
            synth.memory["average"] = synth.images + self.ema * (old - synth.images)

    def published(self, synth: Synth) -> Tensor:
        """The moving average of the images, where there is one."""
        average = synth.memory.get("average")
        return synth.images if average is None or isinstance(average, float) else average

    def published_labels(self, synth: Synth) -> Tensor:
        """Where experts assign them, what the last one said: images follow those, not classes."""
        said = synth.memory.get("assigned")
        return synth.labels if said is None or isinstance(said, float) else said

    def _labellers(self, ctx: Context) -> list[Logits]:
        """Who is asked about first images, in this order: functions of images."""
        from stillroom.methods.trajectory_start import logits_of, logits_of_original

        if self.labeller.net != EXPERTS:
            return [logits_of_original(ctx, ctx.artefacts["labels"])]
        epoch = self.labeller.epoch
        return [
            logits_of(ctx, one.last if epoch is None else partial(one.after, epoch))
            for one in (self._expert(ctx, i) for i in range(self.experts))
        ]

    def _expert(self, ctx: Context, number: int) -> Trajectory:
        found: Trajectory = ctx.artefacts[f"expert/{number:04d}"]
        return found
