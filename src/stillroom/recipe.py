"""Recipes: YAML, flags and Python all become one frozen `Recipe` through one validator."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from stillroom.artefacts.schooling import Schooling, changed, find_schooling
from stillroom.config import DSA, DSA_WIDE, Model, class_at
from stillroom.errors import StillroomError, suggest
from stillroom.files import read_limited
from stillroom.methods import METHODS, PRESETS
from stillroom.methods.base import Method, Outer
from stillroom.methods.regularisers import REGULARISERS, Regulariser, Watch

MAX_RECIPE_BYTES = 2**20
M = TypeVar("M", bound=Model)


class EvaluateSpec(Model):
    """One evaluation that a recipe asks for."""

    protocol: str = Field("quick@1", description="name@version of the protocol")
    archs: tuple[str, ...] = Field(("auto",), description="student architectures")
    seeds: int = Field(3, ge=1, strict=True, description="students per architecture")
    baselines: bool = Field(True, description="random and coreset rows beside it")
    teachers: tuple[str, ...] = Field(
        (), description="networks that label, schooled as the method's; by default those"
    )


class Recipe(Model):
    """One row: what is distilled from what, how. Device, threads and folders are no part of it."""

    name: str = Field("", description="the preset or recipe that this came from")
    benchmark: str = Field(description="data: a name, hf:owner/name, or a folder")
    ipc: int = Field(ge=1, le=10**6, strict=True, description="images per class")
    method: Method = Field(description="kind and hyper-parameters")
    arch: str = Field("auto", description="network of the distiller; auto follows the image size")
    seed: int = Field(0, ge=0, strict=True, description="every draw is a function of it")
    numerics: Literal["float32", "tf32", "bf16", "float64"] = Field(
        "float32", description="part of the key: it changes the result"
    )
    storage: Literal["auto", "float32", "float16", "uint8", "jpeg"] = Field(
        "auto", description="how images are kept: auto is uint8 for chosen ones, else float32"
    )
    outer: Outer = Field(Outer.model_construct(), description="outer loop")
    regularisers: tuple[Regulariser, ...] = Field((), description="terms added to the method's")
    watch: Watch | None = Field(None, description="assessments that are logged while it runs")
    evaluate: tuple[EvaluateSpec, ...] = Field((), description="evaluations to run afterwards")
    zca: bool = Field(
        False, strict=True, description="of whitened images: run by its own name, as with --zca"
    )

    @field_validator("method", mode="before")
    @classmethod
    def _by_kind(cls, value: Any) -> Any:
        if isinstance(value, Method):
            return value
        if not isinstance(value, dict) or not isinstance(value.get("kind"), str):
            raise ValueError("must be a mapping with a kind, such as {kind: distribution_matching}")
        family = method_class(value["kind"])
        own = ":" in value["kind"]  # an import path is no field of the class that it names
        return family(**{k: v for k, v in value.items() if not (own and k == "kind")})

    @field_validator("outer", mode="before")
    @classmethod
    def _labels_go(cls, value: Any, info: ValidationInfo) -> Any:
        """The optimiser of labels is not of a row or set whose labels are not learned after all."""
        unread = getattr(info.data.get("method"), "labels", "learned") != "learned"
        if unread and isinstance(value, dict):
            return {name: one for name, one in value.items() if name != "labels"}
        return value

    @field_validator("regularisers", mode="before")
    @classmethod
    def _each_by_kind(cls, value: Any) -> Any:
        if not isinstance(value, (list, tuple)):
            raise ValueError("must be a list, such as [{kind: clom, weights: [1000]}]")
        return tuple(_regulariser(one) for one in value)

    @model_validator(mode="after")
    def _terms_have_steps(self) -> Recipe:
        if (self.regularisers or self.watch) and not self.method.steps(self.outer):
            raise ValueError(
                f"regularisers and watch belong to steps, and {self.method.name()} runs none"
            )
        return self

    @model_validator(mode="after")
    def _everything_is_read(self) -> Recipe:
        if self.numerics not in self.method.numerics:
            raise ValueError(
                f"numerics {self.numerics} changes nothing of {self.method.name()}, which computes "
                f"in {self.method.numerics[0]}; leave it out"
            )
        if getattr(self.method, "labels", "") == "learned" and self.outer.labels is None:
            raise ValueError(
                "learned labels need an optimiser of their own, outer.labels; start from datm, pad "
                "or edf, which have one"
            )
        return self

    @property
    def stored_as(self) -> Literal["float32", "float16", "uint8", "jpeg"]:
        """The storage that "auto" stands for: whole pixels only where images are real ones."""
        if self.storage != "auto":
            return self.storage
        chosen = getattr(self.method, "rule", None) in ("random", "herding", "k-center", "k-means")
        return "uint8" if chosen and not getattr(self.method, "centroids", False) else "float32"


def _regulariser(value: Any) -> Regulariser:
    if isinstance(value, Regulariser):
        return value
    kind = str(value.get("kind") if isinstance(value, dict) else value)
    own = ":" in kind
    if not isinstance(value, dict) or not (own or kind in REGULARISERS):
        known = ", ".join(REGULARISERS)
        raise ValueError(f"kind {kind[:40]!r} is none of: {known} (or pkg.mod:Class)")
    family: type[Regulariser] = class_at(kind, Regulariser) if own else REGULARISERS[kind]
    return family(**{k: v for k, v in value.items() if not (own and k == "kind")})


def method_class(kind: str) -> type[Method]:
    """Look a family up by kind, or by `pkg.mod:Class` as the user wrote it.

    Raises: ValueError (which the validator turns into one line) if there is none.
    """
    if kind in METHODS:
        return METHODS[kind]
    if ":" not in kind:
        raise ValueError(
            f"kind {kind!r} is unknown; known: {', '.join(METHODS)} "
            f"(or pkg.mod:Class){suggest(kind, METHODS)}"
        )
    found: type[Method] = class_at(kind, Method)
    return found


def validate(value: Any, source: str) -> Recipe:
    """Turn a dict into a Recipe.

    Raises: StillroomError that names `source`, the key, what is wrong and the nearest known key.
    """
    if not isinstance(value, dict):
        raise StillroomError(f"{source}: a recipe must be a mapping of keys to values")
    try:
        return Recipe(**value)
    except ValidationError as error:
        raise StillroomError(f"{source}: " + explain(error)) from None
    except TypeError as error:
        raise StillroomError(f"{source}: {error}") from None


def settled(model: type[M], values: dict[str, Any] | None, source: str) -> M:
    """Make a model of options.

    Raises: StillroomError naming the option.
    """
    try:
        return model(**(values or {}))
    except ValidationError as error:
        raise StillroomError(f"{source}: {explain(error)}") from None


def explain(error: ValidationError) -> str:
    """One line for all problems of a failed validation."""
    lines = []
    for problem in error.errors():
        path = [str(part) for part in problem["loc"]]
        key = ".".join(path) or "recipe"
        message = problem["msg"].removeprefix("Value error, ")
        inner = problem.get("ctx", {}).get("error")
        if isinstance(inner, ValidationError):
            message = explain(inner)
        if problem["type"] == "extra_forbidden":
            message = "unknown key" + suggest(path[-1], _siblings(path))
        elif problem["type"] not in ("missing", "value_error"):
            message += f" (got {reprlib.repr(problem['input'])})"
        lines.append(f"{key}: {message}")
    return "; ".join(dict.fromkeys(lines))


def _siblings(path: list[str]) -> list[str]:
    """Names that could have been meant: fields of every model that a recipe holds."""
    models: list[type[Model]] = [Outer, EvaluateSpec, *METHODS.values()]
    if len(path) == 1:
        models = [Recipe]
    return [name for model in models for name in model.model_fields]


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a recipe file.

    Raises: StillroomError naming the file and line if it is absent, too large or not YAML.
    """
    import yaml

    try:
        if not path.exists():
            raise FileNotFoundError
        value = yaml.safe_load(read_limited(path, MAX_RECIPE_BYTES).decode("utf-8"))
    except FileNotFoundError:
        near = suggest(str(path), [r.name for r in packaged()])
        raise StillroomError(f"{path}: no such recipe file{near}") from None
    except StillroomError:
        raise
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date like 99-99
        where = " ".join(str(error).split())[:160]
        raise StillroomError(f"{path}: not readable as YAML: {where}") from None
    except OSError as error:
        raise StillroomError(f"{path}: {error.strerror or error}") from None
    if not isinstance(value, dict):
        raise StillroomError(f"{path}: a recipe must be a mapping of keys to values")
    return value


