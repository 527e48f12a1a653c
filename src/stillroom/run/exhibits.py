"""What a page shows of students beside their accuracy: `exhibits/students-<digest>.json`.

One file a row, network and protocol: the accuracies of every check, and which class was taken for
which. The page computes nothing; it reads these.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stillroom.files import canonical, sha256, write_json
from stillroom.types import Record

MAX_CLASSES = 200  # a confusion of more classes is too large to look at, and to keep


def write_exhibit(
    folder: Path, record: Record, classes: Sequence[str], scores: Sequence[dict[str, Any]]
) -> None:
    """Write what the students of one row did; `record` is one of theirs, `scores` see `Score`."""
    hits = sum(
        _confusion(s["labels"], s["predicted"], len(classes)) for s in scores
    )  # [C,C], rows the true class, summed over students
    assert isinstance(hits, Tensor)
    counts = hits.sum(1)
    right = hits.diagonal().double() / counts.clamp_min(1)
    name = {
        "row": record.row,
        "step": record.step,
        "set_key": record.set_key if record.step is not None else None,
        "arch": record.arch,
        "protocol_hash": record.protocol_hash,
        "numerics": record.numerics,
        "data_digest": record.data_digest,
        "ipc": record.ipc,
    }
    content = {
        **name,
        "protocol": record.protocol,
        "classes": list(classes),
        "students": [{k: s[k] for k in ("seed", "rate", "curve")} for s in scores],
        "per_class": right.tolist(),
        "confusion": hits.tolist() if len(classes) <= MAX_CLASSES else None,
    }
    write_json(folder / f"students-{sha256(canonical(name))[:12]}.json", content)


def _confusion(labels: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """int64 [C,C]: test images of a class (row) by the class that a student saw in them."""
    pairs = labels.long() * classes + predicted.long()
    return torch.bincount(pairs, minlength=classes**2).view(classes, classes)
