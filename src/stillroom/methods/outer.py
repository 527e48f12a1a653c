"""The one outer loop: backward, rank sums, adjust, optimisers, snapshots, NaN guard."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from stillroom.artefacts import snapshot
from stillroom.artefacts.snapshot import read_snapshot, save_snapshot
from stillroom.errors import StillroomError
from stillroom.methods.base import Method, Optim, Outer, Synth
from stillroom.methods.context import RunContext
from stillroom.methods.original_loss import watched
from stillroom.methods.regularisers import Regulariser
from stillroom.rng import global_rng
from stillroom.session import Interrupted

LOG_POINTS = 400


@dataclass
class Outcome:
    """What a chunk's outer loop leaves: the last state, kept states, the loss curve, its time.

    `seconds` are those of all runs that it took, but for what a killed one lost.
    """

    synth: Synth
    kept: dict[int, Synth]
    metrics: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0


def outer_loop(
    method: Method,
    ctx: RunContext,
    outer: Outer,
    rows: Tensor,
    folder: Path,
    initial: Tensor | None = None,
    regularisers: Sequence[Regulariser] = (),
    watch: Sequence[str] = (),
) -> Outcome:
    """Run (or go on with) the outer loop of one chunk.

    rows int64 [N] index the whole set. `folder` holds the snapshot. `initial` float32 [N,ch,H,W]
    replaces the images that the method would start from; `regularisers` add their terms; what
    `watch` names is measured of the images after every logged step. Exactly
    `outer.steps` updates are made, and what is returned is what came after the last of them.
    Raises: StillroomError on NaN, or on a snapshot made under other conditions; Interrupted on
    Ctrl-C, after a snapshot.
    """
    began = time.monotonic()
    synth = method.start(ctx, rows)
    if initial is not None:
        if initial.shape != synth.images.shape:
            raise StillroomError(
                f"--init-from gives images of shape {list(initial.shape[1:])}, the data need "
                f"{list(synth.images.shape[1:])}"
            )
        with torch.no_grad():
            synth.images.copy_(initial)
        method.settle_start(ctx, synth)
    loop = _Loop(method, ctx, outer, synth, folder, regularisers, watch)
    loop.began = began
    loop.restore()
    return loop.run()


class _Loop:
    """One chunk in progress; a snapshot holds all of it."""

    def __init__(
        self,
        method: Method,
        ctx: RunContext,
        outer: Outer,
        synth: Synth,
        folder: Path,
        regularisers: Sequence[Regulariser],
        watch: Sequence[str],
    ) -> None:
        self.regularisers = regularisers if ctx.rt.rank == 0 else ()  # ranks are summed
        self.watch = watch
        self.method, self.ctx, self.outer, self.synth = method, ctx, outer, synth
        self.folder = folder
        self.step = 0
        self.began, self.before = time.monotonic(), 0.0  # of this run; seconds of those before it
        self.kept: dict[int, Synth] = {}
        self.metrics: list[dict[str, float]] = []
        self.optimisers = {
            name: _optimiser(_settings(outer, name), tensor)
            for name, tensor in synth.learnables().items()
        }
        self.total = method.steps(outer)
        self.every = max(1, self.total // LOG_POINTS)

    def run(self) -> Outcome:
        """Steps until the total is reached."""
        session = self.ctx.rt.session
        if self.step:
            session.say(f"going on from step {self.step} of {self.total}")
        session.begin(f"distil {self.method.name()}", self.total, self.step)
        saved = time.monotonic()
        while self.step < self.total:
            self._step()
            if session.stop.is_set():
                self.snapshot()
                session.say(f"stopped after step {self.step} of {self.total}")
                raise Interrupted
            if time.monotonic() - saved > snapshot.SECONDS:
                self.snapshot()
                saved = time.monotonic()
        session.end()
        return Outcome(self._frozen(), self.kept, self.metrics, self._seconds())

    def _seconds(self) -> float:
        return self.before + time.monotonic() - self.began

    def _terms(self, it: int) -> Iterator[Tensor]:
        """Those of the method; what an author of one tends to forget is said in a line."""
        name, terms = type(self.method).__name__, self.method.loss(self.ctx, self.synth, it)
        if not isinstance(terms, Iterator):
            raise StillroomError(f"{name}.loss must yield its terms (yield, not return)")
        for term in terms:
            if not isinstance(term, Tensor) or term.ndim:
                told = f"shape {list(term.shape)}" if isinstance(term, Tensor) else repr(term)[:40]
                raise StillroomError(f"{name}.loss yields scalar tensors; one is of {told}")
            if not term.requires_grad:
                raise StillroomError(
                    f"a term of {name}.loss does not depend on what is learned; does start give "
                    "images with requires_grad_(), and loss use them outside of no_grad?"
                )
            yield term

    def _added(self, it: int) -> Iterator[Tensor]:
        """Those that are added to a method's."""
        for slot, regulariser in enumerate(self.regularisers):
            added = regulariser.term(self.ctx, self.synth, it, slot)
            if added is not None:
                kind = type(regulariser).__name__.lower()
                self.ctx.log(**{f"{kind}.{slot}" if slot else kind: added.detach()})
                yield added

    def _step(self) -> None:
        it = self.step
        self.ctx.metrics.clear()
        for optimiser in self.optimisers.values():
            optimiser.zero_grad(set_to_none=True)
        log = it % self.every == 0 or it + 1 == self.total
        # Dropout in a user's network draws from the global generator, so that is keyed too.
        with global_rng(self.ctx.seed, "forward", self.ctx.chunk, it):
            total = self._backward(self._terms(it), None, log)
            # A method adjusts its own gradient; a step that it drops is dropped with all terms.
            moves = self.method.adjust(self.ctx, self.synth, it)
            if moves and self.regularisers:
                total = self._backward(self._added(it), total, log)
        if moves:
            for name, optimiser in self.optimisers.items():
                for group in optimiser.param_groups:
                    group["lr"] = _settings(self.outer, name).rate(it, self.total)
                optimiser.step()
            with torch.no_grad():
                self.method.project(self.ctx, self.synth)
        self.step = it + 1
        if log and total is not None:
            extra = {k: float(v) for k, v in self.ctx.metrics.items()}
            seen = self._watched() if self.watch else {}
            self.metrics.append({"step": self.step, "loss": float(total), **extra, **seen})
            self.ctx.rt.session.update(self.step, loss=float(total), **seen)
        if self.step in self.outer.keep and self.step < self.total:
            self.kept[self.step] = self._frozen()

    def _backward(self, terms: Iterator[Tensor], total: Tensor | None, log: bool) -> Tensor | None:
        """Run backward on every term; returns their sum with `total`."""
        for term in terms:
            term.backward()
            total = term.detach() if total is None else total + term.detach()
        if total is not None and (log or self.ctx.device.type == "cpu"):
            self._guard(float(total))
        return total

    def _watched(self) -> dict[str, float]:
        """Of the images that would be published now."""
        with torch.no_grad():
            images = self.method.published(self.synth)
        return watched(self.ctx, images, self.synth.of_class, self.watch)

    def _guard(self, loss: float) -> None:
        """Stop with a diagnosis as soon as the loss or a gradient is not finite."""
        bad = [
            name
            for name, tensor in self.synth.learnables().items()
            if tensor.grad is not None and not bool(tensor.grad.isfinite().all())
        ]
        if loss == loss and abs(loss) != float("inf") and not bad:
            return
        largest = float(self.synth.images.detach().abs().max())
        before = ", ".join(f"{m['loss']:.4g}" for m in self.metrics[-3:]) or "none"
        where = f" and in the gradient of the {' and '.join(bad)}" if bad else ""
        cause = (
            f"lower --images.lr, now {self.outer.images.lr}"
            if self.step
            else "no image has moved yet, so a step size inside the method is too large, or a "
            "network broken"
        )
        raise StillroomError(
            f"step {self.step + 1}: the loss is {loss}{where} (losses before: {before}; largest "
            f"pixel in network space {largest:.3g}); {cause}"
        )

    def _guard_images(self) -> None:
        if not bool(self.synth.images.isfinite().all()):
            self._guard(float("nan"))

    # -- snapshots -----------------------------------------------------------------------------

    def snapshot(self) -> None:
        """Write everything that the next steps depend on, in one file, whole or not at all."""
        self._guard_images()
        tensors = {f"synth.{k}": v for k, v in _fields(self.synth).items()}
        for step, kept in self.kept.items():
            tensors |= {f"kept.{step}.{k}": v for k, v in _fields(kept).items()}
        numbers: dict[str, float] = {}
        for name, value in self.synth.memory.items():
            if isinstance(value, Tensor):
                tensors[f"memory.{name}"] = value
            else:
                numbers[name] = value
        for name, optimiser in self.optimisers.items():
            for slot, value in optimiser.state_dict()["state"].get(0, {}).items():
                if isinstance(value, Tensor):
                    tensors[f"optimiser.{name}.{slot}"] = value
        header = {
            "step": self.step,
            "numbers": numbers,
            "metrics": self.metrics,
            "seconds": self._seconds(),
        }
        save_snapshot(self.folder, tensors, header, self.ctx.rt)

    def restore(self) -> None:
        """Go on from the snapshot, if there is one.

        Raises: StillroomError if it was made on another device, torch or thread count.
        """
        found = read_snapshot(self.folder, self.ctx.rt)
        if found is None:
            return
        header, tensors = found
        self.step, self.metrics = int(header["step"]), list(header["metrics"])
        self.before = float(header["seconds"])
        with torch.no_grad():
            for name, value in _fields(self.synth).items():
                value.copy_(tensors[f"synth.{name}"])
        device = self.ctx.device
        self.synth.memory = dict(header["numbers"])
        for name, value in tensors.items():
            if name.startswith("memory."):
                self.synth.memory[name.removeprefix("memory.")] = value.to(device)
        for step in sorted({int(n.split(".")[1]) for n in tensors if n.startswith("kept.")}):
            prefix = f"kept.{step}."
            parts = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            self.kept[step] = _synth({k: v.to(device) for k, v in parts.items()})
        for name, optimiser in self.optimisers.items():
            prefix = f"optimiser.{name}."
            slots = {
                k.removeprefix(prefix): v.to(device) if v.ndim else v
                for k, v in tensors.items()
                if k.startswith(prefix)
            }
            if slots:
                groups = optimiser.state_dict()["param_groups"]
                optimiser.load_state_dict({"state": {0: slots}, "param_groups": groups})

    def _frozen(self) -> Synth:
        self._guard_images()
        found = _fields(self.synth)
        found["images"] = self.method.published(self.synth)
        found["labels"] = self.method.published_labels(self.synth)
        return _synth({k: v.detach().clone() for k, v in found.items()})


def _fields(synth: Synth) -> dict[str, Tensor]:
    found = {"images": synth.images, "labels": synth.labels, "of_class": synth.of_class}
    if synth.lr is not None:
        found["lr"] = synth.lr
    return found


def _synth(parts: dict[str, Tensor]) -> Synth:
    return Synth(parts["images"], parts["labels"], parts["of_class"], parts.get("lr"))


def _settings(outer: Outer, name: str) -> Optim:
    chosen = {"images": outer.images, "labels": outer.labels, "rate": outer.rate}[name]
    if chosen is None:
        raise StillroomError(
            f"the method learns its {name}, so outer.{name} must name an optimiser"
        )
    return chosen


def _optimiser(settings: Optim, tensor: Tensor) -> torch.optim.Optimizer:
    make: dict[str, Callable[[Sequence[Tensor]], torch.optim.Optimizer]] = {
        "sgd": lambda p: torch.optim.SGD(p, lr=settings.lr, momentum=settings.momentum),
        "adam": lambda p: torch.optim.Adam(
            p, lr=settings.lr, betas=(settings.momentum, settings.beta2)
        ),
    }
    return make[settings.kind]([tensor])
