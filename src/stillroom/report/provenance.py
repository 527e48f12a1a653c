"""Where a set comes from, as groups of (term, value). All of it is foreign text, none followed."""

from __future__ import annotations

import json
from typing import Any

from stillroom.report.gather import Shown
from stillroom.report.sentences import making_time, real_data
from stillroom.tables import plural, size

Pairs = list[tuple[str, str]]
MAX_VALUE = 400
MAX_RECIPE = 20_000


def groups(shown: Shown) -> list[tuple[str, Pairs]]:
    """Recipe, real data, files and machine, each without the terms that nothing is known of."""
    found = [
        ("Recipe", _recipe(shown)),
        ("Real data", _data(shown)),
        ("The set", _files(shown)),
        ("Machine", _machine(shown.run)),
    ]
    return [(name, [(k, v) for k, v in pairs if v]) for name, pairs in found]


def whole_recipe(shown: Shown) -> str:
    """Everything that determined the pixels, as JSON, cut where it is unreasonably long."""
    recipe = shown.data.provenance.get("recipe")
    if not recipe:
        return ""
    text = json.dumps(recipe, indent=2, sort_keys=True, ensure_ascii=False)
    return text if len(text) <= MAX_RECIPE else text[:MAX_RECIPE] + "\n… cut here"


def papers(shown: Shown) -> list[str]:
    """The BibTeX keys that a set names; what is no text is dropped."""
    keys = shown.data.provenance.get("papers")
    return [k for k in keys if isinstance(k, str)][:50] if isinstance(keys, list) else []


def _recipe(shown: Shown) -> Pairs:
    made, recipe = shown.data.provenance, _dict(shown.data.provenance.get("recipe"))
    method, outer = _dict(recipe.get("method")), _dict(recipe.get("outer"))
    step, steps = made.get("step"), outer.get("steps")
    parts = {k: v for k, v in method.items() if k not in ("kind", "augment")}
    partly = step != steps and step and steps
    return [
        ("Name", flat(made.get("label"))),
        ("Key", flat(made.get("key"))),
        ("Method", flat(method.get("kind"))),
        ("Settings", flat(parts)),
        ("Optimiser", flat(outer.get("images"))),
        ("Steps", f"{flat(step)} of {flat(steps)}" if partly else flat(steps or step)),
        ("Seed", flat(recipe.get("seed"))),
        ("Numerics", flat(recipe.get("numerics"))),
        ("Network", shown.data.arch),
        ("Augmentation", shown.data.augment),
        ("Started from", flat(recipe.get("start"))),
        ("Packaged recipe", flat(shown.run.get("row"))),
    ]


def _data(shown: Shown) -> Pairs:
    data = shown.data.data
    side, channels, same = (data.get(name) for name in ("size", "channels", "duplicates"))
    notes = data.get("notes")
    found = [
        ("Name", flat(data.get("name"))),
        ("Digest", flat(data.get("digest"))),
        ("Images", real_data(data)),
        ("Classes", str(len(shown.data.classes))),
    ]
    if isinstance(side, int) and isinstance(channels, int):
        found.append(("Size", f"{side} × {side}, {plural(channels, 'channel')}"))
    if isinstance(same, int):
        found.append(("In train and test", f"{same} identical images"))
    if isinstance(notes, list):
        found.append(("Notes", "; ".join(flat(n) for n in notes)))
    return found


def _files(shown: Shown) -> Pairs:
    data = shown.data
    n, ch, high, wide = data.images.shape
    pre = data.preprocess
    zca = ", then ZCA whitening" if pre.zca is not None else ""
    mean, std = (" ".join(f"{v:.4g}" for v in values) for values in (pre.mean, pre.std))
    soft = {"probs": "soft, probabilities", "logits": "soft, logits"}
    return [
        ("Images", f"{n} of {ch} × {high} × {wide}, {data.ipc} per class"),
        ("Stored as", data.storage),
        ("Labels", soft.get(data.label_kind, "hard, one class an image")),
        ("Learned step size", "" if data.lr is None else f"{data.lr:g}"),
        ("Preprocessing", f"{pre.name}: (pixel − {mean}) / {std}{zca}"),
        ("Labels of teachers", _of_teachers(shown)),
        ("On disk", f"{size(shown.bytes)} ({shown.bytes:,} bytes)".replace(",", " ")),
        ("Bits a class", f"{8 * shown.bytes / len(data.classes):,.0f}".replace(",", " ")),
    ]


def _of_teachers(shown: Shown) -> str:
    """What a set carries beside its own labels."""
    found = shown.data.relabels
    if found is None:
        return ""
    of = found.header
    kept = f" ({of.kept} kept)" if of.kept < of.epochs else ""
    by = f" by {', '.join(one.arch for one in found.told)}" if found.told else ""
    what = f"{plural(of.epochs, 'epoch')}{kept} of drawn views and one of the images"
    share = f"{found.nbytes / shown.bytes:.3g} times the images"
    return flat(f"{what}{by}: {of.codec}, {size(found.nbytes)}, {share}")


def _machine(run: dict[str, Any]) -> Pairs:
    if not run:
        return [("Not recorded", "The folder has no run.json.")]
    time = making_time(run)
    if time and run.get("from_store") is True:
        time += " (taken from the store, not made anew)"
    flags = [name for name in ("compile", "deterministic") if run.get(name) is True]
    made_with = [f"{k} {flat(run[k])}" for k in ("stillroom", "torch", "python") if run.get(k)]
    return [
        ("Time", time),
        ("Device", " ".join(filter(None, (flat(run.get("device")), _brackets(run))))),
        ("Threads", flat(run.get("threads"))),
        ("Workers", flat(run.get("workers"))),
        ("Switched on", ", ".join(flags)),
        ("Versions", ", ".join(made_with)),
        ("System", flat(run.get("system"))),
        ("Drift", flat(run.get("drift"))),
    ]


def _brackets(run: dict[str, Any]) -> str:
    named = [flat(run[k]) for k in ("device_name", "cpu") if run.get(k)]
    return f"({', '.join(named)})" if named else ""


def flat(value: Any) -> str:
    """Any JSON value as a short line of text; nothing for None, empty text and empty lists."""
    if value is None or value == "" or value == [] or value == {}:
        return ""
    if isinstance(value, dict):
        text = ", ".join(f"{k} {flat(v) or '-'}" for k, v in value.items())
    elif isinstance(value, list):
        text = ", ".join(flat(v) or "-" for v in value)
    elif isinstance(value, bool):
        text = "yes" if value else "no"
    elif isinstance(value, float):
        text = f"{value:g}"
    else:
        text = str(value)
    return text if len(text) <= MAX_VALUE else text[: MAX_VALUE - 1] + "…"


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
