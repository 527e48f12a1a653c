"""`--out`: a set as a person wants to find it, published whole by one rename."""

from __future__ import annotations

import csv
import io
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from stillroom.artefacts.label_shards import MANIFEST, SOFT
from stillroom.distilled import RELABELS, Distilled, load, set_bytes, set_digest
from stillroom.errors import StillroomError
from stillroom.files import (
    TEMPORARY,
    fresh_folder,
    read_json,
    readable_os_errors,
    write_atomic,
    write_json,
)
from stillroom.records import LEDGER

SET_FILES = ("meta.json", "data.safetensors")
EXHIBITS = "exhibits"
SOFT_NAME = "teacher_logits"  # of the one soft label an image, in other forms
OTHER_FILES = (
    *("metrics.jsonl", "labels.csv", "run.json"),  # by `publish`
    *(LEDGER, ".records.lock", "report.html"),  # by the verbs that come after it
)
# Labels of teachers that the set, or a kept step, carries; or that a killed `prepare` left.
_LABELS = rf"(steps/[0-9]{{1,9}}/)?({RELABELS}|\.{RELABELS}-.{{8}}{re.escape(TEMPORARY)})"
_OF_LABELS = rf"{re.escape(MANIFEST)}|{re.escape(SOFT)}|labels-[0-9]{{6}}\.safetensors"


def owner_key(folder: Path) -> str | None:
    """The key of the run that a folder holds, or None if it holds no set."""
    if not (folder / "meta.json").is_file():
        return None
    try:
        meta = read_json(folder / "meta.json")
    except StillroomError:
        return "unknown"
    provenance = meta.get("provenance") if isinstance(meta, dict) else None
    key = provenance.get("key") if isinstance(provenance, dict) else None
    return key if isinstance(key, str) else "unknown"


def publish(artefact: Path, out: Path, key: str, run: dict[str, Any]) -> None:
    """Copy the stage's sets out of the store: the last at the top, kept ones in `steps/<n>`.

    Raises: StillroomError if `out` holds anything that would be lost (see `refuse_foreign`).
    """
    refuse_foreign(out)  # again: a run may take hours, in which people put files there
    final = read_json(artefact / "final.json")["step"]
    ledger = out / LEDGER
    with fresh_folder(out) as fresh:
        for name in SET_FILES:
            shutil.copyfile(artefact / "steps" / str(final) / name, fresh / name)
        for folder in sorted((artefact / "steps").iterdir(), key=lambda p: int(p.name)):
            if int(folder.name) != final:
                (fresh / "steps" / folder.name).mkdir(parents=True)
                for name in SET_FILES:
                    shutil.copyfile(folder / name, fresh / "steps" / folder.name / name)
        shutil.copyfile(artefact / "metrics.jsonl", fresh / "metrics.jsonl")
        data = load(fresh)
        export_folder(data, fresh)
        if owner_key(out) == key and ledger.is_file():  # numbers of this very set stay with it
            shutil.copyfile(ledger, fresh / ledger.name)
            if (out / EXHIBITS).is_dir():
                shutil.copytree(out / EXHIBITS, fresh / EXHIBITS)
        for below in [Path(), *(path.relative_to(fresh) for path in fresh.glob("steps/*"))]:
            _keep_labels(out / below, fresh / below)
        write_json(fresh / "run.json", {**run, "key": key, "bytes": set_bytes(fresh)})


def _keep_labels(old: Path, new: Path) -> None:
    """Take over the labels of teachers that a set carried, where it is the same set again."""
    try:
        same = (old / RELABELS).is_dir() and set_digest(old) == set_digest(new)
    except StillroomError:  # the old one is damaged
        return
    if same:
        shutil.copytree(old / RELABELS, new / RELABELS)