def as_yaml(value: dict[str, Any], head: Sequence[str]) -> str:
    """The text of a recipe file: comments, then the fields of a recipe in their order.

    What stands in a comment may be foreign: it stays one short line of printable letters.
    """
    import yaml

    lines = ["".join(c for c in " ".join(line.split()) if c.isprintable())[:300] for line in head]
    body = yaml.safe_dump(value, sort_keys=False, default_flow_style=None, width=100)
    return "".join(f"# {line}\n" for line in lines) + body


class Packaged(Model):
    """A recipe inside the package: `name` is `<preset>/<benchmark>-ipc<k>`."""

    name: str
    path: Path


def packaged() -> list[Packaged]:
    """All recipes inside the package, sorted by name."""
    root = Path(str(resources.files("stillroom") / "recipes"))
    found = sorted(root.glob("*/**/*.yaml"))
    return [Packaged(name=f.relative_to(root).with_suffix("").as_posix(), path=f) for f in found]


def find_row(preset: str, benchmark: str, ipc: int) -> Packaged | None:
    """The packaged row of a preset for a benchmark and ipc, if there is one."""
    return next((r for r in packaged() if r.name == f"{preset}/{benchmark}-ipc{ipc}"), None)


def load_recipe(name: str) -> tuple[dict[str, Any], str]:
    """Read a recipe by path or packaged name; returns (dict, source)."""
    inside = next((r for r in packaged() if r.name == name), None)
    path = inside.path if inside else Path(name)
    value = read_yaml(path)
    value.setdefault("name", name if inside else path.stem)
    return value, name


