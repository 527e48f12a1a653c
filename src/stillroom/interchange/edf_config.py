"""Configuration files of EDF, and of DATM and PAD before it, as recipes.

Specification of trajectory matching, 4 and 5.4: the keys, their defaults there, which of them
nothing reads, and what is wrong in the files that were published.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any

from stillroom.data.named import NAMED
from stillroom.errors import StillroomError, suggest
from stillroom.interchange.edf_keys import (
    DATA,
    DEAD,
    DEFAULTS,
    FRUIT,
    NETS,
    OF_EDF,
    OF_PAD,
    OWN,
    POOLS,
    REFUSED,
    THEIRS,
    Family,
)
from stillroom.recipe import validate

MOST = 1e7  # of any number; steps too
MOST_KEPT = 10**4  # sets of one run
_NUMBER = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)([A-Za-z]*)")


class Reader:
    """The keys of one file; `notes` says what was repaired or left out."""

    def __init__(self, given: dict[str, Any], source: str) -> None:
        self.given, self.source = given, source
        self.notes: list[str] = []

    def __contains__(self, key: str) -> bool:
        return self.given.get(key) is not None

    def text(self, key: str) -> str:
        """A word."""
        return str(self.given.get(key, DEFAULTS.get(key)))

    def flag(self, key: str) -> bool:
        """True or false; as text too, which the code there took for true whatever it said."""
        value = self.given.get(key, DEFAULTS.get(key))
        if isinstance(value, bool):
            return value
        if str(value).lower() in ("true", "false"):
            return str(value).lower() == "true"
        raise StillroomError(f"{self.source}: {key}={str(value)[:40]!r} is neither true nor false")

    def number(self, key: str) -> float:
        """A number; `1e-5` is text to YAML, and `1.0s` a misprint."""
        value = self.given.get(key, DEFAULTS.get(key))
        found = _NUMBER.fullmatch(str(value))
        if found is None or isinstance(value, bool):
            raise StillroomError(f"{self.source}: {key}={str(value)[:40]!r} is not a number")
        if found[2]:
            self.notes.append(f"{key}: {value} is a misprint, read as {found[1]}")
        if not abs(float(found[1])) <= MOST:
            raise StillroomError(f"{self.source}: {key}={str(value)[:40]!r} is too large")
        return float(found[1])

    def whole(self, key: str) -> int:
        """A whole number."""
        value = self.number(key)
        if value != int(value):
            raise StillroomError(f"{self.source}: {key}={value:g} is not a whole number")
        return int(value)


def convert(
    given: dict[str, Any], source: str, family: Family = "edf"
) -> tuple[dict[str, Any], list[str]]:
    """The recipe of a configuration, which validates, and what was repaired or left out, in words.

    family: whose program reads the file; keys of the others are left out. source: the file's name,
    which tells the images a class where the file is a copy of another.
    Raises: StillroomError naming the key that has no counterpart or a wrong value.
    """
    read = Reader(dict(given), source)
    _repair_fruit(read)
    _account(read)
    _unread(read, family)
    bench = _benchmark(read)
    ipc = read.whole("ipc")
    if "ipc" not in read.given:
        read.notes.append(f"ipc: not in the file, read as {ipc}, as the program reads it")
    if bench not in NAMED or ipc < 1:
        raise StillroomError(f"{source}: dataset and ipc name nothing that could be distilled")
    value = {
        "name": Path(source).stem,
        "benchmark": bench,
        "ipc": ipc,
        "arch": _network(read, "model"),
        "zca": read.flag("zca"),
        "method": _method(read, family, ipc * NAMED[bench].classes),
        "outer": _outer(read),
        "evaluate": [_evaluation(read, family)],
    }
    side = read.whole("res") if bench not in DATA.values() else NAMED[bench].size
    if side != NAMED[bench].size:
        read.notes.append(f"res: run it with --size {side}")
    try:
        validate(value, source)
    except StillroomError as error:
        raise StillroomError(_as_theirs(str(error))) from None
    return value, read.notes


def _as_theirs(text: str) -> str:
    """An error that names our fields, with the keys of the file that they are from."""
    for ours, theirs in THEIRS.items():
        text = re.sub(rf"\b{re.escape(ours)}(?=: )", theirs, text)
    return text


def _repair_fruit(read: Reader) -> None:
    told = re.search(r"ipc[_-]?(\d+)", Path(read.source).stem, re.IGNORECASE)
    ipc = int(told[1]) if told else 0
    if read.text("subset") != "imagefruit" or ipc not in FRUIT or read.whole("ipc") != 50:
        return
    changes = {"ipc": ipc, **FRUIT[ipc]}
    words = ", ".join(f"{k}: {v}" for k, v in changes.items())
    read.notes.append(f"a copy of the file for 50 images a class; as the other subsets: {words}")
    read.given.update(changes)


def _account(read: Reader) -> None:
    """Name what is left out; refuse what has no counterpart."""
    known = (*DEFAULTS, *OWN, *DEAD, *REFUSED)
    for key, value in read.given.items():
        if key in DEAD:
            read.notes.append(f"{key}: left out, {DEAD[key]}")
        elif key in REFUSED and str(value).lower() not in ("none", str(REFUSED[key][0]).lower()):
            raise StillroomError(f"{read.source}: {key}={str(value)[:40]!r}: {REFUSED[key][1]}")
        elif key not in known:
            near = suggest(str(key), known)
            read.notes.append(f"{str(key)[:60]}: left out, unknown{near}{_in_its_place(key, read)}")


def _in_its_place(key: Any, read: Reader) -> str:
    """What is taken where a misprint hides a key."""
    meant = next(iter(difflib.get_close_matches(str(key), DEFAULTS, n=1)), None)
    if meant is None or meant in read.given:
        return ""
    return f"; {meant} is {DEFAULTS[meant]}, its default there"


def _unread(read: Reader, family: Family) -> None:
    """Name keys that another program of the three reads, and this one does not."""
    theirs: dict[Family, tuple[str, ...]] = {"edf": OF_PAD, "pad": OF_EDF, "datm": OF_EDF + OF_PAD}
    for key in theirs[family]:
        if key in read and key not in DEAD:
            read.notes.append(f"{key}: left out, {family.upper()} has none")
    if family == "pad" and "depth_ratio" in read and "loss_ratio" in read:
        read.notes.append("loss_ratio: left out, beside depth_ratio")


def _benchmark(read: Reader) -> str:
    dataset, subset = read.text("dataset"), read.text("subset")
    if dataset in DATA:
        return DATA[dataset]
    if dataset != "ImageNet":
        known = (*DATA, "ImageNet")
        raise StillroomError(
            f"{read.source}: dataset={dataset[:40]!r} is none of {', '.join(known)}"
            f"{suggest(dataset, known)}"
        )
    kind, _, side = subset.partition("_")
    for name in (subset, subset.replace("_", "-"), f"comp-dd/{kind.removesuffix('s')}-{side}"):
        if name in NAMED:
            return name
    raise StillroomError(
        f"{read.source}: subset={subset[:40]!r} is unknown{suggest(subset, NAMED)}"
    )


def _network(read: Reader, key: str) -> str:
    name = read.text(key)
    deep = re.fullmatch(r"ConvNetD(\d)", name)
    if deep:
        return f"convnet{deep[1]}"
    if name not in NETS:
        known = (*NETS, *(f"ConvNetD{d}" for d in range(1, 7)))
        raise StillroomError(f"{read.source}: {key}={name[:40]!r} is unknown{suggest(name, known)}")
    return NETS[name]


def _method(read: Reader, family: Family, images: int) -> dict[str, Any]:
    starts = {"samples_predicted_correctly": "known", "real": "real", "noise": "noise"}
    start = read.text("pix_init")
    if start not in starts:
        raise StillroomError(
            f"{read.source}: pix_init={start[:40]!r} is unknown{suggest(start, starts)}"
        )
    augment = _augment(read, family)
    whole = read.given.get("batch_syn", DEFAULTS["batch_syn"]) in (None, "None")
    found = {
        "kind": "trajectory_matching",
        "experts": _experts(read),
        "schooling": "pad" if family == "pad" else "datm",
        "window": _window(read),
        "inner": read.whole("syn_steps"),
        "batch": images if whole else min(images, read.whole("batch_syn")),
        "rate": read.number("lr_teacher"),
        "labels": "learned",
        "gate": read.number("threshold"),
        "augment": augment,
        "init": starts[start],
        "parameters": _parameters(read, family),
    }
    areas = _areas(read) if family == "edf" else None
    if areas is not None:
        found["areas"] = areas
    labeller = _labeller(read)
    return {**found, "labeller": labeller} if labeller else found


def _labeller(read: Reader) -> dict[str, Any]:
    """Who labels: another network, trained as experts are there, or experts before their end."""
    epoch = read.whole("Label_Model_Timestamp")
    if epoch == 0 or epoch < -1:
        raise StillroomError(
            f"{read.source}: Label_Model_Timestamp={epoch} is no epoch of a training; -1 is its end"
        )
    if read.flag("Initialize_Label_With_Another_Model"):
        schooling = "datm" + (f"+stop={epoch}" if epoch > 0 else "")
        return {"net": _network(read, "Initialize_Label_Model"), "schooling": schooling}
    return {"epoch": epoch} if epoch > 0 else {}


def _augment(read: Reader, family: Family) -> str:
    strategy = read.text("dsa_strategy")
    if not read.flag("dsa") or read.flag("no_aug") or strategy.lower() == "none":
        read.notes.append("no augmentation of the student alone: experts and students of the set")
        read.notes[-1] += " see that of their schooling and protocol; see --schooling.augment"
        return "none"
    if family == "edf":  # whose crops are wide, whatever else is in the strategy
        strategy = "_".join("widecrop" if w == "crop" else w for w in strategy.split("_"))
    from stillroom.data.augment import parse  # imports torch

    return parse(f"dsa:{strategy}").text


def _experts(read: Reader) -> int:
    """Files of ten, ten of them unless the configuration says fewer."""
    files, each = (
        10 if read.given.get(key) in (None, "None") else min(10, read.whole(key))
        for key in ("max_files", "max_experts")
    )
    return files * each


def _window(read: Reader) -> dict[str, int]:
    last = read.whole("max_start_epoch")
    found = {
        "first": read.whole("min_start_epoch"),
        "last": last,
        "epochs": read.whole("expert_epochs"),
    }
    if read.flag("Sequential_Generation"):
        begin = min(last, read.whole("current_max_start_epoch"))
        found |= {"begin": begin, "grow": read.whole("expansion_end_epoch")}
    return found


def _parameters(read: Reader, family: Family) -> dict[str, Any]:
    key = {"edf": "loss_threshold", "datm": "", "pad": "loss_ratio"}[family]
    drop, share = "easy", 0.0
    if family == "pad" and "depth_ratio" in read:
        key, drop = "depth_ratio", "shallow"
        read.notes.append("depth_ratio: first layers are left out; its last code reads it not")
    if key in read:
        share = read.number(key)
    elif family == "edf":
        read.notes.append(f"{key}: not there, where its code leaves out everything; 0 here")
    if not share < 1:
        raise StillroomError(f"{read.source}: {key}={share:g} leaves nothing; it must be below 1")
    return {"drop": drop, "share": share} if share else {"drop": "none", "share": 0.0}


def _areas(read: Reader) -> dict[str, Any] | None:
    if "beta" not in read:
        read.notes.append("beta: not there, where its code stops at the first look; no look here")
        return None
    found: dict[str, Any] = {"beta": read.number("beta"), "every": read.whole("interval")}
    read.notes.append("maps: Grad-CAM, as in the paper; areas.cam=smooth-grad-cam++ is its code's")
    bound = read.number("act_threshold")
    if bound > 0:
        found["threshold"] = bound
    name, layer = read.text("model_name"), read.text("target_layer_deep")
    if name and name.lower().startswith("resnet18"):
        large = read.text("dataset") == "ImageNet"
        read.notes.append(
            "model_name: trained on these classes here, or brought: areas.net=NAME=FILE"
        )
        found["net"] = "imagenet/resnet18" if large else "resnet18-bn"
        if layer.startswith("layer"):
            found["layer"] = layer
        elif layer:
            read.notes.append(f"target_layer_deep: {layer} is no layer of it, its last map here")
    elif name:
        found["net"] = _network(read, "model_name")
        if layer:
            read.notes.append(f"target_layer_deep: {layer}, the network's last map here")
    return found


def _outer(read: Reader) -> dict[str, Any]:
    steps, every = read.whole("Iteration"), read.whole("eval_it")
    if every > 0 and steps // every > MOST_KEPT:
        raise StillroomError(f"{read.source}: eval_it={every} keeps {steps // every} sets")
    return {
        "steps": steps,
        "images": {"kind": "sgd", "lr": read.number("lr_img"), "momentum": 0.5},
        "labels": {"kind": "sgd", "lr": read.number("lr_y"), "momentum": read.number("Momentum_y")},
        "rate": {"kind": "sgd", "lr": read.number("lr_lr"), "momentum": 0.5},
        "keep": list(range(every, steps + 1, every)) if 0 < every <= steps else [],
    }


def _evaluation(read: Reader, family: Family) -> dict[str, Any]:
    mode, epochs, batch = (
        read.text("eval_mode"),
        read.whole("epoch_eval_train"),
        read.whole("batch_train"),
    )
    if mode not in POOLS:
        read.notes.append(f"eval_mode: {mode}, the network of the distillation here; see --arch")
    protocol = "edf@1" if family == "edf" else "datm@1"
    protocol += f"+epochs={epochs}" if epochs != 1000 else ""
    protocol += f"+batch={batch}" if batch != 128 else ""
    return {
        "protocol": protocol,
        "archs": POOLS.get(mode, ["auto"]),
        "seeds": read.whole("num_eval"),
    }