def refuse_foreign(out: Path) -> None:
    """Refuse to replace a folder that holds anything which stillroom did not write.

    Raises: StillroomError naming the first such file.
    """
    with readable_os_errors(out):
        name = _foreign(out.resolve())
    if name:
        raise StillroomError(
            f"--out {out} holds {name[:200]!r}, which stillroom did not write and would delete; "
            "move it away, or name another folder"
        )


def _foreign(out: Path) -> str:
    pictures = _pictures(out)
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out).as_posix()
        if path.is_dir() and not path.is_symlink():
            own = name in ("images", "steps", EXHIBITS) or re.fullmatch(_LABELS, name)
            if not own and not any(path.iterdir()):
                return name
        elif path.is_symlink() or not path.is_file() or not _is_own(name, pictures):
            return name
    return "meta.json" if (out / "meta.json").exists() and not _is_meta(out) else ""


def _is_own(name: str, pictures: set[str]) -> bool:
    parent, _, file = name.rpartition("/")
    killed = re.fullmatch(rf"\.(.+)-.{{8}}{re.escape(TEMPORARY)}", file)  # its writer was
    file = killed[1] if killed else file
    if not parent:
        return file in SET_FILES + OTHER_FILES
    if parent == EXHIBITS:
        return (
            re.fullmatch(r"students-[0-9a-f]{12}\.json|(neighbours|maps)\.safetensors", file)
            is not None
        )
    if parent.startswith("steps/") and is_count(parent.removeprefix("steps/")):
        return file in SET_FILES
    if re.fullmatch(_LABELS, parent):
        return re.fullmatch(_OF_LABELS, file) is not None
    return name in pictures


def _pictures(out: Path) -> set[str]:
    """The files of `images/` that `labels.csv` lists."""
    row = re.compile(r"(images/[\w.-]+\.png),", re.ASCII)  # names as `safe_name` makes them
    try:
        with (out / "labels.csv").open(encoding="utf-8", errors="replace") as stream:
            return {found[1] for line in stream if (found := row.match(line))}
    except OSError:
        return set()


def _is_meta(out: Path) -> bool:
    """Whether `meta.json` is of a set, however damaged the set is, and not of something else."""
    try:
        meta = read_json(out / "meta.json")
    except StillroomError:
        return False
    return isinstance(meta, dict) and {"format", "tensors", "provenance"} <= meta.keys()


def steps_of(folder: Path) -> dict[int, Path]:
    """All sets of a published run by step, the last one included."""
    last = load(folder).provenance.get("step")
    if not isinstance(last, int) or isinstance(last, bool) or not 0 <= last < 10**9:
        last = 0  # a foreign set may say anything
    found = {int(p.name): p for p in (folder / "steps").glob("*") if is_count(p.name)}
    return dict(sorted({**found, last: folder}.items()))


def is_count(text: str) -> bool:
    """Whether a text is a step: one to nine digits."""
    return re.fullmatch(r"[0-9]{1,9}", text) is not None


