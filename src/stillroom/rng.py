"""Keyed randomness: a generator is a function of (seed, purpose, step, class), never a stream.

So a draw does not depend on what was drawn before it: a resumed run, another number of workers or
an added baseline leaves every other draw as it was.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator

import torch


def key_seed(seed: int, *key: str | int) -> int:
    """Return the 63-bit seed of (seed, *key): the head of a SHA-256 over their JSON."""
    text = json.dumps([seed, *key], separators=(",", ":"))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def rng(seed: int, *key: str | int) -> torch.Generator:
    """Return a fresh CPU generator for (seed, *key); CPU, so that draws agree on every device."""
    return torch.Generator().manual_seed(key_seed(seed, *key))


@contextlib.contextmanager
def global_rng(seed: int, *key: str | int) -> Iterator[None]:
    """Run a block under keyed *global* generators and restore their old state afterwards.

    PyTorch's default initialisation and any user's `nn.Module` draw from the global generator;
    this is the only door through which they are keyed.
    """
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(key_seed(seed, *key))
        if devices:
            torch.cuda.manual_seed(key_seed(seed, *key))
        yield