def from_preset(
    preset: str, benchmark: str, ipc: int, given: dict[str, Any], known: str | None = None
) -> tuple[Recipe, str | None]:
    """Preset defaults, then those of the data, the packaged row, what was given: the last counts.

    `given` is a partial recipe dict (method, outer, arch, ...) that holds only explicit choices;
    `known` is the named benchmark that the data are (`Benchmark.known`), whose row is taken.
    Returns (recipe, name of the row or None).
    """
    if preset not in PRESETS:
        raise StillroomError(
            f"method {preset!r} is unknown; known: {', '.join(PRESETS)}{suggest(preset, PRESETS)}"
        )
    chosen = PRESETS[preset]
    base: dict[str, Any] = {
        "name": preset,
        "benchmark": benchmark,
        "ipc": ipc,
        "method": {"kind": chosen.kind, **chosen.method},
        "outer": dict(chosen.outer),
    }
    from stillroom.data.named import kin

    if like := known or kin(benchmark):
        _suit(base, like)
        if not known:
            base.pop("arch", None)  # which is by size too
    row = find_row(preset, known, ipc) if known else None
    if row is not None:
        base = merged(base, {k: v for k, v in read_yaml(row.path).items() if k != "benchmark"})
        base["evaluate"] = ()  # a row's evaluations run when it is run by its own name
    method, asked = base["method"], given.get("method", {})
    if asked.get("buffers") and "schooling" in asked:
        raise StillroomError("--schooling is of experts that are trained here; leave it out")
    if isinstance(asked.get("schooling"), str):  # by name, as students of these data see them
        asked = {**asked, "schooling": find_schooling(asked["schooling"], like)}
        given = {**given, "method": asked}
    _spell_out(method, asked)
    METHODS[chosen.kind].let_go(method, asked)
    if asked.get("labels", "learned") != "learned" and given.get("outer", {}).get("labels"):
        raise StillroomError(
            "--labels.lr and its like are of labels that are learned; leave it out"
        )
    over = f" over recipe {row.name}" if row else ""
    return validate(merged(base, given), f"distill {preset}{over}"), row.name if row else None