def export_folder(data: Distilled, folder: Path) -> None:
    """Write `images/*.png` and `labels.csv` (file, class index, class name, label)."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["file", "class", "name", "label"])
    pixels = (data.pixels() * 255).round().to(torch.uint8)
    seen: dict[int, int] = {}
    for row, c in enumerate(data.of_class.tolist()):
        seen[c] = seen.get(c, -1) + 1
        name = f"images/{c:04d}_{safe_name(data.classes[c])}_{seen[c]:04d}.png"
        to_image(pixels[row]).save(folder / name)
        label = data.labels[row]
        text = str(int(label)) if label.ndim == 0 else " ".join(f"{v:.6g}" for v in label.tolist())
        writer.writerow([name, c, data.classes[c], text])
    write_atomic(folder / "labels.csv", table.getvalue())


def export_labels(data: Distilled, to: str, folder: Path) -> str:
    """Write what an exported form has room for of the labels of teachers that a set carries.

    Returns a sentence that says what went along and what was left out; empty if it carries none.
    """
    if data.relabels is None:
        return ""
    if to == "classes":
        return "labels of teachers are left out: a folder of classes has no place for them"
    if to == "folder":
        data.relabels.copy(folder / RELABELS)
        exact = data.storage == "uint8"
        rounded = "" if exact else "; they are for the images as stored, PNGs are rounded"
        return f"labels of teachers in {RELABELS}/, by the row in labels.csv{rounded}"
    if to == "tensors":
        _save_tensor(data.relabels.soft(), folder / f"{SOFT_NAME}.pt")
    where = f"the column {SOFT_NAME}" if to == "hf" else f"{SOFT_NAME}.pt"
    return (
        f"one soft label an image, the mean logits of its teachers, in {where}; their labels of "
        "drawn views are left out, which --to folder takes along"
    )


def export_classes(data: Distilled, folder: Path) -> None:
    """Write `<class>/<n>.png`: a folder that `--data` and `--init-from` read.

    Classes whose names make one folder name get their number before it.
    """
    names = [safe_name(name) for name in data.classes]
    if len({name.casefold() for name in names}) < len(names):
        names = [f"{c:04d}_{name}" for c, name in enumerate(names)]
    for row, picture in enumerate((data.pixels() * 255).round().to(torch.uint8)):
        below = folder / names[int(data.of_class[row])]
        below.mkdir(parents=True, exist_ok=True)
        to_image(picture).save(below / f"{row:05d}.png")


def export_tensors(data: Distilled, folder: Path) -> None:
    """Write `images.pt`, `labels.pt` and, where learned, `lr.pt`: what other repositories read."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {"images": data.images, "labels": data.labels}
    if data.lr is not None:
        tensors["lr"] = torch.tensor(data.lr)
    for name, value in tensors.items():
        _save_tensor(value, folder / f"{name}.pt")


def _save_tensor(value: Tensor, path: Path) -> None:
    buffer = io.BytesIO()
    torch.save(value.clone(), buffer)
    write_atomic(path, buffer.getvalue())


def export_hf(data: Distilled, folder: Path) -> None:
    """Write `train.parquet` with an Image and a ClassLabel (or soft label) column.

    Raises: StillroomError if the `data` extra is not installed.
    """
    from stillroom.errors import optional_import

    datasets: Any = optional_import("datasets", "data", "export --to hf")
    folder.mkdir(parents=True, exist_ok=True)
    encoded = []
    for picture in (data.pixels() * 255).round().to(torch.uint8):
        buffer = io.BytesIO()
        to_image(picture).save(buffer, format="PNG")
        encoded.append({"bytes": buffer.getvalue(), "path": None})
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(data.classes))}
    columns: dict[str, Any] = {"image": encoded, "label": data.of_class.tolist()}
    if data.label_kind != "hard":
        features["soft_label"] = datasets.Sequence(datasets.Value("float32"))
        columns["soft_label"] = data.labels.tolist()
    if data.relabels is not None:
        features[SOFT_NAME] = datasets.Sequence(datasets.Value("float32"))
        columns[SOFT_NAME] = data.relabels.soft().tolist()
    made = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    made.to_parquet(str(folder / "train.parquet"))


def to_image(pixels: Tensor) -> Image.Image:
    """uint8 [ch,H,W] -> a picture; 1 channel grey, 3 RGB, otherwise the first three.

    Raises: StillroomError for 2 channels, which no picture format has.
    """
    if pixels.shape[0] == 1:
        return Image.fromarray(pixels[0].numpy())
    if pixels.shape[0] == 2:
        raise StillroomError("images of 2 channels cannot be written as pictures")
    return Image.fromarray(pixels[:3].permute(1, 2, 0).contiguous().numpy())


def safe_name(name: str) -> str:
    """A class name as part of a file name: letters, digits, '-', '_' and '.'; never a path."""
    return re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII).strip("-.")[:60] or "class"
