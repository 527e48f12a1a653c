"""`Distilled`: what a run makes, on disk a folder of `meta.json` and `data.safetensors`.

Nothing is pickled. Both files hold only what the recipe determines (seconds, device, versions and
dates are in `run.json`), so the same recipe gives the same bytes. Every tensor has its SHA-256 in
`meta.json`, and `meta.json` has one over itself: safetensors alone loads a flipped bit silently.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from stillroom import jpeg
from stillroom.errors import StillroomError
from stillroom.files import canonical, read_json, sha256, user_path, write_atomic, write_json
from stillroom.types import LabelKind, Preprocess, Zca

if TYPE_CHECKING:
    from stillroom.artefacts.labels import Relabels

FORMAT = 1
RELABELS = "relabels"  # the folder of labels of teachers that a set may carry
MAX_SET_BYTES = 8 * 2**30
MAX_NAME = 300
Storage = Literal["float32", "float16", "uint8", "jpeg"]
_DTYPES = (torch.uint8, torch.int64, torch.float16, torch.float32)
MOST_USED = 4000  # networks of one set that are looked at: four architectures of a thousand
WATCH = "watch"  # the artefact whose verdict is logged, an original model


@dataclass(frozen=True, eq=False)
class Distilled:
    """A finished set of synthetic (or selected) images, class-major.

    images float32 [N,ch,H,W] in network space; labels int64 [N] ("hard") or float32 [N,C]
    ("probs", "logits"); of_class int64 [N], the class each image was made for; classes, names in
    label order; lr, a learned student step size or None; tiles, tiles per side of a canvas.
    `data` describes the real data (name, digest, split), `provenance` the recipe, its key, inputs
    and papers. Foreign metadata are text: nothing in them is ever imported or executed.
    `relabels`: labels of teachers for drawn views, and one soft label an image, where the set
    carries some and was read by `stillroom.load`; they stay on disk.
    """

    images: Tensor
    labels: Tensor
    label_kind: LabelKind
    of_class: Tensor
    classes: tuple[str, ...]
    preprocess: Preprocess
    augment: str = "none"
    arch: str = "none"
    lr: float | None = None
    tiles: int = 1
    storage: Storage = "float32"
    data: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    relabels: Relabels | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.images.shape))
        label = str(self.provenance.get("label", "unknown"))[:80]
        return f"Distilled({shape}, {len(self.classes)} classes, {self.label_kind}, by {label})"

    @property
    def ipc(self) -> int:
        """Images per class: the largest class's count."""
        return int(torch.bincount(self.of_class, minlength=1).max())

    @property
    def models(self) -> tuple[tuple[str, int], ...]:
        """The networks trained on real data that it was made with, of its start too, by name and
        number. Not the one that only watched. What foreign metadata say otherwise is left out.
        """
        held = self.provenance.get("models")
        pairs = list(held.items())[:MOST_USED] if isinstance(held, dict) else []
        known = [m for name, m in pairs if name != WATCH and isinstance(m, list) and len(m) == 2]
        return tuple((m[0], m[1]) for m in known if isinstance(m[0], str) and type(m[1]) is int)

    def pixels(self) -> Tensor:
        """Return the images as pixels, float32 [N,ch,H,W] in [0, 1] (clamped)."""
        return self.preprocess.invert(self.images).clamp(0, 1)

    def quantised(self) -> Distilled:
        """Return the set as `storage` will give it back, so that what is judged is what is kept."""
        if self.storage == "uint8":
            return replace(self, images=self.preprocess.apply(self._whole_pixels()))
        if self.storage == "jpeg":
            kept = jpeg.decode(jpeg.encode(self._whole_pixels()), "set")
            return replace(self, images=self.preprocess.apply(kept))
        if self.storage == "float16":
            return replace(self, images=self.images.half().float())
        return self

    def _whole_pixels(self) -> Tensor:
        return (self.pixels().cpu() * 255).round().to(torch.uint8)

    def save(self, folder: Path) -> None:
        """Write `data.safetensors`, `meta.json` and what is carried into `folder`, which may exist.

        Raises: StillroomError if it carries labels of other images.
        """
        tensors = self._tensors()
        sums = {
            name: {
                "dtype": str(value.dtype).removeprefix("torch."),
                "shape": list(value.shape),
                "sha256": sha256(value.flatten().view(torch.uint8).numpy().tobytes()),
            }
            for name, value in tensors.items()
        }
        # More than one metadata key makes safetensors' bytes differ from save to save.
        blob = save(tensors, metadata={"stillroom": canonical({"format": FORMAT})})
        meta = self._meta() | {"tensors": sums}
        write_atomic(folder / "data.safetensors", blob)
        write_json(folder / "meta.json", meta | {"digest": sha256(canonical(meta))})
        if self.relabels is not None:
            if self.relabels.header.set_digest != set_digest(folder):
                raise StillroomError(
                    f"{folder}: the labels of teachers are of other images than the set now has; "
                    "leave them out with dataclasses.replace(data, relabels=None)"
                )
            self.relabels.copy(folder / RELABELS)

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {"labels": self.labels, "of_class": self.of_class}
        if self.storage == "jpeg":
            tensors |= jpeg.encode(self._whole_pixels())
        elif self.storage == "uint8":
            tensors["images"] = self._whole_pixels()
        else:
            tensors["images"] = self.images.half() if self.storage == "float16" else self.images
        if self.preprocess.zca is not None:
            tensors["zca.mean"] = self.preprocess.zca.mean
            tensors["zca.transform"] = self.preprocess.zca.transform
        # clone: labels and of_class may be one tensor, which safetensors refuses to write twice.
        return {name: t.detach().cpu().contiguous().clone() for name, t in sorted(tensors.items())}

    def _meta(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "label_kind": self.label_kind,
            "classes": list(self.classes),
            "preprocess": self.preprocess.describe(),
            "augment": self.augment,
            "arch": self.arch,
            "lr": self.lr,
            "tiles": self.tiles,
            "storage": self.storage,
            "data": self.data,
            "provenance": self.provenance,
        }


