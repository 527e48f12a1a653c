"""Two easy classes, for tests that need a benchmark."""

from __future__ import annotations

import torch


def toy_images(n: int = 24, classes: int = 2, size: int = 8, channels: int = 3, seed: int = 0):
    """Learnable images: every class has a bright corner of its own, plus noise."""
    gen = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 120, (n, channels, size, size), generator=gen)
    labels = torch.arange(n) % classes
    for i, c in enumerate(labels.tolist()):
        row, column = divmod(c, 2)
        images[i, :, row * 4 : row * 4 + 4, column * 4 : column * 4 + 4] += 120
    return images.to(torch.uint8), labels
