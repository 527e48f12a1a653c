"""Flags of the machine and of the data: what no recipe holds. No torch here."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from stillroom.config import Model


class Machine(Model):
    """How a run uses the machine. None of it changes a key; `run.json` records it."""

    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    compile: Literal["auto", "on", "off"] = Field(
        "auto", description="torch.compile; auto: where the work is long enough to repay it"
    )
    threads: int | None = Field(None, ge=1, le=1024, description="CPU threads; default: all cores")
    workers: int = Field(1, ge=1, le=256, description="local processes that share the shards")
    deterministic: bool = Field(False, description="deterministic kernels on CUDA")
    allow_drift: bool = Field(
        False, description="resume a snapshot made under other threads, device or torch"
    )
    allow_guessing: bool = Field(
        False, description="take given weights that do no better than guessing (NETWORK=WEIGHTS)"
    )
    minutes: float | None = Field(
        None, gt=0, le=1e6, description="stop cleanly after so long; the same command goes on"
    )
    store: Path | None = Field(
        None, description="folder of cached work; default STILLROOM_STORE or the user cache"
    )


class DataOptions(Model):
    """How real images are read. All of it but the paths is part of the data's digest."""

    data_root: Path | None = Field(None, description="folder that holds named benchmarks")
    size: int | None = Field(None, ge=4, le=1024, description="side in pixels that images get")
    normalise: str = Field(
        "auto", description="constants by name (cifar10, imagenet, half, none, ...) or fitted"
    )
    classes: Path | None = Field(
        None, description="a file that names the classes to take, one a line, in their order"
    )
    zca: bool = Field(False, description="whiten, fitted on the training images")
    val: float = Field(0.0, ge=0, lt=1, description="fraction of train carved off for validation")
    split_seed: int = Field(0, ge=0, description="key of the splits that are made here")
    skip_bad: bool = Field(False, description="skip and count unreadable images")
