"""What a page shows beside accuracies; it computes nothing itself, it reads `exhibits/`.

`students-<digest>.json`, one a row, network and protocol: the accuracies of every check, and which
class was taken for which. `neighbours.safetensors`: the real image nearest to each distilled one.
`maps.safetensors`: where a trained network sees the class of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from stillroom.artefacts.originals import OriginalModel, opened
from stillroom.data.benchmarks import Benchmark
from stillroom.distilled import Distilled
from stillroom.errors import StillroomError
from stillroom.evaluation.assessments import nearest
from stillroom.files import MAX_CONFUSED, canonical, read_json, sha256, write_atomic, write_json
from stillroom.nets.maps import activation_maps, deepest_map
from stillroom.runtime import Runtime
from stillroom.session import Session
from stillroom.types import Record

NEIGHBOURS = "neighbours.safetensors"
MAPS = "maps.safetensors"
MAX_SHOWN = 100  # distilled images with a neighbour, evenly over the classes


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
        "augment": record.augment,
        **({"taught": record.taught} if record.taught else {}),  # later; names stay without
    }
    content = {
        **name,
        "protocol": record.protocol,
        "code": record.code,
        "classes": list(classes),
        "students": [{k: s[k] for k in ("seed", "rate", "curve")} for s in scores],
        "per_class": right.tolist(),
        "confusion": hits.tolist() if len(classes) <= MAX_CONFUSED else None,
    }
    path = folder / f"students-{sha256(canonical(name))[:12]}.json"
    if not _seeds(path, record.code) > {s["seed"] for s in scores}:  # more students told more
        write_json(path, content)


def _seeds(path: Path, code: str) -> set[object]:
    """The students of this code that an exhibit shows already."""
    try:
        old = read_json(path)
        return {student["seed"] for student in old["students"]} if old["code"] == code else set()
    except (StillroomError, KeyError, TypeError):  # absent or damaged: written anew
        return set()


def write_neighbours(folder: Path, data: Distilled, bench: Benchmark, session: Session) -> None:
    """Write the nearest real training images, by mean squared difference of pixels in [0, 1].

    Tensors: rows int64 [M] of the set, images uint8 [M,ch,H,W], distance float32 [M], the root of
    that mean.
    """
    rows = _some(data)
    at, gap = nearest(data.pixels()[rows], bench.train, session.check)
    images = bench.train.take(at).cpu()
    write_atomic(folder / NEIGHBOURS, save({"rows": rows, "images": images, "distance": gap}))


def write_maps(
    folder: Path, data: Distilled, key: str, model: OriginalModel, bench: Benchmark, rt: Runtime
) -> bool:
    """Write where a trained network sees the class of each image: Grad-CAM in a deep map.

    Tensors: rows int64 [M] of the set, maps uint8 [M,H,W], 255 where it sees most; beside them the
    network, the layer, and `key`, the set's digest. Returns whether the network has such a layer.
    """
    nets = opened(model, bench, rt)
    if (layer := deepest_map(nets)) is None:
        return False
    rows = _some(data)
    images = model.space(bench).apply(data.preprocess.invert(data.images[rows]))
    images, of_class = images.to(rt.device, rt.dtype), data.of_class[rows].to(rt.device)
    maps = activation_maps(nets, layer, images, of_class)
    tensors = {"rows": rows, "maps": (maps * 255).round().to(torch.uint8).cpu().contiguous()}
    told = canonical({"arch": model.name, "layer": layer, "set": key})
    # More than one metadata key makes safetensors' bytes differ from save to save.
    write_atomic(folder / MAPS, save(tensors, metadata={"stillroom": told}))
    return True


def _some(data: Distilled) -> Tensor:
    """The rows int64 [M] that are shown beside something: all, or as many, evenly."""
    return torch.linspace(0, len(data) - 1, min(MAX_SHOWN, len(data))).round().long()


def _confusion(labels: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """int64 [C,C]: test images of a class (row) by the class that a student saw in them."""
    pairs = labels.long() * classes + predicted.long()
    return torch.bincount(pairs, minlength=classes**2).view(classes, classes)