def set_bytes(folder: Path) -> int:
    """Bytes of a set as it lies on disk: its tensors and its metadata, not its pictures."""
    folder = user_path(folder, "set")
    return sum((folder / name).stat().st_size for name in ("data.safetensors", "meta.json"))


def label_bytes(folder: Path) -> int:
    """Bytes of the soft labels among a set's tensors; none of hard ones, a number an image."""
    folder = user_path(folder, "set")
    meta = _read_meta(folder / "meta.json")
    soft = meta["label_kind"] != "hard"
    told = {k: v for k, v in meta["tensors"].items() if soft and k == "labels"}
    return sum(t.nbytes for t in _read_tensors(folder / "data.safetensors", told).values())


def set_digest(folder: Path) -> str:
    """Sixteen hex digits over what a student sees of a set: tensors, labels, preprocessing.

    Who made it, and with which code, is left out: the same images are the same set.
    """
    meta = _read_meta(user_path(folder, "set") / "meta.json")
    seen = ("label_kind", "classes", "preprocess", "augment", "lr", "tiles", "storage", "tensors")
    return sha256(canonical({name: meta[name] for name in seen}))[:16]


def load(folder: str | Path) -> Distilled:
    """Read and verify a set.

    Raises: StillroomError in one line if a file is absent, cut off, altered, of a newer format,
    larger than 8 GiB, or inconsistent with itself.
    """
    folder = user_path(folder, "set")
    if not (folder / "meta.json").exists():
        raise StillroomError(f"{folder}: no such set; a set is a folder with meta.json in it")
    meta = _read_meta(folder / "meta.json")
    tensors = _read_tensors(folder / "data.safetensors", meta["tensors"])
    if meta["storage"] == "jpeg":
        tensors["images"] = jpeg.decode(tensors, str(folder))
    _check(folder, meta, tensors)
    zca = None
    if meta["preprocess"]["zca"]:
        zca = Zca(tensors["zca.mean"], tensors["zca.transform"])
    described = meta["preprocess"]
    preprocess = Preprocess(
        described["name"], tuple(described["mean"]), tuple(described["std"]), zca
    )
    images = tensors["images"]
    images = preprocess.apply(images) if images.dtype == torch.uint8 else images.float()
    return Distilled(
        images=images,
        labels=tensors["labels"],
        label_kind=meta["label_kind"],
        of_class=tensors["of_class"],
        classes=tuple(meta["classes"]),
        preprocess=preprocess,
        **{k: meta[k] for k in ("augment", "arch", "lr", "tiles", "storage", "data", "provenance")},
    )