def _suit(base: dict[str, Any], known: str) -> None:
    """Give a preset the augmentation (where it has any) and the network of known data."""
    from stillroom.data.named import NAMED

    method, named = base["method"], NAMED.get(known)
    if named is None:
        return
    augment = METHODS[method["kind"]].model_fields.get("augment")
    own = method.get("augment", augment.default if augment else None)
    if own in (DSA, DSA_WIDE):
        wide = named.augment.replace("_crop_", "_widecrop_")
        method["augment"] = wide if own == DSA_WIDE else named.augment
        taught = METHODS[method["kind"]].model_fields.get("schooling")
        followed = method.get("schooling", taught.default if taught else None)
        if not isinstance(followed, str | None) and dict(followed).get("augment") == DSA:
            method["schooling"] = {**dict(followed), "augment": named.augment}
    base["arch"] = named.arch


def _spell_out(method: dict[str, Any], asked: dict[str, Any]) -> None:
    """Write a preset's or a row's schooling out with what is to change in it, the rest scaled."""
    named, changes = method.get("schooling"), asked.get("schooling")
    if named is None or not isinstance(changes, dict):
        return
    base = find_schooling(named) if isinstance(named, str) else Schooling(**dict(named))
    whole = changed(base, changes)
    method["schooling"] = {**dict(whole), "order": dict(whole.order)}


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` laid over `base`, mapping by mapping."""
    out = dict(base)
    for key, value in over.items():
        old = out.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            out[key] = merged(old, value)
        else:
            out[key] = value
    return out


def with_overrides(value: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Lay `key.sub=value` texts over a recipe dict; values are read as YAML.

    A number is the place of an entry of a list, from 0: `regularisers.0.weights=[5]`.
    Raises: StillroomError if one has no '=' or is not YAML, or leads through what holds no keys.
    """
    import yaml

    for text in overrides:
        key, equals, raw = text.partition("=")
        if not equals or not key:
            raise StillroomError(f"override {text!r} must look like key.sub=value")
        try:
            parsed = yaml.safe_load(raw)
        except (yaml.YAMLError, ValueError, RecursionError):
            raise StillroomError(f"override {text[:80]!r}: its value is not YAML") from None
        try:
            value = _laid(value, key.split("."), parsed)
        except ValueError as error:
            raise StillroomError(f"override {text[:80]!r}: {error}") from None
    return value


def _laid(old: Any, path: list[str], new: Any) -> Any:
    """`new` laid over `old` at a path of keys and places."""
    if not path:
        both = isinstance(old, dict) and isinstance(new, dict)
        return merged(old, new) if both else new
    first, *rest = path
    if isinstance(old, (list, tuple)):
        place = int(first) if first.isascii() and first.isdigit() and len(first) < 10 else len(old)
        if place >= len(old):
            raise ValueError(f"{first!r} is none of the {len(old)} entries, counted from 0")
        return [_laid(one, rest, new) if i == place else one for i, one in enumerate(old)]
    if old is not None and not isinstance(old, dict):
        raise ValueError(f"{str(old)[:40]!r} has no {first!r} to change; give all of it")
    known = old or {}
    return {**known, first: _laid(known.get(first), rest, new)}
