"""Weights of students: those that they are tested with, those that are kept, and their files."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from stillroom.evaluation.protocol import Protocol, Selection
from stillroom.files import write_atomic, write_json
from stillroom.nets.averaging import averaged
from stillroom.nets.ensemble import Ensemble
from stillroom.nets.sources import Source
from stillroom.nets.train import Progress, Training, together

Weights = dict[str, Tensor]


class Judged:
    """The weights that students are tested with: their own, or the average of their way."""

    def __init__(
        self,
        protocol: Protocol,
        nets: Ensemble,
        images: Source,
        training: Training,
        seeds: Sequence[int],
    ) -> None:
        self.protocol, self.nets = protocol, nets
        self.images, self.training, self.seeds = images, training, seeds
        self.progress = Progress()

    def keep(self, progress: Progress) -> None:
        """Take note of how far the training is."""
        self.progress = progress

    def weights(self, done: int) -> contextlib.AbstractContextManager[Ensemble]:
        """The networks as they are tested after so many epochs, within a block."""
        if self.protocol.ema is None:
            return contextlib.nullcontext(self.nets)
        live = "live_norms" in self.protocol.quirks
        inputs = None if live else self._inputs(done)
        return averaged(self.nets, self.progress.average, inputs)

    def _inputs(self, epoch: int) -> Iterator[Tensor]:
        for batches in together(self.images, self.training, self.seeds, epoch):
            yield torch.stack([batch.images for batch in batches])


class Kept:
    """Weights of every student where the rule stops that selects its headline."""

    def __init__(self, select: Selection) -> None:
        self.select = select
        self.best: dict[int, float] = {}
        self.weights: dict[int, Weights] = {}

    def see(self, nets: Ensemble, test: Tensor, val: Tensor | None) -> None:
        """Take note of a check: accuracies [K]. Of equal ones the earlier is selected."""
        values = val if self.select == "val" else test
        for i in range(nets.k):
            value = 0.0 if values is None else float(values[i])
            if self.select != "last" and value <= self.best.get(i, -1.0):
                continue
            self.best[i] = value
            params, buffers = nets.member(i)
            self.weights[i] = {
                name: t.detach().cpu().clone().contiguous()
                for name, t in {**params, **buffers}.items()
            }


def write_student(folder: Path, seed: int, weights: Weights, told: dict[str, Any]) -> None:
    """Write one student into an artefact, its weights under the names of its `state_dict`."""
    tensors, about = files_of(folder, seed)
    write_atomic(tensors, save(weights))
    write_json(about, told)


def files_of(folder: Path, seed: int) -> tuple[Path, Path]:
    """Where `write_student` wrote: weights, and what tells of them."""
    return folder / f"student-{seed}.safetensors", folder / f"student-{seed}.json"