_FIELDS: dict[str, tuple[type, ...]] = {
    "label_kind": (str,),
    "classes": (list,),
    "preprocess": (dict,),
    "augment": (str,),
    "arch": (str,),
    "lr": (int, float, type(None)),
    "tiles": (int,),
    "storage": (str,),
    "data": (dict,),
    "provenance": (dict,),
    "tensors": (dict,),
    "digest": (str,),
}


def _read_meta(path: Path) -> dict[str, Any]:
    meta = read_json(path)
    if not isinstance(meta, dict) or "format" not in meta:
        raise StillroomError(f"{path}: not the metadata of a stillroom set (no 'format')")
    if meta["format"] != FORMAT:
        raise StillroomError(
            f"{path}: format {str(meta['format'])[:20]}, this version reads {FORMAT}; "
            "update stillroom or make the set again"
        )
    for name, kinds in _FIELDS.items():
        if name not in meta or not isinstance(meta[name], kinds):
            raise StillroomError(f"{path}: field {name!r} is absent or of the wrong type")
    digest = meta.pop("digest")
    if sha256(canonical(meta)) != digest:
        raise StillroomError(f"{path}: was altered or damaged (its digest does not match)")
    if meta["label_kind"] not in get_args(LabelKind):
        raise StillroomError(
            f"{path}: label_kind {meta['label_kind'][:40]!r} is unknown; "
            f"it must be one of {', '.join(get_args(LabelKind))}"
        )
    if meta["storage"] not in get_args(Storage):
        raise StillroomError(f"{path}: storage {meta['storage'][:40]!r} is unknown")
    return meta


def _read_tensors(path: Path, described: dict[str, Any]) -> dict[str, Tensor]:
    if not path.is_file():
        raise StillroomError(f"{path}: no such file; the set is incomplete")
    if path.stat().st_size > MAX_SET_BYTES:
        raise StillroomError(f"{path}: larger than 8 GiB; not read")
    tensors: dict[str, Tensor] = {}
    try:
        with safe_open(path, framework="pt") as archive:
            names = set(archive.keys())
            for name in described:
                if name not in names:
                    raise StillroomError(f"{path}: tensor {name[:80]!r} is missing")
                tensors[name] = archive.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise StillroomError(
            f"{path}: not a whole safetensors file ({str(error)[:120]}); copy it again"
        ) from None
    for name, value in tensors.items():
        if value.dtype not in _DTYPES:
            raise StillroomError(f"{path}: tensor {name[:80]!r} is of {value.dtype}; not read")
        wanted = described[name]
        if not isinstance(wanted, dict) or wanted.get("sha256") != sha256(
            value.contiguous().flatten().view(torch.uint8).numpy().tobytes()
        ):
            raise StillroomError(
                f"{path}: tensor {name[:80]!r} was altered or damaged (its SHA-256 does not match)"
            )
    return tensors


def _check(folder: Path, meta: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    problem = _problem(meta, tensors)
    if problem:
        raise StillroomError(f"{folder}: {problem}")


def _problem(meta: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    """Return what makes the set inconsistent with itself, or an empty string."""
    for name in ("images", "labels", "of_class"):
        if name not in tensors:
            return f"the set has no tensor {name!r}"
    images, labels, of_class = tensors["images"], tensors["labels"], tensors["of_class"]
    classes, pre = meta["classes"], meta["preprocess"]
    if not classes or not all(isinstance(c, str) and 0 < len(c) <= MAX_NAME for c in classes):
        return f"class names must be 1 to {MAX_NAME} letters each"
    if any("\ud800" <= letter <= "\udfff" for name in classes for letter in name):
        return "a class name is not valid text"
    if len(set(classes)) != len(classes):
        return "two classes have the same name"
    if images.ndim != 4 or len(images) == 0 or 0 in images.shape:
        return f"images have shape {list(images.shape)}, expected [N,ch,H,W]"
    kept_as = "uint8" if meta["storage"] == "jpeg" else meta["storage"]
    if str(images.dtype) != f"torch.{kept_as}":
        return f"images are {images.dtype} but storage says {meta['storage']!r}"
    if images.is_floating_point() and not bool(images.isfinite().all()):
        return "images hold NaN or infinite values"
    n, c = len(images), len(classes)
    if of_class.dtype != torch.int64 or of_class.shape != (n,):
        return f"of_class must be int64 [{n}]"
    if not bool(((of_class >= 0) & (of_class < c)).all()):
        return f"of_class must lie in 0..{c - 1}"
    if problem := _label_problem(meta["label_kind"], labels, n, c):
        return problem
    if meta["tiles"] < 1 or (meta["lr"] is not None and not 0 < meta["lr"] < 1e6):
        return f"tiles={meta['tiles']} and lr={meta['lr']} must be positive"
    return _preprocess_problem(pre, tensors)


def _preprocess_problem(pre: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    images = tensors["images"]
    if not isinstance(pre.get("name"), str) or not isinstance(pre.get("zca"), bool):
        return "preprocess lacks its name or its ZCA flag"
    for key in ("mean", "std"):
        values = pre.get(key)
        if not isinstance(values, list) or len(values) != images.shape[1]:
            return f"preprocess.{key} must have one number a channel ({images.shape[1]})"
        if not all(isinstance(v, (int, float)) and abs(v) < 1e6 for v in values):
            return f"preprocess.{key} must be finite numbers"
    if min(pre["std"]) < 1e-6:
        return "preprocess.std must be at least 1e-6"
    if pre["zca"]:
        d = images[0].numel()
        mean, transform = tensors.get("zca.mean"), tensors.get("zca.transform")
        if mean is None or transform is None or transform.shape != (d, d) or mean.shape != (d,):
            return f"the ZCA tensors are absent or not [{d}] and [{d},{d}]"
        if any(t.dtype != torch.float32 or not bool(t.isfinite().all()) for t in (mean, transform)):
            return "the ZCA tensors must be finite float32 numbers"
    return ""


def _label_problem(kind: str, labels: Tensor, n: int, c: int) -> str:
    if kind == "hard":
        if labels.dtype != torch.int64 or labels.shape != (n,):
            return f"hard labels must be int64 [{n}], got {labels.dtype} {list(labels.shape)}"
        if not bool(((labels >= 0) & (labels < c)).all()):
            return f"hard labels must lie in 0..{c - 1}"
        return ""
    if not labels.is_floating_point() or labels.shape != (n, c):
        return f"{kind} labels must be float [{n},{c}], got {labels.dtype} {list(labels.shape)}"
    if not bool(labels.isfinite().all()):
        return "labels hold NaN or infinite values"
    off = (labels < 0).any() | ((labels.sum(1) - 1).abs() > 1e-3).any()
    if kind == "probs" and bool(off):
        return "probability labels must be >= 0 and sum to 1 in every row"
    return ""
